"""Domain fit: do the unlabelled lines of a source look like the lines that were labelled? A verdict with its reasons.

Two statistics that fail differently, both in units of how much the target's own documents differ from one another:
support coverage, line by line (nearest neighbours: Kynkäänniemi 2019, arXiv 1904.06991; Naeem 2020, arXiv 2002.09797),
and KID, source by source (unbiased polynomial MMD²: Bińkowski 2018, arXiv 1801.01401). A classifier of target against
source is no third one: it tells any two documents apart. Another language in like letters is not seen in images at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from sklearn.neighbors import NearestNeighbors

from maskocr_core.data.features import FEATURES, TOLERANCE

SHRINKAGE = 0.2  # of the covariance towards the identity: every direction counts, none by its noise
NEIGHBOURS = 5  # target lines that must lie near a line to cover it: a single one may itself be odd
GROUP_LINES = 100  # target lines in a group of documents; the KID of fewer is noise
MIN_GROUPS, MAX_GROUPS = 3, 10  # of two documents each is foreign to the other, and then so is every true source
MIN_LINES = 30  # lines of a source below which it is not judged
KID_SUBSETS, KID_LINES = 20, 300
RESAMPLES = 1000
MIN_WEIGHT = 0.1  # what is worth keeping is drawn at least in every tenth epoch
UNDECIDED_WEIGHT = 0.5  # nothing speaks against such a source and nothing for it
WORST = 5  # example lines named in a verdict


@dataclass(frozen=True)
class Thresholds:
    """Where accept ends and reject begins. Ratios and shares, so that they hold for any script and scan."""

    accept_kid_ratio: float = 3.0
    """A source is accepted up to this multiple of the largest KID between the target's own documents."""
    reject_kid_ratio: float = 100.0
    """A source is rejected beyond this multiple."""
    accept_coverage: float = 0.8
    """A source is accepted if at least this share of its lines is covered (lower end of the interval)."""
    coverage_slack: float = 0.05
    """How far below the worst covered target documents a source may lie, where these lie below accept_coverage."""
    reject_coverage: float = 0.5
    """A source is rejected if less than this share of its lines is covered (upper end) or is not refused one by one."""
    radius_quantile: float = 0.95
    """Share of the target's lines that the radius covers, each group of documents being left out in turn."""
    refuse_radius: float = 1.5
    """A line is refused alone beyond this multiple of the distance within which 99 % of left-out target lines lie."""

    def __post_init__(self) -> None:
        for value, low, high, field in (
            (self.accept_kid_ratio, 0, self.reject_kid_ratio, "accept_kid_ratio"),
            (self.accept_coverage, self.reject_coverage, 1, "accept_coverage"),
            (self.reject_coverage, 0, 1, "reject_coverage"),
            (self.radius_quantile, 0.5, 0.99, "radius_quantile"),
            (self.refuse_radius, 1, math.inf, "refuse_radius"),
            (self.coverage_slack, 0, 1, "coverage_slack"),
        ):
            if not low <= value <= high:
                raise ValueError(f"{field}={value} must lie from {low} to {high}")


@dataclass(frozen=True, eq=False)
class Lines:
    """Described lines: line_ids (N), features (N, FEATURES) float32, pages (N) and documents (N) as str.

    Raises ValueError if the four do not fit together or a feature is not finite.
    """

    line_ids: Sequence[str]
    features: np.ndarray
    pages: Sequence[str]
    documents: Sequence[str]

    def __post_init__(self) -> None:
        count = len(self.line_ids)
        if self.features.shape != (count, FEATURES) or len(self.pages) != count or len(self.documents) != count:
            raise ValueError(
                f"{count} line ids, features {self.features.shape}, {len(self.pages)} pages and "
                f"{len(self.documents)} documents: give one of each a line, with {FEATURES} features"
            )
        if not np.isfinite(self.features).all():
            raise ValueError("features must be finite: describe the lines with features.describe")


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is done with a source. Shares in [0, 1]; None where a statistic could not be had.

    weight: share of epochs in which a kept line is drawn. line_weights: (N,) float32 in the order of the source's
    lines: `weight`, or 0 for a line refused alone. refused: share of these. coverage: {value, low, high} of the kept
    lines, 95 % by resampling pages, and `all`, the value with refused lines. kid: {value, null_max, ratio} of the kept
    lines. target: {lines, documents, groups: [{documents, lines, coverage, kid}]}, each group against the others.
    """

    verdict: Literal["accept", "down-weight", "reject", "undecided"]
    weight: float
    reasons: tuple[str, ...]
    refused: float | None
    coverage: dict[str, float] | None
    kid: dict[str, float] | None
    target: dict[str, Any]
    worst_example_ids: tuple[str, ...]
    line_weights: np.ndarray
    thresholds: Thresholds

    def record(self) -> dict[str, Any]:
        """All but the weights of single lines, as JSON-able values."""
        record = asdict(self)
        del record["line_weights"]
        return {**record, "reasons": list(self.reasons), "worst_example_ids": list(self.worst_example_ids)}


def judge(target: Lines, source: Lines, thresholds: Thresholds, seed: int = 0) -> Verdict:
    """Hold an unlabelled source against the labelled target lines; the same arguments give the same verdict.

    Lines unlike anything labelled are refused one by one first, so that one bad box does not condemn a source; the rest
    is judged as a whole. Undecided, with what to label, where the target cannot say how much its own documents differ,
    and where the two statistics disagree. Raises ValueError if the source has no lines.
    """
    if not len(source.line_ids):
        raise ValueError("the source has no lines: leave it out, or look among the refused lines for the reason")
    documents = np.asarray(target.documents, str)
    groups, count = _groups(documents)
    about = {"lines": len(documents), "documents": len(set(documents)), "groups": []}
    if count < MIN_GROUPS:
        more = _documents_for(MIN_GROUPS * GROUP_LINES - len(documents), documents, MIN_GROUPS - count)
        have = f"{_plural(len(documents), 'labelled line')} of {_plural(about['documents'], 'document')}"
        reason = (
            f"{have} cannot tell how much the target's own documents differ: label {_plural(more, 'more document')}."
        )
        weights = np.full(len(source.line_ids), UNDECIDED_WEIGHT, np.float32)
        return Verdict("undecided", UNDECIDED_WEIGHT, (reason,), None, None, None, about, (), weights, thresholds)

    # One space for all groups: of one fitted anew without each, three documents would accept any script.
    whiten = _whitening(target.features)
    known, new = whiten(target.features), whiten(source.features)
    random = np.random.default_rng(seed)
    radius, refusal, null_max = _calibrate(known, groups, documents, thresholds, random, about["groups"])
    distances = _distances(known, new)
    kept = distances <= refusal
    coverage = kid = None
    if kept.sum() >= MIN_LINES:
        coverage = _coverage(distances[kept] <= radius, np.asarray(source.pages, str)[kept], random)
        coverage["all"] = float((distances <= radius).mean())
        size = min(KID_LINES, min(group["lines"] for group in about["groups"]), int(kept.sum()))
        value = float(np.mean(_kid(new[kept], known, size, random)))
        kid = {"value": value, "null_max": null_max, "ratio": value / null_max}
    worst_group = min(group["coverage"] for group in about["groups"])
    verdict, weight, reasons = _decide(kept, coverage, kid, worst_group, documents, thresholds)
    worst = tuple(source.line_ids[i] for i in np.argsort(-distances, kind="stable")[:WORST])
    line_weights = np.where(kept, weight, 0).astype(np.float32)
    refused = float(1 - kept.mean())
    return Verdict(verdict, weight, reasons, refused, coverage, kid, about, worst, line_weights, thresholds)


def _decide(
    kept: np.ndarray,
    coverage: dict | None,
    kid: dict | None,
    worst_group: float,
    documents: np.ndarray,
    thresholds: Thresholds,
) -> tuple[str, float, tuple[str, ...]]:
    refused = f"{1 - kept.mean():.0%} of {_plural(len(kept), 'line')} are unlike any labelled line: refused one by one"
    if kept.mean() < thresholds.reject_coverage:
        return "reject", 0.0, (f"{refused}. Look at the examples; bring what is good as a source of its own.",)
    reasons = [] if kept.all() else [f"{refused}."]
    if coverage is None or kid is None:
        reasons.append(f"Only {_plural(int(kept.sum()), 'line')} can be judged: join kindred sources, to {MIN_LINES}.")
        return "undecided", UNDECIDED_WEIGHT, tuple(reasons)
    reasons += [
        f"{coverage['value']:.0%} (95 %: {coverage['low']:.0%} to {coverage['high']:.0%}) of the lines kept lie where "
        f"labelled lines lie; of labelled documents held against the others, at least {worst_group:.0%} do.",
        f"As a whole they differ from the labelled lines {max(0.0, kid['ratio']):.1f} times as much as labelled "
        f"documents differ among themselves (accepted up to {thresholds.accept_kid_ratio:g} times, rejected over "
        f"{thresholds.reject_kid_ratio:g}).",
    ]
    enough = min(thresholds.accept_coverage, worst_group - thresholds.coverage_slack)
    near, covered = kid["ratio"] <= thresholds.accept_kid_ratio, coverage["low"] >= enough
    far, uncovered = kid["ratio"] > thresholds.reject_kid_ratio, coverage["high"] < thresholds.reject_coverage
    if near and covered:
        return "accept", 1.0, tuple(reasons)
    if near and uncovered or far and covered:
        more = _documents_for(GROUP_LINES, documents, 1)
        reasons.append(f"The two disagree: label {_plural(more, 'more document')}, best of this source.")
        return "undecided", UNDECIDED_WEIGHT, tuple(reasons)
    if far or uncovered:
        return "reject", 0.0, tuple(reasons)
    weight = min(coverage["value"], thresholds.accept_kid_ratio / max(kid["ratio"], thresholds.accept_kid_ratio))
    return "down-weight", float(np.clip(weight, MIN_WEIGHT, 1.0)), tuple(reasons)


def _groups(documents: np.ndarray) -> tuple[np.ndarray, int]:
    """Documents packed into as many even groups of at least GROUP_LINES as there can be: (N,) group, and how many."""
    names, sizes = np.unique(documents, return_counts=True)
    for count in range(min(len(names), int(sizes.sum()) // GROUP_LINES, MAX_GROUPS), 1, -1):
        filled, group_of = np.zeros(count, int), {}
        for i in np.argsort(-sizes, kind="stable"):  # largest first, each into the emptiest group
            group_of[names[i]] = int(filled.argmin())
            filled[filled.argmin()] += sizes[i]
        if filled.min() >= GROUP_LINES:
            return np.array([group_of[name] for name in documents]), count
    return np.zeros(len(documents), int), min(1, len(documents))


def _documents_for(lines: int, documents: np.ndarray, least: int) -> int:
    """How many documents as long as the target's have so many lines."""
    length = len(documents) / max(1, len(set(documents)))
    return max(least, math.ceil(lines / max(1.0, length)))


def _calibrate(
    known: np.ndarray,
    groups: np.ndarray,
    documents: np.ndarray,
    thresholds: Thresholds,
    random: np.random.Generator,
    record: list,
) -> tuple[float, float, float]:
    """Radius of cover, distance of refusal, largest KID between a group and the others; fills `record` a group."""
    distances, size = np.zeros(len(known)), min(KID_LINES, int(np.bincount(groups).min()))
    null_max = 1e-6
    for group in range(groups.max() + 1):
        inside = groups == group
        distances[inside] = _distances(known[~inside], known[inside])
        draws = _kid(known[inside], known[~inside], size, random)
        # The spread belongs to it: between very like documents the mean is about zero, or below.
        null_max = max(null_max, float(draws.mean() + draws.std()))
        record.append(
            {
                "documents": sorted(set(documents[inside].tolist())),
                "lines": int(inside.sum()),
                "kid": float(draws.mean()),
            }
        )
    radius = float(np.quantile(distances, thresholds.radius_quantile))
    for group, values in enumerate(record):
        values["coverage"] = float((distances[groups == group] <= radius).mean())
    return radius, max(radius, thresholds.refuse_radius * float(np.quantile(distances, 0.99))), null_max


def _whitening(features: np.ndarray):
    """The map that makes the target's features uncorrelated and of about equal spread."""
    mean, spread = features.mean(axis=0, dtype=float), features.std(axis=0, dtype=float) + TOLERANCE
    variances, axes = np.linalg.eigh(np.cov(((features - mean) / spread).T))
    shrunk = (1 - SHRINKAGE) * variances + SHRINKAGE * max(variances.mean(), TOLERANCE)
    matrix = axes / np.sqrt(np.maximum(shrunk, 1e-9)) / spread[:, None]
    return lambda new: (new - mean) @ matrix


def _distances(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    """(N,) distance of each new line to the NEIGHBOURS-th nearest known one."""
    return NearestNeighbors(n_neighbors=NEIGHBOURS).fit(known).kneighbors(new)[0][:, -1]


def _coverage(covered: np.ndarray, pages: np.ndarray, random: np.random.Generator) -> dict[str, float]:
    """Share covered, with a 95 % interval that resamples whole pages; lines, if there is only one page."""
    _, page = np.unique(pages, return_inverse=True)
    page = page if page.max() else np.arange(len(covered))
    lines, hits = np.bincount(page), np.bincount(page, covered)
    draws = random.multinomial(len(lines), np.full(len(lines), 1 / len(lines)), RESAMPLES)
    low, high = np.quantile(draws @ hits / (draws @ lines), (0.025, 0.975))
    return {"value": float(covered.mean()), "low": float(low), "high": float(high)}


def _kid(a: np.ndarray, b: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """(KID_SUBSETS,) unbiased MMD² with the kernel (x·y/F + 1)³ between random subsets of `size` lines of each."""

    def once() -> float:
        x, y = (lines[random.choice(len(lines), size, replace=False)] for lines in (a, b))
        xx, yy, xy = (((p @ q.T) / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
        return ((xx.sum() - np.trace(xx)) + (yy.sum() - np.trace(yy))) / (size * (size - 1)) - 2 * xy.mean()

    return np.array([once() for _ in range(KID_SUBSETS)])


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"

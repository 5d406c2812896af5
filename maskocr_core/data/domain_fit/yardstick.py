"""How much the target's own documents differ from one another: the measure by which unlabelled sources are judged.

Every limit here comes from leaving out the target's documents, group by group, and asking of them what is asked of a source:
how far do their lines lie from the others (nearest neighbours), how much do they differ as a whole (KID), and do they lie
nearer turned than upright? No limit knows any script, scan or collection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from maskocr_core.data.domain_fit import visual_words
from maskocr_core.data.domain_fit.features import TOLERANCE
from maskocr_core.data.domain_fit.likeness import effective, kid, prediction_limit, spread
from maskocr_core.data.domain_fit.orientation import TURNS

SHRINKAGE = 0.2  # of the covariance towards the identity: every direction counts, none by its noise
COMPONENTS = 64  # directions kept of longer features: of an encoder's hundreds most are noise
NEIGHBOURS = 5  # target lines that must lie near a line to cover it: a single one may itself be odd
GROUP_LINES = 100  # target lines in a group of documents; the KID of fewer is noise
MIN_GROUPS = 3  # of two documents each is foreign to the other, and then so is every true source
KID_LINES = 300  # at most, in one draw
REFUSE_QUANTILE = 0.99  # of left-out labelled lines: the odd ones among them are no measure of what to refuse


@dataclass(frozen=True)
class Thresholds:
    """Where accept ends and reject begins. Ratios and shares, so that they hold for any script and scan."""

    accept_kid_ratio: float = 3.0
    """A source is accepted up to this multiple of the KID that as many documents of the target would reach at most."""
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
        for value, low, high, name in (
            (self.accept_kid_ratio, 0, self.reject_kid_ratio, "accept_kid_ratio"),
            (self.accept_coverage, self.reject_coverage, 1, "accept_coverage"),
            (self.reject_coverage, 0, 1, "reject_coverage"),
            (self.radius_quantile, 0.5, 0.99, "radius_quantile"),
            (self.refuse_radius, 1, math.inf, "refuse_radius"),
            (self.coverage_slack, 0, 1, "coverage_slack"),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name}={value} must lie from {low} to {high}")


@dataclass(frozen=True, eq=False)
class Lines:
    """Described lines: line_ids (N), features (N, F) float32, pages, documents and sources (N) as str.

    turned: (T, len(TURNS), F) float32, the features of the lines `turned_rows` (T,) with each of TURNS undone. Raises
    ValueError if these do not fit together or a feature is not finite.
    """

    line_ids: Sequence[str]
    features: np.ndarray
    pages: Sequence[str]
    documents: Sequence[str]
    sources: Sequence[str] = ()
    turned: np.ndarray | None = None
    turned_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, int))

    def __post_init__(self) -> None:
        count, columns = len(self.line_ids), (self.pages, self.documents, *([self.sources] if self.sources else []))
        if self.features.ndim != 2 or any(len(column) != count for column in (self.features, *columns)):
            raise ValueError(
                f"{count} line ids, features {self.features.shape}, {len(self.pages)} pages, {len(self.documents)} documents "
                f"and {len(self.sources)} sources: give one of each a line"
            )
        wanted = (len(self.turned_rows), len(TURNS), self.features.shape[1])
        if self.turned is not None and self.turned.shape != wanted:
            raise ValueError(
                f"turned features are {self.turned.shape}, not {wanted}: one row a line, a turn and a feature"
            )
        if not np.isfinite(self.features).all() or (self.turned is not None and not np.isfinite(self.turned).all()):
            raise ValueError("features must be finite: describe the lines with features.described")


@dataclass(frozen=True, eq=False)
class Yardstick:
    """A calibrated target. Distances are in a space in which the target's features are uncorrelated.

    known: (N, K) float32, target lines. radius: within which a line is covered. refusal: beyond which it is refused alone.
    between: variance between documents in units of KID: mean and standard deviation over the groups, number of groups,
    documents a group; None where there are too few groups. usable: of TURNS those that can be told in left-out documents.
    centres, words: visual words, and those of the known lines. groups: {documents, lines, coverage, kid, kid_ratio}, each
    held against the others.
    """

    thresholds: Thresholds
    seed: int
    mean: np.ndarray
    matrix: np.ndarray
    known: np.ndarray
    documents: int
    effective: float
    radius: float
    refusal: float
    between: tuple[float, float, int, float] | None
    size: int
    usable: tuple[str, ...]
    centres: np.ndarray
    words: np.ndarray
    groups: list[dict[str, Any]]

    def whitened(self, features: np.ndarray) -> np.ndarray:
        """(N, F) features as (N, K) float32 in the space of `known`."""
        return ((features - self.mean) @ self.matrix).astype(np.float32)

    def distances(self, whitened: np.ndarray) -> np.ndarray:
        """(N,) distance of each line to the NEIGHBOURS-th nearest known one."""
        return _distances(self.known, whitened)

    def kid_limit(self, documents: float) -> float:
        """The KID that so many (effective) documents of the target would reach at most, drawn as one source."""
        assert self.between is not None
        mean, deviation, groups, of_group = self.between
        return prediction_limit(mean, deviation, groups, of_group / documents) * spread(documents, self.effective)

    def record(self) -> dict[str, Any]:
        """What was calibrated, as JSON-able values; documents are counted and not named."""
        return {
            "lines": len(self.known),
            "documents": self.documents,
            "groups": self.groups,
            "radius": self.radius,
            "refusal": self.refusal if math.isfinite(self.refusal) else None,
            "turns_told": list(self.usable),
            "neighbours": NEIGHBOURS,
            "visual_words": len(self.centres),
            "thresholds": asdict(self.thresholds),
        }

    @property
    def worst_coverage(self) -> float:
        """Share of lines covered in the group of documents that the others cover worst."""
        return min(group["coverage"] for group in self.groups)


def calibrate(target: Lines, thresholds: Thresholds, seed: int = 0) -> Yardstick:
    """Measure the target by leaving out its documents; the same arguments give the same yardstick.

    Where there are fewer than MIN_GROUPS groups, single documents (or pages of the only one) say how far lines may lie, and
    nothing is known of KID. Raises ValueError if there are not enough lines to describe a target at all.
    """
    if len(target.line_ids) <= 2 * NEIGHBOURS:
        raise ValueError(f"{len(target.line_ids)} labelled lines are no target: label more, at least a few documents")
    documents = np.asarray(target.documents, str)
    # One space for all groups: of one fitted anew without each, three documents would accept any script.
    mean, matrix = _whitening(target.features)
    known = ((target.features - mean) @ matrix).astype(np.float32)
    group, count = grouped(documents, target.sources)
    parts = group if count >= MIN_GROUPS else _parts(documents, np.asarray(target.pages, str))
    distances, shares = _left_out(known, parts, target, mean, matrix)
    radius = float(np.quantile(distances, thresholds.radius_quantile))
    # Few lines are nearer to one another than to the next one, whatever it is: they may refuse but what is far off.
    factor = thresholds.refuse_radius ** (1 if count >= MIN_GROUPS else 2)
    refusal = max(radius, factor * float(np.quantile(distances, REFUSE_QUANTILE)))
    between, groups, size = None, [], 0
    if count >= MIN_GROUPS:
        size = min(KID_LINES, int(np.bincount(group).min()))
        between, groups = _between(known, group, documents, size, np.random.default_rng(seed))
        for number, record in enumerate(groups):
            record["coverage"] = float((distances[group == number] <= radius).mean())
    centres = visual_words.fit(known, seed)
    return Yardstick(
        thresholds=thresholds,
        seed=seed,
        mean=mean,
        matrix=matrix,
        known=known,
        documents=len(set(documents.tolist())),
        effective=effective(documents),
        radius=radius,
        refusal=refusal if len(set(parts.tolist())) > 1 else math.inf,
        between=between,
        size=size,
        usable=tuple(turn for turn, share in zip(TURNS, shares) if share < 0.5),
        centres=centres,
        words=visual_words.of(known, centres),
        groups=groups,
    )


def _between(
    known: np.ndarray, group: np.ndarray, documents: np.ndarray, size: int, random: np.random.Generator
) -> tuple[tuple[float, float, int, float], list[dict[str, Any]]]:
    """Variance between documents from the KID of each group against the others, and a record a group."""
    records, variances = [], []
    for number in range(group.max() + 1):
        inside = group == number
        value = kid(known[inside], known[~inside], size, random)
        mine, others = effective(documents[inside]), effective(documents[~inside])
        variances.append(value / spread(mine, others))
        records.append({"documents": len(set(documents[inside].tolist())), "lines": int(inside.sum()), "kid": value})
        records[-1]["effective"] = mine
    of_group = float(np.mean([record["effective"] for record in records]))
    between = (float(np.mean(variances)), float(np.std(variances, ddof=1)), len(records), of_group)
    for record, variance in zip(records, variances):
        record["kid_ratio"] = variance / prediction_limit(*between[:3], of_group / record.pop("effective"))
    return between, records


def grouped(documents: np.ndarray, sources: Sequence[str] = ()) -> tuple[np.ndarray, int]:
    """Whole documents, those of a source together, in groups of at least GROUP_LINES: (N,) group, and how many.

    Small groups of kindred documents, since that is what an unlabelled source is: groups mixed from everywhere would be
    more alike than any true source.
    """
    names, numbers, sizes = np.unique(documents, return_inverse=True, return_counts=True)
    first = np.unique(documents, return_index=True)[1]
    order = sorted(range(len(names)), key=lambda i: (sources[first[i]] if len(sources) else "", names[i]))
    group_of, number, filled = np.zeros(len(names), int), 0, 0
    for i in order:
        group_of[i] = number
        filled += sizes[i]
        if filled >= GROUP_LINES:
            number, filled = number + 1, 0
    # What is left over, too few for a group of its own, joins the last.
    return np.minimum(group_of, max(0, number - 1))[numbers], number


def _parts(documents: np.ndarray, pages: np.ndarray) -> np.ndarray:
    """(N,) part: documents, or the pages of the only one."""
    return np.unique(documents if len(np.unique(documents)) > 1 else pages, return_inverse=True)[1]


def _left_out(
    known: np.ndarray, parts: np.ndarray, target: Lines, mean: np.ndarray, matrix: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) distance of each line to the other parts, and (TURNS,) largest share of a part that is nearer when turned."""
    distances, shares = np.zeros(len(known)), np.full(len(TURNS), 1.0 if target.turned is None else 0.0)
    for number in np.unique(parts):
        inside = parts == number
        others = known[~inside] if (~inside).sum() > NEIGHBOURS else known
        distances[inside] = _distances(others, known[inside])
        mine = np.flatnonzero(inside[target.turned_rows])
        for place in range(len(TURNS) if len(mine) else 0):
            turned = ((target.turned[mine, place] - mean) @ matrix).astype(np.float32)
            nearer = _distances(others, turned) < distances[target.turned_rows[mine]]
            shares[place] = max(shares[place], nearer.mean())
    return distances, shares


def _whitening(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,) and map (F, K) that make the target's features uncorrelated and of about equal spread."""
    mean, spread = features.mean(axis=0, dtype=float), features.std(axis=0, dtype=float) + TOLERANCE
    variances, axes = np.linalg.eigh(np.cov(((features - mean) / spread).T))
    variances, axes = variances[::-1][:COMPONENTS], axes[:, ::-1][:, :COMPONENTS]
    shrunk = (1 - SHRINKAGE) * variances + SHRINKAGE * max(variances.mean(), TOLERANCE)
    return mean, axes / np.sqrt(np.maximum(shrunk, 1e-9)) / spread[:, None]


def _distances(known: np.ndarray, new: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    if not len(new):
        return np.zeros(0)
    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(known)), algorithm="brute").fit(known)
    return search.kneighbors(new)[0][:, -1].astype(float)

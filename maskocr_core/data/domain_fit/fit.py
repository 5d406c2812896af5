"""Domain fit: do the unlabelled lines of a source look like the lines that were labelled? A verdict with its reasons.

Two statistics that fail differently, both in units of how much the target's own documents differ from one another:
support coverage, line by line (nearest neighbours: Kynkäänniemi 2019, arXiv 1904.06991; Naeem 2020, arXiv 2002.09797),
and KID, source by source (unbiased polynomial MMD²: Bińkowski 2018, arXiv 1801.01401). A classifier of target against
source is no third one: it tells any two documents apart. Another language in like letters is not seen in images at all.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from maskocr_core.data.domain_fit.likeness import effective, kernel, kid
from maskocr_core.data.domain_fit.orientation import MENDS, TURNS
from maskocr_core.data.domain_fit.yardstick import GROUP_LINES, MIN_GROUPS, Lines, Yardstick

MIN_LINES = 30  # lines of a source below which it is not judged
RESAMPLES = 1000
INTERVAL_LINES = 1000  # of source and target each, from which the interval of KID is taken
MIN_WEIGHT = 0.1  # what is worth keeping is drawn at least in every tenth epoch
ALIKE_RATIO = 1.0  # of KID: a source within the target's own spread, which coverage may then not contradict
UNDECIDED_WEIGHT = 0.5  # nothing speaks against such a source and nothing for it


@dataclass(frozen=True, eq=False)
class Verdict:
    """What is done with a source. Shares in [0, 1]; None where a statistic could not be had.

    weight: share of epochs in which a kept line is drawn, before visual words. refused: share of lines refused alone.
    coverage: {value, low, high} of the kept lines, and `all`, the value with refused lines. kid: {value, low, high, limit,
    ratio} of the kept lines; ratio is value / limit. Intervals are 95 %, by page. turned: for each turn that can be told, the
    share of lines that are nearer when it is undone. distances: (N,) of the source's lines; kept: (N,) bool.
    """

    verdict: Literal["accept", "down-weight", "reject", "undecided"]
    weight: float
    reasons: tuple[str, ...]
    refused: float
    coverage: dict[str, float] | None
    kid: dict[str, float] | None
    turned: dict[str, float]
    distances: np.ndarray
    kept: np.ndarray

    @property
    def line_weights(self) -> np.ndarray:
        """(N,) float32: `weight`, or 0 for a line refused alone."""
        return np.where(self.kept, self.weight, 0).astype(np.float32)

    def record(self) -> dict[str, Any]:
        """All but what is said of single lines, as JSON-able values."""
        record = asdict(self)
        del record["distances"], record["kept"]
        return {**record, "reasons": list(self.reasons)}


def judge(yardstick: Yardstick, source: Lines) -> Verdict:
    """Hold an unlabelled source against the labelled target; the same arguments give the same verdict.

    Lines unlike anything labelled are refused one by one first, so that one bad box does not condemn a source; the rest
    is judged as a whole. Undecided, with what to label, where the target cannot say how much its own documents differ,
    and where the two statistics disagree. Raises ValueError if the source has no lines.
    """
    if not len(source.line_ids):
        raise ValueError("the source has no lines: leave it out, or look among the refused lines for the reason")
    random = np.random.default_rng(yardstick.seed)
    new = yardstick.whitened(source.features)
    distances = yardstick.distances(new)
    kept = distances <= yardstick.refusal
    turned, wrong = _turned(yardstick, source, distances, random)
    coverage = likeness = None
    if yardstick.between and kept.sum() >= MIN_LINES:
        pages = np.asarray(source.pages, str)[kept]
        coverage = _share(distances[kept] <= yardstick.radius, pages, random)
        coverage["all"] = float((distances <= yardstick.radius).mean())
        likeness = _likeness(yardstick, new[kept], pages, np.asarray(source.documents, str)[kept], random)
    if wrong:
        verdict, weight, reasons = "reject", 0.0, (_of_turn(wrong, turned[wrong]),)
    elif not yardstick.between:
        verdict, weight, reasons = "undecided", UNDECIDED_WEIGHT, _of_small_target(yardstick, kept)
    else:
        verdict, weight, reasons = _decide(yardstick, kept, coverage, likeness)
    return Verdict(verdict, weight, reasons, float(1 - kept.mean()), coverage, likeness, turned, distances, kept)


def _decide(
    yardstick: Yardstick, kept: np.ndarray, coverage: dict | None, likeness: dict | None
) -> tuple[Any, float, tuple[str, ...]]:
    limits = yardstick.thresholds
    if kept.mean() < limits.reject_coverage:
        return "reject", 0.0, (f"{_refused(kept)}. Look at the examples; bring what is good as a source of its own.",)
    reasons = [] if kept.all() else [f"{_refused(kept)}."]
    if coverage is None or likeness is None:
        reasons.append(f"Only {_plural(int(kept.sum()), 'line')} can be judged: join kindred sources, to {MIN_LINES}.")
        return "undecided", UNDECIDED_WEIGHT, tuple(reasons)
    ratio, worst = likeness["ratio"], yardstick.worst_coverage
    reasons += [
        f"{coverage['value']:.0%} (95 %: {coverage['low']:.0%} to {coverage['high']:.0%}) of the lines kept lie where "
        f"labelled lines lie; of labelled documents held against the others, at least {worst:.0%} do.",
        f"As a whole they differ from the labelled lines {max(0.0, ratio):.1f} times as much as so many labelled "
        f"documents would at most (accepted up to {limits.accept_kid_ratio:g} times, rejected over "
        f"{limits.reject_kid_ratio:g}).",
    ]
    covered = coverage["low"] >= enough(yardstick)
    uncovered = coverage["high"] < limits.reject_coverage
    near, far = ratio <= limits.accept_kid_ratio, ratio > limits.reject_kid_ratio
    if near and covered:
        return "accept", 1.0, tuple(reasons)
    # Within what the target's own documents do (1) and yet in no place of theirs; or the other way round.
    if ratio <= ALIKE_RATIO and uncovered or far and covered:
        more = _documents_for(GROUP_LINES, yardstick, 1)
        reasons.append(f"The two disagree: label {_plural(more, 'more document')}, best of this source.")
        return "undecided", UNDECIDED_WEIGHT, tuple(reasons)
    if far or uncovered:
        return "reject", 0.0, tuple(reasons)
    weight = min(coverage["value"], limits.accept_kid_ratio / max(ratio, limits.accept_kid_ratio))
    return "down-weight", float(np.clip(weight, MIN_WEIGHT, 1.0)), tuple(reasons)


def enough(yardstick: Yardstick) -> float:
    """Coverage from which a source is accepted."""
    limits = yardstick.thresholds
    return min(limits.accept_coverage, yardstick.worst_coverage - limits.coverage_slack)


def _turned(
    yardstick: Yardstick, source: Lines, distances: np.ndarray, random: np.random.Generator
) -> tuple[dict[str, float], str]:
    """Share of lines that are nearer when a turn is undone, by turn; and the turn that most lines are in, "" for none.

    What is foreign may lie nearer any way round by chance: a source is turned only if, put right, its lines are covered as
    those of an accepted source are.
    """
    rows, pages = source.turned_rows, np.asarray(source.pages, str)
    shares, wrong, best = {}, "", math.inf
    for turn in yardstick.usable if source.turned is not None and len(rows) >= MIN_LINES else ():
        right = yardstick.distances(yardstick.whitened(source.turned[:, list(TURNS).index(turn)]))
        nearer = _share(right < distances[rows], pages[rows], random)
        shares[turn] = nearer["value"]
        least = enough(yardstick) if yardstick.groups else yardstick.thresholds.accept_coverage
        put_right = (right <= yardstick.radius).mean() >= least
        if nearer["low"] > 0.5 and put_right and np.median(right) < best:
            wrong, best = turn, float(np.median(right))
    return shares, wrong


def _likeness(
    yardstick: Yardstick, new: np.ndarray, pages: np.ndarray, documents: np.ndarray, random: np.random.Generator
) -> dict[str, float]:
    """KID of the source with its interval by page, and the limit for as many documents of the target."""
    value = kid(new, yardstick.known, min(yardstick.size, len(new)), random)
    limit = yardstick.kid_limit(effective(documents))
    margin = _margin(new, yardstick.known, pages, random)
    return {"value": value, "low": value - margin, "high": value + margin, "limit": limit, "ratio": value / limit}


def _margin(new: np.ndarray, known: np.ndarray, pages: np.ndarray, random: np.random.Generator) -> float:
    """Half the 95 % interval of KID under another draw of pages: what each line adds to it, summed by page; 0 for one page."""
    from scipy import stats

    chosen = random.permutation(len(new))[:INTERVAL_LINES]
    x, y = (lines.astype(float) for lines in (new[chosen], known[random.permutation(len(known))[:INTERVAL_LINES]]))
    _, page = np.unique(pages[chosen], return_inverse=True)
    count = int(page.max()) + 1
    if count < 2:
        return 0.0
    inside = kernel(x, x)
    np.fill_diagonal(inside, 0)
    influence = 2 * (inside.sum(axis=1) / (len(x) - 1) - kernel(x, y).mean(axis=1))
    sums = np.bincount(page, influence - influence.mean())
    error = math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(x)
    return float(stats.t.ppf(0.975, count - 1)) * error


def _share(hits: np.ndarray, pages: np.ndarray, random: np.random.Generator) -> dict[str, float]:
    """Share of hits, with a 95 % interval that resamples whole pages; lines, if there is only one page."""
    _, page = np.unique(pages, return_inverse=True)
    page = page if page.max() else np.arange(len(hits))
    lines, by_page = np.bincount(page), np.bincount(page, hits)
    draws = random.multinomial(len(lines), np.full(len(lines), 1 / len(lines)), RESAMPLES)
    low, high = np.quantile(draws @ by_page / (draws @ lines), (0.025, 0.975))
    return {"value": float(hits.mean()), "low": float(low), "high": float(high)}


def _of_small_target(yardstick: Yardstick, kept: np.ndarray) -> tuple[str, ...]:
    lines = len(yardstick.known)
    missing = MIN_GROUPS - min(yardstick.documents, lines // GROUP_LINES)
    more = _documents_for(
        MIN_GROUPS * GROUP_LINES - lines, yardstick, max(1, min(missing, MIN_GROUPS - yardstick.documents))
    )
    have = f"{_plural(lines, 'labelled line')} of {_plural(yardstick.documents, 'document')}"
    reasons = [
        f"{have} cannot tell how much the target's own documents differ: label {_plural(more, 'more document')}."
    ]
    return tuple(reasons if kept.all() else [f"{_refused(kept)}.", *reasons])


def _of_turn(turn: str, share: float) -> str:
    return (
        f"The lines are {turn}: {share:.0%} of them lie nearer to the labelled lines the other way round. "
        f"Bring them again: {MENDS[turn]}."
    )


def _refused(kept: np.ndarray) -> str:
    refused = int((~kept).sum())
    return f"{refused:,} of {_plural(len(kept), 'line')} {'is' if refused == 1 else 'are'} unlike any labelled line: refused one by one"


def _documents_for(lines: int, yardstick: Yardstick, least: int) -> int:
    """How many documents as long as the target's have so many lines."""
    length = len(yardstick.known) / max(1, yardstick.documents)
    return max(least, math.ceil(lines / max(1.0, length)))


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

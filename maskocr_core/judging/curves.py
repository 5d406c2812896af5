"""How the CER falls with more labels: a curve through a few budgets, and the labels that a start saves.

A curve is a power law CER = a n^-b over n labelled lines, a straight line in logarithms, fitted by weighted least
squares (after Figueroa et al. 2012, https://doi.org/10.1186/1472-6947-12-8, whose law has a floor besides, which a
handful of budgets cannot show). It is never read beyond `REACH` times the largest or below a `REACH`th of the smallest
budget: a law that holds over a decade of labels says nothing of the next one.

A curve's uncertainty is drawn: each measured CER anew from its spread over documents and seeds, the curve fitted again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

REACH = 4.0
"""Factor beyond the measured budgets up to which a curve is read (our choice: two doublings)."""
MIN_BUDGETS = 3
"""Two points lie on every power law; the third can contradict it."""
MIN_SEEDS = 2
"""One seed's luck looks like a result; two can differ."""
MIN_SPREAD = 0.01
"""Least relative spread of a CER: two seeds that agree by chance would else outweigh every other point."""
DRAWS = 4_000
"""Draws: the standard error of a probability is below 0.008."""

Side = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Point:
    """What a start reached with a budget of labelled lines.

    cers: test CER, as a share, of each seed. low, high: bounds of their mean by documents at `confidence`; None or nan
    where documents were too few. Raises ValueError for a budget or CER that no run can have.
    """

    start: str
    budget: int
    cers: tuple[float, ...]
    low: float | None
    high: float | None
    confidence: float = 0.95

    def __post_init__(self) -> None:
        name = f"{self.start} with {self.budget} labels"
        if self.budget < 1:
            raise ValueError(f"{name}: a budget is at least 1 line")
        if not self.cers or not all(0 <= cer < math.inf for cer in self.cers) or not sum(self.cers) > 0:
            raise ValueError(
                f"{name}: CERs {list(self.cers)} have no logarithm: give one of each seed, from test lines that err"
            )
        if self.measured and not self.low <= self.cer * (1 + 1e-9) <= self.high * (1 + 2e-9):
            raise ValueError(f"{name}: the CER {self.cer:g} is not between its bounds {self.low:g} and {self.high:g}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"{name}: confidence {self.confidence:g} is not between 0 and 1: give 0.95, say")

    @property
    def cer(self) -> float:
        """Mean over seeds."""
        return sum(self.cers) / len(self.cers)

    @property
    def measured(self) -> bool:
        """Whether there are bounds by documents."""
        return None not in (self.low, self.high) and not math.isnan(self.low + self.high)

    @property
    def spread(self) -> float | None:
        """Relative standard error of the CER over documents and seeds; None where either is unknown.

        The bounds are taken as normal ones; of few documents they are t bounds, and the spread comes out too wide.
        """
        if len(self.cers) < MIN_SEEDS or not self.measured:
            return None
        by_documents = (self.high - self.cer) / NormalDist().inv_cdf((1 + self.confidence) / 2)
        by_seeds = float(np.std(self.cers, ddof=1)) / math.sqrt(len(self.cers))
        return max(math.hypot(by_documents, by_seeds) / self.cer, MIN_SPREAD)


@dataclass(frozen=True)
class Curve:
    """CER = a n^-b of a start, measured at `budgets` budgets from `smallest` to `largest` labels.

    a, b: None where there is no curve, and `reason` says why. misfit: root mean square of what the law leaves of log
    CER.
    """

    start: str
    budgets: int
    smallest: int
    largest: int
    a: float | None = None
    b: float | None = None
    misfit: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Saving:
    """Labels that scratch and a start need for one CER, and what the start saves; None with a reason where a curve
    cannot say. crossing: labels at which the curves cross within both ranges, so that the better start is the worse one
    beyond."""

    start: str
    target_cer: float
    scratch_labels: float | None
    start_labels: float | None
    saved: float | None
    crossing: float | None
    reason: str | None


def fit(points: Sequence[Point], start: str) -> Curve:
    """The curve of a start; without a and b, and with a reason, where it has fewer than `MIN_BUDGETS` budgets.

    Points weigh by 1/spread², or all alike where one spread is unknown. Raises ValueError for a budget given twice and
    for a start without points.
    """
    mine = _of(points, start)
    seen = (start, len(mine), mine[0].budget, mine[-1].budget)
    if len(mine) < MIN_BUDGETS:
        reason = f"too few budgets for a curve of {start}: {len(mine)} of at least {MIN_BUDGETS}"
        return Curve(*seen, reason=reason)
    solver, logs, _ = _least_squares(mine)
    log_a, slope = solver @ logs
    left = logs - log_a - slope * np.log([point.budget for point in mine])
    return Curve(*seen, float(np.exp(log_a)), float(-slope), float(np.sqrt(np.mean(left**2))))


def cer_at(curve: Curve, labels: float) -> float | None:
    """CER as a share that the curve gives for a number of labels; None without a curve and outside its range."""
    if curve.a is None or not curve.smallest / REACH <= labels <= curve.largest * REACH:
        return None
    return curve.a * labels**-curve.b


def labels_at(curve: Curve, cer: float) -> float | None:
    """Labelled lines for which the curve gives a CER (a share above 0); None as in `cer_at`, and where more labels do
    not help. Raises ValueError for a CER that is not above 0."""
    if not 0 < cer < math.inf:
        raise ValueError(f"the CER {cer:g} is none that a curve can reach: give a share above 0, such as 0.05")
    if curve.a is None or curve.b <= 0:
        return None
    logarithm = (math.log(curve.a) - math.log(cer)) / curve.b
    if not math.log(curve.smallest / REACH) <= logarithm <= math.log(curve.largest * REACH):
        return None
    return math.exp(logarithm)


def labels_saved(scratch: Curve, other: Curve, target_cer: float) -> Saving:
    """How many labels scratch needs for a CER minus how many the other start needs: negative where it needs more.

    Raises ValueError as `labels_at` does.
    """
    need, needs = labels_at(scratch, target_cer), labels_at(other, target_cer)
    why = [why_not(curve, target_cer) for curve, labels in ((scratch, need), (other, needs)) if labels is None]
    saved = None if why else need - needs
    return Saving(other.start, target_cer, need, needs, saved, _crossing(scratch, other), "; ".join(why) or None)


def labels_drawn(points: Sequence[Point], curve: Curve, target_cer: float, rng: np.random.Generator) -> Side | None:
    """Labels for a CER by each of `DRAWS` fitted curves, at least and at most, (DRAWS,) float64 each; None without
    spreads.

    Within the range both are the curve's; beyond it all that is known is the end of the range that was passed.
    """
    solver, logs, errors = _least_squares(_of(points, curve.start))
    if errors is None:
        return None
    log_a, slope = solver @ rng.normal(logs[:, None], errors[:, None], (len(logs), DRAWS))
    falls = slope < 0
    labels = np.where(falls, (log_a - math.log(target_cer)) / np.where(falls, -slope, 1.0), 0.0)
    first, last = curve.smallest / REACH, curve.largest * REACH
    inside = np.exp(np.clip(labels, math.log(first), math.log(last)))
    least = np.where(~falls | (labels < math.log(first)), 0.0, inside)
    most = np.where(~falls | (labels > math.log(last)), np.inf, inside)
    return least, most


def why_not(curve: Curve, cer: float) -> str:
    """Why a curve gives no number of labels for a CER, and what to do."""
    if curve.reason:
        return curve.reason
    if curve.b <= 0:
        return f"the CER of {curve.start} does not fall with more labels"
    if cer < cer_at(curve, curve.largest):
        return (
            f"{curve.start} would need more than {curve.largest * REACH:,.0f} labels for {cer:.2%} CER, "
            "beyond what its points can tell: ask for a higher CER, or measure larger budgets"
        )
    return (
        f"{curve.start} would need fewer than {curve.smallest / REACH:,.0f} labels for {cer:.2%} CER, "
        "below what its points can tell: ask for a lower CER, or measure smaller budgets"
    )


def _of(points: Sequence[Point], start: str) -> list[Point]:
    mine = sorted((point for point in points if point.start == start), key=lambda point: point.budget)
    if not mine:
        raise ValueError(f"no point is of the start {start!r}: known are {sorted({point.start for point in points})}")
    twice = [budget for budget, times in Counter(point.budget for point in mine).items() if times > 1]
    if twice:
        raise ValueError(f"{start} has several points with {twice[0]} labels: put the CERs of all seeds into one")
    return mine


def _least_squares(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """What makes (log a, -b) of the K log CERs, (2, K); these, (K,); and their standard errors (K,), None if unknown.

    Where points lie farther from their line than their errors allow, the errors are raised until they do (Birge 1932,
    https://doi.org/10.1103/PhysRev.40.207): the law is wrong by then, and the draws should know.
    """
    logs = np.log([point.cer for point in points])
    design = np.stack([np.ones(len(points)), np.log([point.budget for point in points])], axis=1)
    spreads = [point.spread for point in points]
    if None in spreads:
        return np.linalg.pinv(design), logs, None
    weights = 1 / np.array(spreads)
    solver = np.linalg.pinv(design * weights[:, None]) * weights
    left = (logs - design @ (solver @ logs)) * weights
    return solver, logs, max(1.0, math.sqrt(left @ left / (len(points) - 2))) / weights


def _crossing(one: Curve, other: Curve) -> float | None:
    if one.a is None or other.a is None or one.b == other.b:
        return None
    logarithm = (math.log(one.a) - math.log(other.a)) / (one.b - other.b)
    first, last = max(one.smallest, other.smallest) / REACH, min(one.largest, other.largest) * REACH
    return math.exp(logarithm) if first <= last and math.log(first) <= logarithm <= math.log(last) else None

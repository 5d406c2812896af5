"""What lines cost where a person reads the less confident ones, and from which confidence on that is cheapest.

With review the expected cost is P(accept) E[cost | accept] + P(review) review cost (Chow 1970, On optimum recognition
error and reject tradeoff, https://doi.org/10.1109/TIT.1970.1054406). Costs of errors are those of `cost`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskocr_core.judging.cost import expected_cost, one_a_line
from maskocr_core.judging.statistics import MIN_DOCUMENTS, Interval
from maskocr_core.judging.weights import Weights

POINTS = 21
"""Points of a curve over thresholds besides the best: none reviewed, a twentieth of the lines, and so on to all."""


@dataclass(frozen=True)
class Threshold:
    """What sending the less confident lines to a person costs.

    threshold: lines of a lower confidence are reviewed, 0 none; None: all lines are. reviewed: their share. errors:
    cost of the accepted lines' errors, and cost: that plus review, both per line of all lines, in the unit of the
    weights.
    """

    threshold: float | None
    reviewed: float
    errors: float
    cost: float


@dataclass(frozen=True)
class ThresholdChoice:
    """The threshold of the lowest expected cost over all that tell the lines apart, and a curve of few points."""

    best: Threshold
    curve: tuple[Threshold, ...]


@dataclass(frozen=True)
class Review:
    """What a line costs where those below a threshold go to a person, with the review cost multiplied by a factor.

    threshold: as in `Threshold`. share: of the lines that are judged, which a person reads. cost: per line of all lines.
    """

    factor: float
    threshold: float | None
    share: float
    cost: Interval


def reviewed_costs(confidences: np.ndarray, costs: np.ndarray, threshold: float | None, weights: Weights) -> np.ndarray:
    """(N,) float64 costs of lines where those of a confidence below the threshold (None: all) cost their review
    instead.

    confidences: (N,) in [0, 1]. costs: (N,) as `cost.line_costs` gives them. Raises ValueError for arrays of different
    lengths and for a confidence outside [0, 1].
    """
    confidences, costs = _checked(confidences, costs)
    return np.where(confidences < (math.inf if threshold is None else threshold), weights.review_cost, costs)


def cost_by_threshold(confidences: np.ndarray, costs: np.ndarray, weights: Weights) -> ThresholdChoice:
    """The threshold of the lowest expected cost, and what others would cost.

    confidences: (N,) in [0, 1]. costs: (N,) as `cost.line_costs` gives them. Of equally cheap thresholds the one of fewest
    reviews. The lowest of many estimates is too low: choose on validation lines, and give test lines to
    `reviewed_costs`. Raises ValueError as `reviewed_costs` does, and where there is no line.
    """
    confidences, costs = _checked(confidences, costs)
    count = len(one_a_line(costs))
    order = np.argsort(confidences, kind="stable")
    ascending = confidences[order]
    # A cut before line k reviews the k least confident ones; equal confidences cannot be cut apart.
    cuts = np.concatenate([[0], 1 + np.flatnonzero(np.diff(ascending)), [count]])
    errors = np.append(np.cumsum(costs[order][::-1])[::-1], 0.0)[cuts] / count
    shares = cuts / count
    expected = errors + weights.review_cost * shares
    best = int(np.argmin(expected))
    shown = {best} | {int(np.argmin(np.abs(shares - share))) for share in np.linspace(0, 1, POINTS)}

    def point(place: int) -> Threshold:
        cut = cuts[place]
        threshold = 0.0 if cut == 0 else None if cut == count else float(ascending[cut])
        return Threshold(threshold, float(shares[place]), float(errors[place]), float(expected[place]))

    return ThresholdChoice(point(best), tuple(point(place) for place in sorted(shown)))


def review(
    chosen_on: tuple[np.ndarray, np.ndarray],
    judged_on: tuple[np.ndarray, np.ndarray],
    documents: Sequence[str],
    weights: Weights,
    confidence: float = 0.95,
    min_documents: int = MIN_DOCUMENTS,
) -> tuple[Review, ...]:
    """What reviewing the less confident lines comes to, with the review cost as given, then halved and doubled.

    chosen_on, judged_on: confidences and costs, (N,) each, of the validation lines that the cheapest threshold is chosen
    on, and of the test lines that it is judged on. documents: of the latter. Raises ValueError as `cost_by_threshold`
    and `expected_cost` do.
    """
    found = []
    for factor in (1.0, 0.5, 2.0):
        varied = weights.model_copy(update={"review_cost": factor * weights.review_cost})
        threshold = cost_by_threshold(*chosen_on, varied).best.threshold
        costs = reviewed_costs(*judged_on, threshold, varied)
        share = float(np.mean(judged_on[0] < (math.inf if threshold is None else threshold)))
        found.append(Review(factor, threshold, share, expected_cost(costs, documents, confidence, min_documents)))
    return tuple(found)


def _checked(confidences: np.ndarray, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    confidences, costs = (np.asarray(values, dtype=np.float64) for values in (confidences, costs))
    if confidences.shape != costs.shape:
        raise ValueError(f"{len(confidences)} confidences but {len(costs)} costs: give one of each a line")
    if not np.all((confidences >= 0) & (confidences <= 1)):
        raise ValueError("a confidence is not between 0 and 1: give the probability that the line is read right")
    return confidences, costs

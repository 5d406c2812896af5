"""Intervals of error rates and of their differences, clustered by document.

Lines of one document share a hand, a scan and a vocabulary, so they are not independent: an interval from lines alone
covers the truth about 75 times in 100 where it claims 95 (the reason for blockwise resampling in Liu & Peng, arXiv
1912.09508). The unit here is the document. With E_i edits (or a difference of edits) and C_i reference characters in
document i of n, the linearised variance of a ratio (Cochran, Sampling Techniques, 1977, section 6.3) gives

    d = sum E / sum C,   r_i = E_i - d C_i,   SE^2 = n/(n-1) * sum r_i^2 / (sum C)^2,   d +- t_{n-1} SE.

Where no document differs from the rest, SE is 0 and the interval has no width; it then says nothing beyond the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

MIN_DOCUMENTS = 4
DRAWS = 2**15
"""Sign flips drawn where there are more than this many to enumerate (from 16 documents on)."""
POWER = 0.8


@dataclass(frozen=True)
class Interval:
    """A rate, its bounds, and the documents they come from; bounds are nan where the documents were too few."""

    value: float
    low: float
    high: float
    documents: int


@dataclass(frozen=True)
class Difference(Interval):
    """CER of a minus CER of b on the same lines: negative where a reads better.

    confidence: of the bounds. p: two-sided sign-flip test over documents. smallest_p: what that test could have reached
    with this many documents that differ. detectable: the true difference, as a share, that the test lines would show
    four times in five. All nan, as the bounds are, where the documents were too few.
    """

    confidence: float
    p: float
    smallest_p: float
    detectable: float


def ratio_interval(
    edits: np.ndarray,
    characters: np.ndarray,
    documents: Sequence[str],
    confidence: float = 0.95,
    min_documents: int = MIN_DOCUMENTS,
) -> Interval:
    """t interval of a CER (or WER, given words), clustered by document; its lower bound is at least 0.

    edits, characters: (N,) counts of N lines; edits may be means over seeds. documents: N document ids.
    Raises ValueError if the three differ in length, hold no reference text, or `confidence` is not between 0 and 1.
    """
    edits, characters = _per_document(documents, edits, characters)
    value, error = _ratio(edits, characters)
    reach = _quantile((1 + confidence) / 2, len(edits), min_documents) * error
    return Interval(value, max(value - reach, 0.0) if math.isfinite(reach) else math.nan, value + reach, len(edits))


def paired_difference(
    edits_a: np.ndarray,
    edits_b: np.ndarray,
    characters: np.ndarray,
    documents: Sequence[str],
    confidence: float = 0.95,
    min_documents: int = MIN_DOCUMENTS,
) -> Difference:
    """Difference in CER between two readings of the same lines, a minus b, with everything a decision needs.

    edits_a, edits_b, characters: (N,) counts of N lines; edits may be means over seeds. documents: N document ids.
    Raises ValueError as `ratio_interval` does.
    """
    edits_a, edits_b, characters = _per_document(documents, edits_a, edits_b, characters)
    difference = edits_a - edits_b
    value, error = _ratio(difference, characters)
    quantile = _quantile((1 + confidence) / 2, len(characters), min_documents)
    p, smallest_p = _sign_flip(difference) if math.isfinite(quantile) else (math.nan, math.nan)
    return Difference(
        value,
        value - quantile * error,
        value + quantile * error,
        len(characters),
        confidence,
        p,
        smallest_p,
        detectable=(quantile + _quantile(POWER, len(characters), min_documents)) * error,
    )


@dataclass(frozen=True)
class Bound:
    """Whether a difference is shown to stay below a margin, among several that are tested together.

    standing: `holds` where it is shown, `broken` where the whole interval lies above the margin, else `undecided`.
    upper: one-sided upper bound of the difference at the stated confidence, for itself alone. p: one-sided, adjusted by
    Holm for all that are tested together.
    """

    standing: Literal["holds", "broken", "undecided"]
    upper: float
    p: float


def below_margin(differences: Sequence[Difference], margin: float, confidence: float = 0.95) -> list[Bound]:
    """For each difference in CER whether it is below `margin`, all claims together at `confidence`.

    One-sided t tests of difference >= margin, stepped down by Holm (A simple sequentially rejective multiple test
    procedure, Scandinavian Journal of Statistics 6, 1979), so that many protected slices do not make one of them look
    safe by luck. A difference on too few documents for an interval is undecided, and no part of the family.
    """
    from scipy import stats

    tested = [place for place, difference in enumerate(differences) if math.isfinite(difference.low)]
    errors = {place: _standard_error(differences[place]) for place in tested}
    raw = {}
    for place in tested:
        apart, error = differences[place].value - margin, errors[place]
        raw[place] = float(stats.t.cdf(apart / error, differences[place].documents - 1)) if error else float(apart >= 0)
    bounds = [Bound("undecided", math.nan, math.nan)] * len(differences)
    adjusted = 0.0
    for rank, place in enumerate(sorted(tested, key=raw.__getitem__)):
        adjusted = max(adjusted, min(1.0, (len(tested) - rank) * raw[place]))
        difference = differences[place]
        reach = float(stats.t.ppf(confidence, difference.documents - 1)) * errors[place]
        standing = "holds" if adjusted <= 1 - confidence else "broken" if difference.low > margin else "undecided"
        bounds[place] = Bound(standing, difference.value + reach, adjusted)
    return bounds


def _standard_error(difference: Difference) -> float:
    from scipy import stats

    quantile = float(stats.t.ppf((1 + difference.confidence) / 2, difference.documents - 1))
    return (difference.high - difference.low) / 2 / quantile


def _per_document(documents: Sequence[str], *counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sums of each (N,) array over the lines of each of n documents: (n,) float64."""
    lengths = {len(documents), *(len(count) for count in counts)}
    if len(lengths) > 1:
        raise ValueError(f"edits, characters and documents must have one entry a line each, but hold {sorted(lengths)}")
    _, document = np.unique(np.asarray(documents), return_inverse=True)
    return tuple(np.bincount(document, weights=np.asarray(count, dtype=np.float64)) for count in counts)


def _ratio(edits: np.ndarray, characters: np.ndarray) -> tuple[float, float]:
    """Ratio estimator and its standard error from sums by document (n,); the error of one document is nan."""
    total, n = characters.sum(), len(characters)
    if total <= 0:
        raise ValueError("no reference has any text, so there is no error rate: give labelled test lines")
    value = edits.sum() / total
    if n == 1:
        return float(value), math.nan
    residuals = edits - value * characters
    return float(value), float(math.sqrt(n / (n - 1) * (residuals @ residuals)) / total)


def _quantile(probability: float, documents: int, min_documents: int) -> float:
    """Quantile of t with one degree of freedom fewer than documents; nan below `min_documents`."""
    from scipy import stats

    if not 0 < probability < 1:
        raise ValueError(f"confidence {2 * probability - 1:g} is not between 0 and 1: give 0.95, say")
    if documents < max(min_documents, 2):
        return math.nan
    return float(stats.t.ppf(probability, documents - 1))


def _sign_flip(differences: np.ndarray) -> tuple[float, float]:
    """Two-sided p that edits differ by document, and the smallest p reachable. differences: (n,), n >= 2.

    If a and b read alike, swapping them within a document (the sign of its difference) changes nothing but chance. All
    2^n swaps are tried where they are at most `DRAWS`, else that many with a fixed seed.
    """
    from scipy import stats

    test = stats.permutation_test(
        (differences,),
        lambda flipped, axis: flipped.sum(axis),
        vectorized=True,
        permutation_type="samples",
        n_resamples=DRAWS,
        batch=1000,
        rng=np.random.default_rng(0),
    )
    smallest = min(1.0, 2.0 ** (1 - np.count_nonzero(differences)))
    if 2 ** len(differences) > DRAWS:
        smallest = max(smallest, 2 / (DRAWS + 1))
    return float(test.pvalue), float(smallest)

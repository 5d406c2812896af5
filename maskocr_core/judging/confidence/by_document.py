"""Figures of lines that are alike within a document: each with an interval over documents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskocr_core.judging import statistics
from maskocr_core.judging.statistics import MIN_DOCUMENTS, Interval

FEW_LINES = 20
"""Fewer exact, or fewer inexact, lines than this say next to nothing of how one kind is told from the other."""
DRAWS = 1000  # of the bootstrap: its error is then known to about 2 %


def checked(scores: Any, exact: Any, documents: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (N,) float64, exact (N,) bool, and each line's document as a number from 0 on."""
    scores, exact = np.asarray(scores, np.float64), np.asarray(exact, bool)
    lengths = {len(scores), len(exact), len(documents)}
    if len(lengths) > 1:
        raise ValueError(
            f"confidences, exact and documents must have one entry a line each, but hold {sorted(lengths)}"
        )
    if not len(scores):
        raise ValueError("there is no line to calibrate with: give labelled lines of documents that trained nothing")
    if not np.all(np.isfinite(scores)):
        raise ValueError("a confidence is not a finite number: the recognizer is broken, train it again")
    return scores, exact, np.unique(np.asarray(documents), return_inverse=True)[1]


def why_unusable(exact: np.ndarray, documents: int, auroc: Interval, min_documents: int) -> str:
    """Why lines say nothing of what a confidence is worth, in a sentence; empty where they say something."""
    if documents < min_documents:
        return f"only {documents} documents, fewer than {min_documents}: label lines of more documents"
    for kind, count, mend in (
        ("read exactly", int(exact.sum()), "train further, or label more lines"),
        ("read with an error", int((~exact).sum()), "label more lines"),
    ):
        if count < FEW_LINES:
            return f"only {count} of {len(exact):,} lines {kind}, fewer than {FEW_LINES}: {mend}"
    if auroc.low <= 0.5:
        return (
            "exact lines do not have the higher confidence "
            f"(AUROC {auroc.value:.2f} [{auroc.low:.2f}, {auroc.high:.2f}]): it says nothing here"
        )
    return ""


def share(events: np.ndarray, documents: np.ndarray, confidence: float, min_documents: int) -> Interval:
    """Share of lines (N,) bool, with an interval within [0, 1]."""
    share = statistics.ratio_interval(events, np.ones(len(events)), documents, confidence, min_documents)
    return Interval(
        share.value, share.low, share.high if math.isnan(share.high) else min(share.high, 1.0), share.documents
    )


def error_bound(
    wrong: np.ndarray, documents: Sequence[str], confidence: float = 0.95, min_documents: int = MIN_DOCUMENTS
) -> float:
    """One-sided upper bound of a small share, clustered by document; nan below `min_documents`.

    The exact binomial bound of as many independent lines as these are worth (Korn & Graubard 1998, Survey Methodology
    24): where no line is wrong a t interval would have no width, and 0 of 50 would look like 0 of 5,000.
    wrong: (N,) bool. documents: N document ids.
    """
    from scipy import stats

    share = statistics.ratio_interval(wrong, np.ones(len(wrong)), documents, 2 * confidence - 1, min_documents)
    reach, normal = share.high - share.value, stats.norm.ppf(confidence)
    if math.isnan(reach) or share.value == 1:
        return share.high
    worth = len(wrong) * (normal / stats.t.ppf(confidence, share.documents - 1)) ** 2
    if reach > 0:
        worth = min(worth, normal**2 * share.value * (1 - share.value) / reach**2)
    return float(stats.beta.ppf(confidence, share.value * worth + 1, (1 - share.value) * worth))


def auroc_interval(scores: np.ndarray, exact: np.ndarray, documents: np.ndarray, *settings: Any) -> Interval:
    rank = np.unique(scores, return_inverse=True)[1]
    return by_documents(lambda weights: _auroc(rank, exact, weights), documents, *settings)


def _auroc(rank: np.ndarray, exact: np.ndarray, weights: np.ndarray) -> float:
    """Share of pairs of an exact and an inexact line whose exact one ranks higher, ties half; 0.5 without a pair."""
    right, wrong = np.bincount(rank, weights * exact), np.bincount(rank, weights * ~exact)
    pairs = right.sum() * wrong.sum()
    return float(right @ (np.cumsum(wrong) - wrong / 2) / pairs) if pairs else 0.5


def by_documents(
    figure: Callable[[np.ndarray], float], documents: np.ndarray, confidence: float, min_documents: int
) -> Interval:
    """A figure of weighted lines in [0, 1], and its t interval with the error that a bootstrap over documents shows.

    figure: of weights (N,). The bootstrap gives the error, not the bounds: with few documents its percentiles lie too
    close, and those of an ECE are shifted, since every draw adds chance of its own.
    """
    from scipy import stats

    count = int(documents.max()) + 1
    value = float(figure(np.ones(len(documents))))
    if count < max(min_documents, 2):
        return Interval(value, math.nan, math.nan, count)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS)
    error = np.std([figure(weights[documents]) for weights in drawn]) * math.sqrt(count / (count - 1))
    reach = float(stats.t.ppf((1 + confidence) / 2, count - 1) * error)
    return Interval(value, max(value - reach, 0.0), min(value + reach, 1.0), count)

"""Which lines need no person: thresholds chosen on some lines, and what each comes to on others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskocr_core.judging.confidence.by_document import checked, error_bound, share
from maskocr_core.judging.statistics import MIN_DOCUMENTS, Interval

TARGETS = (0.005, 0.01, 0.02, 0.05)
"""Errors among accepted lines that the operating table is made for."""
CANDIDATES = 200  # thresholds that are tried


@dataclass(frozen=True)
class OperatingPoint:
    """What accepting every line from a threshold on costs and saves, on lines that did not choose the threshold.

    target: the error among accepted lines that was asked for. threshold: None where no threshold was shown to reach it.
    share: of lines that need no person. error, upper: wrong lines among the accepted, and the one-sided upper bound of
    that; nan where none is accepted, or those from too few documents. holds: is the bound within the target?
    """

    target: float
    threshold: float | None
    share: Interval
    error: float
    upper: float
    holds: bool


def thresholds(
    probabilities: np.ndarray,
    exact: np.ndarray,
    documents: Sequence[str],
    confidence: float = 0.95,
    min_documents: int = MIN_DOCUMENTS,
) -> dict[float, float | None]:
    """For each of `TARGETS` the lowest probability from which on the upper bound of the error is within it, else None.

    By the bound, not the estimate (Geifman & El-Yaniv 2017, arXiv 1705.08500): a handful of sure lines without an error
    prove nothing. The bound is that of one threshold, and many are tried: judge the chosen one on other lines.
    Arguments and errors as `fit`.
    """
    probabilities, exact, documents = checked(probabilities, exact, documents)
    found = np.unique(probabilities)
    tried = found[np.unique(np.linspace(0, len(found) - 1, CANDIDATES).round().astype(int))]
    bounds = np.array(
        [
            error_bound(~exact[probabilities >= least], documents[probabilities >= least], confidence, min_documents)
            for least in tried
        ]
    )
    return {target: next(iter(tried[bounds <= target].tolist()), None) for target in TARGETS}


def operating_point(
    target: float,
    least: float | None,
    probabilities: np.ndarray,
    exact: np.ndarray,
    documents: np.ndarray,
    *settings: Any,
) -> OperatingPoint:
    accepted = probabilities >= (np.inf if least is None else least)
    error, upper = math.nan, math.nan
    if accepted.any():
        error = float(np.mean(~exact[accepted]))
        upper = error_bound(~exact[accepted], documents[accepted], *settings)
    return OperatingPoint(target, least, share(accepted, documents, *settings), error, upper, upper <= target)


def sentence(point: OperatingPoint) -> str:
    """An operating point in words: `at 1 % accepted-line error 62 % [58, 66] need no person (…)`."""
    asked = f"at {100 * point.target:g} % accepted-line error"
    if point.threshold is None:
        return f"{asked}: not reachable, no threshold was shown to keep it"
    low, high = (f"{100 * bound:.0f}" for bound in (point.share.low, point.share.high))
    bounds = "too few documents for an interval" if math.isnan(point.share.low) else f"{low}, {high}"
    if math.isnan(point.upper):
        found = "too few accepted lines to say how many are wrong"
    else:
        found = f"{100 * point.error:.1f} % of them wrong, at most {100 * point.upper:.1f} %"
    shown = "" if point.holds else "; not shown to hold on these lines"
    return f"{asked} {100 * point.share.value:.0f} % [{bounds}] need no person ({found}{shown})"

"""What probabilities are worth on test lines: how true they are, how well they part right from wrong, what they save.

Lines of a document are alike (`statistics`), so every interval is clustered by document. A threshold is chosen on the
lines that the map was fitted on, and judged on others: on its own lines it would look better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskocr_core.judging.confidence.by_document import auroc_interval, by_documents, checked, share, why_unusable
from maskocr_core.judging.confidence.operating import OperatingPoint, operating_point
from maskocr_core.judging.statistics import MIN_DOCUMENTS, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BIN_LINES, MOST_BINS = 30, 15
"""Bins of equal mass, or most of them would be empty where confidences crowd near 1: 15 as in Guo et al., fewer where
they would hold fewer than 30 lines each, whose share alone has a standard error of up to 9 points."""
CURVE = 40  # points of the curve


@dataclass(frozen=True)
class Bin:
    """Lines of similar probability: their mean probability, the share of them that is exact, and how many they are."""

    predicted: float
    exact: Interval
    lines: int


@dataclass(frozen=True)
class Assessment:
    """What probabilities are worth on test lines; every rate is a share.

    exact: lines read exactly. ece: expected calibration error. chance: the ECE of faultless probabilities on as many
    independent lines. brier: mean squared error. auroc: how often an exact line has a higher probability than another.
    bins: the reliability diagram. curve: (accepted share, error among accepted), the surest lines first. table: an
    operating point a target. usable, reason: do the lines say enough to judge by? What ECE is too much is the gate's.
    """

    lines: int
    exact: Interval
    ece: Interval
    chance: float
    brier: Interval
    auroc: Interval
    bins: tuple[Bin, ...]
    curve: tuple[tuple[float, float], ...]
    table: tuple[OperatingPoint, ...]
    usable: bool
    reason: str


def assess(
    probabilities: np.ndarray,
    exact: np.ndarray,
    documents: Sequence[str],
    thresholds: dict[float, float | None],
    confidence: float = 0.95,
    min_documents: int = MIN_DOCUMENTS,
) -> Assessment:
    """What the probabilities of N test lines are worth, with intervals clustered by document.

    probabilities: (N,) float in [0, 1], calibrated, or raw to see what calibration gains. exact: (N,) bool.
    documents: N document ids. thresholds: those of the calibration, or what `thresholds` chose on the lines that it was
    fitted on; never chosen on these lines.
    Sources: ECE, Guo et al. 2017 (arXiv 1706.04599), here in bins of equal mass; curve, Geifman & El-Yaniv 2017.
    Raises ValueError if there is no line, lengths differ, or a probability lies beyond 0 and 1.
    """
    probabilities, exact, documents = checked(probabilities, exact, documents)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError("a probability lies beyond 0 and 1: apply the calibration first")
    bins, squared = _bins(probabilities), (probabilities - exact) ** 2
    settings = (confidence, min_documents)
    ece = by_documents(lambda weights: _ece(probabilities, exact, bins, weights), documents, *settings)
    auroc = auroc_interval(probabilities, exact, documents, *settings)
    reason = why_unusable(exact, int(documents.max()) + 1, auroc, min_documents)
    perfect = np.random.default_rng(0).random((100, len(exact))) < probabilities
    order, accepted = _surest_first(probabilities)
    return Assessment(
        lines=len(exact),
        exact=share(exact, documents, *settings),
        ece=ece,
        chance=float(np.mean([_ece(probabilities, outcome, bins, np.ones(len(exact))) for outcome in perfect])),
        brier=by_documents(lambda weights: np.average(squared, weights=weights), documents, *settings),
        auroc=auroc,
        bins=tuple(
            Bin(
                float(probabilities[bins == number].mean()),
                share(exact[bins == number], documents[bins == number], *settings),
                int(np.sum(bins == number)),
            )
            for number in np.unique(bins)
        ),
        curve=tuple((count / len(exact), float(np.mean(~exact[order[:count]]))) for count in accepted),
        table=tuple(
            operating_point(target, least, probabilities, exact, documents, *settings)
            for target, least in thresholds.items()
        ),
        usable=not reason,
        reason=reason,
    )


def plot(assessment: Assessment) -> bytes:
    """PNG, 1,800 px wide and made for 900: the reliability diagram, and error against the share of lines accepted."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
    _draw_reliability(left, assessment)
    _draw_risk(right, assessment)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=200)
    return content.getvalue()


def _draw_reliability(axes: Axes, assessment: Assessment) -> None:
    rows = [(row.predicted, row.exact.value, row.exact.low, row.exact.high) for row in assessment.bins]
    x, y, low, high = 100 * np.array(rows).T
    axes.plot([0, 100], [0, 100], color="#9ca3af", linewidth=1, linestyle="--")
    axes.vlines(x, low, high, color="#1d4ed8", alpha=0.4)
    axes.plot(x, y, "o", color="#1d4ed8", markersize=5)
    span = (10 * (np.nanmin([x, y, low]) // 10) - 2, 102)  # where all lines are sure, from there on
    axes.set(xlim=span, ylim=span, xlabel="probability, %")
    axes.set_title("Lines read exactly, %", loc="left", fontsize=11)


def _draw_risk(axes: Axes, assessment: Assessment) -> None:
    shares, errors = zip(*assessment.curve, strict=True)
    axes.plot([100 * share for share in shares], [100 * error for error in errors], color="#1d4ed8", linewidth=1.6)
    # Of targets that come to the same threshold the strictest is named; upright labels stand side by side.
    for point in {point.threshold: point for point in reversed(assessment.table)}.values():
        if point.share.value > 0:
            place = (100 * point.share.value, 100 * point.error)
            axes.plot(*place, "o", color="#b45309", markersize=5)
            axes.annotate(
                f"≤ {100 * point.target:g} %",
                place,
                (0, 7),
                textcoords="offset points",
                ha="center",
                rotation=90,
                fontsize=9,
                color="#b45309",
            )
    axes.set(xlim=(0, 102), xlabel="lines accepted, the surest first, %")
    axes.set_ylim(bottom=0)
    axes.set_title("Wrong lines among the accepted, %", loc="left", fontsize=11)


def _bins(probabilities: np.ndarray) -> np.ndarray:
    """(N,) bin of each line; lines of equal probability share one, so that the order of lines changes nothing."""
    count = int(np.clip(len(probabilities) // BIN_LINES, 1, MOST_BINS))
    edges = np.quantile(probabilities, np.arange(1, count) / count, method="higher")
    return np.searchsorted(edges, probabilities, side="right")


def _ece(probabilities: np.ndarray, exact: np.ndarray, bins: np.ndarray, weights: np.ndarray) -> float:
    """Mean over all lines of the distance between mean probability and share exact in each line's bin."""
    return float(np.abs(np.bincount(bins, weights * (probabilities - exact))).sum() / weights.sum())


def _surest_first(probabilities: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Lines (N,) by falling probability, and up to `CURVE` counts to accept, which part no equal probabilities."""
    order = np.argsort(-probabilities, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(probabilities[order])) + 1, len(order))
    wanted = np.linspace(0, len(order), CURVE + 1)[1:]
    return order, np.unique(ends[np.searchsorted(ends, wanted)]).tolist()

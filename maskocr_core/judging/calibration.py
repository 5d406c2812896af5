"""From a recogniser's raw confidence to the probability that a line is exact, and what that is worth on test lines.

The map is isotonic regression (Zadrozny & Elkan 2002), each flat step shrunk to the mean confidence of its lines, with
straight pieces between them (centred isotonic regression, Oron & Flournoy 2017): it rises from its first point to its
last, so that hardly any order is lost. One exact and one inexact line are added at either end (Laplace's rule of
succession): n lines that were all exact show (n + 1) / (n + 2), never certainty.

Lines of a document are alike (`statistics`), so every interval is clustered by document. A threshold is chosen on the
lines that the map was fitted on, and judged on others: on its own lines it would look better than it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskocr_core.judging import statistics
from maskocr_core.judging.statistics import MIN_DOCUMENTS, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT_VERSION = 1
FEW_LINES = 20
"""Fewer exact, or fewer inexact, lines than this say next to nothing of how one kind is told from the other."""
TARGETS = (0.005, 0.01, 0.02, 0.05)
"""Errors among accepted lines that the operating table is made for."""
BIN_LINES, MOST_BINS = 30, 15
"""Bins of equal mass, or most of them would be empty where confidences crowd near 1: 15 as in Guo et al., fewer where
they would hold fewer than 30 lines each, whose share alone has a standard error of up to 9 points."""
DRAWS = 1000  # of the bootstrap: its error is then known to about 2 %
CANDIDATES = 200  # thresholds that are tried
CURVE = 40  # points of the curve


@dataclass(frozen=True)
class Calibration:
    """A rising piecewise-linear map from raw confidence to the probability that a line is exact.

    x, y: its K points, confidences and probabilities in (0, 1); constant beyond the first and the last.
    lines, documents: what it was fitted on. thresholds: accepted-line error -> the lowest probability to accept, None
    where it cannot be reached. usable, reason: where it is not usable, x and y are empty and the reason says why.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    lines: int
    documents: int
    thresholds: dict[float, float | None]
    usable: bool
    reason: str

    def __post_init__(self) -> None:
        if self.usable == bool(self.reason) or self.usable != bool(self.x) or len(self.x) != len(self.y):
            raise ValueError("a usable calibration has as many x as y, an unusable one none of both and a reason")
        if not np.all(np.isfinite([*self.x, *self.y])) or np.any(np.diff(self.x) <= 0) or np.any(np.diff(self.y) < 0):
            raise ValueError("confidences x must rise, and probabilities y must not fall")
        if not all(0 < y < 1 for y in self.y) or not all(
            0 <= t <= 1 for t in self.thresholds.values() if t is not None
        ):
            raise ValueError("probabilities y must lie between 0 and 1, and thresholds not beyond them")


@dataclass(frozen=True)
class Bin:
    """Lines of similar probability: their mean probability, the share of them that is exact, and how many they are."""

    predicted: float
    exact: Interval
    lines: int


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


def fit(
    confidences: np.ndarray,
    exact: np.ndarray,
    documents: Sequence[str],
    confidence: float = 0.95,
    min_documents: int = MIN_DOCUMENTS,
) -> Calibration:
    """The calibration that N lines show, with the thresholds that they allow.

    confidences: (N,) float, raw. exact: (N,) bool, was the line read without an edit? documents: N document ids; none
    of them may have trained the recogniser. confidence, min_documents: as the gate has them.
    Raises ValueError if the three differ in length, hold no line, or a confidence is not finite.
    """
    confidences, exact, documents = _checked(confidences, exact, documents)
    count = int(documents.max()) + 1
    auroc = _auroc_interval(confidences, exact, documents, confidence, min_documents)
    if reason := _why_unusable(exact, count, auroc, min_documents):
        return Calibration((), (), len(exact), count, dict.fromkeys(TARGETS), False, reason)
    x, y = _rising(confidences, exact)
    chosen = thresholds(np.interp(confidences, x, y), exact, documents, confidence, min_documents)
    return Calibration(tuple(x.tolist()), tuple(y.tolist()), len(exact), count, chosen, True, "")


def apply(calibration: Calibration, confidences: np.ndarray) -> np.ndarray:
    """Probabilities (N,) float64 in (0, 1) of raw confidences (N,). Raises ValueError if there is nothing to apply."""
    if not calibration.usable:
        raise ValueError(f"the calibration is unusable, so there are raw confidences only: {calibration.reason}")
    return np.interp(np.asarray(confidences, np.float64), calibration.x, calibration.y)


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
    probabilities, exact, documents = _checked(probabilities, exact, documents)
    found = np.unique(probabilities)
    tried = found[np.unique(np.linspace(0, len(found) - 1, CANDIDATES).round().astype(int))]
    bounds = np.array(
        [
            error_bound(~exact[probabilities >= least], documents[probabilities >= least], confidence, min_documents)
            for least in tried
        ]
    )
    return {target: next(iter(tried[bounds <= target].tolist()), None) for target in TARGETS}


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
    probabilities, exact, documents = _checked(probabilities, exact, documents)
    if probabilities.min() < 0 or probabilities.max() > 1:
        raise ValueError("a probability lies beyond 0 and 1: apply the calibration first")
    bins, squared = _bins(probabilities), (probabilities - exact) ** 2
    settings = (confidence, min_documents)
    ece = _by_documents(lambda weights: _ece(probabilities, exact, bins, weights), documents, *settings)
    auroc = _auroc_interval(probabilities, exact, documents, *settings)
    reason = _why_unusable(exact, int(documents.max()) + 1, auroc, min_documents)
    perfect = np.random.default_rng(0).random((100, len(exact))) < probabilities
    order, accepted = _surest_first(probabilities)
    return Assessment(
        lines=len(exact),
        exact=_share(exact, documents, *settings),
        ece=ece,
        chance=float(np.mean([_ece(probabilities, outcome, bins, np.ones(len(exact))) for outcome in perfect])),
        brier=_by_documents(lambda weights: np.average(squared, weights=weights), documents, *settings),
        auroc=auroc,
        bins=tuple(
            Bin(
                float(probabilities[bins == number].mean()),
                _share(exact[bins == number], documents[bins == number], *settings),
                int(np.sum(bins == number)),
            )
            for number in np.unique(bins)
        ),
        curve=tuple((count / len(exact), float(np.mean(~exact[order[:count]]))) for count in accepted),
        table=tuple(
            _point(target, least, probabilities, exact, documents, *settings) for target, least in thresholds.items()
        ),
        usable=not reason,
        reason=reason,
    )


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


def to_json(calibration: Calibration) -> dict[str, Any]:
    """The calibration as plain JSON content."""
    chosen = [{"accepted_error": error, "threshold": least} for error, least in calibration.thresholds.items()]
    return {"format_version": FORMAT_VERSION} | asdict(calibration) | {"thresholds": chosen}


def from_json(content: Any, name: str) -> Calibration:
    """The calibration that the JSON content of the file `name` is. Raises ValueError, with the name, if it is none."""
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{name}: no calibration of format_version {FORMAT_VERSION}: calibrate the recognizer again")
    try:
        return Calibration(
            x=tuple(map(float, content["x"])),
            y=tuple(map(float, content["y"])),
            lines=int(content["lines"]),
            documents=int(content["documents"]),
            thresholds={row["accepted_error"]: row["threshold"] for row in content["thresholds"]},
            usable=bool(content["usable"]),
            reason=str(content["reason"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name} is no calibration ({error!r}): calibrate the recognizer again") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}: calibrate the recognizer again") from None


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


def _checked(scores: Any, exact: Any, documents: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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


def _why_unusable(exact: np.ndarray, documents: int, auroc: Interval, min_documents: int) -> str:
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


def _rising(confidences: np.ndarray, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (K,), (K,) of centred isotonic regression."""
    from sklearn.isotonic import IsotonicRegression

    ends = [confidences.min(), confidences.max()]
    # Nine decimals are finer than float32; so confidences are equal or apart, and the means of steps cannot coincide.
    x = np.concatenate([confidences, ends, ends]).round(9)
    steps = IsotonicRegression().fit_transform(x, np.concatenate([exact, [0, 0, 1, 1]]))
    y, step = np.unique(steps, return_inverse=True)
    return np.bincount(step, x) / np.bincount(step), y


def _auroc_interval(scores: np.ndarray, exact: np.ndarray, documents: np.ndarray, *settings: Any) -> Interval:
    rank = np.unique(scores, return_inverse=True)[1]
    return _by_documents(lambda weights: _auroc(rank, exact, weights), documents, *settings)


def _auroc(rank: np.ndarray, exact: np.ndarray, weights: np.ndarray) -> float:
    """Share of pairs of an exact and an inexact line whose exact one ranks higher, ties half; 0.5 without a pair."""
    right, wrong = np.bincount(rank, weights * exact), np.bincount(rank, weights * ~exact)
    pairs = right.sum() * wrong.sum()
    return float(right @ (np.cumsum(wrong) - wrong / 2) / pairs) if pairs else 0.5


def _bins(probabilities: np.ndarray) -> np.ndarray:
    """(N,) bin of each line; lines of equal probability share one, so that the order of lines changes nothing."""
    count = int(np.clip(len(probabilities) // BIN_LINES, 1, MOST_BINS))
    edges = np.quantile(probabilities, np.arange(1, count) / count, method="higher")
    return np.searchsorted(edges, probabilities, side="right")


def _ece(probabilities: np.ndarray, exact: np.ndarray, bins: np.ndarray, weights: np.ndarray) -> float:
    """Mean over all lines of the distance between mean probability and share exact in each line's bin."""
    return float(np.abs(np.bincount(bins, weights * (probabilities - exact))).sum() / weights.sum())


def _by_documents(
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


def _share(events: np.ndarray, documents: np.ndarray, confidence: float, min_documents: int) -> Interval:
    """Share of lines (N,) bool, with an interval within [0, 1]."""
    share = statistics.ratio_interval(events, np.ones(len(events)), documents, confidence, min_documents)
    return Interval(
        share.value, share.low, share.high if math.isnan(share.high) else min(share.high, 1.0), share.documents
    )


def _surest_first(probabilities: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Lines (N,) by falling probability, and up to `CURVE` counts to accept, which part no equal probabilities."""
    order = np.argsort(-probabilities, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(probabilities[order])) + 1, len(order))
    wanted = np.linspace(0, len(order), CURVE + 1)[1:]
    return order, np.unique(ends[np.searchsorted(ends, wanted)]).tolist()


def _point(
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
    return OperatingPoint(target, least, _share(accepted, documents, *settings), error, upper, upper <= target)

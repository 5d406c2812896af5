"""From a recogniser's raw confidence to the probability that a line is exact.

The map is isotonic regression (Zadrozny & Elkan 2002), each flat step shrunk to the mean confidence of its lines, with
straight pieces between them (centred isotonic regression, Oron & Flournoy 2017): it rises from its first point to its
last, so that hardly any order is lost. One exact and one inexact line are added at either end (Laplace's rule of
succession): n lines that were all exact show (n + 1) / (n + 2), never certainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maskocr_core.judging.confidence.by_document import auroc_interval, checked, why_unusable
from maskocr_core.judging.confidence.operating import TARGETS, thresholds
from maskocr_core.judging.statistics import MIN_DOCUMENTS

FORMAT_VERSION = 1


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


def fit(
    confidences: np.ndarray,
    exact: np.ndarray,
    documents: Sequence[str],
    confidence: float = 0.95,
    min_documents: int = MIN_DOCUMENTS,
) -> Calibration:
    """The calibration that N lines show, with the thresholds that they allow.

    confidences: (N,) float, raw. exact: (N,) bool, was the line read without an edit? documents: N document ids; none
    of them may have trained the recogniser. confidence, min_documents: of the interval of AUROC.
    Raises ValueError if the three differ in length, hold no line, or a confidence is not finite.
    """
    confidences, exact, documents = checked(confidences, exact, documents)
    count = int(documents.max()) + 1
    auroc = auroc_interval(confidences, exact, documents, confidence, min_documents)
    if reason := why_unusable(exact, count, auroc, min_documents):
        return Calibration((), (), len(exact), count, dict.fromkeys(TARGETS), False, reason)
    x, y = _rising(confidences, exact)
    chosen = thresholds(np.interp(confidences, x, y), exact, documents, confidence, min_documents)
    return Calibration(tuple(x.tolist()), tuple(y.tolist()), len(exact), count, chosen, True, "")


def apply(calibration: Calibration, confidences: np.ndarray) -> np.ndarray:
    """Probabilities (N,) float64 in (0, 1) of raw confidences (N,). Raises ValueError if there is nothing to apply."""
    if not calibration.usable:
        raise ValueError(f"the calibration is unusable, so there are raw confidences only: {calibration.reason}")
    return np.interp(np.asarray(confidences, np.float64), calibration.x, calibration.y)


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


def _rising(confidences: np.ndarray, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (K,), (K,) of centred isotonic regression."""
    from sklearn.isotonic import IsotonicRegression

    ends = [confidences.min(), confidences.max()]
    # Nine decimals are finer than float32; so confidences are equal or apart, and the means of steps cannot coincide.
    x = np.concatenate([confidences, ends, ends]).round(9)
    steps = IsotonicRegression().fit_transform(x, np.concatenate([exact, [0, 0, 1, 1]]))
    y, step = np.unique(steps, return_inverse=True)
    return np.bincount(step, x) / np.bincount(step), y

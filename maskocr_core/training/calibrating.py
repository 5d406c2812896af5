"""The calibration of a recogniser: fitted on validation lines, kept as `calibration.json` beside its weights.

No validation document trained the recogniser, but its checkpoint and the learning rate were chosen on these lines: they
are read a little better than others, and probabilities err a little on the hopeful side. The test lines say how much.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from maskocr_core import artifacts
from maskocr_core.data.batches import Lines
from maskocr_core.judging import metrics
from maskocr_core.judging.confidence import calibration
from maskocr_core.judging.confidence.calibration import Calibration
from maskocr_core.judging.statistics import MIN_DOCUMENTS
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.progress import Progress
from maskocr_core.training import checkpoint, finetuning

FILE = "calibration.json"


def calibrate(folder: Path, lines: Lines, confidence: float = 0.95, min_documents: int = MIN_DOCUMENTS) -> Calibration:
    """Read validation lines with the recogniser in `folder`, fit the calibration, and write it beside the weights.

    lines: labelled, of documents that trained nothing. confidence, min_documents: of the interval of AUROC. An unusable
    calibration is written as such, with its reason. Raises ValueError if there is no recogniser or no line.
    """
    recognizer, facts = checkpoint.load_recognizer(folder)
    texts, confidences = readings(recognizer, facts, lines, "calibrate")
    exact = metrics.line_errors(lines.texts, texts).edits == 0
    fitted = calibration.fit(confidences, exact, lines.documents, confidence, min_documents)
    # The name is kept when weights change, by further training or by hand: the file says to which it belongs.
    artifacts.write_json(folder / FILE, calibration.to_json(fitted) | {"recognizer": facts["sha256"]})
    return fitted


def readings(recognizer: Recognizer, facts: dict[str, Any], lines: Lines, what: str) -> tuple[list[str], list[float]]:
    """Text and raw confidence of every line, prepared as the recogniser's own training lines were.

    recognizer, facts: as `checkpoint.load_recognizer` gives them. what: named where progress is shown.
    """
    geometry = lines.data.model_copy(update={name: facts[name] for name in checkpoint.PREPARED})
    if geometry != lines.data:
        lines = lines.with_geometry(geometry)
    progress = Progress(what, total=len(lines))
    read = finetuning.read(recognizer, lines, progress.update)
    progress.done(len(lines))  # or its bar would stay under way
    return read


def load(folder: Path, weights: str) -> Calibration | None:
    """The calibration beside a recogniser, usable or not; None where there is none, as in older folders.

    weights: sha256 of the recogniser's weights, as its facts say.
    Raises ValueError if the file is damaged, or of other weights.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): calibrate the recognizer again") from None
    found = calibration.from_json(content, str(path))
    if content.get("recognizer") != weights:
        raise ValueError(f"{path} was made of other weights than those beside it: calibrate the recognizer again")
    return found

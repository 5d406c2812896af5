"""Reading images with a trained recogniser: what the registered model, `register` and `maskocr read` share."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from maskocr_core.config import STEP, Registry
from maskocr_core.data import images
from maskocr_core.judging.confidence import calibration
from maskocr_core.training import calibrating, checkpoint


class Reader:
    """Encoded line images in, text and confidence out; images are prepared exactly as in training.

    Raises ValueError if the folder holds no recogniser, or a damaged calibration, or one of other weights.
    """

    def __init__(self, folder: Path):
        self.recognizer, self.facts = checkpoint.load_recognizer(folder)
        self.calibration = calibrating.load(folder, self.facts["sha256"])

    @property
    def calibrated(self) -> bool:
        """Is a confidence the probability that the line is exact?"""
        return self.calibration is not None and self.calibration.usable

    def read(self, encoded: list[bytes]) -> list[tuple[str, float]]:
        """(text, confidence) of each image. Raises ValueError on one that is refused or broken.

        The confidence is the probability that the text is exact where the reader is `calibrated`, else the raw one in
        (0, 1], which is comparable between lines at most.
        """
        texts, confidences = [], []
        for image in encoded:
            mirrored = self.facts["direction"] == "rtl"
            pixels = images.prepare(image, self.facts["height"], self.facts["max_width"], mirrored=mirrored)
            line = images.inked(pixels, self.facts["ink"])
            ink = torch.from_numpy(np.pad(line, ((0, 0), (0, -line.shape[1] % STEP))))[None, None]
            (text,), (confidence,) = self.recognizer.read(ink, torch.ones(1, ink.shape[3] // STEP, dtype=torch.bool))
            texts.append(text)
            confidences.append(confidence)
        if self.calibrated:
            confidences = calibration.apply(self.calibration, np.array(confidences)).tolist()
        return list(zip(texts, confidences, strict=True))


def read_images(paths: list[Path], model: Path | None, registry: Registry, confidence: bool = False) -> bool:
    """Print `path<tab>text` of every image; say on standard error which model reads, and which images it could not.

    model: folder of a recogniser; None for the champion, else the challenger. confidence: print it as a third column,
    and say on standard error whether it is calibrated. Returns whether every image was read.
    Raises ValueError if there is no image or no model.
    """
    found = [path for given in paths for path in _images(given)]
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: no line image here ({', '.join(images.SUFFIXES)})")
    folder, name = _model(model, registry)
    print(f"read by {name}", file=sys.stderr)
    reader = Reader(folder)
    if confidence:
        print(_meaning(reader.calibration), file=sys.stderr)
    failed = 0
    for path in found:
        try:
            [(text, sure)] = reader.read([path.read_bytes()])
            print(f"{path}\t{text}\t{sure:.4f}" if confidence else f"{path}\t{text}", flush=True)
        except ValueError as error:
            failed += 1
            print(f"{path}: {error}", file=sys.stderr)
    return not failed


def _meaning(found: calibration.Calibration | None) -> str:
    """What the confidences of a reader with such a calibration are, in a sentence."""
    if found and found.usable:
        return (
            "confidences are calibrated: the probability that a line is exact, "
            f"by {found.lines:,} lines of {found.documents:,} documents"
        )
    why = found.reason if found else f"the model has no {calibrating.FILE}"
    return f"confidences are not calibrated, and no probabilities: {why}"


def _images(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in images.SUFFIXES)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    return [path]


def _model(folder: Path | None, registry: Registry) -> tuple[Path, str]:
    if folder:
        return folder, str(folder)
    from maskocr_core.services import registered, tracking

    for alias in ("champion", "challenger"):
        if version := registered.version_of(registry, alias):
            return registered.recognizer_folder(
                f"models:/{registry.model}@{alias}"
            ), f"{alias}, {registry.model} version {version}"
    raise ValueError(
        f"MLflow at {tracking.uri()} has neither a champion nor a challenger of {registry.model!r}: run the pipeline first, or give --model FOLDER"
    )

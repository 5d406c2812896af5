"""Reading images with a trained recogniser: what the registered model, `register` and `maskocr read` share."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from maskocr_core.config import STEP, Registry
from maskocr_core.data import images
from maskocr_core.training import checkpoint


class Reader:
    """Encoded line images in, text and confidence out; images are prepared exactly as in training."""

    def __init__(self, folder: Path):
        self.recognizer, self.facts = checkpoint.load_recognizer(folder)

    def read(self, encoded: list[bytes]) -> list[tuple[str, float]]:
        """(text, confidence in (0, 1], not calibrated) of each image. Raises ValueError on one that is refused or broken."""
        results = []
        for image in encoded:
            mirrored = self.facts["direction"] == "rtl"
            pixels = images.prepare(image, self.facts["height"], self.facts["max_width"], mirrored=mirrored)
            line = images.inked(pixels, self.facts["ink"])
            ink = torch.from_numpy(np.pad(line, ((0, 0), (0, -line.shape[1] % STEP))))[None, None]
            texts, confidences = self.recognizer.read(ink, torch.ones(1, ink.shape[3] // STEP, dtype=torch.bool))
            results.append((texts[0], confidences[0]))
        return results


def read_images(paths: list[Path], model: Path | None, registry: Registry) -> bool:
    """Print `path<tab>text` of every image; say on standard error which model reads, and which images it could not.

    model: folder of a recogniser; None for the champion, else the challenger. Returns whether every image was read.
    Raises ValueError if there is no image or no model.
    """
    found = [path for given in paths for path in _images(given)]
    if not found:
        raise ValueError(f"{', '.join(map(str, paths))}: no line image here ({', '.join(images.SUFFIXES)})")
    folder, name = _model(model, registry)
    print(f"read by {name}", file=sys.stderr)
    reader = Reader(folder)
    failed = 0
    for path in found:
        try:
            print(f"{path}\t{reader.read([path.read_bytes()])[0][0]}", flush=True)
        except ValueError as error:
            failed += 1
            print(f"{path}: {error}", file=sys.stderr)
    return not failed


def _images(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in images.SUFFIXES)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    return [path]


def _model(folder: Path | None, registry: Registry) -> tuple[Path, str]:
    if folder:
        return folder, str(folder)
    from maskocr_core.services import tracking

    for alias in ("champion", "challenger"):
        if version := tracking.version_of(registry, alias):
            return tracking.recognizer_folder(
                f"models:/{registry.model}@{alias}"
            ), f"{alias}, {registry.model} version {version}"
    raise ValueError(
        f"MLflow at {tracking.uri()} has neither a champion nor a challenger of {registry.model!r}: run the pipeline first, or give --model FOLDER"
    )

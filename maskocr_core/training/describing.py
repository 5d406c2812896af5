"""What a line looks like to a trained recogniser: the mean of what its encoder says of the line's steps."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from maskocr_core.config import STEP
from maskocr_core.data import images
from maskocr_core.model.recognizer import Recognizer

PAD_TO = 64  # px: few distinct widths


@dataclass(frozen=True)
class Encoder:
    """Describes lines by the encoder of a registered model (`models:/name/version`), loaded once in each process."""

    model_uri: str

    def __call__(self, encoded: list[bytes]) -> np.ndarray:
        """(N, D) float32 of N encoded lines. Raises ValueError for an image that is refused or broken."""
        recognizer, facts = _loaded(self.model_uri)
        mirrored = facts["direction"] == "rtl"
        pixels = [images.prepare(image, facts["height"], facts["max_width"], mirrored=mirrored) for image in encoded]
        return np.stack([_mean(recognizer, images.inked(line, facts["ink"])) for line in pixels])


def _mean(recognizer: Recognizer, line: np.ndarray) -> np.ndarray:
    """One line by itself: what is said of it must not depend on which lines come with it."""
    steps = -(-line.shape[1] // STEP)
    ink = torch.from_numpy(np.pad(line, ((0, 0), (0, -line.shape[1] % PAD_TO))))[None, None]
    valid = torch.arange(ink.shape[3] // STEP)[None] < steps
    with torch.no_grad():
        return recognizer.encoder(ink, valid)[0, :steps].mean(dim=0).numpy()


@lru_cache(maxsize=1)
def _loaded(model_uri: str) -> tuple[Recognizer, dict[str, Any]]:
    from maskocr_core.services import registered
    from maskocr_core.training import checkpoint

    return checkpoint.load_recognizer(registered.recognizer_folder(model_uri))

"""Do lines stand as the labelled ones do, or upside down, mirrored, white on black, or along the height?

Distance alone hardly sees it (letters upside down are made of the same strokes), but a comparison does: line by line, is it
nearer to the labelled lines as it is, or turned? Nothing is tuned: who turns a turned line gets the upright one, so that the
border between the two lies at a half by symmetry. The target's own left-out documents say whether the question can be
answered at all: in a script that is nearly symmetric it cannot.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from maskocr_core.data import images

Turn = Callable[[np.ndarray], np.ndarray]
# What a source is said to be, and what brings it back. Mirroring, half turns and inverting undo themselves.
TURNS: dict[str, Turn] = {
    "upside down": lambda pixels: pixels[::-1, ::-1],
    "mirrored": lambda pixels: pixels[:, ::-1],
    "light on dark": lambda pixels: 255 - pixels,
    "turned to the left": lambda pixels: np.rot90(pixels, -1),
    "turned to the right": lambda pixels: np.rot90(pixels),
}
MENDS = {
    "upside down": "turn them by 180°",
    "mirrored": "mirror them back",
    "light on dark": "invert them, dark on light",
    "turned to the left": "turn them by 90° to the right",
    "turned to the right": "turn them by 90° to the left",
}


def turned(image: bytes) -> list[bytes]:
    """An encoded line as it would be with each of TURNS undone, as PNG files.

    Raises ValueError if it is refused or broken.
    """
    pixels = images.decode(image)
    return [_png(turn(pixels)[: images.MAX_HEIGHT]) for turn in TURNS.values()]


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", np.ascontiguousarray(pixels), [cv2.IMWRITE_PNG_COMPRESSION, 0])[1].tobytes()

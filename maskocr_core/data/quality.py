"""Quality of one line: cheap measurements of its pixels, and plain reasons to put it into quarantine.

What is refused here is unreadable for anybody; whether a readable line is of the right kind is `fit`'s question. The
limits are set by what a line of text is (dark strokes on a light ground, letters wider than a pen), not by any data.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

MIN_CONTRAST = 0.05  # of the range of gray: 13 of 255 levels, hardly more than the noise of a scan
MIN_INK = 0.003  # share of pixels: one full stop on a line of 50 letters
MAX_DARK = 0.6  # share of pixels: strokes cover less than half of a line even in the heaviest types
MIN_SIDE = 8  # px: fewer hold no letter
MAX_ASPECT = 100.0  # width over height: about 200 letters in one line
MIN_ASPECT = 0.25  # a column or a margin, not a line
MIN_CHARACTER = 0.08  # width of a character, in heights of the line: narrower and the text belongs to another line


def measure(image: np.ndarray) -> dict[str, float]:
    """Measure a line: (H, W) uint8, dark on light.

    Returns `ink`, share of pixels darker than Otsu's threshold (Otsu 1979), 0 where there is no contrast; `contrast`,
    the mean of the light minus that of the dark pixels, in [0, 1] of the range of gray; `background`, the median of
    the pixels, in [0, 1]; `sharpness`, the variance of the Laplacian over the squared contrast (low is blurred, very
    high is noise; no reason of its own, since scans differ). Raises ValueError if this is no grayscale image.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image must be uint8 (height, width) and not empty, got {image.dtype} {image.shape}")
    threshold, _ = cv2.threshold(image, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    counts = cv2.calcHist([image], [0], None, [256], [0, 256]).ravel().astype(float)
    dark, levels = counts[: int(threshold) + 1], np.arange(256)
    darker, lighter = dark.sum(), image.size - dark.sum()
    contrast = 0.0
    if darker and lighter:
        dark_sum = float(dark @ levels[: len(dark)])
        contrast = ((counts @ levels - dark_sum) / lighter - dark_sum / darker) / 255
    _, deviation = cv2.meanStdDev(cv2.Laplacian(image, cv2.CV_16S))
    visible = contrast >= MIN_CONTRAST
    return {
        "ink": float(darker / image.size) if visible else 0.0,
        "contrast": float(contrast),
        "background": float(np.searchsorted(counts.cumsum(), image.size / 2) / 255),
        "sharpness": float((deviation.item() / 255 / contrast) ** 2) if visible else 0.0,
    }


def reasons(row: Mapping[str, Any]) -> list[str]:
    """Why a line belongs into quarantine, in plain sentences; empty for a good one.

    row: what `measure` returns, `height` and `width` in px, and `text` (None or NaN: unlabelled).
    """
    found = [*_of_shape(row["height"], row["width"]), *_of_ink(row)]
    text = row["text"]
    if text is not None and not (isinstance(text, float) and math.isnan(text)):
        found += _of_text(text, row["height"], row["width"])
    return found


def _of_shape(height: int, width: int) -> list[str]:
    if min(height, width) < MIN_SIDE:
        return [f"The image is {width} × {height} px; a line has at least {MIN_SIDE} px each way."]
    if not MIN_ASPECT <= width / height <= MAX_ASPECT:
        return [f"The image is {width} × {height} px, {width / height:.2g} times as wide as high: no single line."]
    return []


def _of_ink(row: Mapping[str, Any]) -> list[str]:
    ink, contrast = row["ink"], row["contrast"]
    if contrast == 0:
        return ["The image is blank: all its pixels are alike."]
    if contrast < MIN_CONTRAST:
        return [f"There is no contrast: dark and light differ by {contrast:.1%} of the range of gray."]
    if ink < MIN_INK:
        return [f"The image is nearly blank: {ink:.2%} of it is ink."]
    if ink > MAX_DARK:
        return [f"{ink:.0%} of the image is dark: it is inverted, or no text. Bring it dark on light."]
    return []


def _of_text(text: str, height: int, width: int) -> list[str]:
    text = unicodedata.normalize("NFC", text).strip()
    if not text:
        return ["The text is empty; leave it out if the line is not labelled."]
    found = []
    control = sorted({f"U+{ord(character):04X}" for character in text if unicodedata.category(character) == "Cc"})
    if control:
        found.append(f"The text has control characters: {', '.join(control)}.")
    # Marks stand above or below their letter and take no width.
    characters = sum(not unicodedata.combining(character) for character in text)
    if width < MIN_CHARACTER * height * characters:
        each = width / characters
        found.append(f"{width} px are too narrow for the {characters} characters of the text: {each:.1f} px each.")
    return found

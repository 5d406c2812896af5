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
MIN_SHARPNESS = 0.006  # that of strokes smeared (standard deviation) over a fifteenth of the line's height and more
MAX_UPRIGHT_ASPECT = 2 / 3  # below it a line holds a letter or two, or was turned
MIN_ALONG_WIDTH = -0.7  # ink alternates twice as often along the height as along the width: of one line, a strong sign
COMMON_SIDE = 48  # px of the shorter side at which strokes are measured, whatever the resolution of the scan


def measure(image: np.ndarray) -> dict[str, float | bool]:
    """Measure a line: (H, W) uint8, dark on light.

    Returns
      ink: share of pixels darker than Otsu's threshold (Otsu 1979);
      contrast: mean of the light minus mean of the dark pixels, in [0, 1] of the range of gray;
      background: median of the pixels, in [0, 1];
      light_on_dark: whether most pixels are dark and the strokes are lighter than what is around them (a stain, or a second
        sheet below the line, makes most pixels dark, too);
      sharpness: variance of the Laplacian over squared contrast and ink, so that empty paper does not count; low is blurred,
        very high is noise, which is no reason of its own, since scans differ;
      along_width: natural logarithm of how much oftener ink and ground alternate along the width than along the height;
        negative where the text may run along the height, in whatever script: letters alternate along a line, and a line is
        one band across.
    Without MIN_CONTRAST, `ink` and the last three are 0. Raises ValueError if this is no grayscale image.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image must be uint8 (height, width) and not empty, got {image.dtype} {image.shape}")
    threshold, light = cv2.threshold(image, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    counts = cv2.calcHist([image], [0], None, [256], [0, 256]).ravel().astype(float)
    dark, levels = counts[: int(threshold) + 1], np.arange(256)
    darker, lighter = dark.sum(), image.size - dark.sum()
    contrast = 0.0
    if darker and lighter:
        dark_sum = float(dark @ levels[: len(dark)])
        contrast = ((counts @ levels - dark_sum) / lighter - dark_sum / darker) / 255
    visible, ink = contrast >= MIN_CONTRAST, darker / image.size
    return {
        "ink": float(ink) if visible else 0.0,
        "contrast": float(contrast),
        "background": float(np.searchsorted(counts.cumsum(), image.size / 2) / 255),
        "light_on_dark": bool(visible and ink > MAX_DARK and _strokes_are_light(_at_common_side(image))),
        "sharpness": float(_sharpness(_at_common_side(image)) / (contrast**2 * ink)) if visible else 0.0,
        "along_width": _along_width(_at_common_side(light)) if visible else 0.0,
    }


def reasons(row: Mapping[str, Any]) -> dict[str, str]:
    """Why a line belongs into quarantine: a plain sentence for each kind of fault; empty for a good line.

    row: what `measure` returns, `height` and `width` in px, and `text` (None: unlabelled).
    """
    height, width, text = row["height"], row["width"], row["text"]
    found = {**_of_shape(height, width, row["along_width"]), **_of_ink(row)}
    if not found and row["sharpness"] < MIN_SHARPNESS:
        found["blurred"] = (
            "The image is blurred: strokes are smeared over a fifteenth of the height of the line or more."
        )
    return found if text is None else found | _of_text(text, height, width)


def _of_shape(height: int, width: int, along_width: float) -> dict[str, str]:
    size = f"The image is {width} × {height} px"
    if min(height, width) < MIN_SIDE:
        return {"too small": f"{size}; a line has at least {MIN_SIDE} px each way."}
    # The narrower the image, the less it takes to believe that it was turned.
    limit = 0 if width / height < MIN_ASPECT else MIN_ALONG_WIDTH
    if width / height < MAX_UPRIGHT_ASPECT and along_width < limit:
        return {"turned": f"{size} and its text runs along the height: turn it by 90°."}
    if not MIN_ASPECT <= width / height <= MAX_ASPECT:
        return {"no shape of a line": f"{size}, {width / height:.2g} times as wide as high: no single line."}
    return {}


def _of_ink(row: Mapping[str, Any]) -> dict[str, str]:
    ink, contrast = row["ink"], row["contrast"]
    if contrast == 0:
        return {"blank": "The image is blank: all its pixels are alike."}
    if contrast < MIN_CONTRAST:
        return {"no contrast": f"There is no contrast: dark and light differ by {contrast:.1%} of the range of gray."}
    if ink < MIN_INK:
        return {"nearly blank": f"The image is nearly blank: {ink:.2%} of it is ink."}
    if row["light_on_dark"]:
        return {"inverted": f"{ink:.0%} of the image is dark: it is inverted, or no text. Bring it dark on light."}
    return {}


def _of_text(text: str, height: int, width: int) -> dict[str, str]:
    text = unicodedata.normalize("NFC", text).strip()
    if not text:
        return {"empty text": "The text is empty; leave it out if the line is not labelled."}
    found = {}
    control = sorted({f"U+{ord(character):04X}" for character in text if unicodedata.category(character) == "Cc"})
    if control:
        found["control characters"] = f"The text has control characters: {', '.join(control)}."
    # Marks stand above or below their letter and take no width.
    characters = sum(not unicodedata.combining(character) for character in text)
    if width < MIN_CHARACTER * height * characters:
        each = f"{width / characters:.1f} px each"
        found["text too long"] = f"{width} px are too narrow for the {characters} characters of the text: {each}."
    return found


def _sharpness(image: np.ndarray) -> float:
    _, deviation = cv2.meanStdDev(cv2.Laplacian(image, cv2.CV_16S))
    return (deviation.item() / 255) ** 2


def _strokes_are_light(image: np.ndarray) -> bool:
    """By the sign of the third moment of the pixels less their surroundings: strokes are what differs most from these."""
    side = min(image.shape) // 2 | 1
    differences = image.astype(np.float32) - cv2.blur(image, (side, side))
    return float((differences**3).mean()) >= 0


def _along_width(light: np.ndarray) -> float:
    """light: (H, W) uint8, 0 where there is ink, 255 where there is none."""
    columns, rows = (cv2.reduce(light, axis, cv2.REDUCE_AVG, dtype=cv2.CV_32F).ravel() for axis in (0, 1))
    # Half an alternation more for both: a single stroke has none at all.
    return math.log((_alternations(columns) + 0.5) / (_alternations(rows) + 0.5))


def _alternations(profile: np.ndarray) -> float:
    """How often a profile passes from above its mean to below it or back, a COMMON_SIDE of it; ripples do not count."""
    profile = cv2.blur(profile[None], (3, 1))[0]
    profile -= profile.mean()
    ripple = 0.25 * profile.std()
    sides = np.sign(profile)[np.abs(profile) > ripple]
    return np.count_nonzero(sides[1:] != sides[:-1]) * COMMON_SIDE / len(profile)


def _at_common_side(image: np.ndarray) -> np.ndarray:
    """The image with a shorter side of at most COMMON_SIDE px; smaller ones as they are."""
    scale = COMMON_SIDE / min(image.shape)
    if scale >= 1:
        return image
    height, width = (max(1, round(side * scale)) for side in image.shape)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)

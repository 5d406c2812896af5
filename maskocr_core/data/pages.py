"""What pages for people share: they open without a network, and nothing in them that came from strangers is believed."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from maskocr_core import escaping

MAX_SIDES = (640, 240)  # px of the longer and the shorter side of a picture


def template(path: Path) -> Any:
    """The jinja2 template at `path`: every value escaped, control characters spelled out, nothing undefined."""
    return escaping.environment(path.parent).get_template(path.name)


def picture(pixels: np.ndarray) -> dict[str, Any]:
    """A small picture of (H, W) uint8: `data`, base64 of a WebP encoded here; `width` and `height` in px."""
    scale = min(1.0, MAX_SIDES[0] / max(pixels.shape), MAX_SIDES[1] / min(pixels.shape))
    height, width = (max(1, round(side * scale)) for side in pixels.shape)
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, 60])
    return {"data": base64.b64encode(encoded.tobytes()).decode(), "width": width, "height": height}

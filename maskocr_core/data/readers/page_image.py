"""The pixels of a whole page, which may be far larger than those of a line and come from a stranger all the same."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from maskocr_core.data import images
from maskocr_core.data.readers.units import Unreadable

MAX_BYTES = 256 << 20
MAX_PIXELS = 150_000_000  # A1 at 300 dpi is 70 million


def decode(content: bytes) -> np.ndarray:
    """Grayscale uint8 (H, W), its header checked before anything is decoded. Raises Unreadable with the reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            opened = Image.open(io.BytesIO(content), formats=images.FORMATS)
        except Image.DecompressionBombError:
            raise Unreadable(f"has more than {MAX_PIXELS:,} pixels: scale it down") from None
        except Exception:  # Pillow raises many kinds for bytes that are no image
            raise Unreadable(f"is no readable {', '.join(images.FORMATS)} image") from None
        with opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise Unreadable(
                    f"has {opened.width:,} × {opened.height:,} px, more than {MAX_PIXELS:,}: scale it down"
                )
            try:
                opened.draft("L", None)  # a JPEG gives its grey without its colours
                return np.asarray(images.gray(opened))
            except Exception as error:
                raise Unreadable(f"is a broken {opened.format} image ({error})") from None

"""The one way from encoded bytes to pixels, shared by training, evaluation and the registered model.

Images are untrusted: their header is checked before anything is decoded (a 20 KB PNG can claim 169 megapixels).
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image

from maskocr_core.config import STEP, Ink

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")
MAX_BYTES = 8 << 20
MAX_HEIGHT, MAX_WIDTH = 1024, 16384
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")


def size(image: bytes) -> tuple[int, int]:
    """(height, width) in px from the header alone.

    Raises ValueError with the reason if this is no image of an allowed format and size.
    """
    with _open(image) as opened:
        return opened.height, opened.width


def decode(image: bytes) -> np.ndarray:
    """Grayscale uint8 (H, W) as received.

    Raises ValueError with the reason if the image is refused or broken.
    """
    with _open(image) as opened:
        try:
            if opened.format == "WEBP" and opened.mode == "RGB" and not getattr(opened, "is_animated", False):
                # The same libwebp with less copying, behind the checks of the header; what it gives not, Pillow explains.
                pixels = cv2.imdecode(
                    np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
                )
                if pixels is not None and pixels.shape == (opened.height, opened.width):
                    return pixels
            return np.asarray(gray(opened))
        except Exception as error:  # Pillow raises many kinds for a broken image, a TypeError among them
            raise ValueError(f"broken {opened.format} image: {error}") from None


def prepare(image: bytes, height: int, max_width: int, *, mirrored: bool = False) -> np.ndarray:
    """Grayscale uint8 (height, W), proportions kept, W cut at `max_width` and at least one step wide.

    mirrored: left and right change places first, so that a right-to-left line begins at the left (and is cut at its end).
    """
    pixels = decode(image)
    if mirrored:
        pixels = cv2.flip(pixels, 1)
    width = min(max(STEP, round(pixels.shape[1] * height / pixels.shape[0])), 4 * MAX_WIDTH)
    if pixels.shape != (height, width):
        shrinks = height < pixels.shape[0]
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return pixels[:, :max_width]


GRAY = np.arange(256, dtype=np.float32)
RAW = 1 - GRAY / 255  # ink of a gray level
QUANTILES = np.array([0.01, 0.5, 0.84])  # of a line's pixels: its ink, its paper, its brightest paper
LEAST_CONTRAST = 32  # gray levels between paper and ink: a line of less is not stretched further, or its noise would be


def inked(pixels: np.ndarray, ink: Ink, out: np.ndarray | None = None) -> np.ndarray:
    """Ink (H, W) float32 in [0, 1] of gray values (H, W) uint8, 0 = paper.

    `raw`: 1 - gray / 255. `levelled`: the line's own paper, its median gray with its unevenness, becomes 0, and its darkest hundredth
    1, so that yellowed paper, shadow and faint ink are no part of what a step looks like.
    """
    return cv2.LUT(pixels, RAW if ink == "raw" else _levels(pixels), out)


def _levels(pixels: np.ndarray) -> np.ndarray:
    """Ink (256,) float32 of each gray level of a line."""
    # Of every third row: it is read for every line of every epoch, and gives the same levels to a gray or two.
    counts = cv2.calcHist([pixels[::3]], [0], None, [256], [0, 256]).ravel().cumsum()
    dark, paper, bright = counts.searchsorted(QUANTILES * counts[-1]).tolist()
    # Paper is as uneven towards the dark as it is towards the light, where no ink is: what lies within is nothing.
    nothing = paper - (bright - paper)
    ink = (nothing - GRAY) * np.float32(1 / max(LEAST_CONTRAST, nothing - dark))
    return np.minimum(np.maximum(ink, 0, out=ink), 1, out=ink)


def prepared_width(height_px: int, width_px: int, height: int, max_width: int) -> int:
    """The width that `prepare` gives, known without decoding."""
    return min(max(STEP, round(width_px * height / height_px)), max_width)


SCALES = 0.92, 1.08  # of a line's width, in augmentation


def augment(pixels: np.ndarray, scale: float, random: np.random.Generator) -> np.ndarray:
    """A line as another scan, slant or pen might have given it; (H, W) uint8 to (H, scale · W) uint8.

    Geometry: horizontal `scale`, which is drawn from `SCALES` where batches of similar width are made, vertical shift ±1.5 px, slant
    ±0.12; ink: erosion or dilation in one line of five, contrast, and noise in one line of two (binarised paper has none).
    The ranges are our choice, the paper does not give them.
    """
    height, width = pixels.shape
    slant, shift = random.uniform(-0.12, 0.12), random.uniform(-1.5, 1.5)
    target = max(STEP, round(width * scale))
    matrix = np.array([[scale, slant, -slant * height / 2], [0, 1, shift]], np.float32)
    background = int(np.median(pixels[:, :: max(1, width // 64)]))
    pixels = cv2.warpAffine(pixels, matrix, (target, height), borderMode=cv2.BORDER_CONSTANT, borderValue=background)
    if random.random() < 0.2:
        kernel = np.ones((2, 2), np.uint8)
        pixels = cv2.erode(pixels, kernel) if random.random() < 0.5 else cv2.dilate(pixels, kernel)
    noise = random.standard_normal((height, target), np.float32) * max(0.0, random.uniform(-8, 8))
    contrast, brightness = random.uniform(0.8, 1.1), random.uniform(-12, 12)
    return np.clip((pixels.astype(np.float32) - 128) * contrast + 128 + brightness + noise, 0, 255).astype(np.uint8)


def gray(opened: Image.Image) -> Image.Image:
    """Mode L, on white where it is transparent. Pillow alone clips 16 bits to white and gives transparent pixels their hidden colour."""
    if opened.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(opened) >> 8).astype(np.uint8))
    if opened.has_transparency_data:
        opened = opened.convert("RGBA")
        opened = Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened)
    return opened.convert("L")


def _open(image: bytes) -> Image.Image:
    if len(image) > MAX_BYTES:
        raise ValueError(f"{len(image):,} bytes, more than the {MAX_BYTES:,} that a line image may have")
    try:
        opened = Image.open(io.BytesIO(image), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(
            f"far more pixels than the {MAX_WIDTH} × {MAX_HEIGHT} that a line image may have: cut pages into lines first"
        ) from None
    except Exception:  # Pillow raises many kinds for bytes that are no image
        raise ValueError(f"no readable {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image") from None
    if not (0 < opened.height <= MAX_HEIGHT and 0 < opened.width <= MAX_WIDTH):
        raise ValueError(
            f"{opened.width} × {opened.height} px; a line image has at most {MAX_WIDTH} × {MAX_HEIGHT} px: cut pages into lines first"
        )
    return opened

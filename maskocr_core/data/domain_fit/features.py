"""What a line looks like, in a few dozen numbers drawn from its strokes alone: no network, no weights, about a millisecond."""

from __future__ import annotations

import math

import cv2
import numpy as np

from maskocr_core.data import images

HEIGHT = 40  # px to which a line is scaled before it is described
ORIENTATIONS, BANDS, PROFILE, RUNS = 8, 3, 10, 6
FEATURES = ORIENTATIONS * BANDS + PROFILE + 3 * RUNS + 5
TOLERANCE = 0.02  # difference of a feature that means nothing, however constant the target is in it

_BAND = (np.arange(HEIGHT) * BANDS // HEIGHT * ORIENTATIONS).astype(np.int32)[:, None]  # (HEIGHT, 1)


def described(encoded: list[bytes]) -> np.ndarray:
    """`describe` N encoded lines: (N, FEATURES) float32. Raises ValueError for an image that is refused or broken."""
    prepared = (images.prepare(image, HEIGHT, images.MAX_WIDTH) for image in encoded)
    return np.stack([describe(image) for image in prepared]) if encoded else np.zeros((0, FEATURES), np.float32)


def describe(image: np.ndarray) -> np.ndarray:
    """Describe a line by its strokes: (H, W) uint8, dark on light, to (FEATURES,) float32.

    Edge orientations in three bands of height, profile of ink over the height, lengths of runs of ink and gap, and five
    numbers of ink, contrast and sharpness. Histograms are square-rooted, so that distances are Hellinger's.
    Raises ValueError if this is no grayscale image.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image must be uint8 (height, width) and not empty, got {image.dtype} {image.shape}")
    if image.shape[0] != HEIGHT:
        width = max(8, round(image.shape[1] * HEIGHT / image.shape[0]))
        shrinks = image.shape[0] > HEIGHT
        image = cv2.resize(image, (width, HEIGHT), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    across, down = cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)
    strength, angle = cv2.cartToPolar(across, down)
    bins = (angle * (ORIENTATIONS / np.pi)).astype(np.int32) % ORIENTATIONS + _BAND
    edges = np.bincount(bins.ravel(), strength.ravel(), ORIENTATIONS * BANDS)
    _, ink = cv2.threshold(image, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    rows = ink.mean(axis=1)
    dark, middle, light = np.percentile(image[::2, ::2], (1, 50, 99)) / 255
    contrast = light - dark
    sharpness = edges.sum() / image.size / 255 / max(contrast, TOLERANCE)
    histograms = (edges, rows.reshape(PROFILE, -1).sum(axis=1), _runs(ink, 1), _runs(ink, 0), _runs(ink.T, 1))
    gaps = (ink.max(axis=0) == 0).mean()
    scalars = (math.log(rows.mean() + 0.005), contrast, middle, math.log(sharpness + 0.01), gaps)
    return np.concatenate([*(np.sqrt(h / max(h.sum(), 1e-6)) for h in histograms), scalars]).astype(np.float32)


def _runs(ink: np.ndarray, value: int) -> np.ndarray:
    """(RUNS,) how many runs of `value` along the rows are 1, 2–3, 4–7, … px long; ink: (H, W) uint8 of 0 and 1."""
    rows = np.pad(ink, ((0, 0), (0, 1)), constant_values=2).ravel()  # a 2 parts each row from the next
    ends = np.flatnonzero(rows[1:] != rows[:-1])
    lengths = np.diff(ends, prepend=-1)[rows[ends] == value]
    return np.bincount(np.minimum(np.log2(lengths).astype(int), RUNS - 1), minlength=RUNS)

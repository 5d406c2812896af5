"""Near-duplicate images: the same line compressed anew, brightened or at another resolution.

A fingerprint of 256 bits, the signs of the low frequencies of the line brought to one size (the perceptual hash of
Zauner 2010, here wide as lines are); two lines are near duplicates if at most a tenth of the bits differ. 64 bits would
not do: lines of text are alike, and one of a hundred different ones collides. A line that was cut out anew has another
fingerprint; the names of its page and document have to tell of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

HEIGHT, WIDTH = 32, 256  # px to which a line is brought
ROWS, COLUMNS = 8, 32  # lowest vertical and horizontal frequencies: ROWS × COLUMNS = 256 bits
MAX_DISTANCE = 25  # bits of 256
MAX_STRETCH = 0.05  # natural logarithm: another resolution keeps the proportions
_BLOCK = 64  # lines compared at a time with those of a shard: 2 MB for 4,096


def _cosines(size: int, frequencies: int) -> np.ndarray:
    return np.cos(np.pi / (2 * size) * np.outer(np.arange(frequencies), 2 * np.arange(size) + 1))


_VERTICAL, _HORIZONTAL = _cosines(HEIGHT, ROWS), _cosines(WIDTH, COLUMNS).T


def fingerprint(image: np.ndarray) -> bytes:
    """32 bytes that stand for a line, (H, W) uint8: which of its low DCT frequencies lie above their median."""
    small = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA).astype(np.float64)
    # Rounded, so that the last bit of a sum, another on every processor, decides nothing.
    frequencies = np.round(_VERTICAL @ small @ _HORIZONTAL, 3).ravel()
    return np.packbits(frequencies > np.median(frequencies[1:])).tobytes()  # the first is the mean


@dataclass(frozen=True)
class Fingerprints:
    """N lines to be compared: `bits` (N, 4) uint64, `aspect` (N,) float, width over height."""

    bits: np.ndarray
    aspect: np.ndarray

    @classmethod
    def of(cls, fingerprints: list[bytes], aspect: np.ndarray) -> Fingerprints:
        return cls(np.frombuffer(b"".join(fingerprints), np.uint64).reshape(-1, 4), np.asarray(aspect, float))


def pairs(some: Fingerprints, others: Fingerprints) -> Iterator[tuple[int, int, int]]:
    """(place in `some`, place in `others`, bits that differ) of all near duplicates.

    Every line is compared with every other, a block at a time; the first half of the bits leaves hardly any to look at.
    """
    for first in range(0, len(some.bits), _BLOCK):
        block = some.bits[first : first + _BLOCK]
        half = np.bitwise_count(block[:, None, 0] ^ others.bits[None, :, 0])
        half += np.bitwise_count(block[:, None, 1] ^ others.bits[None, :, 1])
        left, right = np.nonzero(half <= MAX_DISTANCE)
        distance = np.bitwise_count(block[left] ^ others.bits[right]).sum(axis=1, dtype=int)
        stretch = np.abs(np.log(some.aspect[first + left] / others.aspect[right]))
        near = (distance <= MAX_DISTANCE) & (stretch <= MAX_STRETCH)
        yield from zip((first + left[near]).tolist(), right[near].tolist(), distance[near].tolist())

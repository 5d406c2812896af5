"""Lines that stay decoded in memory from one meeting to the next, within a bound."""

from __future__ import annotations

import threading

import numpy as np

CACHE_BYTES = 1 << 30
ENOUGH = 256  # lines, to know how large the others are


class Decoded:
    """Prepared pixels by line id, as many as fit in `most` bytes; threads share them.

    all_of: how many lines they are, if it is all of them or none: of more than fit, those that are kept are met too seldom.
    """

    def __init__(self, most: int = CACHE_BYTES, all_of: int | None = None):
        self.most, self.all_of = most, all_of
        self._pixels: dict[str, np.ndarray] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, line_id: str) -> np.ndarray | None:
        return self._pixels.get(line_id)

    def put(self, line_id: str, pixels: np.ndarray) -> None:
        with self._lock:
            fits = self._bytes + pixels.nbytes <= self.most
            if fits and line_id not in self._pixels:
                self._pixels[line_id] = pixels
                self._bytes += pixels.nbytes
            if self.all_of is not None and not (fits and self._all_will_fit(self.all_of)):
                self._pixels, self._bytes, self.most = {}, 0, 0

    def _all_will_fit(self, lines: int) -> bool:
        """As far as those that are there tell; a few tell nothing."""
        met = len(self._pixels)
        return met < ENOUGH or self._bytes / met * lines <= self.most

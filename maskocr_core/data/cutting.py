"""Lines of a window into batches of similar width, whose parts have lines of neighbouring widths: little of them is padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Cut:
    """How lines become batches: `batch` lines each, or as `fill` and `shares` of `batches.training` say."""

    batch: int
    fill: Literal["lines", "tokens"]
    shares: int

    def filled_up(self, places: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """As many places as are a multiple: some are drawn twice, so that the last batch of a window is whole."""
        multiple = self.shares if self.fill == "tokens" else self.batch
        return np.concatenate([places, random.choice(places, -len(places) % multiple)]) if len(places) else places

    def of_widths(self, widths: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
        """Places in `widths` in batches of similar width, shuffled."""
        order = np.argsort(widths, kind="stable")
        if self.fill == "lines":
            chunks = [order[begin : begin + self.batch] for begin in range(0, len(order), self.batch)]
        else:
            chunks = self._by_tokens(order, widths[order])
        return [self._by_shares(chunks[number]) for number in random.permutation(len(chunks))]

    def _by_shares(self, chunk: np.ndarray) -> np.ndarray:
        """Places by width in the order in which rows s, s + S, … are neighbours, and a worker's shares both narrow and wide."""
        if len(chunk) % self.shares:
            return chunk
        half = self.shares // 2
        blocks = [*range(half), *reversed(range(half, self.shares))]
        return chunk.reshape(self.shares, -1)[blocks].T.ravel()

    def _by_tokens(self, order: np.ndarray, widths: np.ndarray) -> list[np.ndarray]:
        """`order` cut where `shares` more lines would make a batch wider in all than `batch` lines of mean width; widths: ascending."""
        chunks, begin, budget = [], 0, self.batch * widths.mean() if len(widths) else 0.0
        while begin < len(order):
            end = begin + self.shares
            while end < len(order) and (end + self.shares - begin) * widths[end + self.shares - 1] <= budget:
                end += self.shares
            chunks.append(order[begin:end])
            begin = end
        return chunks

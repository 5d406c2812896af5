"""How fast each layer learns where fine-tuning starts from a trained encoder: slower further down, or not at first."""

from __future__ import annotations

import re
from dataclasses import dataclass

WARMUP = 0.06  # share of the steps in which a layer that was frozen comes to its full rate: its optimiser is new to it


@dataclass(frozen=True)
class Rate:
    """Factor on the learning rate as a pure function of progress in [0, 1], so that a resume is exact.

    factor: the share of the learning rate that a layer gets. frozen: share of the steps in which it gets nothing.
    """

    factor: float = 1.0
    frozen: float = 0.0

    def __call__(self, progress: float) -> float:
        if progress < self.frozen:
            return 0.0
        return self.factor * (min(1.0, (progress - self.frozen) / WARMUP) if self.frozen else 1.0)


def of_layer(name: str, depth: int, decay: float, frozen: float) -> Rate:
    """Rate of the recogniser's parameter `name`, above an encoder of `depth` blocks that comes trained.

    The head has all of it; the top block and the norm behind it `decay` times as much, each block below `decay` times
    the one above it, and the stem the least (the layer-wise decay of Clark et al. 2020, arXiv 2003.10555).
    """
    encoder, _, part = name.partition("encoder.")
    if encoder or not part:
        return Rate()
    block = re.match(r"blocks\.(\d+)\.", part)
    below = depth - int(block[1]) if block else 1 if part.startswith("norm_out.") else depth + 1
    return Rate(decay**below, frozen)

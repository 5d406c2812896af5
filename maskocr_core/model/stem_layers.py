"""Which convolutions the stem of each kind has, known without torch, so that a plan of the costs needs none."""

from __future__ import annotations

from typing import NamedTuple


class Convolution(NamedTuple):
    """Square, with `kernel // 2` px of white around what it reads."""

    channels: int
    kernel: int
    stride: int


# Strides of a kind multiply to 8 px, the width of a step.
CONVOLUTIONS = {
    "linear": (),
    "convolutional": (Convolution(32, 3, 2), Convolution(64, 3, 2), Convolution(96, 3, 2)),
    "slim": (Convolution(16, 3, 2), Convolution(48, 3, 2), Convolution(96, 3, 2)),
}

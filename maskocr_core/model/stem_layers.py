"""Which convolutions the stem of each kind has, known without torch, so that a plan of the costs needs none."""

from __future__ import annotations

from typing import NamedTuple


class Convolution(NamedTuple):
    """`inputs` to `channels`, square, without biases, with `kernel // 2` px of white around what it reads."""

    inputs: int
    channels: int
    kernel: int = 3
    stride: int = 2

    @property
    def weights(self) -> int:
        return self.kernel**2 * self.inputs * self.channels


# Strides of a kind multiply to 8 px, the width of a step.
CONVOLUTIONS = {
    "linear": (),
    "convolutional": (Convolution(1, 32), Convolution(32, 64), Convolution(64, 96)),
    "slim": (Convolution(1, 16), Convolution(16, 48), Convolution(48, 96)),
}

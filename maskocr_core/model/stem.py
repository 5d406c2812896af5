"""From pixels to steps: the first layers of the encoder, which see no further than their own step or a little to its left."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskocr_core.config import STEP
from maskocr_core.model.stem_layers import CONVOLUTIONS

# On a CPU: what the first layers give of so few still lies in the cache of a core when the next ones read it.
LINES_AT_ONCE = 2


def stem_of(kind: str, height: int, width: int) -> nn.Module:
    """A module from ink (B, 1, H, W) float32 in [0, 1] to steps (B, L, D) float32, W = 8 L, D = `width`."""
    return LinearStem(height, width) if kind == "linear" else ConvolutionalStem(kind, height, width)


class LinearStem(nn.Module):
    """One linear map of the H × 8 px of a step: nothing outside the step is seen."""

    def __init__(self, height: int, width: int):
        super().__init__()
        self.patch = nn.Conv2d(1, width, (height, STEP), (height, STEP))

    def forward(self, ink: Tensor) -> Tensor:
        return self.patch(ink).squeeze(2).transpose(1, 2)


class ConvolutionalStem(nn.Module):
    """Three 3 × 3 convolutions of stride 2, then a linear map of each column of H / 8 cells.

    `slim` has half of the channels of `convolutional` where pixels are most, in its first layer, which sees nine pixels and needs
    no more to tell them apart. By either a step sees 15 px, 7 of them left of its own: short runs read far better from it
    than from linear patches. Without biases and norms white stays exactly zero, so that what a line gives does not
    depend on how wide its batch is padded, nor on which worker holds it (batch norm would break both).
    """

    def __init__(self, kind: str, height: int, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, channels, kernel, stride in CONVOLUTIONS[kind]:
            convolution = nn.Conv2d(inputs, channels, kernel, stride, kernel // 2, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_in", nonlinearity="relu")
            layers += [convolution, nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers)
        self.column = nn.Linear(CONVOLUTIONS[kind][-1].channels * height // STEP, width)

    def forward(self, ink: Tensor) -> Tensor:
        # One channel lies in memory alike whether it is said to come first or last; only its strides tell, and everything
        # behind them goes by these: with channels last, convolutions and their gradients need no copies.
        ink = ink.reshape(len(ink), *ink.shape[2:], 1).permute(0, 3, 1, 2)
        few = ink.split(LINES_AT_ONCE) if ink.device.type == "cpu" else (ink,)
        x = torch.cat([self.layers(lines) for lines in few])  # (B, C, H / 8, L)
        return self.column(x.permute(0, 3, 1, 2).flatten(2))

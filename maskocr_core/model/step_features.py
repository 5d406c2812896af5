"""What a step is described by before k-means: pixels, gradients, a network drawn at random, or a trained encoder.

The paper clusters activations of an already trained recogniser; who has none needs features from the data alone. Each
kind is a module `(ink (B, 1, H, W), valid (B, L)) -> (B, L, P)` float32 that gives a step the same features whatever its
line is batched with (an encoder, and gradients on a GPU, up to rounding).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskocr_core.config import ORIENTATIONS, STEP
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.stem import ConvolutionalStem

CELL = STEP // 2


class Pixels(nn.Module):
    """The pixels of a window centred on the step, P = H × window, white beyond the line's ends."""

    def __init__(self, window: int):
        super().__init__()
        self.window = window

    def forward(self, ink: Tensor, valid_BL: Tensor) -> Tensor:
        return windows(ink, self.window)


class Gradients(nn.Module):
    """Histograms of gradient directions in cells of 8 px height over the window, P = H / 8 × 9, each of length 1.

    Less sensitive to ink and to small shifts than pixels are.
    """

    def __init__(self, window: int):
        super().__init__()
        self.window = window

    def forward(self, ink: Tensor, valid_BL: Tensor) -> Tensor:
        padded = functional.pad(ink[:, 0], (1, 1, 1, 1))
        across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
        turn = torch.atan2(down, across).remainder(math.pi) / math.pi * ORIENTATIONS  # unsigned: in [0, 9)
        bins = _cells(turn.long().clamp(max=ORIENTATIONS - 1))
        strength = _cells((across.square() + down.square()).sqrt())
        cells = strength.new_zeros(*strength.shape[:3], ORIENTATIONS).scatter_add_(3, bins, strength)
        side = (self.window - STEP) // 2 // CELL
        columns = functional.pad(cells, (0, 0, side, side)).unfold(2, self.window // CELL, STEP // CELL).sum(-1)
        return functional.normalize(columns.transpose(1, 2).flatten(2), dim=-1)  # (B, L, H / 8 × 9)


def _cells(values: Tensor) -> Tensor:
    """(B, H, W) by cells of 8 px height and half a step: (B, H / 8, W / 4, 32). A window begins and ends where such a cell does."""
    return values.unflatten(2, (-1, CELL)).unflatten(1, (-1, STEP)).transpose(2, 3).flatten(3)


class RandomNetwork(nn.Module):
    """Activations of a convolutional stem that nobody trained, always the same: what random features alone give."""

    def __init__(self, height: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(20250328)
            self.layers = ConvolutionalStem("convolutional", height, STEP).layers.requires_grad_(False)

    @torch.no_grad()
    def forward(self, ink: Tensor, valid_BL: Tensor) -> Tensor:
        return self.layers(ink).flatten(1, 2).transpose(1, 2)


class Contextual(nn.Module):
    """What a trained encoder makes of a step after two thirds of its blocks.

    A pre-trained one gives the second round of HuBERT (Hsu et al. 2021, which clusters a middle layer), a recogniser's
    what the paper's labels come from.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.blocks = -(-2 * len(encoder.blocks) // 3)

    def train(self, mode: bool = True) -> Contextual:
        return super().train(False)  # it describes, and is never trained: no random offsets, no dropout

    @torch.no_grad()
    def forward(self, ink: Tensor, valid_BL: Tensor) -> Tensor:
        steps_BLD = self.encoder.norm_in(self.encoder.stem(ink))
        return self.encoder.contextual(steps_BLD + self.encoder.added(steps_BLD, False), valid_BL, self.blocks)


def windows(ink: Tensor, window: int) -> Tensor:
    """The pixels around each step: (B, 1, H, W) to (B, L, H × window), white beyond the line's ends."""
    side = (window - STEP) // 2
    padded = functional.pad(ink[:, 0], (side, side))
    return padded.unfold(2, window, STEP).transpose(1, 2).flatten(2)


def named(kind: str, height: int, window: int, encoder: Encoder | None) -> nn.Module:
    """What describes a step, by its name in `codebook.features`."""
    if kind == "encoder":
        assert encoder
        return Contextual(encoder)
    if kind == "random":
        return RandomNetwork(height)
    return (Pixels if kind == "pixels" else Gradients)(window)

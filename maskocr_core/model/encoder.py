"""The encoder: pixels of a line to one vector for each step of 8 px.

Geometry and sizes follow the authors' code (Kišš & Hradiš 2025): full-height steps; their sinusoidal positions with a
random offset in training are `model.places=sinusoidal`. Ours, and said so: places that turn queries and keys instead
(RoFormer, Su et al. 2021, arXiv 2104.09864), so that attention knows how far apart two steps are from the first update
on; a padding mask in attention, pre-norm blocks with a final norm (post-norm wants longer warm-ups than a laptop run
has), GELU, and small convolutional stems beside the plain linear patch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskocr_core.model import attention
from maskocr_core.model.attention import Attend
from maskocr_core.model.stem import stem_of

SLOWEST = 100.0  # steps a radian of the slowest turn: a line of two hundred steps is well within one turn of it
MAX_OFFSET = 2048  # positions are shifted by up to this in training, so that absolute places cannot be learnt


Turn = tuple[Tensor, Tensor]


class Encoder(nn.Module):
    """Ink (B, 1, H, W) float32 in [0, 1] and a mask of valid steps (B, L) bool, which come first, to (B, L, D) float32, W = 8 L."""

    def __init__(
        self, height: int, width: int, depth: int, heads: int, stem: str, dropout: float, places: str = "rotary"
    ):
        super().__init__()
        self.width, self.heads, self.rotary = width, heads, places == "rotary"
        self.shape = dict(
            height=height, width=width, depth=depth, heads=heads, stem=stem, dropout=dropout, places=places
        )
        self.stem = stem_of(stem, height, width)
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(depth))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, ink: Tensor, valid_BL: Tensor) -> Tensor:
        return self.contextual(self.placed(self.stem(ink)), valid_BL)

    def placed(self, steps_BLD: Tensor) -> Tensor:
        """What the stem says of each step, normed, with its position if that is added."""
        x_BLD = self.norm_in(steps_BLD)
        return x_BLD + self.added(x_BLD, self.training)

    def added(self, like_BLD: Tensor, random_offset: bool) -> Tensor:
        """What is added to steps for their places: nothing, (1, 1, 1), where places turn queries and keys."""
        return like_BLD.new_zeros(1, 1, 1) if self.rotary else positions(like_BLD, random_offset)

    def turn(self, place_BL: Tensor) -> Turn | None:
        """Cosine and sine (B, L, 1, D / heads) by which steps at these places are turned, the sine of the first half negative; None where
        they are not."""
        if not self.rotary:
            return None
        half = self.width // self.heads // 2
        rate = torch.exp(torch.arange(half, device=place_BL.device) * (-math.log(SLOWEST) / half))
        angle = place_BL[:, :, None, None] * rate
        cos, sin = angle.cos(), angle.sin()
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def contextual(
        self, x_BLD: Tensor, valid_BL: Tensor, blocks: int | None = None, place_BL: Tensor | None = None
    ) -> Tensor:
        """What the first `blocks` blocks (all, with the final norm, by default) make of placed steps (B, L, D).

        place_BL: which steps of the line these are; the first L by default.
        """
        if place_BL is None:
            place_BL = torch.arange(x_BLD.shape[1], device=x_BLD.device)[None]
        turn = self.turn(place_BL)
        attend = attention.attend(valid_BL, flash=attention.flash_runs(x_BLD.device))
        for block in self.blocks[:blocks]:
            x_BLD = block(x_BLD, attend, turn)
        return self.norm_out(x_BLD) if blocks is None else x_BLD


class Block(nn.Module):
    """Pre-norm Transformer block, feed-forward four times the width."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BLD: Tensor, attend: Attend, turn: Turn | None = None) -> Tensor:
        B, L, D = x_BLD.shape
        query, key, value = self.qkv(self.norm_attention(x_BLD)).view(B, L, 3, self.heads, D // self.heads).unbind(2)
        # Turned before heads and steps change places: attention's output then lies in memory as the next layer reads it.
        query, key = turned(query, turn), turned(key, turn)
        mixed = attention.mixed(query, key, value, attend)
        x_BLD = x_BLD + self._drop(self.out(mixed.reshape(B, L, D)))
        return x_BLD + self._drop(self.down(functional.gelu(self.up(self.norm_feedforward(x_BLD)))))

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


def turned(x: Tensor, turn: Turn | None) -> Tensor:
    """Queries or keys (B, L, heads, D / heads), each pair of halves turned by its place (RoFormer, equation 34)."""
    if turn is None:
        return x
    cos, sin = turn
    other = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, other, sin).to(x.dtype)


def positions(like_BLD: Tensor, random_offset: bool) -> Tensor:
    """Sinusoidal positions (B or 1, L, D) float32 (Vaswani et al. 2017), each line shifted at random if asked for."""
    B, L, D = like_BLD.shape
    place = torch.arange(L, device=like_BLD.device, dtype=torch.float32)[None]
    if random_offset:
        place = place + torch.randint(MAX_OFFSET, (B, 1), device=like_BLD.device)
    rate = torch.exp(torch.arange(0, D, 2, device=like_BLD.device) * (-math.log(10000.0) / D))
    angle = place[:, :, None] * rate
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(2)

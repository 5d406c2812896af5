"""Which steps are hidden, how likely, and by what (Kišš & Hradiš 2025; the authors' code hides pixels by one noise tile)."""

from __future__ import annotations

import torch
from torch import Tensor

from maskocr_core.config import STEP


def probability(progress: float, start: float, end: float) -> float:
    """Masking probability after a share `progress` in [0, 1] of the training: it rises linearly from `start` to `end`.

    The paper says that it rises; that it does so linearly is our choice, a pure function so that a resumed run is exact.
    """
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def sample(valid_BL: Tensor, probability: float, span: int) -> Tensor:
    """Draw masked steps (B, L) bool among the valid ones, in runs of `span`; padding is never masked.

    A run starts at each step with the probability at which the share of masked steps comes out as `probability`.
    """
    B, L = valid_BL.shape
    # Runs may begin before the line, or its first steps would be hidden less often than the others.
    starts = torch.rand((B, L + span - 1), device=valid_BL.device) < 1.0 - (1.0 - probability) ** (1.0 / span)
    return starts.unfold(1, span, 1).any(-1) & valid_BL


def hide(ink: Tensor, mask_BL: Tensor) -> Tensor:
    """Replace the 8 columns of every masked step of (B, 1, H, W) by one fixed noise tile, the same for all."""
    B, _, H, W = ink.shape
    tile = noise_tile(H).to(ink).repeat(1, W // STEP)
    return torch.where(mask_BL.repeat_interleave(STEP, dim=1)[:, None, None, :], tile, ink)


def noise_tile(height: int) -> Tensor:
    """(height, 8) float32 in [0, 1), always the same."""
    return torch.rand(height, STEP, generator=torch.Generator().manual_seed(20250328))

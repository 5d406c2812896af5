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


def drawn_probabilities(lines: int, start: float, end: float, device: torch.device | None = None) -> Tensor:
    """(B, 1) float32: a probability for each line, drawn evenly between `start` and `end` (R²MAE, arXiv 2509.21650)."""
    return start + (end - start) * torch.rand(lines, 1, device=device)


def sample(valid_BL: Tensor, probability: float | Tensor, span: int) -> Tensor:
    """Draw masked steps (B, L) bool among the valid ones, in runs of `span`; padding is never masked.

    probability: of all lines, or (B, 1) of each. Runs that begin anywhere are hidden one after another until the share of
    the line is reached, a fraction of a step by chance: lines of one length have as many steps hidden, so that what is
    left of them fills a batch without padding. The last run of a line may be cut.
    """
    B, L = valid_BL.shape
    lengths = valid_BL.sum(1, keepdim=True)
    hidden = (probability * lengths + torch.rand((B, 1), device=valid_BL.device)).floor()
    # Runs may begin before the line, or its first steps would be hidden less often than the others.
    turns = torch.rand((B, L + span - 1), device=valid_BL.device).unfold(1, span, 1).amin(-1)
    order = turns.masked_fill(~valid_BL, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return (order < hidden) & valid_BL


def hide(ink: Tensor, mask_BL: Tensor) -> Tensor:
    """Replace the 8 columns of every masked step of (B, 1, H, W) by one fixed noise tile, the same for all."""
    B, _, H, W = ink.shape
    tile = noise_tile(H).to(ink).repeat(1, W // STEP)
    return torch.where(mask_BL.repeat_interleave(STEP, dim=1)[:, None, None, :], tile, ink)


def blank(ink: Tensor, mask_BL: Tensor) -> Tensor:
    """Make the 8 columns of every masked step of (B, 1, H, W) white, so that nothing of them reaches a neighbour."""
    return ink * (~mask_BL).repeat_interleave(STEP, dim=1)[:, None, None, :]


def noise_tile(height: int) -> Tensor:
    """(height, 8) float32 in [0, 1), always the same."""
    return torch.rand(height, STEP, generator=torch.Generator().manual_seed(20250328))

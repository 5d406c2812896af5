"""The masked model: the encoder with hidden steps, and what predicts them and the visible ones.

Three ways to hide a step (`mask.hide`). `noise` is that of the authors' code: its pixels become a noise tile, and all
steps are encoded. `token` leaves its pixels white and puts a learnt vector in place of what the stem says of them, so
that no neighbour's stem sees noise. `skip` leaves hidden steps out of the encoder altogether, as masked auto-encoders do
(He et al. 2022, arXiv 2111.06377): the more is hidden, the less is computed. Visible steps are then predicted straight
from the encoder's outputs, and hidden ones by one block of cross-attention that asks these outputs for the place of each
(CrossMAE, Fu et al. 2024, arXiv 2401.14391). That labels are predicted so instead of pixels is our choice.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskocr_core.model import attention, masking
from maskocr_core.model.encoder import Encoder, Turn, turned


def masked_model(encoder: Encoder, hide: Literal["noise", "token", "skip"], outputs: int) -> nn.Module:
    """A module `(ink (B, 1, H, W), valid (B, L), mask (B, L)) -> (hidden (M, P), visible (N, P))`.

    Predictions of the masked and of the other valid steps, P = `outputs`, line after line in the order of the steps.
    """
    return Skipping(encoder, outputs) if hide == "skip" else Covering(encoder, outputs, token=hide == "token")


class Covering(nn.Module):
    """All steps are encoded, hidden ones covered by noise or by a learnt token."""

    def __init__(self, encoder: Encoder, outputs: int, token: bool):
        super().__init__()
        self.encoder = encoder
        self.token = nn.Parameter(torch.randn(encoder.width) * 0.5) if token else None
        self.head = nn.Linear(encoder.width, outputs)

    def forward(self, ink: Tensor, valid_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        if self.token is None:
            steps_BLD = self.encoder.stem(masking.hide(ink, mask_BL))
        else:
            steps_BLD = torch.where(mask_BL[..., None], self.token, self.encoder.stem(masking.blank(ink, mask_BL)))
        out_BLD = self.encoder.contextual(self.encoder.placed(steps_BLD), valid_BL)
        return self.head(out_BLD[mask_BL]), self.head(out_BLD[valid_BL & ~mask_BL])


class Skipping(nn.Module):
    """Visible steps alone are encoded."""

    def __init__(self, encoder: Encoder, outputs: int):
        super().__init__()
        self.encoder = encoder
        self.asking = Asking(encoder.width, encoder.heads)
        self.head, self.visible_head = nn.Linear(encoder.width, outputs), nn.Linear(encoder.width, outputs)

    def forward(self, ink: Tensor, valid_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        stem_BLD = self.encoder.norm_in(self.encoder.stem(masking.blank(ink, mask_BL)))
        place_BLD = self.encoder.added(stem_BLD, self.training).expand(stem_BLD.shape)
        seen, seen_valid = _front(valid_BL & ~mask_BL)
        hidden, hidden_valid = _front(mask_BL)
        known_BVD = self.encoder.contextual(_taken(stem_BLD + place_BLD, seen), seen_valid, place_BL=seen)
        asked_BMD = self.asking(
            _taken(place_BLD, hidden),
            known_BVD + _taken(place_BLD, seen),
            seen_valid,
            self.encoder.turn(hidden),
            self.encoder.turn(seen),
        )
        return self.head(asked_BMD[hidden_valid]), self.visible_head(known_BVD[seen_valid])


class Asking(nn.Module):
    """One pre-norm block of cross-attention and feed-forward: what is at these places, given what is known elsewhere?"""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        self.norm_query, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.query, self.key_value, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, place_BMD: Tensor, known_BVD: Tensor, valid_BV: Tensor, turn_M: Turn | None, turn_V: Turn | None
    ) -> Tensor:
        B, M, D = place_BMD.shape
        x_BMD = place_BMD + self.token
        query = turned(self.query(self.norm_query(x_BMD)).view(B, M, self.heads, -1), turn_M)
        key, value = self.key_value(known_BVD).view(B, -1, 2, self.heads, D // self.heads).unbind(2)
        mixed = attention.mixed(query, turned(key, turn_V), value, attention.attend(valid_BV, flash=False))
        x_BMD = x_BMD + self.out(mixed.reshape(B, M, D))
        x_BMD = x_BMD + self.down(functional.gelu(self.up(self.norm_feedforward(x_BMD))))
        return self.norm_out(x_BMD)


def _front(chosen_BL: Tensor) -> tuple[Tensor, Tensor]:
    """(places (B, N), valid (B, N)): the chosen steps of each line first, in their order; N = the most that a line has."""
    most = max(1, int(chosen_BL.sum(1).max()))
    places = torch.argsort(~chosen_BL, dim=1, stable=True)[:, :most]
    return places, chosen_BL.gather(1, places)


def _taken(x_BLD: Tensor, places_BN: Tensor) -> Tensor:
    return x_BLD.gather(1, places_BN[..., None].expand(-1, -1, x_BLD.shape[2]))

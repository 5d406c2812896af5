"""Pictures by which a person sees the masked model learn: the labels' portraits, and hidden lines with what is predicted."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from maskocr_core.config import STEP
from maskocr_core.data.batches import Batch
from maskocr_core.model import masking
from maskocr_core.training.objectives import MaskedPrediction

MOST_PORTRAITS = 256
COLUMNS = 32
PAPER, HIDDEN, PREDICTED = (255, 255, 255), (196, 203, 214), (30, 80, 160)


def of_codebook(portraits: np.ndarray, sizes: np.ndarray) -> Image.Image:
    """The mean ink (K, H, window) in [0, 1] of the labels that come most often, most frequent first, at most 256."""
    order = np.argsort(-sizes, kind="stable")[:MOST_PORTRAITS]
    order = order[sizes[order] > 0]
    height, width = portraits.shape[1:]
    rows = -(-len(order) // COLUMNS)
    sheet = Image.new("L", (COLUMNS * (width + 4) + 4, rows * (height + 4) + 4), 235)
    for place, label in enumerate(order):
        row, column = divmod(place, COLUMNS)
        tile = Image.fromarray(_gray(portraits[label]))
        sheet.paste(tile, (4 + column * (width + 4), 4 + row * (height + 4)))
    return sheet


@torch.no_grad()
def of_lines(objective: MaskedPrediction, batch: Batch, progress: float, seed: int) -> tuple[Image.Image, float]:
    """Each line as it is, as the model sees it, and with the portraits of the labels it predicts of the hidden steps.

    Returns the picture and the share of hidden steps whose label is right. The mask is that of `progress`, drawn by `seed`
    and not by the generator of the training, which goes on as if nothing had happened. Pixels that are predicted instead
    of labels are shown as such, in the contrast of the line.
    """
    was_training, where = objective.training, next(objective.parameters()).device
    objective.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mask_BL, probability = objective.draw(batch.valid, progress)
    ink, valid_BL, mask = batch.ink.to(where), batch.valid.to(where), mask_BL.to(where)
    said_MP = objective.model(ink, valid_BL, mask)[0].cpu()
    labels_M = objective.codebook.labels(ink, valid_BL)[mask].cpu()
    right = float((said_MP.argmax(-1) == labels_M).float().mean()) if objective.mask.predict == "labels" else 0.0
    tiles = _tiles(objective, said_MP, batch.ink, mask_BL)
    objective.train(was_training)
    sheet = _sheet(batch, mask_BL, tiles)
    said = f"masking probability {float(probability):.2f}" + (
        f", {100 * right:.0f} % of hidden labels right" if objective.mask.predict == "labels" else ""
    )
    ImageDraw.Draw(sheet).text((8, 6), said, fill=(60, 60, 60))
    return sheet, right


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _tiles(objective: MaskedPrediction, said_MP: Tensor, ink: Tensor, mask_BL: Tensor) -> Tensor:
    """(M, H, 8) ink in [0, 1] of what is predicted of each hidden step."""
    if objective.mask.predict == "pixels":
        of_line = mask_BL.nonzero()[:, 0]
        spread, mean = ink.std((1, 2, 3))[of_line, None], ink.mean((1, 2, 3))[of_line, None]
        return (said_MP * spread + mean).clamp(0, 1).unflatten(1, (-1, STEP))
    portraits = objective.codebook.portraits
    if portraits is None:  # a codebook of format 1 does not know what its labels look like
        return torch.zeros(len(said_MP), ink.shape[2], STEP)
    side = (portraits.shape[2] - STEP) // 2
    return portraits.cpu()[said_MP.argmax(-1), :, side : side + STEP]


def _sheet(batch: Batch, mask_BL: Tensor, tiles: Tensor) -> Image.Image:
    B, _, H, W = batch.ink.shape
    sheet = Image.new("RGB", (W + 16, 28 + B * (3 * H + 20)), PAPER)
    begin = 0
    for line in range(B):
        hidden = mask_BL[line]
        count = int(hidden.sum())
        ink = batch.ink[line, 0].cpu()
        columns = hidden.repeat_interleave(STEP).numpy()
        blanked = masking.blank(batch.ink[line : line + 1], mask_BL[line : line + 1])[0, 0]
        seen, filled = _colour(blanked), _colour(blanked)
        seen[:, columns] = HIDDEN
        strength = tiles[begin : begin + count].cpu().permute(1, 0, 2).reshape(H, -1).numpy()[..., None]
        filled[:, columns] = np.array(HIDDEN) * (1 - strength) + np.array(PREDICTED) * strength
        for row, image in enumerate((_colour(ink), seen, filled)):
            sheet.paste(Image.fromarray(image.astype(np.uint8)), (8, 28 + line * (3 * H + 20) + row * (H + 4)))
        begin += count
    return sheet


def _gray(ink: np.ndarray) -> np.ndarray:
    return ((1 - np.clip(ink, 0, 1)) * 255).round().astype(np.uint8)


def _colour(ink: Tensor) -> np.ndarray:
    return np.repeat(_gray(ink.cpu().numpy())[..., None], 3, axis=2).astype(np.float32)

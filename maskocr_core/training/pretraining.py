"""Masked-label pre-training as one worker runs it, alone or beside others."""

from __future__ import annotations

from pathlib import Path

import torch

from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config
from maskocr_core.data import batches
from maskocr_core.training import checkpoint, objectives
from maskocr_core.training.log import TrainingLog
from maskocr_core.training.loop import Place, fit


def train(
    rank: int, world: int, config: Config, data: Path, selection: Path, codebook: Path, folder: Path
) -> dict[str, float]:
    """Train an encoder on the selected unlabelled lines; rank 0 writes it, and its checkpoints and log, below `folder`.

    rank, world: which worker this is, and of how many. Returns the last figures of the loop.
    """
    place = Place(rank, world)
    torch.manual_seed(config.pretrain.seed)
    encoder = checkpoint.new_encoder(config.model, config.data.height)
    objective = objectives.MaskedLabels(
        encoder, checkpoint.load_codebook(Artifact(codebook), config.data.direction), config.mask
    )
    source = batches.Stream(Artifact(data), Artifact(selection), "unlabeled", config.data)
    log = TrainingLog(folder / "log.jsonl")

    def stream(first: int):
        return batches.training(
            source,
            batch=config.pretrain.batch,
            seed=config.pretrain.seed,
            first_step=first,
            rank=place.rank,
            world=place.world,
        )

    figures = fit(
        objective, stream, config.pretrain, checkpoint.Checkpoints(folder / "checkpoints"), place=place, log=log.add
    )
    if place.rank == 0:
        checkpoint.save_encoder(encoder, config.model, config.data.height, folder / "encoder", config.data.direction)
    return {**figures, "steps": float(config.pretrain.steps)}

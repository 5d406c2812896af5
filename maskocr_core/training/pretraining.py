"""Masked-label pre-training as one worker runs it, alone or beside others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config
from maskocr_core.data import admitted, batches, budgets
from maskocr_core.data.decoded import Decoded
from maskocr_core.services.post import LOG, PICTURES
from maskocr_core.training import checkpoint, codebooks, device, objectives, pictures, probing, stored_labels
from maskocr_core.training.checkpoints import Checkpoints
from maskocr_core.training.exchange import Place
from maskocr_core.training.log import TrainingLog
from maskocr_core.training.loop import fit


def train(
    rank: int,
    world: int,
    config: Config,
    data: Path,
    selection: Path,
    codebook: Path,
    folder: Path,
    start: Path | None = None,
    labels: Path | None = None,
) -> dict[str, float]:
    """Train an encoder on the selected unlabelled lines; rank 0 writes it, and its checkpoints and log, below `folder`.

    rank, world: which worker this is, and of how many. start: an encoder of the same shape to go on from; None: random
    weights. labels: of these lines, as `stored_labels.store` writes them; None: they are made as lines are met. Returns the
    last figures of the loop.
    """
    place = Place(rank, world)
    torch.manual_seed(config.pretrain.seed)
    if start:
        encoder = checkpoint.load_encoder(Artifact(start), config.model, config.data)
    else:
        encoder = checkpoint.new_encoder(config.model, config.data.height)
    objective = objectives.MaskedPrediction(encoder, codebooks.load(Artifact(codebook), config.data), config.mask)
    inputs = Artifact(data), Artifact(selection)
    source = (
        stored_labels.LabelledStream(*inputs, config.data, Artifact(labels))
        if labels
        else batches.Stream(*inputs, "unlabeled", config.data)
    )
    watch = Watch(objective, config, data, selection, folder) if rank == 0 else None
    log = TrainingLog(folder / LOG)

    def stream(first: int, bookmark: batches.Bookmark):
        return batches.training(
            source,
            batch=config.pretrain.batch,
            seed=config.pretrain.seed,
            first_step=first,
            bookmark=bookmark,
            rank=place.rank,
            world=place.world,
            fill=config.pretrain.fill,
            shares=config.pretrain.shares,
            **device.feeding(),
        )

    figures = fit(
        objective,
        stream,
        config.pretrain,
        Checkpoints(
            folder / "checkpoints",
            artifacts.in_store(folder / "checkpoints"),
            (log.path, folder / "probe.json", folder / PICTURES),
        ),
        place=place,
        log=lambda step, row: log.add(step, row | watch.last()) if watch else None,
        after=watch.look if watch else lambda step: {},
    )
    if place.rank == 0:
        checkpoint.save_encoder(encoder, config.model, config.data, folder / "encoder")
    return {**figures, **(watch.last() if watch else {}), "steps": float(config.pretrain.steps)}


class Watch:
    """Looks at the model some `LOOKS` times along its way: a picture of a few hidden lines, and the CTC probe if labels are given for it.

    The pictures are in `folder/pictures`, the probe's readings beside them, so that a resumed run goes on with them.
    """

    LOOKS = 8
    LINES = 4

    def __init__(
        self, objective: objectives.MaskedPrediction, config: Config, data: Path, selection: Path, folder: Path
    ):
        self.objective, self.training, self.folder = objective, config.pretrain, folder / PICTURES
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shown = self._shown(Artifact(data), Artifact(selection), config)
        self.path = folder / "probe.json"
        self.probed: tuple[batches.Lines, batches.Lines] | None = None
        if config.pretrain.probe_labels:
            tables = [admitted.selected(Artifact(data), Artifact(selection), split) for split in ("train", "val")]
            if not all(table.num_rows for table in tables):
                raise ValueError(
                    f"pretrain.probe_labels={config.pretrain.probe_labels} asks for labelled training and validation lines, and there are none: set it to 0"
                )
            tables[0] = budgets.nested(tables[0], config.pretrain.probe_labels, config.data.split_unit)
            self.probed = tuple(batches.Lines(Artifact(data), table, config.data) for table in tables)

    def look(self, step: int) -> dict[str, float]:
        """Draw and probe if `step` is the first checkpoint at or after another eighth of the training, or the first of all; the last reading."""
        every, total = self.training.checkpoint_every, self.training.steps
        eighth = lambda done: done * self.LOOKS // total  # noqa: E731
        if step != every and eighth(step) == eighth(max(0, step - every)) and step != total:
            return self.last()
        picture, _ = pictures.of_lines(self.objective, self.shown, step / total, self.training.seed)
        name = f"step-{step:08d}.png"
        artifacts.write_bytes(self.folder / name, pictures.png(picture))
        shown = {path.name: self.shown.line_ids for path in sorted(self.folder.glob("step-*.png"))}
        artifacts.write_json(self.folder / "shown.json", shown)
        if self.probed:
            encoder = self.objective.model.encoder
            reading = [step, round(probing.validation_cer(encoder, *self.probed), 5)]
            artifacts.write_json(self.path, [*(earlier for earlier in self._readings() if earlier[0] < step), reading])
        return self.last()

    def last(self) -> dict[str, float]:
        readings = self._readings()
        return {"probe_cer": readings[-1][1]} if readings else {}

    def _readings(self) -> list[list[float]]:
        """From the file at each time: a checkpoint may bring it after this object was made."""
        return json.loads(self.path.read_text()) if self.path.is_file() else []

    def _shown(self, data: Artifact, selection: Artifact, config: Config) -> batches.Batch:
        """The lines of the picture: the first in the order of the lot, of about the same width, the same at every look."""
        # All lines of a shard may have been forgotten since it was accepted.
        tables = (admitted.selected_of(data, selection, shard) for shard in admitted.accepted_shards(data, selection))
        source = batches.Lines(data, next(table for table in tables if table.num_rows), config.data, Decoded(0))
        order = np.argsort(np.abs(source.widths - np.median(source.widths)), kind="stable")
        return source.collate(order[: self.LINES])

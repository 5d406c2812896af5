"""What quantize does with one shard: features of a sample of its steps, how often each label comes, and what it looks like.

Which lines and which of their steps are in the sample hangs on the line alone, so that shards need not know of each
other and new data do not change the sample of old ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from maskocr_core.artifacts import Artifact
from maskocr_core.config import STEP, Config
from maskocr_core.data import admitted, batches, images, lines
from maskocr_core.data.decoded import Decoded
from maskocr_core.model import codebook, step_features
from maskocr_core.progress import Progress
from maskocr_core.training import checkpoint, saw
from maskocr_core.training.saw import Saw

BATCH = 32


@dataclass(frozen=True)
class Shares:
    """What is sampled: a share of the lines, and a share of the steps of each, in [0, 1]."""

    lines: float
    steps: float


class Say:
    """Progress over shards, for `mapping.over`; says that it is done with the last of `total`.

    cpu_seconds: that the shards have cost so far, wherever they were worked on.
    """

    def __init__(self, what: str, total: int):
        self.progress, self.total, self.done, self.cpu_seconds = Progress(what, total=total), total, [], 0.0

    def __call__(self, name: str, came: dict[str, Any]) -> None:
        self.done.append(came["lines"])
        self.cpu_seconds += came["cpu_seconds"]
        tell = self.progress.done if len(self.done) == self.total else self.progress.update
        tell(len(self.done), lines=sum(self.done))


def features_of(config: Config, encoder_uri: str) -> tuple[nn.Module, Saw]:
    """What describes a step by `codebook.features`, and what it was trained on.

    Raises ValueError where an encoder is asked for and none is named, or one of another height or direction, or the
    other way round.
    """
    kind = config.codebook.features
    if (kind == "encoder") != bool(encoder_uri):
        raise ValueError(
            "codebook.features=encoder needs --encoder-uri: the folder of a pre-trained encoder or a trained recognizer"
            if kind == "encoder"
            else f"encoder_uri is given, and codebook.features={kind} asks no encoder: set codebook.features=encoder, or leave it out"
        )
    encoder, seen = None, Saw()
    if encoder_uri:
        home = checkpoint.folder_at(encoder_uri)
        encoder, seen = checkpoint.encoder_in(home, encoder_uri, config.data), saw.of_model(home)
    return step_features.named(kind, config.data.height, config.codebook.window, encoder), seen


def shares(
    artifact: Artifact, selection: Artifact, shards: list[str], config: Config, features: nn.Module, max_bytes: int
) -> Shares:
    """Shares that give about `codebook.sample_lines` lines, and features of at most about `max_bytes` as float32.

    shards: those of which lines are selected. How long a line is in the mean is learnt from at most 64 of them.
    """
    total = sum(admitted.count_selected(artifact, selection, shard) for shard in shards)
    share = min(1.0, config.codebook.sample_lines / max(1, total))
    steps = count = 0
    for shard in shards[:: max(1, -(-len(shards) // 64))]:
        table = admitted.selected_of(artifact, selection, shard, ["height", "width"])
        for height, width in zip(table["height"].to_pylist(), table["width"].to_pylist()):
            steps += -(-images.prepared_width(height, width, config.data.height, config.data.max_width) // STEP)
        count += table.num_rows
    sampled = share * total * steps / max(1, count)
    # A share of the steps of every line, so that long and short lines alike are in the sample.
    return Shares(share, min(1.0, max_bytes / (4 * _width(features, config) * max(1.0, sampled))))


def sample(
    artifact: Artifact,
    selection: Artifact,
    shard: str,
    config: Config,
    share: Shares,
    features: nn.Module,
    part: Path,
) -> dict[str, Any]:
    """Write `steps.npy`: features (N, P) float32 of the sampled steps. Returns the number of `lines`, and `cpu_seconds`."""
    began = time.process_time()
    source = _sampled(artifact, selection, shard, config, share)
    found = [np.empty((0, _width(features, config)), np.float32)]
    for places, batch in source.in_order(BATCH):
        for line, valid, place in zip(features(batch.ink, batch.valid), batch.valid, places):
            random = np.random.default_rng([config.codebook.seed, int(source.line_ids[place], 16)])
            line = line[valid]
            found.append(line[torch.from_numpy(random.random(len(line)) < share.steps)].numpy())
    np.save(part / "steps.npy", np.concatenate(found))
    return {"lines": len(source), "cpu_seconds": time.process_time() - began}


def stacked(parts: list[Path]) -> np.ndarray:
    """The features of all parts (N, P) float32, in the order of the parts."""
    pieces = [np.load(part / "steps.npy", mmap_mode="r") for part in parts]
    steps = np.empty((sum(map(len, pieces)), pieces[0].shape[1]), np.float32)
    begin = 0
    for piece in pieces:
        steps[begin : begin + len(piece)] = piece
        begin += len(piece)
    return steps


def count(
    artifact: Artifact,
    selection: Artifact,
    shard: str,
    config: Config,
    share: Shares,
    book: codebook.Codebook,
    part: Path,
) -> dict[str, Any]:
    """How many steps of the sampled lines of a shard have each label, and the sum of the ink around them.

    Of the M labels that come at all it writes `met.npy` (M,) int64, `sizes.npy` (M,) int64 and `ink.npy` (M, H, window)
    float32: a shard gives few lines to the sample when there are many. Returns the number of `lines`, and `cpu_seconds`.
    """
    began = time.process_time()
    settings = config.codebook
    source = _sampled(artifact, selection, shard, config, share)
    sizes = np.zeros(settings.clusters, np.int64)
    ink = torch.zeros((settings.clusters, config.data.height * settings.window), dtype=torch.float64)
    for _, batch in source.in_order(BATCH):
        labels = book.labels(batch.ink, batch.valid)[batch.valid]
        sizes += np.bincount(labels.numpy(), minlength=len(sizes))
        ink.index_add_(0, labels, step_features.windows(batch.ink, settings.window)[batch.valid].double())
    met = np.flatnonzero(sizes)
    np.save(part / "met.npy", met)
    np.save(part / "sizes.npy", sizes[met])
    np.save(part / "ink.npy", ink[met].float().view(-1, config.data.height, settings.window).numpy())
    return {"lines": len(source), "cpu_seconds": time.process_time() - began}


def counted(parts: list[Path], clusters: int, height: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """What `count` wrote of all parts, added up: (K,) int64 how often each label comes, (K, H, window) float64 its ink."""
    sizes, ink = np.zeros(clusters, np.int64), np.zeros((clusters, height, window))
    for part in parts:
        met = np.load(part / "met.npy")
        sizes[met] += np.load(part / "sizes.npy")
        ink[met] += np.load(part / "ink.npy")
    return sizes, ink


def _width(features: nn.Module, config: Config) -> int:
    """P, as the features of an empty line say it."""
    blank = torch.zeros(1, 1, config.data.height, STEP)
    return features(blank, torch.ones(1, 1, dtype=torch.bool)).shape[2]


def _sampled(artifact: Artifact, selection: Artifact, shard: str, config: Config, share: Shares) -> batches.Lines:
    table = admitted.selected_of(artifact, selection, shard)
    seed = str(config.codebook.seed).encode()
    chosen = [lines.lot(identity, seed) < share.lines for identity in table["line_id"].to_pylist()]
    return batches.Lines(artifact, table.filter(pa.array(chosen, pa.bool_())), config.data, Decoded(0))

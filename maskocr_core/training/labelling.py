"""What quantize does with one shard: windows of a sample of its lines, and how often each label comes among them.

Which lines and which of their windows are in the sample hangs on the line alone, so that shards need not know of each
other and new data do not change the sample of old ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from maskocr_core.artifacts import Artifact
from maskocr_core.config import STEP, Config
from maskocr_core.data import batches, images, lines
from maskocr_core.model import codebook

BATCH = 32


@dataclass(frozen=True)
class Shares:
    """What is sampled: a share of the lines, and a share of the windows of each, in [0, 1]."""

    lines: float
    windows: float


def shares(artifact: Artifact, selection: Artifact, shards: list[str], config: Config, max_bytes: int) -> Shares:
    """Shares that give about `codebook.sample_lines` lines, and windows of at most about `max_bytes` as float32.

    shards: those of which lines are selected. How long a line is in the mean is learnt from at most 64 of them.
    """
    total = sum(lines.count_selected(artifact, selection, shard) for shard in shards)
    share = min(1.0, config.codebook.sample_lines / max(1, total))
    steps = count = 0
    for shard in shards[:: max(1, -(-len(shards) // 64))]:
        table = lines.selected_of(artifact, selection, shard, ["height", "width"])
        for height, width in zip(table["height"].to_pylist(), table["width"].to_pylist()):
            steps += -(-images.prepared_width(height, width, config.data.height, config.data.max_width) // STEP)
        count += table.num_rows
    windows = share * total * steps / max(1, count)
    # A share of the windows of every line, so that long and short lines alike are in the sample.
    return Shares(share, min(1.0, max_bytes / (4 * config.data.height * config.codebook.window * max(1.0, windows))))


def sample(
    artifact: Artifact, selection: Artifact, shard: str, config: Config, share: Shares, part: Path
) -> dict[str, Any]:
    """Write `windows.npy`: pixels (N, height × window) uint8, 255 = white. Returns the number of `lines`."""
    settings = config.codebook
    source = _sampled(artifact, selection, shard, config, share)
    found = [np.empty((0, config.data.height * settings.window), np.uint8)]
    for places, batch in source.in_order(BATCH):
        windows = codebook.windows(batch.ink, settings.window)
        for line, valid, place in zip(windows, batch.valid, places):
            random = np.random.default_rng([settings.seed, int(source.line_ids[place], 16)])
            line = line[valid]
            kept = line[torch.from_numpy(random.random(len(line)) < share.windows)]
            # Ink is 1 - pixel / 255, so that no more than the byte it came from need be kept.
            found.append(((1.0 - kept.numpy()) * 255).round().astype(np.uint8))
    np.save(part / "windows.npy", np.concatenate(found))
    return {"lines": len(source)}


def stacked(parts: list[Path], features: int) -> np.ndarray:
    """The windows of all parts as ink (N, features) float32, in the order of the parts."""
    pieces = [np.load(part / "windows.npy", mmap_mode="r") for part in parts]
    ink = np.empty((sum(map(len, pieces)), features), np.float32)
    begin = 0
    for piece in pieces:
        ink[begin : begin + len(piece)] = 1.0 - piece.astype(np.float32) / 255.0
        begin += len(piece)
    return ink


def count(
    artifact: Artifact,
    selection: Artifact,
    shard: str,
    config: Config,
    share: Shares,
    book: codebook.Codebook,
    part: Path,
) -> dict[str, Any]:
    """Write `sizes.npy`: how many steps of the sampled lines of a shard have each label, (K,) int64."""
    source = _sampled(artifact, selection, shard, config, share)
    sizes = np.zeros(config.codebook.clusters, np.int64)
    for _, batch in source.in_order(BATCH):
        sizes += np.bincount(book.labels(batch.ink)[batch.valid].numpy(), minlength=len(sizes))
    np.save(part / "sizes.npy", sizes)
    return {"lines": len(source)}


def _sampled(artifact: Artifact, selection: Artifact, shard: str, config: Config, share: Shares) -> batches.Lines:
    table = lines.selected_of(artifact, selection, shard)
    seed = str(config.codebook.seed).encode()
    chosen = [lines.lot(identity, seed) < share.lines for identity in table["line_id"].to_pylist()]
    return batches.Lines(artifact, table.filter(pa.array(chosen, pa.bool_())), config.data, keep=0)

"""Labels of all lines, made once before training instead of at every meeting: it pays where an encoder describes the steps.

The authors' code stores them too. Those of pixels or gradients cost a few hundredths of a training step, and are made
when a line is met; an encoder that describes every step of a line adds a quarter to a half. On a GPU it adds little, and for
a cluster labels would have to be carried to its nodes: there they are made when a line is met, too. A shard of lines has a
file of labels of the same name with the same row groups, so that a window of lines is read with its labels.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config, Data
from maskocr_core.data import admitted, batches, lines
from maskocr_core.data.decoded import Decoded
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.step_features import Contextual
from maskocr_core.services import cluster, mapping
from maskocr_core.training import device, labelling

LABELS = pa.schema(
    [pa.field("line_id", pa.string(), nullable=False), pa.field("labels", pa.list_(pa.int32()), nullable=False)]
)


@dataclass(frozen=True)
class LabelledBatch(batches.Batch):
    """A batch with the label of every step: labels (B, L') int64, L' at least L; 0 for padding."""

    labels: Tensor


def pay(config: Config, book: Codebook, count: int) -> bool:
    """Whether labels of `count` lines are stored: an encoder makes them, each line is met once or more, and training is on
    the processors of this machine."""
    met = config.pretrain.steps * config.pretrain.batch
    elsewhere = cluster.given() or os.environ.get("MASKOCR_STORE") or device.here().type != "cpu"
    described = config.mask.predict == "labels" and isinstance(book.features, Contextual)
    return described and met >= count and not elsewhere


def store(config: Config, artifact: Artifact, selection: Artifact, book: Codebook, folder: Path) -> tuple[Path, float]:
    """Label the selected unlabelled lines, shard by shard; the artifact with the labels, and the CPU seconds they cost.

    folder: of unfinished work; shards that were labelled before a kill are not labelled again.
    """
    shards = {lines.part_of(shard): shard for shard in admitted.accepted_shards(artifact, selection)}
    calls = {name: (artifact, selection, shard, config, book) for name, shard in shards.items()}
    total = sum(admitted.count_selected(artifact, selection, shard) for shard in shards.values())
    print(f"pretrain: labels {total:,} lines once, before training", flush=True)
    say = labelling.Say("pretrain: labels", len(calls))
    mapping.over(label, calls, folder / "label-parts", say=say)
    for name in shards:
        artifacts.take_over(folder / "label-parts" / name, folder / "labels", ("unlabeled",))
    artifacts.finish(folder / "labels", kind="labels", config={}, metrics={})
    return folder / "labels", say.cpu_seconds


def label(
    artifact: Artifact, selection: Artifact, shard: str, config: Config, book: Codebook, part: Path
) -> dict[str, Any]:
    """Write `<shard>` (LABELS) with the labels of the selected lines of a shard. Returns `lines` and `cpu_seconds`."""
    began, count = time.process_time(), 0
    path = part / shard
    path.parent.mkdir(parents=True)
    with pq.ParquetWriter(path, LABELS, compression="zstd", write_page_checksum=True) as writer:
        for group in range(lines.groups_of(artifact, shard)):
            table = admitted.selected_of(artifact, selection, shard, batches.Stream.COLUMNS, [group])
            source = batches.Lines(artifact, table, config.data, Decoded(0))
            found: list[np.ndarray] = [np.empty(0, np.int32)] * len(source)
            for places, batch in source.in_order(labelling.BATCH):
                labels = book.labels(batch.ink, batch.valid)
                for place, own, valid in zip(places, labels, batch.valid):
                    found[place] = own[valid].int().numpy()
            writer.write_table(pa.table([source.line_ids, pa.array(found, LABELS.field("labels").type)], LABELS))
            count += len(source)
    return {"lines": count, "cpu_seconds": time.process_time() - began}


class LabelledStream(batches.Stream):
    """Unlabelled lines with the labels of their steps, of which only a window is in memory at a time."""

    def __init__(self, artifact: Artifact, selection: Artifact, data: Data, labels: Artifact):
        super().__init__(artifact, selection, "unlabeled", data)
        self.labels = labels

    def window(self, groups: list[tuple[str, int]]) -> tuple[LabelledLines, np.ndarray]:
        labels = [lines.open_parquet(self.labels, shard).read_row_group(group) for shard, group in groups]
        table = self._table(groups, self.COLUMNS)
        window = LabelledLines(self.artifact, table, self.data, pa.concat_tables(labels), self.decoded)
        return window, np.arange(len(window))


class LabelledLines(batches.Lines):
    """Lines whose batches have labels. labels: LABELS of these lines, and maybe of more, in any order."""

    def __init__(
        self, artifact: Artifact, table: pa.Table, data: Data, labels: pa.Table, decoded: Decoded | None = None
    ):
        super().__init__(artifact, table, data, decoded)
        places = pc.index_in(table["line_id"], value_set=labels["line_id"].combine_chunks())
        if places.null_count:
            # A copy of the line that lies elsewhere was labelled in its stead, and is forgotten since.
            raise ValueError(
                f"line {table['line_id'][places.is_null().index(True).as_py()].as_py()} has no label: lines were "
                "forgotten while training ran; run pretrain again, which labels what is left"
            )
        own = labels["labels"].combine_chunks().take(places.combine_chunks())
        self._ends, self._labels = own.offsets.to_numpy(), own.values.to_numpy()

    def collate(self, places: np.ndarray, noise: batches.Noise | None = None, pinned: bool = False) -> LabelledBatch:
        batch = super().collate(places, noise, pinned)
        labels = np.zeros(batch.valid.shape, np.int64)
        for row, place in zip(labels, places):
            own = self._labels[self._ends[place] : self._ends[place + 1]]
            row[: len(own)] = own
        tensor = torch.from_numpy(labels)
        tensor = tensor.pin_memory() if pinned else tensor
        return LabelledBatch(batch.ink, batch.valid, batch.line_ids, batch.texts, tensor)

"""Lines into training: what is drawn at which step is a pure function of seed and step, so that a resume is exact.

An epoch permutes the row groups, takes windows of them (bounded memory, lines of many shards mixed), keeps each line
with its selection weight, forms batches of similar width inside a window and shuffles the batches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from maskocr_core.artifacts import Artifact
from maskocr_core.config import STEP, Data
from maskocr_core.data import images, lines

WINDOW_GROUPS = 16
PAD_TO = 64  # px: few distinct widths, or the memory of convolutions grows with every new one
CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class Batch:
    """ink (B, 1, H, W) float32 in [0, 1], 0 = white and padding; valid (B, L) bool, L = W / 8."""

    ink: Tensor
    valid: Tensor
    line_ids: list[str]
    texts: list[str]


class Lines:
    """A table as `lines.selected` gives it, with access to pixels; decoded lines are kept as long as they fit in 1 GiB."""

    def __init__(self, artifact: Artifact, table: pa.Table, data: Data):
        self.artifact, self.table, self.data = artifact, table, data
        self.line_ids: list[str] = table["line_id"].to_pylist()
        self.texts: list[str] = [text or "" for text in table["text"].to_pylist()]
        self.documents: list[str] = table["document_id"].to_pylist()
        self.weights = table["weight"].to_numpy().astype(np.float64)
        self.places = list(zip(table["shard"].to_pylist(), table["group"].to_pylist(), table["row"].to_pylist()))
        sizes = zip(table["height"].to_pylist(), table["width"].to_pylist())
        self.widths = np.array(
            [images.prepared_width(h, w, data.height, data.max_width) for h, w in sizes], dtype=np.int64
        )
        self._decoded: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._group = lru_cache(maxsize=2 * WINDOW_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return len(self.line_ids)

    def with_geometry(self, data: Data) -> Lines:
        """The same lines prepared in another height and width."""
        return Lines(self.artifact, self.table, data)

    def pixels(self, place: int) -> np.ndarray:
        """Prepared grayscale uint8 (H, W) of one line."""
        if place in self._decoded:
            return self._decoded[place]
        shard, group, row = self.places[place]
        pixels = images.prepare(self._group(shard, group)[row].as_py(), self.data.height, self.data.max_width)
        if self._bytes + pixels.nbytes <= CACHE_BYTES:
            self._decoded[place] = pixels
            self._bytes += pixels.nbytes
        return pixels

    def _read_group(self, shard: str, group: int) -> pa.ChunkedArray:
        return lines.open_parquet(self.artifact, shard).read_row_group(group, columns=["image"])["image"]

    def collate(self, places: np.ndarray, random: np.random.Generator | None = None) -> Batch:
        """A batch of the lines at `places`; augmented if a generator is given."""
        pixels = [
            self.pixels(place) if random is None else images.augment(self.pixels(place), random) for place in places
        ]
        width = max(image.shape[1] for image in pixels)
        width += -width % PAD_TO
        canvas = np.full((len(pixels), 1, self.data.height, width), 255, np.uint8)
        steps = np.zeros(len(pixels), np.int64)
        for number, image in enumerate(pixels):
            canvas[number, 0, :, : image.shape[1]] = image
            steps[number] = -(-image.shape[1] // STEP)
        valid = torch.arange(width // STEP)[None] < torch.from_numpy(steps)[:, None]
        ink = 1.0 - torch.from_numpy(canvas).float() / 255.0
        return Batch(ink, valid, [self.line_ids[place] for place in places], [self.texts[place] for place in places])

    def in_order(self, batch: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Every line once, un-augmented, by width; yields (places, batch)."""
        order = np.argsort(self.widths, kind="stable")
        for begin in range(0, len(order), batch):
            places = order[begin : begin + batch]
            yield places, self.collate(places)


def training(
    source: Lines, *, batch: int, seed: int, first_step: int = 0, rank: int = 0, world: int = 1, augment: bool = False
) -> Iterator[Batch]:
    """Batches of training steps `first_step`, `first_step` + 1, … without end; rank r of n gets rows r, r + n, … of each.

    Raises ValueError if there is no line, or `batch` is not a multiple of `world`.
    """
    if not len(source):
        raise ValueError("there is no line to train on: see the verdicts of fit and the quarantine of validate")
    if batch % world:
        raise ValueError(f"a batch of {batch} lines cannot be shared evenly by {world} workers; make it a multiple")
    step, epoch = 0, 0
    while True:
        for places in _epoch(source, batch, seed, epoch):
            if step >= first_step:
                random = np.random.default_rng([seed, step, rank]) if augment else None
                yield source.collate(places[rank::world], random)
            step += 1
        epoch += 1


def _epoch(source: Lines, batch: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng([seed, epoch])
    groups: dict[tuple[str, int], list[int]] = {}
    for place, (shard, group, _) in enumerate(source.places):
        groups.setdefault((shard, group), []).append(place)
    names = sorted(groups)
    order = random.permutation(len(names))
    for begin in range(0, len(names), WINDOW_GROUPS):
        window = np.concatenate([groups[names[number]] for number in order[begin : begin + WINDOW_GROUPS]])
        kept = window[random.random(len(window)) < source.weights[window]]
        if not len(kept):
            continue
        # A little noise on the width, so that the same lines do not always meet in a batch.
        kept = kept[np.argsort(source.widths[kept] * random.uniform(0.9, 1.1, len(kept)), kind="stable")]
        if len(kept) % batch:
            kept = np.concatenate([kept, random.choice(kept, batch - len(kept) % batch)])
        chunks = kept.reshape(-1, batch)
        yield from chunks[random.permutation(len(chunks))]

"""Lines into training: what is drawn at which step is a pure function of seed and step, so that a resume is exact.

An epoch permutes the row groups, takes windows of them (bounded memory, lines of many shards mixed), keeps each line
with its selection weight, and cuts the lines of a window into batches of similar width (`data/cutting.py`), which are
shuffled. `Stream` reads one window at a time, so that memory has a bound however many lines there are; `Lines` is a set that
is known as a whole. Threads may decode the batches to come while one is trained on (`data/ahead.py`): that changes no batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from maskocr_core.artifacts import Artifact
from maskocr_core.config import STEP, Data
from maskocr_core.data import admitted, images, lines
from maskocr_core.data.ahead import ahead
from maskocr_core.data.cutting import Cut
from maskocr_core.data.decoded import Decoded

WINDOW_GROUPS = 16
WINDOW_BATCHES = 8  # at the least, of lines that are known as a whole: a few labels may be scattered over many groups
PAD_TO = 16  # px: 8 would be a per cent less padding, but twice the widths, whose plans the convolutions keep in memory
WIDTH_NOISE = 0.98, 1.02  # so that the same lines do not always meet in a batch; more of it is more padding
STREAM_BYTES = 1 << 29  # of what is kept of a stream: some 20,000 lines of 40 px, in each worker

# Horizontal scales (N,) of the lines of a batch, and what the rest of their augmentation is drawn from.
Noise = tuple[np.ndarray, np.random.Generator]


@dataclass(frozen=True)
class Bookmark:
    """Where a window of row groups begins: a resume that has it reads nothing of the windows before. step: the first made of it."""

    epoch: int = 0
    window: int = 0
    step: int = 0


@dataclass(frozen=True)
class Batch:
    """ink (B, 1, H, W) float32 in [0, 1], 0 = paper and padding; valid (B, L) bool, L = W / 8; bookmark: of its window."""

    ink: Tensor
    valid: Tensor
    line_ids: list[str]
    texts: list[str]
    bookmark: Bookmark = field(default=Bookmark(), kw_only=True)


class Lines:
    """A table as `lines.selected` gives it, with access to pixels. decoded: where they are kept, if not in a place of its own."""

    def __init__(self, artifact: Artifact, table: pa.Table, data: Data, decoded: Decoded | None = None):
        self.artifact, self.table, self.data, self.decoded = artifact, table, data, decoded or Decoded()
        self.line_ids: list[str] = table["line_id"].to_pylist()
        self.texts: list[str] = [text or "" for text in table["text"].to_pylist()]
        self.documents: list[str] = table["document_id"].to_pylist()
        self.weights = table["weight"].to_numpy().astype(np.float64)
        self.places = list(zip(table["shard"].to_pylist(), table["group"].to_pylist(), table["row"].to_pylist()))
        sizes = zip(table["height"].to_pylist(), table["width"].to_pylist())
        self.widths = np.array(
            [images.prepared_width(h, w, data.height, data.max_width) for h, w in sizes], dtype=np.int64
        )
        self._lock = threading.Lock()  # several threads decode
        # Nothing in the cache leads back to this object, or windows would stay in memory until the garbage is collected.
        self._group = lru_cache(maxsize=2 * WINDOW_GROUPS)(partial(_images, artifact))
        self._places_of: dict[tuple[str, int], list[int]] = {}
        for place, (shard, group, _) in enumerate(self.places):
            self._places_of.setdefault((shard, group), []).append(place)

    def __len__(self) -> int:
        return len(self.line_ids)

    @property
    def groups(self) -> list[tuple[str, int]]:
        """(shard, row group) of all lines, in order."""
        return sorted(self._places_of)

    def weights_of(self, groups: list[tuple[str, int]]) -> np.ndarray:
        """(N,) float64 sampling weights of the lines of a window of groups."""
        return self.weights[self.window(groups)[1]]

    def window(self, groups: list[tuple[str, int]]) -> tuple[Lines, np.ndarray]:
        """Lines that hold those of a window of groups, and (N,) their places in it, in the order of `weights_of`."""
        return self, np.concatenate([self._places_of[group] for group in groups])

    def windows_of(self, lines: int) -> int:
        """How many windows of so many lines there are, one at the least: of smaller ones, many batches would have a line several times."""
        return max(1, len(self) // lines)

    def with_geometry(self, data: Data) -> Lines:
        """The same lines prepared in another height and width."""
        return Lines(self.artifact, self.table, data, Decoded(self.decoded.most))

    def pixels(self, place: int) -> np.ndarray:
        """Prepared grayscale uint8 (H, W) of one line."""
        if (kept := self.decoded.get(self.line_ids[place])) is not None:
            return kept
        shard, group, row = self.places[place]
        with self._lock:  # or several threads would read the same group
            column = self._group(shard, group)
        image, mirrored = column[row].as_py(), self.data.direction == "rtl"
        pixels = images.prepare(image, self.data.height, self.data.max_width, mirrored=mirrored)
        self.decoded.put(self.line_ids[place], pixels)
        return pixels

    def collate(self, places: np.ndarray, noise: Noise | None = None, pinned: bool = False) -> Batch:
        """A batch of the lines at `places`; augmented if noise is given. pinned: in memory that a GPU copies from by itself."""
        pixels = [self.pixels(place) for place in places]
        if noise is not None:
            scales, random = noise
            pixels = [images.augment(image, scale, random) for image, scale in zip(pixels, scales)]
        width = max(image.shape[1] for image in pixels)
        width += -width % PAD_TO
        tensor = torch.empty((len(pixels), 1, self.data.height, width), pin_memory=pinned)
        ink = tensor.numpy()
        steps = np.zeros(len(pixels), np.int64)
        for number, image in enumerate(pixels):
            end = image.shape[1]
            images.inked(image, self.data.ink, ink[number, 0, :, :end])
            ink[number, 0, :, end:] = 0
            steps[number] = -(-end // STEP)
        valid = torch.arange(width // STEP)[None] < torch.from_numpy(steps)[:, None]
        ids, texts = [self.line_ids[place] for place in places], [self.texts[place] for place in places]
        return Batch(tensor, valid.pin_memory() if pinned else valid, ids, texts)

    def in_order(self, batch: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Every line once, un-augmented, by width within windows of row groups, each read once; yields (places, batch)."""
        groups = self.groups
        for first in range(0, len(groups), WINDOW_GROUPS):
            window = np.sort(self.window(groups[first : first + WINDOW_GROUPS])[1])
            order = window[np.argsort(self.widths[window], kind="stable")]
            for begin in range(0, len(order), batch):
                places = order[begin : begin + batch]
                yield places, self.collate(places)


def _images(artifact: Artifact, shard: str, group: int) -> pa.ChunkedArray:
    return lines.open_parquet(artifact, shard).read_row_group(group, columns=["image"])["image"]


class Stream:
    """The selected lines of a split, of which only a window is in memory at a time; decoded ones stay if all of them fit.

    Raises ValueError if the selection was made for other lines.
    """

    COLUMNS = ("line_id", "document_id", "height", "width", "text")

    def __init__(self, artifact: Artifact, selection: Artifact, split: str, data: Data):
        admitted.demand_made_for(selection, artifact)
        self.artifact, self.selection, self.data = artifact, selection, data
        shards = admitted.selected_shards(artifact, selection, split)
        self.groups = [(shard, group) for shard in shards for group in range(lines.groups_of(artifact, shard))]
        self._count = sum(admitted.count_selected(artifact, selection, shard) for shard in shards)
        self.decoded = Decoded(STREAM_BYTES, all_of=self._count)

    def __len__(self) -> int:
        return self._count

    def weights_of(self, groups: list[tuple[str, int]]) -> np.ndarray:
        """(N,) float64 sampling weights of the lines of a window of groups; reads no more than ids and weights."""
        return self._table(groups, ("line_id",))["weight"].to_numpy().astype(np.float64)

    def window(self, groups: list[tuple[str, int]]) -> tuple[Lines, np.ndarray]:
        """The lines of a window of groups, and (N,) their places: all of them, in the order of `weights_of`."""
        window = Lines(self.artifact, self._table(groups, self.COLUMNS), self.data, self.decoded)
        return window, np.arange(len(window))

    def windows_of(self, lines: int) -> int:
        """As many as there are groups: how many lines are selected of one is not known before it is read, and memory has a bound."""
        return len(self.groups)

    def _table(self, groups: list[tuple[str, int]], columns: tuple[str, ...]) -> pa.Table:
        return pa.concat_tables(
            [admitted.selected_of(self.artifact, self.selection, shard, columns, [group]) for shard, group in groups]
        )


def training(
    source: Lines | Stream,
    *,
    batch: int,
    seed: int,
    first_step: int = 0,
    bookmark: Bookmark = Bookmark(),
    rank: int = 0,
    world: int = 1,
    augment: bool = False,
    fill: Literal["lines", "tokens"] = "lines",
    shares: int = 1,
    decoders: int = 0,
    pinned: bool = False,
) -> Iterator[Batch]:
    """Batches of training steps `first_step`, `first_step` + 1, … without end; rank r of n gets rows r, r + n, … of each.

    bookmark: of a batch before `first_step` of the same lines, settings and seed. fill: `batch` lines each, or as many
    lines, a multiple of `shares`, as make up the padded steps of `batch` lines of mean width. shares: in which a batch is
    trained on, each cut to its own width: share s of S is rows s, s + S, …, lines of neighbouring widths. decoders: threads that
    decode ahead; 0 decodes where a batch is asked for. pinned: for a GPU, as `Lines.collate`.

    Raises ValueError if there is no line, or `batch` is not a multiple of `world`.
    """
    if not len(source):
        raise ValueError("there is no line to train on: see the verdicts of fit and the quarantine of validate")
    if batch % world:
        raise ValueError(f"a batch of {batch} lines cannot be shared evenly by {world} workers; make it a multiple")

    def call(step: _Step) -> Callable[[], Batch]:
        own = slice(rank, None, world)
        noise = (step.scales[own], np.random.default_rng([seed, step.number, rank])) if augment else None
        return partial(_collated, step.source, step.places[own], noise, pinned, step.bookmark)

    steps = _steps(source, Cut(batch, fill, shares), seed, first_step, bookmark, augment)
    return ahead(map(call, steps), decoders) if decoders else (call(step)() for step in steps)


@dataclass(frozen=True)
class _Step:
    """What is drawn at a step, by all workers together: (N,) int places in `source`, and (N,) float horizontal scales."""

    number: int
    source: Lines
    places: np.ndarray
    scales: np.ndarray
    bookmark: Bookmark


def _steps(
    source: Lines | Stream, cut: Cut, seed: int, first_step: int, bookmark: Bookmark, augment: bool
) -> Iterator[_Step]:
    """The steps from `first_step` on, without end."""
    step, epoch, first_window = bookmark.step, bookmark.epoch, bookmark.window
    while True:
        before = step
        for window, groups in islice(enumerate(_windows(source, cut.batch, seed, epoch)), first_window, None):
            random = np.random.default_rng([seed, epoch, window])
            if cut.fill == "lines" and step < first_step:
                # Of a window that a resume may skip, the weights are enough to know its steps.
                steps = -(-_kept(source.weights_of(groups), random).size // cut.batch)
                if step + steps <= first_step:
                    step += steps
                    continue
                random = np.random.default_rng([seed, epoch, window])
            drawn_from, places = source.window(groups)
            places = cut.filled_up(places[_kept(drawn_from.weights[places], random)], random)
            scales = random.uniform(*(images.SCALES if augment else WIDTH_NOISE), len(places))
            chunks = cut.of_widths(drawn_from.widths[places] * scales, random)
            begins = Bookmark(epoch, window, step)
            for number, chunk in enumerate(chunks, step):
                if number >= first_step:
                    yield _Step(number, drawn_from, places[chunk], scales[chunk], begins)
            step += len(chunks)
        if step == before and not any(source.weights_of([group]).any() for group in source.groups):
            raise ValueError("every line has weight 0: there is nothing to draw; see the verdicts of fit")
        epoch, first_window = epoch + 1, 0


def _collated(source: Lines, places: np.ndarray, noise: Noise | None, pinned: bool, bookmark: Bookmark) -> Batch:
    return replace(source.collate(places, noise, pinned), bookmark=bookmark)


def _kept(weights: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Places of the lines that are drawn, each with its weight."""
    return np.flatnonzero(random.random(len(weights)) < weights)


def _windows(source: Lines | Stream, batch: int, seed: int, epoch: int) -> list[list[tuple[str, int]]]:
    """The row groups in the order of an epoch, in windows of equal size: one of few lines would fill batches with the same."""
    groups = source.groups
    order = np.random.default_rng([seed, epoch]).permutation(len(groups))
    count = min(-(-len(groups) // WINDOW_GROUPS), source.windows_of(WINDOW_BATCHES * batch))
    return [[groups[number] for number in numbers] for numbers in np.array_split(order, count)]

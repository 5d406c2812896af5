"""Artifacts of lines, selection and codebook for tests, straight from images: what ingest, fit and quantize would leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import rendered
import torch

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config, Data
from maskocr_core.data import admitted, batches, lines
from maskocr_core.model import codebook, step_features
from maskocr_core.training import codebooks

Line = tuple[str | None, np.ndarray]  # text and uint8 (H, W) image


def short_lines(
    count: int, *, seed: int, alphabet: str = "0123456789", length: tuple[int, int] = (3, 6), degrade: float = 0.2
) -> list[Line]:
    """Random texts over a small alphabet, set and aged: what a tiny model learns to read within seconds."""
    random = np.random.default_rng([seed, 7])
    texts = ["".join(random.choice(list(alphabet), random.integers(*length, endpoint=True))) for _ in range(count)]
    return [
        (text, rendered.line(text, seed=seed * 10_000 + number, degrade=degrade)) for number, text in enumerate(texts)
    ]


def pack(
    folder: Path,
    splits: dict[str, Iterable[Line]],
    *,
    shard_lines: int = 4096,
    weight: Callable[[int], float] = lambda number: 1.0,
) -> tuple[Path, Path]:
    """Write (lines, selection) artifacts below `folder`; `weight` of a line's number in its split is its sampling weight."""
    for split, content in splits.items():
        rows, weights = [], {}
        for number, (text, image) in enumerate(content):
            encoded = rendered.png(image)
            identity = lines.line_id(encoded)
            document = f"{split}/document-{number // 8}"
            rows.append(
                {
                    "line_id": identity,
                    "page_id": document,
                    "document_id": document,
                    "source": "rendered",
                    "image": encoded,
                    "height": image.shape[0],
                    "width": image.shape[1],
                    "text": text,
                }
            )
            weights[identity] = weight(number)
        for first in range(0, len(rows), shard_lines):
            shard = lines.in_order(rows[first : first + shard_lines])
            name = f"{split}/part-{first // shard_lines:05d}.parquet"
            lines.write(pa.Table.from_pylist(shard, schema=lines.SCHEMA), folder / "lines" / name)
            chosen = [{"line_id": row["line_id"], "weight": weights[row["line_id"]]} for row in shard]
            lines.write(pa.Table.from_pylist(chosen, schema=lines.SELECTION), folder / "selection" / name)
    for kind in ("lines", "selection"):
        artifacts.finish(folder / kind, kind=kind, config={}, metrics={})
    return folder / "lines", folder / "selection"


def source(packed: tuple[Path, Path], split: str, data: Data) -> batches.Lines:
    """The selected lines of a split, as training reads them."""
    artifact, selection = map(Artifact, packed)
    return batches.Lines(artifact, admitted.selected(artifact, selection, split), data)


def stream(packed: tuple[Path, Path], split: str, data: Data) -> batches.Stream:
    """The same lines, a window at a time."""
    return batches.Stream(*map(Artifact, packed), split, data)


def quantized(folder: Path, packed: tuple[Path, Path], config: Config) -> Path:
    """A codebook artifact of the unlabelled lines."""
    settings = config.codebook
    pixels = [
        step_features.windows(batch.ink, settings.window)[batch.valid]
        for _, batch in source(packed, "unlabeled", config.data).in_order(32)
    ]
    book = codebook.fit(
        torch.cat(pixels).numpy(),
        height=config.data.height,
        features=step_features.Pixels(settings.window),
        components=settings.components,
        clusters=settings.clusters,
        seed=settings.seed,
    )
    codebooks.save(book, config.data, folder)
    artifacts.finish(folder, kind="codebook", config={}, metrics={})
    return folder

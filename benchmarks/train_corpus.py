"""The lines that `train.py` trains on, and the labels that it trains for."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import data_corpus
from benchmarks.data_contenders import select_all
from maskocr_core import artifacts, config, stages
from maskocr_core.artifacts import Artifact
from maskocr_core.config import STEP, Config
from maskocr_core.data import admitted, batches
from maskocr_core.data.decoded import Decoded
from maskocr_core.model import step_features
from maskocr_core.model.codebook import Codebook
from maskocr_core.training import checkpoint, codebooks


@dataclass(frozen=True)
class Corpus:
    """Unlabelled lines as `ingest` leaves them, all selected, and the images that they were made of."""

    lines: Path
    selection: Path
    images: list[bytes]

    def decoded(self, settings: Config) -> batches.Lines:
        """The lines as training reads them, decoded in memory for good."""
        data, selection = Artifact(self.lines), Artifact(self.selection)
        source = batches.Lines(data, admitted.selected(data, selection, "unlabeled"), settings.data, Decoded(1 << 40))
        for place in range(len(source)):
            source.pixels(place)
        return source


def prepare(pack: Path, count: int, home: Path) -> Corpus:
    """`count` lines of a pack, drawn by lot. Raises ValueError if it has fewer."""
    rows = data_corpus.real(pack)
    labelled = [row for row in rows if row["split"] in data_corpus.SPLITS]  # ingest asks for some
    unlabelled = [row for row in rows if row["split"] not in data_corpus.SPLITS]
    if len(unlabelled) < count:
        raise ValueError(f"{pack} has {len(unlabelled)} unlabelled lines: lower --lines={count}, or give another pack")
    unlabelled = random.Random(0).sample(unlabelled, count)
    data_corpus.write_parquet(iter(labelled + unlabelled), home / "raw")
    os.environ.update(MASKOCR_WORK=str(home / "work"), MASKOCR_MAP="inline")
    stages.get("ingest")(config.load("base"), data_uri=str(home / "raw"), lines_out=home / "lines")
    select_all(home)
    return Corpus(home / "lines", home / "selection", [row["image"] for row in unlabelled])


def codebook(settings: Config) -> Codebook:
    """One of the recipe's shape and features with centroids drawn at random: labels cost the same whatever they say."""
    generator = torch.Generator().manual_seed(0)
    described = settings.codebook.features
    encoder = checkpoint.new_encoder(settings.model, settings.data.height) if described == "encoder" else None
    features = step_features.named(described, settings.data.height, settings.codebook.window, encoder)
    line, steps = torch.zeros(1, 1, settings.data.height, 8 * STEP), torch.ones(1, 8, dtype=torch.bool)
    size = features(line, steps).shape[-1]
    components, clusters = settings.codebook.components, settings.codebook.clusters
    drawn = (torch.randn(shape, generator=generator) for shape in ((size,), (components, size), (clusters, components)))
    return Codebook(settings.data.height, features, *drawn)


def codebook_in(folder: Path, settings: Config) -> Path:
    """The same as an artifact, for what reads its codebook from disk."""
    codebooks.save(codebook(settings), settings.data, folder)
    return artifacts.finish(folder, kind="codebook", config={}, metrics={}).folder

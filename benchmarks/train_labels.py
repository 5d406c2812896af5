"""Labels made at every meeting of a line against labels made once and stored, for `train.py`: whole pre-trainings of one worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.data import race
from benchmarks.train_contenders import timed
from benchmarks.train_corpus import Corpus, codebook_in
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config
from maskocr_core.training import codebooks, pretraining, stored_labels

FEATURES = ("gradients", "encoder")  # the default, and those that cost most


class Labelled:
    """Pre-training as a worker runs it, from shards, its log, checkpoint and picture included.

    stored: labels are made in a pass before it, whose time counts; else as lines are met.
    """

    def __init__(self, settings: Config, corpus: Corpus, book: Path, folder: Path, stored: bool):
        self.settings, self.corpus, self.book, self.folder, self.stored = settings, corpus, book, folder, stored

    def run(self, number: int) -> dict[str, float]:
        folder, inputs = self.folder / str(number), (self.corpus.lines, self.corpus.selection)
        folder.mkdir(parents=True)
        training = self.settings.pretrain
        with timed() as answer:
            labels = self._labels(folder) if self.stored else None
            pretraining.train(0, 1, self.settings, *inputs, self.book, folder, labels=labels)
        return answer | {"lines": training.steps * training.batch}

    def _labels(self, folder: Path) -> Path:
        book = codebooks.load(Artifact(self.book), self.settings.data)
        inputs = Artifact(self.corpus.lines), Artifact(self.corpus.selection)
        labels, _ = stored_labels.store(self.settings, *inputs, book, folder)
        return labels


def labels_race(
    settings: Config, corpus: Corpus, lines: int, kinds: list[str], meetings: int, rounds: int, home: Path
) -> list[dict[str, Any]]:
    """Rounds of {"<features>_met", "<features>_stored"} of each kind over the same steps, some meetings of each of the `lines` lines.

    Storing pays the more, the oftener a line is met.
    """
    steps = meetings * lines // settings.pretrain.batch
    training = settings.pretrain.model_copy(update={"steps": steps, "checkpoint_every": steps})
    racers = {}
    for features in kinds:
        described = settings.codebook.model_copy(update={"features": features})
        own = settings.model_copy(update={"pretrain": training, "codebook": described})
        book = codebook_in(home / f"codebook-{features}", own)
        for how in ("met", "stored"):
            name = f"{features}_{how}"
            racers[name] = Labelled(own, corpus, book, home / "labelled" / name, how == "stored"), {}
    return race(racers, rounds)

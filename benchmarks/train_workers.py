"""How training grows with workers, for `train.py`: as the stage runs them, and as far as the machine lets any two go."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.data import race
from benchmarks.train_contenders import Ours
from benchmarks.train_corpus import Corpus, codebook, codebook_in
from maskocr_core.config import Config
from maskocr_core.training import pretraining
from maskocr_core.training.distributed import data_parallel
from maskocr_core.training.log import TrainingLog


class Workers:
    """Pre-training as the stage runs it, on Ray workers of one thread each; the rate is that of its own log."""

    def __init__(self, count: int, settings: Config, corpus: Corpus, book: Path, folder: Path):
        self.count, self.settings, self.corpus, self.book, self.folder = count, settings, corpus, book, folder

    def run(self, number: int) -> dict[str, float]:
        folder = self.folder / f"{self.count}-{number}"
        log = folder / "log.jsonl"
        data_parallel(
            pretraining.train,
            (self.settings, self.corpus.lines, self.corpus.selection, self.book, folder),
            workers=self.count,
            log=log,
            what=f"{self.count} workers",
            steps=self.settings.pretrain.steps,
            registry=self.settings.registry,
        )
        _, *rows = TrainingLog(log).rows()  # the first has the start in it
        return of_log(rows, self.settings.pretrain.batch)


def of_log(rows: list[dict[str, float]], batch: int) -> dict[str, float]:
    """Lines, seconds, and seconds in which lines were waited for, of a training log's rows, of `loop.LOG_EVERY` steps each."""
    from maskocr_core.training.loop import LOG_EVERY

    lines_each = LOG_EVERY * batch
    seconds = [lines_each / row["lines_per_second"] for row in rows]
    return {
        "lines": lines_each * len(rows),
        "seconds": sum(seconds),
        "waited": sum(spent * row["data_wait"] for spent, row in zip(seconds, rows)),
    }


class Apart:
    """As many trainings as there are workers, each in a process of its own that says nothing to the others.

    What two of them give over one is what the machine gives: two busy cores share memory, its bandwidth and the clock.
    """

    def __init__(self, count: int, settings: Config, corpus: Corpus):
        context = get_context("spawn")
        self.count = count
        self.pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=_begin, initargs=(settings, corpus, context.Barrier(count))
        )

    def run(self, number: int) -> dict[str, float]:
        answers = list(self.pool.map(_train, [number] * self.count))
        return {
            "lines": sum(answer["lines"] for answer in answers),
            "seconds": max(answer["seconds"] for answer in answers),
        }


def _begin(settings: Config, corpus: Corpus, together: Any) -> None:
    """What each process of `Apart` keeps: its lines, its model, warm, and what it waits for the others by."""
    torch.set_num_threads(1)
    _train.together = together
    _train.ours = Ours(settings, corpus.decoded(settings), codebook(settings))
    _train.ours.steps(0, 2)


def _train(number: int) -> dict[str, float]:
    _train.together.wait()
    return _train.ours.run(number)


def workers_race(settings: Config, corpus: Corpus, steps: int, rounds: int, home: Path) -> list[dict]:
    """Rounds of one worker and of two, over the same steps, and of one and of two trainings that are none of each other's."""
    training = settings.pretrain.model_copy(update={"steps": steps, "checkpoint_every": steps})
    settings = settings.model_copy(update={"pretrain": training})
    book = codebook_in(home / "codebook", settings)
    racers = {
        f"workers_{count}": (Workers(count, settings, corpus, book, home / "trained"), {}) for count in (1, 2)
    } | {f"apart_{count}": (Apart(count, settings, corpus), {}) for count in (1, 2)}
    return race(racers, rounds)

"""Where training runs: inside this process, or on the workers of a Ray cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskocr_core.config import Registry
from maskocr_core.progress import Progress
from maskocr_core.services.post import PICTURES
from maskocr_core.training.log import Follower

PATIENCE = 60.0  # s until a tracker that did not answer is asked again
SAID = (
    "masked_loss",
    "visible_loss",
    "masked_accuracy",
    "masking_probability",
    "loss",
    "validation_cer",
    "learning_rate",
    "lines_per_second",
    "padding",
    "data_wait",
)


def data_parallel(
    function: Callable[..., dict[str, float]],
    arguments: tuple[Any, ...],
    *,
    workers: int,
    log: Path,
    what: str,
    steps: int,
    registry: Registry,
) -> dict[str, float]:
    """Run `function(rank, world, *arguments)` once (workers = 0) or on N data-parallel Ray workers; rank 0's figures.

    log: the file rank 0 writes its training log to, in the folder among `arguments` that holds the unfinished work; it is
    followed here so that progress is seen and reaches MLflow, with the pictures in the folder beside it.
    """
    with Follower(log, _say(what, steps, registry, log.parent / PICTURES)):
        if not workers:
            return function(0, 1, *arguments)
        from maskocr_core.services import workers as ray_workers

        return ray_workers.data_parallel(function, arguments, workers, log.parent)


def each(
    function: Callable[..., Any],
    calls: list[tuple[Any, ...]],
    *,
    jobs: int,
    what: list[str],
    logs: list[Path],
    steps: list[int],
    registry: Registry,
    office: str,
) -> list[Any]:
    """Run `function(*call)` for every call: one after another (jobs = 0), or `jobs` at a time as Ray tasks of one core each.

    office: under which name tasks elsewhere bring their logs here.
    """
    if not jobs:
        results = []
        for call, name, log, total in zip(calls, what, logs, steps):
            with Follower(log, _say(name, total, registry)):
                results.append(function(*call))
        return results
    from contextlib import ExitStack

    from maskocr_core.services import cluster

    with ExitStack() as stack:
        for name, log, total in zip(what, logs, steps):
            stack.enter_context(Follower(log, _say(name, total, registry)))
        return cluster.each(function, calls, jobs, office)


def _say(what: str, steps: int, registry: Registry, pictures: Path | None = None) -> Callable[[dict[str, float]], None]:
    """Print a row of a training log at most every few seconds, and put it on the MLflow run that is under way, if any, with
    the pictures that were drawn since the row before.

    A tracker that is away must not hold up the training, nor what is seen of it: each try may take it half a minute. So it is
    asked again after a while, and once more at the end; rows wait for it meanwhile.
    """
    progress, waiting, patient_until = Progress(what, total=steps), [], 0.0
    kept: set[str] = set()

    def say(row: dict[str, float]) -> None:
        nonlocal patient_until
        speak = progress.done if row["step"] == steps else progress.update
        speak(int(row["step"]), **{name: row[name] for name in SAID if name in row})
        if not os.environ.get("MASKOCR_RUN"):
            return
        from maskocr_core.services import tracking

        waiting.append(row)
        if time.monotonic() < patient_until and row["step"] < steps:
            return
        try:
            tracking.log_progress(registry, what, waiting)
            waiting.clear()
            if pictures:
                tracking.log_pictures(registry, what, pictures, kept)
        except Exception as error:  # whatever it is, it must not take the training with it
            patient_until = time.monotonic() + PATIENCE
            print(f"{what}: step {int(row['step'])} could not be logged to MLflow ({error})", flush=True)

    return say

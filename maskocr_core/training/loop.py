"""The loop: one for every objective. It does not know which model it trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskocr_core.config import Training
from maskocr_core.data.batches import Batch
from maskocr_core.training.checkpoint import Checkpoints

LOG_EVERY = 10


@dataclass(frozen=True)
class Place:
    """Which worker this is, and of how many."""

    rank: int = 0
    world: int = 1


def learning_rate(step: int, training: Training) -> float:
    """Learning rate of step 0 … steps − 1: a linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(training.warmup * training.steps))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, training.steps - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    objective: nn.Module,
    batches: Callable[[int], Iterator[Batch]],
    training: Training,
    checkpoints: Checkpoints,
    *,
    place: Place = Place(),
    log: Callable[[int, dict[str, float]], None] = lambda step, figures: None,
    after: Callable[[int], None] = lambda step: None,
) -> dict[str, float]:
    """Train to `training.steps` from the last checkpoint, or from the start.

    batches: first step → the batches from there on. log: (steps done, figures), now and then, on rank 0. after: called
    with the number of steps done before each checkpoint is written. Returns the figures of the last log line and
    `cpu_seconds`, those of earlier attempts included; `resumed_at` is the step at which this attempt began.
    Raises ValueError at a loss that is not finite, naming step, lines and the last good checkpoint.
    """
    optimizer = torch.optim.AdamW(_groups(objective, training), lr=training.learning_rate, betas=(0.9, 0.98))
    first, kept = checkpoints.restore(objective, optimizer)
    model = nn.parallel.DistributedDataParallel(objective) if place.world > 1 else objective
    window = Window(**kept.pop("window", {}))
    figures: dict[str, float] = dict(kept)
    spent, began = kept.get("cpu_seconds", 0.0), time.process_time()
    stream = batches(first)
    objective.train()
    lines, since = 0, time.monotonic()
    for step in range(first, training.steps):
        batch = next(stream)
        # Masks, offsets and dropout of a step depend on the step alone: that makes a resumed run equal an uninterrupted one.
        torch.manual_seed(training.seed * 1_000_003 + step * 64 + place.rank)
        now = _update(model, batch, step, optimizer, training, checkpoints.folder)
        window.add(now)
        lines += len(batch.line_ids) * place.world
        done = step + 1
        if done % LOG_EVERY == 0 or done == training.steps:
            figures = {
                **window.means(),
                "learning_rate": learning_rate(step, training),
                "lines_per_second": lines / (time.monotonic() - since),
            }
            window, lines, since = Window(), 0, time.monotonic()
            if place.rank == 0:
                log(done, figures)
        if place.rank == 0 and (done % training.checkpoint_every == 0 or done == training.steps):
            paused = time.monotonic()
            after(done)
            since += time.monotonic() - paused  # validation is no part of the speed of training
            objective.train()
            figures["cpu_seconds"] = spent + (time.process_time() - began) * place.world
            checkpoints.save(done, objective, optimizer, figures | {"window": window.state()})
    return {**figures, "resumed_at": float(first)}


def _update(
    model: nn.Module,
    batch: Batch,
    step: int,
    optimizer: torch.optim.Optimizer,
    training: Training,
    last_good: Path,
) -> dict[str, torch.Tensor]:
    """One optimiser step; refuses a loss or a gradient that is not finite before it reaches the weights."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, training)
    loss, figures = model(batch, step / training.steps)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), training.clip)
    if not torch.isfinite(norm):
        raise ValueError(
            f"the loss is {loss.item()} and its gradient {norm.item()} at step {step} (lines {', '.join(batch.line_ids[:4])} …); "
            f"the last good checkpoint is in {last_good}: lower the learning rate and run again"
        )
    optimizer.step()
    return figures


class Window:
    """Means of figures over the steps since the last log line; a checkpoint between two lines keeps what was summed."""

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0) -> None:
        self.sums: dict[str, Any] = dict(sums or {})
        self.count = count

    def add(self, figures: dict[str, torch.Tensor]) -> None:
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def state(self) -> dict[str, Any]:
        return {"sums": {name: float(total) for name, total in self.sums.items()}, "count": self.count}

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.count for name, total in self.sums.items()}


def _groups(objective: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Weight decay on matrices only: norms and biases have nothing to decay to."""
    matrices = [p for p in objective.parameters() if p.requires_grad and p.ndim > 1]
    rest = [p for p in objective.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": training.weight_decay}, {"params": rest, "weight_decay": 0.0}]

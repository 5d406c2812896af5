"""The loop: one for every objective. It does not know which model it trains."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from maskocr_core.config import Training
from maskocr_core.data.batches import Batch, Bookmark
from maskocr_core.services.workers import among_peers
from maskocr_core.training import device, shares
from maskocr_core.training.checkpoints import Checkpoints
from maskocr_core.training.exchange import Place, Workers, among
from maskocr_core.training.lineage import StepLog
from maskocr_core.training.rates import Rate

LOG_EVERY = 10
BETAS = 0.9, 0.98  # of AdamW: a shorter memory of squares than is usual, as Transformers have it that are warmed up
MOST_NAMED = 256  # lines of a share without a finite loss; those of our recipes are no larger


def learning_rate(step: int, training: Training) -> float:
    """Learning rate of step 0 … steps − 1: a linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(training.warmup * training.steps))
    if step < warmup:
        return training.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, training.steps - warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def fit(
    objective: nn.Module,
    batches: Callable[[int, Bookmark], Generator[Batch, None, None]],
    training: Training,
    checkpoints: Checkpoints,
    *,
    place: Place = Place(),
    log: Callable[[int, dict[str, float]], None] = lambda step, figures: None,
    after: Callable[[int], dict[str, float]] = lambda step: {},
) -> dict[str, float]:
    """Train to `training.steps` from the last checkpoint, or from the start.

    batches: first step, bookmark of the batch before → this worker's rows r, r + n, … of the batches from there on. log:
    (steps done, figures), now and then, on rank 0. after: called there with the number of steps done before each checkpoint
    is written, and before these steps are logged, so that what it finds out can be; not where another attempt has begun. The
    figures that it returns are kept with the checkpoint. Returns the figures of the last log line and `cpu_seconds` and `gpu_seconds` of
    all workers, those of earlier attempts included; `resumed_at` is the step at which this attempt began.

    Raises ValueError at a loss that is not finite, naming step, lines and the last good checkpoint, or if that is of
    another model; RuntimeError if a checkpoint cannot be written or another attempt has begun.
    """
    where = device.here()
    device.prepared(objective, where)
    # Fused, each weight is read and written once: a third of the time on a CPU, one kernel on CUDA.
    optimizer = torch.optim.AdamW(_groups(objective, training), lr=training.learning_rate, betas=BETAS, fused=True)
    first, kept = _resumed(objective, optimizer, checkpoints, place)
    workers = among(place, shares.learning(objective), optimizer)
    window, bookmark = Window(**kept.pop("window", {})), Bookmark(**kept.pop("bookmark", {}))
    figures: dict[str, float] = dict(kept)
    meter = Meter(kept, device.gpus_held(where), place)
    drawn = StepLog(checkpoints.attempt, place)
    objective.train()
    pace = Pace()
    with _kept_whole(checkpoints), contextlib.closing(batches(first, bookmark)) as stream, contextlib.closing(workers):
        for step in range(first, training.steps):
            with pace.waiting():
                batch = device.moved(next(stream), where)
            drawn.add(step, batch.line_ids)
            window.add(*_update(objective, batch, step, optimizer, training, checkpoints, workers))
            done = step + 1
            pace.lines += len(batch.line_ids) * place.world
            logging, keeping = (
                done % every == 0 or done == training.steps for every in (LOG_EVERY, training.checkpoint_every)
            )
            if logging or keeping:
                _collect(window, place)
            if keeping and place.rank == 0:
                with pace.paused():  # validation is no part of the speed of training
                    checkpoints.demand_alone(done)
                    said = after(done)
                objective.train()
            if logging:
                if place.rank == 0:
                    figures = window.means() | {"learning_rate": learning_rate(step, training)} | pace.figures()
                    log(done, figures)
                window, pace = Window(), Pace()
            if keeping and place.rank == 0:
                figures |= meter.read()
                state = {"window": window.state(), "bookmark": dataclasses.asdict(batch.bookmark)}
                checkpoints.save(done, objective, optimizer, figures | said | state)
    return {**figures, "resumed_at": float(first)}


@contextlib.contextmanager
def _kept_whole(checkpoints: Checkpoints) -> Iterator[None]:
    """However training ends, the checkpoint that is being written gets whole; of two errors the first is told."""
    try:
        yield
        checkpoints.finish()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RuntimeError(
            f"the disk is full ({error.filename or 'while writing'}) and training stops; "
            f"the last good checkpoint is {checkpoints.last_good}: free space and run again"
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            checkpoints.finish()


def _resumed(
    objective: nn.Module, optimizer: torch.optim.Optimizer, checkpoints: Checkpoints, place: Place
) -> tuple[int, dict[str, Any]]:
    """Step and figures to go on from; rank 0 alone reads the checkpoint, and hands to the others what they need of it."""
    first, kept = 0, {}
    if place.rank == 0:
        checkpoints.begin()
        first, kept = checkpoints.restore(objective, optimizer)
    if place.world > 1:
        from torch import distributed

        place_of_lines = {"bookmark": kept.get("bookmark", {})}
        handed = [(checkpoints.attempt, first, place_of_lines, objective.state_dict(), optimizer.state_dict())]
        with among_peers():
            distributed.broadcast_object_list(handed)
        if place.rank:
            checkpoints.attempt, first, kept, weights, state = handed[0]
            objective.load_state_dict(weights)
            optimizer.load_state_dict(state)
    return first, kept


def _update(
    objective: nn.Module,
    batch: Batch,
    step: int,
    optimizer: torch.optim.Optimizer,
    training: Training,
    checkpoints: Checkpoints,
    workers: Workers,
) -> tuple[dict[str, Tensor], int]:
    """One optimiser step; refuses a loss or a gradient that is not finite before it reaches the weights.

    Returns sums of figure × lines over the lines of this worker, and their number.
    """
    progress, place = step / training.steps, workers.place
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, training) * group["rate"](progress)

    def loss(share: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with device.precision(share.ink.device):
            value, figures = objective(share, progress)
        return value, figures | {"padding": 1 - share.valid.float().mean()}

    # Masks, offsets and dropout hang on the step alone: that makes a resumed run equal an uninterrupted one.
    seed = training.seed * 1_000_003 + step * 64
    sums = shares.gradient(objective, loss, shares.split(batch, training.shares // place.world), workers, seed)
    learning = shares.learning(objective)
    norm = workers.norm([one.grad for one in learning])
    if not torch.isfinite(norm):
        raise ValueError(_not_finite(sums, norm.item(), step, checkpoints, place))
    nn.utils.clip_grads_with_norm_(learning, training.clip, norm)
    optimizer.step()
    workers.updated()
    return sums.figures, len(batch.line_ids)


def _not_finite(sums: shares.Sums, norm: float, step: int, checkpoints: Checkpoints, place: Place) -> str:
    """The same sentence on every worker: whichever had the lines, and rank 0 knows of the checkpoint."""
    with contextlib.suppress(RuntimeError):
        checkpoints.finish()
    losses = [(value.item(), line_ids) for value, line_ids in sums.losses]
    told = [(losses, checkpoints.last_good)]
    if place.world > 1:
        from torch import distributed

        told = [None] * place.world
        with among_peers():
            distributed.all_gather_object(told, (losses, checkpoints.last_good))
    everywhere = [share for own, _ in told for share in own]
    worst = [share for share in everywhere if not math.isfinite(share[0])] or everywhere
    line_ids = [line for _, ids in worst for line in ids]
    more = f" and {len(line_ids) - MOST_NAMED} more" if len(line_ids) > MOST_NAMED else ""
    return (
        f"the loss is {worst[0][0]} and its gradient {norm} at step {step} (lines {', '.join(line_ids[:MOST_NAMED])}{more}); "
        f"the last good checkpoint is {told[0][1]}: lower the learning rate and run again"
    )


def _collect(window: Window, place: Place) -> None:
    """Rank 0's window gets what all the others have seen since the last time."""
    if place.world == 1:
        return
    from torch import distributed

    windows = [None] * place.world if place.rank == 0 else None
    with among_peers():
        distributed.gather_object(window.state(), windows)
    if place.rank == 0:
        for other in windows[1:]:
            window.add(other["sums"], other["count"])
    else:
        window.sums, window.count = {}, 0


class Window:
    """Means over the lines of the steps since the last log line; a checkpoint between two lines keeps what was summed."""

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0) -> None:
        self.sums: dict[str, Any] = dict(sums or {})
        self.count = count

    def add(self, figures: dict[str, Any], count: int) -> None:
        """figures: sums of figure × lines over `count` lines."""
        self.count += count
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def state(self) -> dict[str, Any]:
        return {"sums": {name: float(total) for name, total in self.sums.items()}, "count": self.count}

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.count for name, total in self.sums.items()}


class Meter:
    """What training has taken of processors and GPUs, in seconds; what earlier attempts took is counted in.

    gpus: that this worker holds, a share of one where runs share it. A GPU is paid for while it is held, a processor
    while it works.
    """

    def __init__(self, kept: dict[str, float], gpus: float, place: Place) -> None:
        self.kept = {name: kept.get(name, 0.0) for name in ("cpu_seconds", "gpu_seconds")}
        self.gpus, self.workers = gpus, place.world
        self.began, self.worked = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        now = {
            "cpu_seconds": time.process_time() - self.worked,
            "gpu_seconds": (time.monotonic() - self.began) * self.gpus,
        }
        return {name: self.kept[name] + seconds * self.workers for name, seconds in now.items()}


class Pace:
    """Lines per second, and the share of the time in which data were waited for, since the last log line."""

    def __init__(self) -> None:
        self.since, self.waited, self.lines = time.monotonic(), 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self.waited += time.monotonic() - before

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self.since += time.monotonic() - before

    def figures(self) -> dict[str, float]:
        seconds = time.monotonic() - self.since
        return {"lines_per_second": self.lines / seconds, "data_wait": self.waited / seconds}


def _groups(objective: nn.Module, training: Training) -> list[dict[str, Any]]:
    """Parameters of the same `rate` and decay. Weights decay on matrices only: norms and biases have nothing to decay to.

    rate: factor on the learning rate as a function of progress: what the objective's `rate_of(name)` says, else 1.
    """
    rate_of = getattr(objective, "rate_of", lambda name: Rate())
    groups: dict[tuple[Any, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((rate_of(name), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": groups[key], "rate": key[0], "weight_decay": training.weight_decay if key[1] else 0.0}
        for key in sorted(groups, key=lambda key: (-key[0].factor, -key[1]))
    ]

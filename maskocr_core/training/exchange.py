"""What the workers of a training do together at the end of a step: the sum of their gradients, its norm, and the update.

Sums are made pair by pair, so that they are the same to the bit for any number of workers. On one machine, gradients, weights and
what the optimiser remembers lie in memory that all workers see, and each of them adds up and updates a part, as
ZeRO does it (https://arxiv.org/abs/1910.02054), with nothing to gather afterwards. Workers of several machines, or on GPUs,
send each other all of it, and each makes the whole update. Sent over loopback, the gradient of a small encoder took a twelfth of a
step of two workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from maskocr_core.services.workers import PeerLost, among_peers

SHARED = Path("/dev/shm")  # memory with the manners of a file: Linux
AWAKE = 0.05  # s in which a worker waits for others awake: longer than those of its steps are late, shorter than a checkpoint takes
LINE = 16  # numbers of a cache line: no two tensors begin in the same, and products are the same to the bit
STATE = "exp_avg", "exp_avg_sq", "step"  # of AdamW, of each parameter


@dataclass(frozen=True)
class Place:
    """Which worker this is, and of how many: a power of two."""

    rank: int = 0
    world: int = 1

    def partners(self) -> Iterator[int]:
        """The workers that this one meets, one after another, until each has the sum of all: recursive doubling."""
        distance = self.world // 2
        while distance:
            yield self.rank ^ distance
            distance //= 2


class Workers:
    """What ends a step; of a training that has one worker, as it is here."""

    def __init__(self, place: Place = Place()) -> None:
        self.place = place

    def total(self, gradients: list[Tensor | None], lines: float) -> tuple[list[Tensor | None], float]:
        """(gradients, lines) added up over all workers: of parameters that this one updates; None of others.

        gradients: one a parameter, None where no loss of this worker hangs on it; None comes back where none of any does. What
        comes back is overwritten by the next call. Raises PeerLost if another worker is gone.
        """
        return gradients, lines

    def norm(self, gradients: list[Tensor | None]) -> Tensor:
        """() the norm of the whole gradient, of which `gradients` are what `total` gave to this worker."""
        return nn.utils.get_total_norm([one for one in gradients if one is not None])

    def updated(self) -> None:
        """To be said after the update, before weights are read: all of them are up to date then. Raises PeerLost as `total` does."""

    def close(self) -> None:
        """To be said when training ends, however it does: who waits for this worker learns that it is gone."""


def among(place: Place, parameters: list[nn.Parameter], optimizer: torch.optim.AdamW) -> Workers:
    """What ends the steps of a training of these workers, all of which have the same weights and optimiser state now.

    parameters: those that learn, float32, on one device. Where workers share memory, they and the optimiser's state move there.
    Raises PeerLost if another worker is gone.
    """
    if place.world == 1:
        return Workers(place)
    with among_peers():
        on_cpu = parameters[0].device.type == "cpu"
        common = _common(_Shared.numbers(place, parameters), place) if on_cpu else None
        return _Shared(place, parameters, optimizer, *common) if common else _Sent(place, parameters)


class _Sent(Workers):
    """A row for the own gradients and one for what comes. They are kept: fresh pages for every sum would cost as much as the sum."""

    def __init__(self, place: Place, parameters: list[nn.Parameter]) -> None:
        super().__init__(place)
        starts = _starts(parameters)
        numbers, device = starts[-1] + 1 + len(parameters), parameters[0].device
        self.own, self.others = (torch.zeros(numbers, device=device) for _ in range(2))
        self.board, self.facts = _views(self.own, starts, parameters), self.own[starts[-1] :]

    def total(self, gradients: list[Tensor | None], lines: float) -> tuple[list[Tensor | None], float]:
        from torch import distributed

        _write(gradients, lines, self.board, self.facts)
        with among_peers():
            for partner in self.place.partners():
                both = (distributed.isend, self.own), (distributed.irecv, self.others)
                requests = [distributed.P2POp(way, tensor, partner) for way, tensor in both]
                for request in distributed.batch_isend_irecv(requests):
                    request.wait()
                self.own += self.others
        lines, *given = self.facts.tolist()
        return [one if had else None for one, had in zip(self.board, given)], lines


class _Shared(Workers):
    """A row for the gradients of each worker, and one each for weights and both moments; of all rows each worker alone changes its own part.

    Behind the numbers of a row are its facts: of gradients those to add up, of weights the norms, of a moment how many updates.
    All meet three times a step: gradients are read once all are written, norms likewise, and the next step, which reads weights and
    writes gradients, begins once all have made their part of the update. They wait for each other awake: who sleeps is often woken
    on the core of another, which cost two workers on two cores 2 % of their speed. A worker counts how often it came, and holds a lock
    on a byte of the file of their memory, which is gone with it.
    """

    def __init__(
        self,
        place: Place,
        parameters: list[nn.Parameter],
        optimizer: torch.optim.AdamW,
        memory: Tensor,
        file: BinaryIO,
    ) -> None:
        super().__init__(place)
        from torch import distributed

        self.file = file
        fcntl.lockf(file, fcntl.LOCK_EX, 1, place.rank)
        memory, counts = memory.split([len(memory) - place.world * LINE, place.world * LINE])
        self.came = counts.view(torch.int32).numpy()[::LINE]
        starts = _starts(parameters)
        self.own = _part(place, parameters)
        self.reach = slice(starts[self.own.start], starts[self.own.stop])
        *self.rows, weights, first, second = rows = memory.view(place.world + 3, -1)
        *self.facts, self.norms, updates, _ = (row[starts[-1] :][: len(parameters) + 1] for row in rows)
        self.given: list[bool] = []
        self.board, self.sums, *kept = (
            _views(row, starts, parameters) for row in (self.rows[place.rank], self.rows[0], weights, first, second)
        )
        for parameter, weight, *moments, number in zip(parameters, *kept, updates):
            state = dict(zip(STATE, (*moments, number)))
            if place.rank == 0:
                weight.copy_(parameter.detach())
                for name, value in optimizer.state.get(parameter, {}).items():
                    state[name].copy_(value)
            parameter.data, optimizer.state[parameter] = weight, state
        distributed.barrier()

    @staticmethod
    def numbers(place: Place, parameters: list[nn.Parameter]) -> int:
        """How many its memory holds."""
        return (place.world + 3) * (_starts(parameters)[-1] + _lines(len(parameters) + 1)) + place.world * LINE

    def total(self, gradients: list[Tensor | None], lines: float) -> tuple[list[Tensor | None], float]:
        _write(gradients, lines, self.board, self.facts[self.place.rank])
        self._meet()
        lines, *given = sum(self.facts).tolist()
        self.given = list(map(bool, given))
        sums = [row[self.reach] for row in self.rows]
        while half := len(sums) // 2:
            for one, other in zip(sums, sums[half:]):
                one += other
            sums = sums[:half]
        return [
            one if had and i in self.own else None for i, (one, had) in enumerate(zip(self.sums, self.given))
        ], lines

    def norm(self, gradients: list[Tensor | None]) -> Tensor:
        of_own = {number: torch.linalg.vector_norm(one) for number, one in enumerate(gradients) if one is not None}
        if of_own:
            self.norms[list(of_own)] = torch.stack(list(of_own.values()))
        self._meet()
        return torch.linalg.vector_norm(self.norms[:-1][self.given])

    def updated(self) -> None:
        self._meet()

    def close(self) -> None:
        self.file.close()

    def _meet(self) -> None:
        """Wait until all have come here as often as this one."""
        number = self.came[self.place.rank] + 1
        os.sched_yield()  # what this worker wrote is seen before it is said to have come: to call the scheduler is a fence
        self.came[self.place.rank] = number
        late = time.monotonic() + AWAKE
        while self.came.min() < number:
            if time.monotonic() < late:
                os.sched_yield()
            else:
                time.sleep(0.001)
                self._demand_all(number)

    def _demand_all(self, number: int) -> None:
        """Raises PeerLost if a worker that has not come so often is gone."""
        for rank in (self.came < number).nonzero()[0].tolist():
            with contextlib.suppress(BlockingIOError):
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
                if self.came[rank] < number:
                    raise PeerLost(
                        f"another worker is gone ({rank} of {self.place.world} did not come to the end of its step)"
                    )


def _lines(numbers: int) -> int:
    """So many and as many more as fill cache lines."""
    return numbers + -numbers % LINE


def _starts(parameters: list[nn.Parameter]) -> list[int]:
    """Where each begins in a row, and where the last one ends."""
    return list(accumulate((_lines(one.numel()) for one in parameters), initial=0))


def _views(row: Tensor, starts: list[int], parameters: list[nn.Parameter]) -> list[Tensor]:
    """Tensors in a row, each of the shape and strides of its parameter: on a CPU, fused AdamW takes it that all it reads has them."""
    return [row[start:].as_strided(one.shape, one.stride()) for start, one in zip(starts, parameters)]


def _write(gradients: list[Tensor | None], lines: float, board: list[Tensor], facts: Tensor) -> None:
    """Put down what is to be added up: gradients, and as facts the lines, and of each parameter how many workers have one."""
    for place, own in zip(board, gradients, strict=True):
        place.zero_() if own is None else place.copy_(own)
    facts.copy_(torch.tensor([float(lines), *(float(own is not None) for own in gradients)]))


def _part(place: Place, parameters: list[nn.Parameter]) -> range:
    """The parameters that a worker updates, neighbours: those whose middles are in its part of all numbers."""
    ends = list(accumulate(one.numel() for one in parameters))
    middles = [end - one.numel() / 2 for end, one in zip(ends, parameters)]
    first, past = (bisect_left(middles, ends[-1] * rank / place.world) for rank in (place.rank, place.rank + 1))
    return range(first, past)


def _common(numbers: int, place: Place) -> tuple[Tensor, BinaryIO] | None:
    """(numbers,) of zeros that all workers see, and their file; None where one is on another machine, or there is no room for them."""
    from torch import distributed

    path, able = SHARED / f"maskocr-{uuid.uuid4().hex}", [None] * place.world
    told = [str(path) if place.rank == 0 and _reserved(path, 4 * numbers) else ""]
    try:
        distributed.broadcast_object_list(told)
        opened = _opened(told[0], numbers)
        distributed.all_gather_object(able, opened is not None)
    finally:
        path.unlink(missing_ok=True)  # by now all have it open, and it goes with the last of them
    return opened if all(able) else None


def _opened(name: str, numbers: int) -> tuple[Tensor, BinaryIO] | None:
    try:
        file = open(name, "r+b")
    except OSError:  # not on this machine: torch would make it
        return None
    try:
        return torch.from_file(name, shared=True, size=numbers, dtype=torch.float32), file
    except RuntimeError:  # no address space, or a limit on it
        file.close()
        return None


def _reserved(path: Path, size: int) -> bool:
    """Whether there was room for a file of so many bytes; were it taken as it is written, a write would kill the process."""
    try:
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        return False
    return True

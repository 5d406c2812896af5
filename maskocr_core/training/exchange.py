"""The sum of a vector over all workers, pair by pair, so that it is the same to the bit for any number of them.

Workers of one machine write what they have into memory that all of them see, and each adds up for itself; others send it to
each other. Sent over loopback, the gradient of a small encoder took a twelfth of a step of two workers.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from maskocr_core.services.workers import among_peers

SHARED = Path("/dev/shm")  # memory with the manners of a file: Linux


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


class Exchange:
    """Sums over the workers of a training. Its memory is kept: fresh pages for every sum would cost as much as the sum."""

    def __init__(self, place: Place = Place()) -> None:
        self.place = place
        self._way: _Shared | _Sent | None = None

    def total(self, pieces: list[Tensor]) -> Tensor:
        """The pieces (1-d each, N numbers in all, float32 on one device), joined and added up over all workers: (N,).

        It is overwritten by the next call. Raises PeerLost if another worker is gone.
        """
        with among_peers():
            self._way = self._way or _met(sum(map(len, pieces)), pieces[0].device, self.place)
            return self._way.total(pieces)


def _met(numbers: int, device: torch.device, place: Place) -> _Shared | _Sent:
    """The way that is open to all workers."""
    from torch import distributed

    shared = _Shared(numbers, place) if device.type == "cpu" else None
    able = [None] * place.world
    distributed.all_gather_object(able, bool(shared and shared.sees_all))
    return shared if all(able) else _Sent(numbers, device, place)


class _Sent:
    def __init__(self, numbers: int, device: torch.device, place: Place) -> None:
        self.place = place
        self.own, self.others = (torch.empty(numbers, device=device) for _ in range(2))

    def total(self, pieces: list[Tensor]) -> Tensor:
        from torch import distributed

        torch.cat(pieces, out=self.own)
        for partner in self.place.partners():
            both = (distributed.isend, self.own), (distributed.irecv, self.others)
            requests = [distributed.P2POp(way, tensor, partner) for way, tensor in both]
            for request in distributed.batch_isend_irecv(requests):
                request.wait()
            self.own += self.others
        return self.own


class _Shared:
    """Two boards a worker, in turn: one may be read yet by a partner that is late while the next is written.

    Who writes a board again has passed the barrier of the other one, and so has, before it, everyone who read this one.
    """

    def __init__(self, numbers: int, place: Place) -> None:
        self.place, self.turn = place, 0
        self.sum = torch.empty(numbers)
        self.boards = self._of_all(numbers)
        self.sees_all = all(board is not None for board in self.boards)

    def _of_all(self, numbers: int) -> list[Tensor | None]:
        """(2, N) of each worker; None of one on another machine, and of one that had no room for them."""
        from torch import distributed

        own, names = SHARED / f"maskocr-{uuid.uuid4().hex}", [None] * self.place.world
        try:
            distributed.all_gather_object(names, str(own) if _reserved(own, 8 * numbers) else "")
            boards = [_opened(name, numbers) for name in names]
            distributed.barrier()
        finally:
            own.unlink(missing_ok=True)  # by now all have it open, and it goes with the last of them
        return boards

    def total(self, pieces: list[Tensor]) -> Tensor:
        from torch import distributed

        own = self.boards[self.place.rank]
        torch.cat(pieces, out=own[self.turn])
        for number, partner in enumerate(self.place.partners()):
            if number:
                own[self.turn].copy_(self.sum)
            distributed.barrier()
            torch.add(own[self.turn], self.boards[partner][self.turn], out=self.sum)
            self.turn = 1 - self.turn
        return self.sum


def _opened(name: str, numbers: int) -> Tensor | None:
    if not name or not Path(name).is_file():  # it would be made
        return None
    try:
        return torch.from_file(name, shared=True, size=2 * numbers, dtype=torch.float32).view(2, -1)
    except RuntimeError:  # no address space, or a limit on it
        return None


def _reserved(path: Path, size: int) -> bool:
    """Whether there was room for a file of so many bytes; were it taken as it is written, a write would kill the process."""
    try:
        with path.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError:
        return False
    return True

"""Which line ids occur more than once, without all of them in memory: they are dealt out over files by their first bits."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

_FILES = 64


def find(line_ids: Iterable[list[str]], folder: Path) -> dict[str, int]:
    """How often each line id (32 hex digits) occurs that occurs more than once.

    line_ids: a shard's at a time. folder: where 16 bytes a line may lie for the moment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:02d}.ids" for number in range(_FILES)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for some in line_ids:
            digests = np.frombuffer(bytes.fromhex("".join(some)), np.uint8).reshape(-1, 16)
            place = digests[:, 0] % _FILES
            for number in np.unique(place):
                files[number].write(digests[place == number].tobytes())
    found: dict[str, int] = {}
    for path in paths:
        halves = np.fromfile(path, ">u8").reshape(-1, 2)
        path.unlink()
        halves = halves[np.lexsort(halves.T)]
        starts = (
            np.flatnonzero(np.r_[True, (halves[1:] != halves[:-1]).any(axis=1)]) if len(halves) else np.zeros(0, int)
        )
        counts = np.diff(np.r_[starts, len(halves)])
        for start, count in zip(starts[counts > 1], counts[counts > 1]):
            found[halves[start].tobytes().hex()] = int(count)
    return found

"""Logs and pictures of work on nodes that share no folder with who asked for it, brought there while the work goes on.

What is made comes back at the end by other ways; this is for those who watch. So nothing that goes wrong here ends the work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from maskocr_core import artifacts
from maskocr_core.services import periodic

LOG, PICTURES = "log.jsonl", "pictures"  # what of a folder of unfinished work is brought
EVERY_SECONDS = 1.0
PATIENCE = 30.0  # s that one side waits for the other


class Letter(NamedTuple):
    """A part of a file, from its byte `begin` on. folder: where who asked for the work has the unfinished work."""

    folder: str
    name: str
    begin: int
    content: bytes


class Office:
    """The actor between both sides, on the node of who asked."""

    def __init__(self) -> None:
        self._letters: list[Letter] = []

    def bring(self, letters: list[Letter]) -> None:
        self._letters += letters

    def take(self) -> list[Letter]:
        letters, self._letters = self._letters, []
        return letters


def _here(ray: Any) -> Any:
    """Keeps an actor on this node, whichever of the others may be lost."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )


@contextlib.contextmanager
def opened(ray: Any, name: str) -> Iterator[None]:
    """What is brought under this name lands in its folders while the block runs."""
    office = ray.remote(num_cpus=0, scheduling_strategy=_here(ray))(Office).options(name=name).remote()

    def deliver() -> None:
        with contextlib.suppress(Exception):
            for letter in ray.get(office.take.remote(), timeout=PATIENCE):
                _delivered(letter)

    with periodic.now_and_then(deliver, EVERY_SECONDS, "post"):
        yield


@contextlib.contextmanager
def brought(name: str, work: Path, folder: Path) -> Iterator[None]:
    """What grows in `work` is brought while the block runs, for the folder that is called `folder` where it was asked for."""
    import ray

    try:
        office = ray.get_actor(name)
    except ValueError:  # nobody watches
        yield
        return
    known: dict[Path, tuple[int, int]] = {}

    def bring() -> None:
        with contextlib.suppress(Exception):
            # The log is read first and goes last: a row is said when the pictures that were drawn before it are there.
            log = _grown(work / LOG, known, appended=True)
            drawn = [_grown(path, known) for path in sorted((work / PICTURES).glob("*"))]
            if grown := [one for one in (*drawn, log) if one]:
                letters = [Letter(str(folder), one.path.relative_to(work).as_posix(), *one[2:]) for one in grown]
                ray.get(office.bring.remote(letters), timeout=PATIENCE)
                known.update({one.path: one.known for one in grown})

    with periodic.now_and_then(bring, EVERY_SECONDS, "post"):
        yield


class Grown(NamedTuple):
    """What of a file is new. mark: tells a picture from another one of its name; a log only grows."""

    path: Path
    mark: int
    begin: int
    content: bytes

    @property
    def known(self) -> tuple[int, int]:
        """Mark, and how much of the file, once this was brought."""
        return self.mark, self.begin + len(self.content)


def _grown(path: Path, known: dict[Path, tuple[int, int]], appended: bool = False) -> Grown | None:
    """What of a file is not `known` yet, by its mark and how much of it; None if all is. appended: only its end is new."""
    if not path.is_file():
        return None
    state = path.stat()
    mark = 0 if appended else state.st_mtime_ns
    if known.get(path) == (mark, state.st_size):
        return None
    begin = known.get(path, (0, 0))[1] if appended else 0
    with path.open("rb") as file:
        file.seek(begin)
        return Grown(path, mark, begin, file.read())


def _delivered(letter: Letter) -> None:
    """Write a letter into its file; one whose beginning was lost is left out, the whole file comes at the end."""
    path = Path(letter.folder) / letter.name
    if not letter.begin:
        artifacts.write_bytes(path, letter.content)
    elif path.is_file() and path.stat().st_size == letter.begin:
        with path.open("ab") as file:
            file.write(letter.content)

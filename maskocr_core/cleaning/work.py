"""What may go of the work on this disk.

Looked at are the homes of stages and runs below MASKOCR_WORK, as `@stage` and the sweep lay them out, and the folders
that `maskocr run` makes; nothing else there, no link, and no DVC cache. A published output is a second name of the
files in its home (`artifacts.publish`), so the number of names tells whether anybody still has it. Source: man 7
inode, st_nlink.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from maskocr_core.artifacts import MANIFEST

RUNS = "runs"  # of fine-tuning, beside the homes of the stages
_KEY = re.compile(r"[0-9a-f]{24}")
_PIPELINE_RUN = re.compile(r".+-\d{4}-?\d{2}-?\d{2}-\d{2}-?\d{2}-?\d{2}(-\d+)?")
_DAY = 24 * 3600.0
_GOING = ".{}.gone"  # a folder on its way out; one that an interrupted removal left goes the next time


@dataclass(frozen=True)
class Entry:
    """One thing that can be removed, or that is kept and why.

    paths: what would be deleted: `folder`, or folders in it. used: when it was last, in seconds of the epoch. frees:
    bytes that deleting it gives back, after what is listed before it: a file with several names counts where its last
    one goes.
    """

    what: str
    folder: Path
    paths: tuple[Path, ...]
    used: float
    why: str
    kept: bool = False
    frees: int = 0

    @property
    def days(self) -> float:
        """Since it was last used."""
        return (time.time() - self.used) / _DAY


def look(work: Path, pipelines: Path, *, days: float = 30, keep_last: int = 3) -> list[Entry]:
    """Everything the rule speaks of, what may go first; deletes nothing.

    work: MASKOCR_WORK. pipelines: `--root` of `maskocr run`. days: what was used since is kept. keep_last: so many of
    the newest pipeline folders are kept at any age. Raises ValueError for a negative age and for no folder to keep.
    """
    if days < 0 or keep_last < 1:
        raise ValueError("--older-than counts days from 0, and --keep-last at least 1: the newest run may be at work")
    names: Counter[tuple[int, int]] = Counter()  # of a file, how many of its names are going
    # Pipeline runs first: they are who else has the outputs of stages.
    found = list(_weighed(_pipeline_runs(pipelines, days, keep_last), names))
    places = _folders(work)
    for place in places:
        for home in _homes(place):
            of = _of_run(home, days) if place.name == RUNS else _of_stage(place.name, home, days, names)
            found += _weighed(of, names)
    for place in (pipelines, *places):
        found += _weighed(_left_over(place), names)
    return sorted(found, key=lambda entry: entry.kept)


def delete(entries: Iterable[Entry], say: Callable[[str], None] = print) -> int:
    """Remove what is not kept; returns the bytes given back. What was used since `look` is left, and said."""
    freed = 0
    for entry in entries:
        if entry.kept:
            continue
        with held(entry.folder) as idle:
            if not idle or _last_used(entry.folder) > entry.used:
                say(f"{entry.folder}: in use by now, kept")
                continue
            for path in entry.paths:
                _remove(path)
            freed += entry.frees
    return freed


def _remove(path: Path) -> None:
    """Under another name first: half an artifact that still has its manifest would be taken for a whole one."""
    if not _is_going(path):
        aside = path.with_name(_GOING.format(path.name))
        shutil.rmtree(aside, ignore_errors=True)
        path = path.rename(aside)
    shutil.rmtree(path)


def _is_going(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".gone")


def _left_over(root: Path) -> Iterator[Entry]:
    for folder in filter(_is_going, _folders(root)):
        yield Entry("half removed", folder, (folder,), _last_used(folder), "a removal was interrupted")


def _pipeline_runs(root: Path, days: float, keep_last: int) -> Iterator[Entry]:
    runs = [folder for folder in _folders(root) if _PIPELINE_RUN.fullmatch(folder.name)]
    newest_first = sorted(((_last_used(folder), folder) for folder in runs), reverse=True)
    for rank, (used, folder) in enumerate(newest_first):
        entry = Entry("pipeline run", folder, (folder,), used, f"untouched for {days:g} days")
        if rank < keep_last:
            yield replace(entry, kept=True, why=f"one of the newest {keep_last}")
        else:
            yield entry if entry.days >= days else replace(entry, kept=True, why=f"used within {days:g} days")


def _of_stage(stage: str, home: Path, days: float, going: Counter[tuple[int, int]]) -> Iterator[Entry]:
    whole = Entry(stage, home, (home,), _last_used(home), f"used within {days:g} days")
    with held(home) as idle:
        if not idle:
            yield replace(whole, kept=True, why="at work now")
            return
    parts = _folders(home)
    passing = tuple(part for part in parts if part.name == "scratch" or part.name.endswith((".unfinished", ".gone")))
    finished = [part for part in parts if part not in passing and (part / MANIFEST).is_file()]
    undone = not finished or any(part.name.endswith(".unfinished") for part in passing)
    published = any(_has_names_elsewhere(part, going) for part in finished)
    if whole.days >= days and not published:
        state = "unfinished" if undone else "published nowhere any more"
        yield replace(whole, why=f"{state}, unused for {days:g} days")
        return
    if passing and not undone:
        yield replace(whole, what=f"{stage}, superseded", paths=passing, why="checkpoints of what is finished")
    elif passing and whole.days >= days:
        yield replace(whole, what=f"{stage}, in part", paths=passing, why=f"unfinished, unused for {days:g} days")
    yield replace(whole, kept=True, why="published" if published else whole.why)


def _of_run(home: Path, days: float) -> Iterator[Entry]:
    whole = Entry("fine-tuning run", home, (home,), _last_used(home), f"used within {days:g} days")
    with held(home) as idle:
        if not idle:
            yield replace(whole, kept=True, why="at work now")
            return
    finished = (home / "result.json").is_file()
    if whole.days >= days:
        yield replace(whole, why=f"{'finished' if finished else 'unfinished'}, unused for {days:g} days")
        return
    passing = tuple(part for part in _folders(home) if part.name == "checkpoints" or _is_going(part))
    if finished and passing:
        what = "fine-tuning run, superseded"
        yield replace(whole, what=what, paths=passing, why="checkpoints of what is finished")
    yield replace(whole, kept=True)


def _weighed(entries: Iterable[Entry], going: Counter[tuple[int, int]]) -> Iterator[Entry]:
    """The entries with the bytes that go with them, given what goes before."""
    for entry in entries:
        frees = 0
        for path in entry.paths:
            for state in _files(path):
                file = (state.st_dev, state.st_ino)
                here = going[file] + 1
                if not entry.kept:
                    going[file] = here
                frees += state.st_size if here == state.st_nlink else 0
        yield replace(entry, frees=frees)


def _has_names_elsewhere(folder: Path, going: Counter[tuple[int, int]]) -> bool:
    """Whether a file of a folder has a name outside it that stays."""
    states = {(state.st_dev, state.st_ino): state for state in _files(folder)}
    here = Counter((state.st_dev, state.st_ino) for state in _files(folder))
    return any(state.st_nlink > here[file] + going[file] for file, state in states.items())


def _homes(root: Path) -> list[Path]:
    """As `@stage` and the sweep name them: by a key, with a lock inside."""
    return [folder for folder in _folders(root) if _KEY.fullmatch(folder.name) and (folder / ".lock").is_file()]


def _folders(root: Path) -> list[Path]:
    """Folders right below one, none of them a link; of a link, too, none are."""
    if root.is_symlink() or not root.is_dir():
        return []
    with os.scandir(root) as found:
        return sorted(Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False))


def _files(folder: Path) -> Iterator[os.stat_result]:
    for place, _, names in os.walk(folder):  # does not follow links
        yield from _states(place, names)


def _last_used(folder: Path) -> float:
    """The latest change below a folder, in seconds of the epoch: a stage that reuses its work renews its `.lock`."""
    latest = folder.stat().st_mtime
    for place, folders, names in os.walk(folder):
        latest = max([latest, *(state.st_mtime for state in _states(place, folders + names))])
    return latest


def _states(place: str, names: list[str]) -> Iterator[os.stat_result]:
    """Of the links themselves; whoever is at work in a folder may take files away meanwhile."""
    for name in names:
        with suppress(FileNotFoundError):
            yield os.lstat(os.path.join(place, name))


@contextmanager
def held(home: Path) -> Iterator[bool]:
    """Whether nobody is at work in a home; nobody begins while the block lasts. The lock's own time stays as it is."""
    if not (home / ".lock").is_file():  # a pipeline folder has none
        yield True
        return
    with (home / ".lock").open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            idle = True
        except BlockingIOError:
            idle = False
        yield idle

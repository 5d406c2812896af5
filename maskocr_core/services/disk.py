"""Files on this machine, as `storage` asks for them: URIs are paths here."""

from __future__ import annotations

import fcntl
import glob
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maskocr_core.services.stored import File

LEFTOVER = re.compile(r"\.(?P<name>.+)\.\d+")  # what `written` names a file that is not whole yet


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to: renamed once the block is through, gone if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield aside
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def sweep(folder: Path, which: Callable[[str], bool] = lambda name: True) -> None:
    """Remove what killed processes left half-written below a folder, of those files, by name there, which nobody writes now."""
    for path in list(folder.rglob(".*")):
        leftover = LEFTOVER.fullmatch(path.name)
        if leftover and path.is_file() and which(path.relative_to(folder).with_name(leftover["name"]).as_posix()):
            path.unlink(missing_ok=True)


def _sweep_one(path: Path) -> None:
    """The same for one file. It looks into its folder alone: below it may lie a whole work folder."""
    for other in path.parent.glob(f".{glob.escape(path.name)}.*"):
        leftover = LEFTOVER.fullmatch(other.name)
        if leftover and leftover["name"] == path.name:
            other.unlink(missing_ok=True)


def files(uri: str) -> Iterator[File]:
    """The one file that the path names, or all below the folder but hidden ones. Raises ValueError if there is neither."""
    root = Path(uri)
    if root.is_file():
        paths = [root]
        root = root.parent
    elif root.is_dir():
        paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    else:
        raise ValueError(f"{root}: no such file or folder")
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError:  # another program took it away, or gave it its final name
            continue
        name = path.relative_to(root).as_posix()
        yield File(str(path), name, stat.st_size, str(stat.st_mtime_ns), stat.st_mtime)


def open_input(uri: str) -> Any:
    import pyarrow as pa

    try:
        return pa.OSFile(uri)
    except OSError as error:
        raise ValueError(f"{uri}: cannot be opened ({error}); bring it back") from None


def content(uri: str) -> bytes:
    with open_input(uri) as file:
        return bytes(file.read())


def put(uri: str, content: bytes) -> None:
    """Written under a temporary name, synced and renamed."""
    with written(Path(uri)) as aside, aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # what was said to be written survives a power cut


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time has the lock file `path`; others wait for it. Source: man 2 flock."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def replace(uri: str, change: Callable[[bytes | None], bytes]) -> None:
    """Under a lock and by rename."""
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock")):
        _sweep_one(path)  # nobody else writes it as long as this is locked
        put(uri, change(path.read_bytes() if path.is_file() else None))


def erase(uri: str) -> None:
    Path(uri).unlink(missing_ok=True)


def holds(folder: str) -> bool:
    return any(True for _ in Path(folder).rglob("*"))


def exists(uri: str) -> bool:
    return Path(uri).exists()


def renew(uri: str) -> None:
    """Give the file the time of a new one."""
    os.utime(uri)

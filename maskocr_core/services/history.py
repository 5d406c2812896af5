"""What a git and DVC repository has kept of its data: every version, and the objects of it in the cache and the remotes.

DVC keeps a file under its md5 (`files/md5/ab/cdef…`) and a folder as a list of such files (`….dir`); `dvc.lock` and
`*.dvc` in git say which md5 a version has. `dvc gc` would remove what nobody names; this looks up what somebody names.
Source: https://dvc.org/doc/user-guide/project-structure/internal-files
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from maskocr_core.services import storage, versions

WORKSPACE = "workspace"
_REMOTE = re.compile(r"^remote\..+?\.url=(.+)$", re.MULTILINE)


class Output(NamedTuple):
    """A file or folder that a version of the data has: path in the repository, md5 (`.dir` at its end for a folder)."""

    path: str
    md5: str


def outputs(repository: Path) -> dict[str, list[Output]]:
    """By commit, all branches, tags and stashes taken together, what it has; under WORKSPACE what lies there now."""
    read: dict[str, list[Output]] = {}
    found: dict[str, list[Output]] = {}
    for commit in versions._call(["git", "rev-list", "--all"], repository).split():
        outs: list[Output] = []
        for line in versions._call(["git", "ls-tree", "-r", "-z", commit], repository).split("\0"):
            facts, _, name = line.partition("\t")
            if _is_lock(name):
                blob = facts.split()[2]
                if blob not in read:
                    read[blob] = _outputs(versions._call(["git", "cat-file", "blob", blob], repository), name)
                outs += read[blob]
        found[commit] = outs
    locks = [path for path in repository.rglob("*") if _is_lock(path.name) and ".dvc" not in path.parent.parts]
    found[WORKSPACE] = [
        out
        for path in locks
        if path.is_file()
        for out in _outputs(path.read_text(), path.relative_to(repository).as_posix())
    ]
    return found


@lru_cache
def stores(repository: Path) -> list[str]:
    """Where objects of the repository lie: its cache, then its remotes, as paths or s3:// URIs; others as DVC names them."""
    # `dvc remote list` is a table that breaks long addresses over lines.
    listed = _dvc("config", "--list", repository=repository)
    remotes = [url if "://" in url else str((repository / ".dvc" / url).resolve()) for url in _REMOTE.findall(listed)]
    return [_dvc("cache", "dir", repository=repository).strip(), *remotes]


def is_reachable(store: str) -> bool:
    """Whether objects of a store can be looked at and erased from here."""
    return storage.is_remote(store) or "://" not in store


def location(store: str, md5: str) -> str:
    """Where an object lies in a store."""
    return f"{store.rstrip('/')}/files/md5/{md5[:2]}/{md5[2:]}"


def files(stores: list[str], output: Output) -> Iterator[Output]:
    """The files of an output. Raises ValueError if the list of a folder is in none of the stores."""
    if not output.md5.endswith(".dir"):
        yield output
        return
    for entry in json.loads(read(stores, output.md5)):
        yield Output(f"{output.path}/{entry['relpath']}", entry["md5"])


def read(stores: list[str], md5: str) -> bytes:
    """The content of an object. Raises ValueError if no store has it."""
    with open_object(stores, md5) as file:
        return bytes(file.read())


def open_object(stores: list[str], md5: str) -> Any:
    """A seekable binary file of an object, from the first store that has it. Raises ValueError if none has."""
    for store in stores:
        if storage.exists(uri := location(store, md5)):
            return storage.open_input(uri)
    raise ValueError(f"object {md5} is in none of {', '.join(stores)}")


def has_changed(repository: Path) -> bool:
    """Whether the workspace holds other data than the last commit names.

    Raises ValueError if it holds none: without it no new version can be made of it.
    """
    status = json.loads(_dvc("data", "status", "--json", repository=repository) or "{}")
    if deleted := status.get("uncommitted", {}).get("deleted"):
        raise ValueError(
            f"{repository} lacks {', '.join(deleted)}: run `dvc pull` there, then give the same command again"
        )
    return bool(status.get("uncommitted") or status.get("committed"))


def commit(repository: Path, message: str) -> str:
    """Make what lies in the workspace the current version, without running a stage: DVC's commit and push, then git's."""
    versions.dvc(["commit", "--force", "--quiet"], repository)
    versions.dvc(["push"], repository)
    locks = [name for name in versions._call(["git", "ls-files"], repository).splitlines() if _is_lock(name)]
    if versions._call(["git", "status", "--porcelain", "--", *locks], repository).strip():
        who = ["-c", "user.name=maskocr", "-c", "user.email=maskocr@localhost"]
        said = (
            message + "\n" + versions._message(repository).partition("\n")[2]
        )  # the data versions, as in other commits
        versions._call(["git", *who, "commit", "--quiet", "--message", said, "--", *locks], repository)
    return versions._call(["git", "rev-parse", "HEAD"], repository).strip()


def _dvc(*arguments: str, repository: Path) -> str:
    return versions._call([sys.executable, "-m", "dvc", *arguments], repository)


def _is_lock(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base == "dvc.lock" or (base.endswith(".dvc") and base != ".dvc")


def _outputs(content: str, name: str) -> list[Output]:
    """What a dvc.lock, or a file of `dvc add`, names; inputs too, since they were outputs once."""
    import yaml

    try:
        lock = yaml.safe_load(content) or {}
    except yaml.YAMLError:
        return []
    stages = lock.get("stages", {}).values() if name.endswith("dvc.lock") else [lock]
    folder = name.rpartition("/")[0]
    entries = [entry for stage in stages for entry in (*stage.get("outs", ()), *stage.get("deps", ()))]
    return [
        Output("/".join(filter(None, (folder, entry["path"]))), entry["md5"])
        for entry in entries
        if entry.get("md5") and entry.get("hash", "md5") == "md5" and entry.get("path")
    ]

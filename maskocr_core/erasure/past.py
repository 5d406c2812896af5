"""Old versions of the data: the objects that hold what is to be erased, found and removed; all others stay.

Only objects that this repository's own history names are looked at, so that what others keep in the same remote is safe.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from maskocr_core.erasure import redact
from maskocr_core.erasure.doomed import Doomed, Shard, in_shard_folder, is_shard
from maskocr_core.services import history, storage
from maskocr_core.services.history import Output


@dataclass
class Past:
    """A repository's kept data. folders: files of each output folder; missing: commits whose lists are nowhere to be had."""

    repository: Path
    stores: list[str]
    unreachable: list[str]
    folders: list[list[Output]] = field(default_factory=list)
    current: set[str] = field(default_factory=set)
    commits: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    missing: set[str] = field(default_factory=set)


def look(repository: Path) -> Past:
    """Read what the history of a repository names."""
    stores = history.stores(repository)
    past = Past(
        repository,
        [store for store in stores if history.is_reachable(store)],
        [store for store in stores if not history.is_reachable(store)],
    )
    listed: dict[Output, list[Output] | None] = {}
    for commit, outputs in history.outputs(repository).items():
        for output in outputs:
            if output not in listed:
                try:
                    listed[output] = list(history.files(past.stores, output))
                except ValueError:
                    listed[output] = None
            if listed[output] is None:
                past.missing.add(commit)
                continue
            for file in listed[output]:
                past.commits[file.md5].add(commit)
                if commit == history.WORKSPACE:
                    past.current.add(file.md5)
    past.folders = [files for files in listed.values() if files]
    past.folders += [[file] for file in _unnamed(past)]
    return past


def _unnamed(past: Past) -> Iterator[Output]:
    """Objects of the repository's own cache that no commit names, such as those of a version that nobody committed."""
    cache = Path(past.stores[0])
    if not cache.is_relative_to(past.repository):
        return
    for path in sorted((cache / "files" / "md5").glob("??/*")):
        md5 = path.parent.name + path.name
        if md5 not in past.commits and not md5.endswith(".dir"):
            with path.open("rb") as file:
                begin = file.read(4)
            yield Output("unnamed.parquet" if begin == b"PAR1" else "unnamed.html", md5)


def shards(past: Past) -> Iterator[Shard]:
    """Files of all versions that hold lines with their images, those that lie in a store for a manifest included."""
    for file in {file for folder in past.folders for file in folder}:
        place = in_shard_folder(file.path) or ("", file.path)
        if file.path.endswith(".parquet") and _is_there(past, file.md5):
            opened = partial(history.open_object, past.stores, file.md5)
            if is_shard(pq.ParquetFile(opened()).schema_arrow):
                yield Shard(place[1], file.md5, opened)


def doomed_objects(past: Past, doomed: Doomed) -> dict[str, str]:
    """md5 → path of the objects that hold anything to be erased."""
    found: dict[str, str] = {}
    for folder in past.folders:
        shown = _shown(past, folder)
        for file in folder:
            if file.md5 in found or not _is_there(past, file.md5):
                continue
            with history.open_object(past.stores, file.md5) as content:
                if redact.holds(file.path, content, doomed, shown.get(file.path, ())):
                    found[file.md5] = file.path
    return found


def erase(past: Past, md5: str) -> int:
    """Remove an object from the cache and all remotes; from how many places."""
    places = [history.location(store, md5) for store in past.stores]
    there = [place for place in places if storage.exists(place)]
    for place in there:
        storage.erase(place)
    return len(there)


def _is_there(past: Past, md5: str) -> bool:
    return any(storage.exists(history.location(store, md5)) for store in past.stores)


def _shown(past: Past, folder: list[Output]) -> dict[str, tuple[str, ...]]:
    """Which lines the pages of a folder show, by path."""
    lists = [file for file in folder if redact.lists_shown(file.path) and _is_there(past, file.md5)]
    return redact.shown_by((file.path, history.read(past.stores, file.md5)) for file in lists)

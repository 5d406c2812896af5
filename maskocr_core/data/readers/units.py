"""What is found before it is read: entries (files, members of archives), items made of them, and units of work.

A unit's name is the digest of the names and sizes of what it reads: its part is known by it within one key of the stage,
which sees that files changed. Where units end is decided by the names of the items alone: a document that comes or goes changes the units around it and no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Protocol

from maskocr_core.services import storage


class Unreadable(ValueError):
    """Something that one item is refused for; everything else goes on."""


class Outage(Exception):
    """The storage does not answer: no property of the data, so that nothing is refused for it and the run ends."""


@dataclass(frozen=True)
class Refused:
    """An item that did not become a line, and why."""

    item: str
    reason: str


@dataclass(frozen=True)
class Entry:
    """One file, or one member of an archive. `name` is its path below the root, an archive being a folder there."""

    name: str
    size: int
    uri: str  # of the file, or of the archive
    member: bool = False
    offset: int = 0  # of a member: of its header in a zip, of its content in a tar

    @property
    def folder(self) -> str:
        return self.name.rpartition("/")[0]

    def open(self) -> Any:
        """A seekable binary file, of the archive for a member. Raises Unreadable here, and Outage in S3."""
        try:
            return storage.open_input(self.uri)
        except ValueError as error:
            raise self.failure(error) from None

    def failure(self, error: Exception) -> Exception:
        """What a file that was listed and cannot be read is worth: a refusal here, the end of the run in S3."""
        if storage.is_remote(self.uri):
            return Outage(f"{self.uri}: cannot be read ({error}); run ingest again")
        return Unreadable(f"cannot be read ({error})")


@dataclass(frozen=True)
class Item:
    """What belongs together: a line image with its text, a page file with its images, or what is already refused."""

    form: Literal["line", "page", "refused"]
    name: str
    files: tuple[Entry, ...] = ()  # the line image, or the page file and the images that may be its page
    text: Entry | None = None
    reason: str = ""
    lines: int = 1  # known or guessed

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self.files if self.text is None else (*self.files, self.text)


@dataclass(frozen=True)
class Unit:
    """What one worker reads and turns into one shard a split."""

    name: str  # 32 hex characters
    kind: Literal["parquet", "items"]
    source: str
    lines: int  # about
    archive: Entry | None = None  # in which the entries lie
    items: tuple[Item, ...] = ()
    table: Entry | None = None  # the Parquet file
    groups: tuple[int, int] | None = None  # its row groups, from and up to; None for all


class Read(Protocol):
    """The bytes of an entry; raises Unreadable beyond `most` bytes, or where it is broken."""

    def __call__(self, entry: Entry, most: int) -> bytes: ...


def share(name: str) -> float:
    """A number in [0, 1) that only the name decides."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64


def unit_of_items(items: Iterable[Item], source: str, archive: Entry | None) -> Unit:
    items = tuple(items)
    parts = ["items", source, archive.name if archive else ""]
    for item in items:
        parts += [item.form, item.name, item.reason]
        parts += [f"{entry.name}\0{entry.size}" for entry in item.entries]
    return Unit(_digest(parts), "items", source, sum(item.lines for item in items), archive, items)


def unit_of_table(table: Entry, groups: tuple[int, int] | None, lines: int, source: str, archive: Entry | None) -> Unit:
    parts = ["parquet", source, archive.name if archive else "", table.name, str(table.size), str(groups)]
    return Unit(_digest(parts), "parquet", source, lines, archive, table=table, groups=groups)


def pack(items: Iterable[Item], full: int) -> Iterator[list[Item]]:
    """Items in the order of their names, in packs of at most `full` lines that a new document leaves as they are.

    A pack ends after a document whose name says so, or when it is full; a document too large for one pack is cut between
    its folders, and a folder too large between its items. An item of more than `full` lines is a pack of its own.
    """
    pack: list[Item] = []
    size = 0
    for name, lines, members in _groups(sorted(items, key=lambda item: item.name), full, (_document, _folder, _name)):
        if pack and size + lines > full:
            yield pack
            pack, size = [], 0
        pack += members
        size += lines
        if share(name) < lines / full:
            yield pack
            pack, size = [], 0
    if pack:
        yield pack


def _groups(
    items: list[Item], full: int, keys: tuple[Callable[[Item], str], ...]
) -> Iterator[tuple[str, int, list[Item]]]:
    """(name, lines, items) of groups that the first key makes, those beyond `full` broken up by the next."""
    # The folders of a document are not neighbours where files lie beside them, hence the sort.
    for name, group in groupby(sorted(items, key=keys[0]), keys[0]):
        members = list(group)
        lines = sum(item.lines for item in members)
        if lines > full and len(keys) > 1:
            yield from _groups(members, full, keys[1:])
        else:
            yield name, lines, members


def _document(item: Item) -> str:
    return item.name.split("/")[0] if "/" in item.name else ""


def _folder(item: Item) -> str:
    return item.name.rpartition("/")[0]


def _name(item: Item) -> str:
    return item.name


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:32]

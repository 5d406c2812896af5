"""What has to be forgotten: an append-only list that every reader of lines honours at once, before any byte is removed.

The list holds digests and no names, so that it does not itself tell of what was erased. It lies at MASKOCR_TOMBSTONES, else
in MASKOCR_STORE, else beside MASKOCR_WORK.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from maskocr_core.services import storage

FORMAT_VERSION = 1
KEY = ("source", "document_id", "page_id", "line_id")  # a tombstone names the first one, two, three or all four
ANY_SOURCE = "*"  # a document forgotten wherever it comes from


def digest(*parts: str) -> str:
    """What stands for a source, a document of it, a page or a line: sha256 over the parts of KEY that are given."""
    # As JSON, so that no name can be made of two: ("a", "b") is another thing than ("a\0b",).
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


def entry(reason: str, *parts: str) -> dict[str, str]:
    """A tombstone for `add`: for a source, a document (of ANY_SOURCE, too), a page or a line, by the parts of KEY that are given."""
    deep = len(parts) > 2
    return {
        "digest": digest(*parts),
        "document": digest(*parts[:2]) if deep else "",
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "reason": reason,
    }


@dataclass(frozen=True)
class Tombstones:
    """Digests to be hidden, of whatever depth, and those of the documents that pages and lines among them belong to."""

    hidden: frozenset[str] = frozenset()
    documents: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.hidden)

    @property
    def version(self) -> str:
        """Digest of the whole list; empty if it is."""
        return digest(*sorted(self.hidden)) if self else ""

    def touches(self, source: str, document: str) -> bool:
        """Whether anything of a document is forgotten."""
        return self.hides_document(source, document) or digest(source, document) in self.documents

    def hides(self, table: pa.Table | pa.RecordBatch) -> np.ndarray:
        """(N,) bool: which rows of a table with the columns of KEY are forgotten."""
        if not self or not table.num_rows:
            return np.zeros(table.num_rows, bool)
        rows = list(zip(*(table.column(name).to_pylist() for name in KEY)))
        # Pages repeat over thousands of rows: each is looked up once, and its lines only where its document is touched.
        pages = {row[:3]: self.hides_document(*row[:2]) or digest(*row[:3]) in self.hidden for row in set(rows)}
        deep = {page for page in pages if digest(*page[:2]) in self.documents}
        return np.array([pages[row[:3]] or (row[:3] in deep and digest(*row) in self.hidden) for row in rows])

    def hides_document(self, source: str, document: str) -> bool:
        """Whether the document is forgotten as a whole."""
        return (
            digest(source) in self.hidden
            or digest(source, document) in self.hidden
            or digest(ANY_SOURCE, document) in self.hidden
        )


def location() -> str:
    """Where the list lies: a path or an s3:// URI."""
    if given := os.environ.get("MASKOCR_TOMBSTONES"):
        return given
    if store := os.environ.get("MASKOCR_STORE"):
        return f"{store.rstrip('/')}/tombstones.json"
    return str(Path(os.environ.get("MASKOCR_WORK", "work/stages")).absolute().parent / "tombstones.json")


def load() -> Tombstones:
    """The list as it is now: read anew when the local file has changed, or every ten seconds from S3."""
    uri = location()
    if storage.is_remote(uri):
        return _read(uri, int(time.monotonic() / 10))
    try:
        stat = Path(uri).stat()
    except FileNotFoundError:
        return Tombstones()
    # Two writers within one tick of the clock leave the same time, but not the same file.
    return _read(uri, (stat.st_mtime_ns, stat.st_ino, stat.st_size))


def of(listed: Iterable[dict[str, str]]) -> Tombstones:
    """What a list of entries hides."""
    listed = list(listed)
    return Tombstones(
        frozenset(entry["digest"] for entry in listed),
        frozenset(entry["document"] for entry in listed if entry["document"]),
    )


def entries(uri: str) -> list[dict[str, str]]:
    """The list itself: {"digest", "document", "at", "reason"} each; empty where there is none.

    digest: of a source, document, page or line. document: digest of the document that a page or line belongs to, else "".

    Raises ValueError if the file is no such list: nothing may be read while it is unknown what is forgotten.
    """
    if not storage.exists(uri):
        return []
    content = storage.content(uri)
    try:
        listed = json.loads(content)
        if listed["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version {listed['format_version']!r}")
        return [
            {name: entry[name] for name in ("digest", "document", "at", "reason")} for entry in listed["tombstones"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{uri} is no list of tombstones ({error}): restore it; no line is read while it is unknown what is forgotten"
        ) from None


def add(new: Iterable[dict[str, str]]) -> None:
    """Append entries; two writers at once both succeed. Entries that are there already are left as they are."""
    new = {entry["digest"]: entry for entry in new}

    def extended(content: bytes | None) -> bytes:
        known = json.loads(content)["tombstones"] if content else []
        there = {entry["digest"] for entry in known}
        known += [entry for digest, entry in new.items() if digest not in there]
        return json.dumps({"format_version": FORMAT_VERSION, "tombstones": known}, indent=1).encode()

    uri = location()
    entries(uri)
    storage.replace(uri, extended)
    _read.cache_clear()


@lru_cache(maxsize=4)
def _read(uri: str, stamp: object) -> Tombstones:
    return of(entries(uri))

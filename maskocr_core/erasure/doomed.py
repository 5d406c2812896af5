"""What is to be erased: the lines that tombstones hide, and everything by which they could be found again.

While an erasure is under way this lies in a journal, so that a killed one can be taken up when the shards that tell whose
a line was are gone already; the journal goes when nothing is left to erase.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskocr_core.data import lines, tombstones
from maskocr_core.erasure.search import Search, fingerprint

JOURNAL = "forgetting.json"
_COLUMNS = [*tombstones.KEY, "text"]


class Shard(NamedTuple):
    """A Parquet file of lines: its name in its artifact, its digest, and how to open it."""

    name: str
    digest: str
    open: Callable[[], Any]


class Owner(NamedTuple):
    """Who has a line, and in which shard."""

    source: str
    document_id: str
    page_id: str
    shard: str


@dataclass
class Doomed:
    """Lines to be erased.

    rows: (source, document, page, line) of every row that is hidden. lines: ids that nobody else owns. heirs: owners that
    keep a line of which another owner is forgotten. left: shards that such a line leaves. documents: (source, document) of
    which something is forgotten. names: of sources, documents and pages that are gone as a whole. texts: of erased lines,
    said by no other line. prints: perceptual hashes of their images, as hex.
    """

    hidden: tombstones.Tombstones
    rows: set[tuple[str, str, str, str]] = field(default_factory=set)
    lines: set[str] = field(default_factory=set)
    heirs: dict[str, list[Owner]] = field(default_factory=dict)
    left: dict[str, set[str]] = field(default_factory=dict)
    documents: set[tuple[str, str]] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    prints: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def search(self) -> Search:
        if not hasattr(self, "_search"):
            self._search = Search(self.lines, self.names, self.texts, self.prints)
        return self._search

    def digests(self) -> set[str]:
        """What models say they saw: digests of the documents."""
        return {tombstones.digest(*document) for document in self.documents}

    def join(self, other: Doomed) -> None:
        """Take up what an earlier attempt knew. A line that only that attempt saw may have an heir that only this one saw."""
        for name in ("rows", "documents", "names", "texts", "prints"):
            getattr(self, name).update(getattr(other, name))
        for line, owners in other.heirs.items():
            self.heirs.setdefault(line, owners)
        for line, names in other.left.items():
            self.left.setdefault(line, set()).update(names)
        self.lines = (self.lines | other.lines) - set(self.heirs)


def resolve(shards: Iterable[Shard], hidden: tombstones.Tombstones) -> Doomed:
    """Find what is hidden in the shards. Reads images and texts of hidden lines only; memory grows with those alone."""
    doomed, seen = Doomed(hidden), {}
    for shard in shards:
        seen.setdefault((shard.digest, shard.name), shard)
    for shard in seen.values():
        _note_hidden(doomed, shard)
    if not doomed:
        return doomed
    ids = {row[3] for row in doomed.rows}
    living_names: set[str] = set()
    for shard in seen.values():
        _note_living(doomed, shard, ids, living_names)
    doomed.names -= living_names
    doomed.lines = ids - set(doomed.heirs)
    doomed.left = {line: names for line, names in doomed.left.items() if line in doomed.heirs}
    return doomed


def expired(shards: Iterable[Shard], today: Any) -> list[tuple[str, str, str, str]]:
    """KEY of the lines whose `retain_until` is before `today` (a date)."""
    found = set()
    for shard in shards:
        file = _opened(shard)
        if "retain_until" in file.schema_arrow.names:
            table = file.read(columns=[*tombstones.KEY, "retain_until"])
            found |= _keys(table.filter(pc.less(table["retain_until"], pa.scalar(today, pa.date32()))))
    return sorted(found)


def save(doomed: Doomed, folder: Path) -> None:
    """Write the journal, readable by its owner alone: until the erasure is done it holds what is to be erased."""
    from maskocr_core import artifacts

    content = {name: sorted(value) if isinstance(value, set) else value for name, value in asdict(doomed).items()}
    content["left"] = {line: sorted(names) for line, names in doomed.left.items()}
    del content["hidden"]
    before = os.umask(0o077)
    try:
        artifacts.write_json(folder / JOURNAL, content)
    finally:
        os.umask(before)


def load(folder: Path, hidden: tombstones.Tombstones) -> Doomed | None:
    """What an attempt that did not end had to erase, or None."""
    if not (folder / JOURNAL).is_file():
        return None
    content = json.loads((folder / JOURNAL).read_text())
    doomed = Doomed(hidden)
    for name in ("rows", "documents"):
        getattr(doomed, name).update(map(tuple, content[name]))
    for name in ("lines", "names", "texts", "prints"):
        getattr(doomed, name).update(content[name])
    for line, owners in content["heirs"].items():
        # An heir may have been forgotten since.
        if kept := [owner for owner in map(lambda owner: Owner(*owner), owners) if not _is_hidden(hidden, owner, line)]:
            doomed.heirs[line] = kept
            doomed.left[line] = set(content["left"].get(line, ()))
        else:
            doomed.lines.add(line)
    return doomed


def _is_hidden(hidden: tombstones.Tombstones, owner: Owner, line: str) -> bool:
    row = dict(zip(tombstones.KEY, (owner.source, owner.document_id, owner.page_id, line)))
    return bool(hidden.hides(pa.Table.from_pylist([row]))[0])


def _note_hidden(doomed: Doomed, shard: Shard) -> None:
    file = _opened(shard)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=list(tombstones.KEY))
        mask = pa.array(doomed.hidden.hides(table))
        if not pc.any(mask).as_py():
            continue
        for row in file.read_row_group(group, columns=[*_COLUMNS, "image"]).filter(mask).to_pylist():
            key = tuple(row[name] for name in tombstones.KEY)
            doomed.left.setdefault(row["line_id"], set()).add(shard.name)
            if key in doomed.rows:
                continue
            doomed.rows.add(key)
            doomed.documents.add(key[:2])
            doomed.names.update(_names(doomed.hidden, key))
            if row["text"]:
                doomed.texts.add(row["text"])
            if (print_ := fingerprint(row["image"])) is not None:
                doomed.prints.add(print_.hex())


def _names(hidden: tombstones.Tombstones, key: tuple[str, str, str, str]) -> Iterable[str]:
    """Which of the names above a hidden line are forgotten with it."""
    source, document, page, _ = key
    if tombstones.digest(source) in hidden.hidden:
        yield source
    whole = hidden.hides_document(source, document)
    if whole:
        yield document
    if whole or tombstones.digest(source, document, page) in hidden.hidden:
        yield page


def _note_living(doomed: Doomed, shard: Shard, ids: set[str], living_names: set[str]) -> None:
    """Owners that stay, and names and texts that others have too and that are therefore no trace of what is erased."""
    table = _opened(shard).read(columns=_COLUMNS)
    living = table.filter(pa.array(~doomed.hidden.hides(table)))
    for name in ("source", "document_id", "page_id"):
        living_names.update(doomed.names.intersection(living[name].unique().to_pylist()))
    doomed.texts.difference_update(living["text"].unique().to_pylist())
    owned: dict[str, list[Owner]] = defaultdict(list)
    for row in living.filter(pc.is_in(living["line_id"], pa.array(sorted(ids), pa.string()))).to_pylist():
        owned[row["line_id"]].append(Owner(row["source"], row["document_id"], row["page_id"], shard.name))
    for line, owners in owned.items():
        known = doomed.heirs.setdefault(line, [])
        known += [owner for owner in owners if owner not in known]


def _opened(shard: Shard) -> pq.ParquetFile:
    return pq.ParquetFile(shard.open(), page_checksum_verification=True)


def is_shard(schema: pa.Schema) -> bool:
    """Whether a Parquet file holds lines with their images."""
    return {*tombstones.KEY, "image"} <= set(schema.names)


def in_shard_folder(name: str) -> tuple[str, str] | None:
    """(what stands before, the shard's name) for a file that belongs to a shard by its name, else None."""
    parts = name.split("/")
    if len(parts) > 1 and parts[-2] in lines.SPLITS and name.endswith(".parquet"):
        return "/".join(parts[:-2]), "/".join(parts[-2:])
    return None


def _keys(table: pa.Table) -> set[tuple[str, str, str, str]]:
    return set(zip(*(table[name].to_pylist() for name in tombstones.KEY)))

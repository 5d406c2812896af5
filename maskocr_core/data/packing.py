"""From units of raw data to shards: one shard a split and unit, of a large unit several, and what the units say together of copies and documents."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskocr_core.config import Data
from maskocr_core.data import lines, readers, side_tables, tombstones
from maskocr_core.services import disk

REFUSED = pa.schema([("item", pa.string()), ("reason", pa.string())])
COPIES = pa.schema([field for field in lines.DUPLICATES if field.name != "rank"])  # one row a line, sorted by line id
SHARD_BYTES = 256 << 20  # of images that wait to be written: the largest shards of honest lines, few of hostile ones
AT_ONCE = 1 << 18  # lines, about, among which copies are sought at a time: some 100 MB


def pack(unit: readers.Unit, data: Data, prefix: str, part: Path) -> dict[str, int]:
    """Write the lines of one unit below `part`: `<prefix><split>/part-<digest>.parquet`, and what else is known of them.

    A shard is named by where its lines lay and what they are, so that the same data have the same shards wherever they
    come from. `refused.arrow`, `copies.arrow` (who owns which image) and `documents.arrow` are for `join`. A line whose
    split is none of the schema's (a test line of a transfer source) is counted as `unused`. Returns counts, those of
    splits among them.
    """
    shards, refused, unused = _Shards(unit, data.shard_lines, part), [], 0
    seen: set[tuple[str, ...]] = set()
    for row in readers.read(unit, data):
        if isinstance(row, readers.Refused):
            refused.append({"item": row.item, "reason": row.reason})
            continue
        own = row.pop("split") or readers.split_of(row[f"{data.split_unit}_id"], row["text"] is not None, data)
        key = tuple(row[name] for name in tombstones.KEY)
        if prefix + own not in lines.SPLITS:
            unused += 1
        elif key in seen:
            reason = f"the same image as another line of page {row['page_id']}"
            refused.append({"item": row["line_id"], "reason": reason})
        else:
            seen.add(key)
            shards.add(prefix + own, row)
    counts = {"refused": len(refused), "unused": unused, **shards.close()}
    side_tables.save(pa.Table.from_pylist(refused, schema=REFUSED), part / "refused.arrow")
    return counts


class _Shards:
    """The shards of one unit. A unit of more lines or bytes than a shard has (one giant row group, many pages) has several.

    No more is held than one shard's lines of each split, and `SHARD_BYTES` of images in all.
    """

    def __init__(self, unit: readers.Unit, full: int, part: Path):
        self.unit, self.full, self.part = unit, full, part
        self.waiting: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.bytes, self.counts = 0, Counter(forgotten=0)
        self.copies, self.documents = [COPIES.empty_table()], [lines.DOCUMENTS.empty_table()]
        self.hidden = tombstones.load()

    def add(self, split: str, row: dict[str, Any]) -> None:
        self.waiting[split].append(row)
        self.bytes += len(row["image"])
        if self.bytes >= SHARD_BYTES:
            self._write_all()
        elif len(self.waiting[split]) == self.full:
            self._write(split)

    def close(self) -> dict[str, int]:
        """Write what is left, and what is known of all lines; how many there are, by split, and how many were forgotten."""
        self._write_all()
        side_tables.save(pa.concat_tables(self.copies).sort_by("line_id"), self.part / "copies.arrow")
        side_tables.save(pa.concat_tables(self.documents), self.part / "documents.arrow")
        return dict(self.counts)

    def _write_all(self) -> None:
        for split in sorted(self.waiting):
            self._write(split)

    def _write(self, split: str) -> None:
        rows = self.waiting.pop(split)
        self.bytes -= sum(len(row["image"]) for row in rows)
        table = pa.Table.from_pylist(lines.in_order(rows), schema=lines.SCHEMA)
        rows.clear()
        # The list of tombstones holds for raw data too: what is forgotten does not come in again.
        forgotten = self.hidden.hides(table)
        self.counts["forgotten"] += int(forgotten.sum())
        table = table.filter(pa.array(~forgotten))
        if table.num_rows:
            shard = f"{split}/part-{_digest(self.unit, table)}.parquet"
            lines.write(table, self.part / shard)
            self.counts[split] += table.num_rows
            self.copies.append(_copies(table, shard))
            self.documents.append(_documents(table, split))


def join(parts: list[Path], lines_out: Path) -> dict[str, int]:
    """Write `refused`, `documents` and `duplicates.parquet` of all parts, whose shards lie in `lines_out`.

    No more than `AT_ONCE` lines are in memory, however many there are; of documents, all. Returns how many copies of lines
    are not read, by split.
    """
    _write((side_tables.load(part / "refused.arrow") for part in parts), REFUSED, lines_out / "refused.parquet")
    lines.write(_joined_documents(parts), lines_out / "documents.parquet")
    passed_over: Counter[str] = Counter()

    def counted() -> Iterator[pa.Table]:
        for table in _duplicates(parts):
            passed_over.update(_splits(table.filter(pc.greater(table["rank"], 0))["shard"]))
            yield table

    _write(counted(), lines.DUPLICATES, lines_out / "duplicates.parquet")
    return dict(passed_over)


def refused(parts: Path, names: Iterable[str]) -> Iterator[dict[str, str]]:
    """What the named parts refused: {"item", "reason"} each."""
    for name in names:
        yield from side_tables.load(parts / name / "refused.arrow").to_pylist()


def _digest(unit: readers.Unit, table: pa.Table) -> str:
    """What a shard is named by. Without times or roots: a copy of the data has the same shards."""
    digest = hashlib.sha256()
    for name in _places(unit):
        digest.update(f"{name}\n".encode(errors="surrogateescape"))
    # Of an image, its line id is the digest already.
    for row in table.select(lines.INDEX_COLUMNS).to_pylist():
        digest.update(json.dumps(list(row.values()), default=str).encode())
    return digest.hexdigest()[:32]


def _places(unit: readers.Unit) -> Iterable[str]:
    if unit.table is not None:
        return [f"{unit.table.name} {unit.groups}"]
    return [item.name for item in unit.items]


def _copies(table: pa.Table, shard: str) -> pa.Table:
    columns = [table[name] for name in tombstones.KEY]
    places = pa.array(np.arange(table.num_rows), pa.int32())
    return pa.Table.from_arrays([*columns, pa.array([shard] * table.num_rows), places], schema=COPIES)


def _documents(table: pa.Table, split: str) -> pa.Table:
    grouped = table.group_by(["source", "document_id"], use_threads=False).aggregate(
        [("line_id", "count"), ("license", "first"), ("retain_until", "min")]
    )
    columns = [grouped[n] for n in ("source", "document_id")] + [pa.array([split] * grouped.num_rows)]
    columns += [grouped[n] for n in ("line_id_count", "license_first", "retain_until_min")]
    return pa.Table.from_arrays(columns, schema=lines.DOCUMENTS)


def _joined_documents(parts: list[Path]) -> pa.Table:
    key = ["source", "document_id", "split"]
    table = lines.DOCUMENTS.empty_table()
    for first in range(0, len(parts), 256):
        tables = [side_tables.load(part / "documents.arrow") for part in parts[first : first + 256]]
        grouped = pa.concat_tables([table, *tables]).group_by(key, use_threads=False)
        grouped = grouped.aggregate([("lines", "sum"), ("license", "first"), ("first_expiry", "min")])
        columns = [*key, "lines_sum", "license_first", "first_expiry_min"]
        table = grouped.select(columns).rename_columns(lines.DOCUMENTS.names).cast(lines.DOCUMENTS)
    return table.sort_by([(name, "ascending") for name in key])


def _duplicates(parts: list[Path]) -> Iterator[pa.Table]:
    """Tables of lines.DUPLICATES, by line id and rank: the ids are digests, so that equal ranges of them are equally full."""
    paths = [part / "copies.arrow" for part in parts]
    ranges = max(1, -(-sum(side_tables.load(path).num_rows for path in paths) // AT_ONCE))
    bounds = [f"{(number << 128) // ranges:032x}" for number in range(1, ranges)]
    ends = [_ends(side_tables.load(path), bounds) for path in paths]
    for number in range(ranges):
        found = (_copied(side_tables.load(path), *end[number : number + 2]) for path, end in zip(paths, ends))
        table = pa.concat_tables([COPIES.empty_table(), *found])
        table = table.take(pc.sort_indices(table["line_id"]))
        ids = table["line_id"].combine_chunks()
        same = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
        table = table.filter(pa.array(np.append(same, False)[: len(ids)] | np.append(False, same)[: len(ids)]))
        if table.num_rows:
            yield _ranked(table)


def _ends(table: pa.Table, bounds: list[str]) -> np.ndarray:
    """(R + 1,) int32: between which rows of a sorted part each of R ranges of line ids lies."""
    ids = table["line_id"].to_numpy().astype("S32")
    inner = np.searchsorted(ids, np.array(bounds, "S32"))
    return np.array([0, *inner, len(ids)], np.int32)


def _copied(table: pa.Table, begin: int, end: int) -> pa.Table:
    """Rows of a mapped table, in memory of their own: a slice would keep the whole file mapped."""
    rows = pa.array(np.arange(begin, end))
    # A batch, of which a part has one, is several times faster here than a table.
    return pa.Table.from_batches([batch.take(rows) for batch in table.to_batches()], schema=table.schema)


def _ranked(table: pa.Table) -> pa.Table:
    """Copies with their rank: a labelled one before an unlabelled one, the target's before a transfer source's."""
    preference = pa.array([lines.SPLITS.index(split) for split in _splits(table["shard"])], pa.int32())
    keys = [(name, "ascending") for name in ("line_id", "preference", "shard", "place")]
    table = table.append_column("preference", preference).sort_by(keys).drop_columns(["preference"])
    ids = table["line_id"].to_numpy()
    first = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    sizes = np.diff(np.append(first, len(ids)))
    rank = np.arange(len(ids)) - np.repeat(first, sizes)
    return table.append_column(lines.DUPLICATES.field("rank"), pa.array(rank, pa.int32())).cast(lines.DUPLICATES)


def _splits(shards: pa.ChunkedArray) -> list[str]:
    return [shard.split("/")[0] for shard in shards.to_pylist()]


def _write(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """`lines.write` for what comes table by table: the same row groups, however the rows come."""
    left = schema.empty_table()
    with (
        disk.written(path) as aside,
        pq.ParquetWriter(aside, schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in tables:
            left = pa.concat_tables([left, table])
            if left.num_rows >= 64 * lines.ROWS_PER_GROUP:
                full = left.num_rows - left.num_rows % lines.ROWS_PER_GROUP
                writer.write_table(left.slice(0, full).combine_chunks(), lines.ROWS_PER_GROUP)
                left = left.slice(full).combine_chunks()
        writer.write_table(left.combine_chunks(), lines.ROWS_PER_GROUP)

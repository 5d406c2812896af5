"""The one schema of text lines, its writer and its readers.

`lines/<split>/part-*.parquet`, 512 rows a row group, so that one group is read without its file; page checksums are
written and verified, since pyarrow does neither by default and a flipped byte would go unnoticed.

Every row that came in stays in its shard, so that shards never change when new data come. Which copy of a line is read
when several documents own the same image is said by `duplicates.parquet`, what is forgotten by the tombstones; every
reader here passes over both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskocr_core.artifacts import Artifact
from maskocr_core.data import tombstones
from maskocr_core.services import disk

ROWS_PER_GROUP = 512
SPLITS = ("train", "val", "test", "unlabeled", "transfer-train", "transfer-val", "protected-test")
SCHEMA = pa.schema(
    [
        pa.field("line_id", pa.string(), nullable=False),  # digest of the image bytes: identity and exact duplicates
        pa.field("page_id", pa.string(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),  # unit of splits, of statistics and of erasure
        pa.field("source", pa.string(), nullable=False),  # collection: unit of the domain-fit verdict
        pa.field("image", pa.binary(), nullable=False),  # encoded as received
        pa.field("height", pa.int32(), nullable=False),  # px, known without decoding
        pa.field("width", pa.int32(), nullable=False),  # px
        pa.field("text", pa.string()),  # NFC, logical order; null = unlabelled
        pa.field("order", pa.int32()),  # nested order of labelled subsets, where the data bring one
        pa.field("license", pa.string()),
        pa.field("retain_until", pa.date32()),  # last day on which the line may be kept; null = no limit
    ]
)
INDEX_COLUMNS = [name for name in SCHEMA.names if name != "image"]
# Where a line's image lies.
PLACE = [pa.field("shard", pa.string()), pa.field("group", pa.int32()), pa.field("row", pa.int32())]
DUPLICATES = pa.schema(
    [
        *(SCHEMA.field(name) for name in tombstones.KEY),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("place", pa.int32(), nullable=False),  # row in the shard
        pa.field("rank", pa.int32(), nullable=False),  # of the copies that are not forgotten, the lowest is read
    ]
)
DOCUMENTS = pa.schema(
    [
        SCHEMA.field("source"),
        SCHEMA.field("document_id"),
        pa.field("split", pa.string(), nullable=False),
        pa.field("lines", pa.int64(), nullable=False),
        pa.field("license", pa.string()),
        pa.field("first_expiry", pa.date32()),
    ]
)
SELECTION = pa.schema(
    [
        pa.field("line_id", pa.string(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),  # share of epochs in which the line is drawn, in (0, 1]
    ]
)
SELECTION_1 = "selection.parquet"  # of format 1: one table with the column `split` instead of one a shard


def line_id(image: bytes) -> str:
    """The identity of a line: the first 128 bits of the sha256 of its encoded image, as hex."""
    return hashlib.sha256(image).hexdigest()[:32]


def lot(line: str, key: bytes) -> float:
    """A number in [0, 1) that stands for a line id, the same wherever and whenever it is read; another key, another lot."""
    return int.from_bytes(hashlib.blake2b(line.encode(), key=key, digest_size=8).digest()) / 2**64


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a shard, shuffled by a keyed hash: neighbouring lines of a page are parted without a random state to keep."""

    def key(row: dict[str, Any]) -> bytes:
        owner = "\0".join((row["line_id"], row["document_id"], row["page_id"]))
        return hashlib.blake2b(owner.encode(), key=b"order", digest_size=16).digest()

    return sorted(rows, key=key)


def write(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet with small row groups and page checksums, under a temporary name first."""
    # A dictionary of images would be as long as the column.
    repeating = [name for name in table.column_names if name != "image"]
    with disk.written(path) as aside:
        pq.write_table(
            table,
            aside,
            row_group_size=ROWS_PER_GROUP,
            write_page_checksum=True,
            compression="zstd",
            use_dictionary=repeating,
        )


def open_parquet(artifact: Artifact, name: str) -> pq.ParquetFile:
    """Open one Parquet file of an artifact: its digest verified, and the checksums of its pages on every read.

    Raises ValueError for one that is not what the manifest says.
    """
    artifact.verify(name)
    return pq.ParquetFile(artifact.open(name), page_checksum_verification=True)


def read_table(artifact: Artifact, name: str) -> pa.Table:
    """Read a side table whole."""
    return open_parquet(artifact, name).read()


def read_tables(artifact: Artifact, prefix: str) -> Iterator[pa.Table]:
    """The side tables below a folder of an artifact, one a shard, in the order of their names."""
    for name in artifact.names(prefix=prefix, suffix=".parquet"):
        yield read_table(artifact, name)


def version(artifact: Artifact) -> str:
    """Data version of lines as they are read: the artifact's, and another as soon as any document of it is forgotten."""
    hidden = tombstones.load()
    if not hidden or "documents.parquet" not in artifact.names():
        return artifact.version
    owned = read_table(artifact, "documents.parquet")
    documents = zip(owned["source"].to_pylist(), owned["document_id"].to_pylist())
    touched = any(hidden.touches(source, document) for source, document in documents)
    return tombstones.digest(artifact.version, hidden.version) if touched else artifact.version


def shards(artifact: Artifact, *splits: str) -> list[str]:
    """Names of the shards of the splits, split by split, in order."""
    return [name for split in splits for name in artifact.names(prefix=f"{split}/", suffix=".parquet")]


def part_of(shard: str) -> str:
    """The name of what is done with a shard, for `mapping.over`."""
    return shard.removesuffix(".parquet").replace("/", "--")


def index_of(
    artifact: Artifact, shard: str, columns: Iterable[str] = INDEX_COLUMNS, groups: Iterable[int] | None = None
) -> pa.Table:
    """The columns (any but the image) of the lines of a shard that are read, plus `shard`, and `group` and `row` (int32) in it.

    groups: the row groups to read; all if not given.
    """
    file = open_parquet(artifact, shard)
    rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    starts = np.cumsum([0, *rows])
    chosen = list(range(len(rows))) if groups is None else list(groups)
    wanted = list(dict.fromkeys([*columns, *tombstones.KEY]))
    stored = [name for name in wanted if name in file.schema_arrow.names]
    tables = []
    for group in chosen:
        table = _with_all(file.read_row_group(group, columns=stored), wanted)
        kept = _read(artifact, shard, table, int(starts[group]))
        table = table.append_column(PLACE[0], pa.array([shard] * table.num_rows, pa.string()))
        table = table.append_column(PLACE[1], pa.array(np.full(table.num_rows, group), pa.int32()))
        table = table.append_column(PLACE[2], pa.array(np.arange(table.num_rows), pa.int32()))
        tables.append(table.filter(pa.array(kept)))
    if not tables:
        return pa.schema([*(SCHEMA.field(name) for name in wanted), *PLACE]).empty_table()
    return pa.concat_tables(tables)


def groups_of(artifact: Artifact, shard: str) -> int:
    """How many row groups a shard has: the manifest knows its rows."""
    rows = next(entry["rows"] for entry in artifact.manifest["files"] if entry["name"] == shard)
    return -(-rows // ROWS_PER_GROUP)


def index(artifact: Artifact, split: str) -> pa.Table:
    """`index_of` all shards of a split, joined; an absent split is an empty table. Holds a row a line in memory."""
    tables = [index_of(artifact, shard) for shard in shards(artifact, split)]
    if not tables:
        return pa.schema([*(SCHEMA.field(name) for name in INDEX_COLUMNS), *PLACE]).empty_table()
    return pa.concat_tables(tables)


def count(artifact: Artifact, split: str) -> int:
    """How many rows a split has, without reading them: copies and forgotten lines included."""
    names = set(shards(artifact, split))
    return sum(entry["rows"] for entry in artifact.manifest["files"] if entry["name"] in names)


def rows_of(artifact: Artifact, shard: str) -> Iterator[pa.RecordBatch]:
    """Stream the full rows of a shard that are read, at most 64 at a time."""
    first = 0
    for batch in open_parquet(artifact, shard).iter_batches(64):
        kept = batch.filter(pa.array(_read(artifact, shard, batch, first)))
        first += batch.num_rows
        if kept.num_rows:
            yield _with_all(kept, SCHEMA.names)


def images(artifact: Artifact, split: str) -> Iterator[pa.RecordBatch]:
    """`rows_of` all shards of a split, in their order."""
    for shard in shards(artifact, split):
        yield from rows_of(artifact, shard)


def images_of(artifact: Artifact, split: str, line_ids: list[str]) -> list[bytes]:
    """The encoded images of the given lines of a split, in the order given; reads only the row groups they lie in."""
    wanted, found = pa.array(sorted(set(line_ids))), {}
    for shard in shards(artifact, split):
        places = index_of(artifact, shard, ["line_id"])
        places = places.filter(pc.is_in(places["line_id"], wanted))
        file = open_parquet(artifact, shard) if places.num_rows else None
        for group in sorted(set(places["group"].to_pylist())):
            column = file.read_row_group(group, columns=["image"])["image"]
            here = places.filter(pc.equal(places["group"], group))
            for identity, row in zip(here["line_id"].to_pylist(), here["row"].to_pylist()):
                found[identity] = column[row].as_py()
    return [found[identity] for identity in line_ids]


def _with_all(table: Any, columns: Iterable[str]) -> Any:
    """The table with the columns asked for; one that an earlier format lacks is null."""
    for name in columns:
        if name not in table.schema.names:
            table = table.append_column(SCHEMA.field(name), pa.nulls(table.num_rows, SCHEMA.field(name).type))
    return table.select(list(columns))


def _read(artifact: Artifact, shard: str, rows: pa.Table | pa.RecordBatch, first: int) -> np.ndarray:
    """(N,) bool: which rows of a shard are read, `rows` being those from number `first` on."""
    hidden = tombstones.load()
    read = ~hidden.hides(rows)
    places = _passed_over(artifact, artifact.version, hidden).get(shard)
    if places is not None:
        begin, end = np.searchsorted(places, (first, first + rows.num_rows))
        read[places[begin:end] - first] = False
    return read


@lru_cache(maxsize=8)
def _passed_over(artifact: Artifact, version: str, hidden: tombstones.Tombstones) -> dict[str, np.ndarray]:
    """Rows by shard, in order, that are copies of a line which is read elsewhere. `version`: a folder may hold another one later."""
    if "duplicates.parquet" not in artifact.names():
        return {}
    table = read_table(artifact, "duplicates.parquet")
    table = table.filter(pa.array(~hidden.hides(table))).sort_by([("line_id", "ascending"), ("rank", "ascending")])
    identity = table["line_id"].combine_chunks()
    again = pc.equal(identity[1:], identity[:-1]).to_numpy(zero_copy_only=False) if len(identity) else np.empty(0, bool)
    copies = table.slice(1).filter(pa.array(again)).sort_by([("shard", "ascending"), ("place", "ascending")])
    shards, places = copies["shard"].to_numpy(), copies["place"].to_numpy()
    names, begins = np.unique(shards.astype(str), return_index=True)
    return dict(zip(names.tolist(), np.split(places, begins[1:])))

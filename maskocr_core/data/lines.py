"""The one schema of text lines, its writer and its readers.

`lines/<split>/part-*.parquet`, 512 rows a row group, so that one group is read without its file; page checksums are
written and verified, since pyarrow does neither by default and a flipped byte would go unnoticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskocr_core.artifacts import Artifact

ROWS_PER_GROUP = 512
SPLITS = ("train", "val", "test", "unlabeled", "transfer-train", "transfer-val")
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
    ]
)
INDEX_COLUMNS = [name for name in SCHEMA.names if name != "image"]
SELECTION = pa.schema(
    [
        pa.field("line_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),  # share of epochs in which the line is drawn, in (0, 1]
    ]
)


def line_id(image: bytes) -> str:
    """The identity of a line: the first 128 bits of the sha256 of its encoded image, as hex."""
    return hashlib.sha256(image).hexdigest()[:32]


class ShardWriter:
    """Writes rows of one split as shards of `shard_lines` rows, in the order given."""

    def __init__(self, folder: Path, split: str, shard_lines: int):
        self.folder, self.split, self.shard_lines = folder, split, shard_lines
        self.rows: list[dict[str, Any]] = []
        self.shards = 0

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == self.shard_lines:
            self.flush()

    def flush(self) -> None:
        if not self.rows:
            return
        # A keyed order decorrelates neighbouring lines of a page without a random state that a resume would have to keep.
        self.rows.sort(key=lambda row: hashlib.blake2b(row["line_id"].encode(), key=b"order", digest_size=8).digest())
        write(
            pa.Table.from_pylist(self.rows, schema=SCHEMA), self.folder / self.split / f"part-{self.shards:05d}.parquet"
        )
        self.shards += 1
        self.rows = []


def write(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet with small row groups and page checksums."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, write_page_checksum=True, compression="zstd")


def open_parquet(artifact: Artifact, name: str) -> pq.ParquetFile:
    """Open one Parquet file of an artifact, checksums verified on every read."""
    return pq.ParquetFile(artifact.open(name), page_checksum_verification=True)


def read_table(artifact: Artifact, name: str) -> pa.Table:
    """Read a side table whole."""
    return open_parquet(artifact, name).read()


def index(artifact: Artifact, split: str) -> pa.Table:
    """All columns of a split but the images, plus `shard` (its name) and `group` and `row` (int32) where the image lies.

    An absent split is an empty table.
    """
    tables = []
    for name in artifact.names(prefix=f"{split}/", suffix=".parquet"):
        file = open_parquet(artifact, name)
        table = file.read(columns=INDEX_COLUMNS)
        groups = [
            (group, row)
            for group in range(file.num_row_groups)
            for row in range(file.metadata.row_group(group).num_rows)
        ]
        table = table.append_column("shard", pa.array([name] * table.num_rows, pa.string()))
        table = table.append_column("group", pa.array([group for group, _ in groups], pa.int32()))
        tables.append(table.append_column("row", pa.array([row for _, row in groups], pa.int32())))
    if not tables:
        fields = [SCHEMA.field(name) for name in INDEX_COLUMNS]
        return pa.schema([*fields, ("shard", pa.string()), ("group", pa.int32()), ("row", pa.int32())]).empty_table()
    return pa.concat_tables(tables)


def images(artifact: Artifact, split: str) -> Iterator[pa.RecordBatch]:
    """Stream a split's full rows, 64 at a time, in the order of the shards."""
    for name in artifact.names(prefix=f"{split}/", suffix=".parquet"):
        yield from open_parquet(artifact, name).iter_batches(64)


def images_of(artifact: Artifact, split: str, line_ids: list[str]) -> list[bytes]:
    """The encoded images of the given lines of a split, in the order given."""
    wanted, found = set(line_ids), {}
    for batch in images(artifact, split):
        for identity, image in zip(batch["line_id"].to_pylist(), batch["image"]):
            if identity in wanted:
                found[identity] = image.as_py()
    return [found[identity] for identity in line_ids]


def selected(artifact: Artifact, selection: Artifact, split: str) -> pa.Table:
    """`index` of the lines of a split that the selection admits, with their `weight`, sorted by `line_id`.

    Raises ValueError if the selection was made for other lines.
    """
    table = index(artifact, split)
    chosen = read_table(selection, "selection.parquet")
    chosen = chosen.filter(pa.compute.equal(chosen["split"], split)).select(["line_id", "weight"])
    joined = table.join(chosen, "line_id", join_type="inner").sort_by("line_id")
    if joined.num_rows != chosen.num_rows:
        raise ValueError(
            f"{selection.folder} selects lines that {artifact.folder} does not hold: run validate and fit again on these lines"
        )
    return joined

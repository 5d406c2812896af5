"""Parquet files, Hugging Face's and our own: from columns to rows of the line schema, in bounded memory.

A file is untrusted: how many rows are read at once follows from its largest page, what comes out is counted against what
the file has, checksums are verified, and only plain columns are read, by whatever name an embedded Arrow schema has them.

Sources: https://arrow.apache.org/docs/python/generated/pyarrow.parquet.ParquetFile.html,
https://huggingface.co/docs/datasets/about_dataset_features
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskocr_core.config import Data
from maskocr_core.data import images
from maskocr_core.data.readers import parquet_pages
from maskocr_core.data.readers.rows import MAX_NAME, MAX_TEXT, SPLIT_NAMES, Place, row, shown
from maskocr_core.data.readers.units import Entry, Outage, Refused, Unreadable
from maskocr_core.services import storage

OURS = ("image", "page_id", "document_id", "text", "source", "order", "license", "retain_until", "split")
WANTED = ("image", "page_id", "document_id")
MAX_FOOTER = 32 << 20
MAX_RATIO, FREE_BYTES = 200, 64 << 20  # what the rows may have, of the bytes of their columns or at all
BATCH_ROWS, BATCH_BYTES = 64, 256 << 20
SIDE_TABLE = "has no column of images; taken for a side table"
_BROKEN = (pa.ArrowException, OSError, MemoryError, ValueError, KeyError, IndexError, TypeError)


class Table:
    """An opened Parquet file. Raises Unreadable if it is none, or lacks a column."""

    def __init__(self, entry: Entry, file: BinaryIO, data: Data):
        self.entry, self.file, self.data = entry, file, data
        try:
            self._check_footer()
            self.parquet = pq.ParquetFile(
                file,
                page_checksum_verification=True,
                pre_buffer=False,
                buffer_size=1 << 20,
                arrow_extensions_enabled=False,
            )
            self.schema, self.metadata = self.parquet.schema_arrow, self.parquet.metadata
            self.columns = {ours: self._column(ours) for ours in OURS}
            self._check_columns()
        except Unreadable:
            raise
        except _BROKEN as error:
            raise self._broken(error, "is no readable Parquet file: write it anew or take it away") from None
        if self.metadata.num_rows > entry.size:
            raise Unreadable(f"claims {self.metadata.num_rows:,} rows in {entry.size:,} bytes")

    def units(self, full: int) -> Iterator[tuple[int, int, int]]:
        """(from, up to, rows) of the row groups that make a unit each, of at most `full` rows where a group allows it."""
        start = rows = 0
        for group in range(self.metadata.num_row_groups):
            more = self.metadata.row_group(group).num_rows
            if rows and rows + more > full:
                yield start, group, rows
                start, rows = group, 0
            rows += more
        if rows:
            yield start, self.metadata.num_row_groups, rows

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[dict[str, Any] | Refused]:
        """The rows of some row groups; one that is broken or too large is refused from where it is so, the others go on."""
        number = sum(self.metadata.row_group(group).num_rows for group in range(start))
        for group in range(start, self.metadata.num_row_groups if stop is None else stop):
            count, seen = self.metadata.row_group(group).num_rows, 0
            try:
                for found in self._group(group, number):
                    seen += 1
                    yield found
                if seen < count:
                    raise Unreadable("they are missing")
            except _BROKEN as error:
                reason = self._broken(error, "the rows cannot be read")
                if isinstance(reason, Outage):
                    raise reason from None
                item = f"{shown(self.entry.name)}:{number + seen}-{number + count - 1}"
                yield Refused(item, str(reason))
            number += count

    def _group(self, group: int, number: int) -> Iterator[dict[str, Any] | Refused]:
        paths = {path for path in self.columns.values() if path}
        metadata = self.metadata.row_group(group)
        chunks = [metadata.column(index) for index in range(metadata.num_columns)]
        chunks = [chunk for chunk in chunks if chunk.path_in_schema in paths]
        largest = max(parquet_pages.largest(self.file, chunk, self.entry.size) for chunk in chunks)
        room = FREE_BYTES + MAX_RATIO * sum(chunk.total_compressed_size for chunk in chunks)
        at_once = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))
        for batch in self.parquet.iter_batches(at_once, row_groups=[group], columns=sorted(paths), use_threads=False):
            columns = {ours: self._values(batch, path) for ours, path in self.columns.items()}
            for index in range(batch.num_rows):
                cells = {ours: None if column is None else column[index] for ours, column in columns.items()}
                room -= sum(_size(cell) for cell in cells.values())
                if room < 0:
                    raise Unreadable(f"they have more than {MAX_RATIO} times the bytes of their columns, as in a bomb")
                yield self._row(f"{shown(self.entry.name)}:{number}", cells)
                number += 1

    def _row(self, item: str, cells: dict[str, pa.Scalar | None]) -> dict[str, Any] | Refused:
        try:
            values = {ours: _value(cell, ours) for ours, cell in cells.items()}
            if values["page_id"] is None or values["document_id"] is None:
                raise Unreadable("names no page or no document, so that it could be on two sides of a split")
            if values["image"] is None:
                raise Unreadable("holds no image; a path alone is not followed: embed the images")
            split = self._split(values["split"])
        except Unreadable as error:
            return Refused(item, str(error))
        source = values["source"] or self.entry.name.rpartition("/")[2]
        at = Place(str(values["page_id"]), str(values["document_id"]), str(source), split)
        rest = {name: values[name] for name in ("order", "license", "retain_until")}
        return row(item, values["image"], values["text"], at, **rest)

    def _split(self, value: object) -> str | None:
        """The split that a row names, else the one its file or folder is named after."""
        if value is None or not str(value).strip():
            *folders, name = self.entry.name.lower().split("/")
            named = [re.split(r"[.\-_]", name)[0], *reversed(folders)]
            return next((SPLIT_NAMES[part] for part in named if part in SPLIT_NAMES), None)
        split = SPLIT_NAMES.get(str(value).strip().lower())
        if not split:
            raise Unreadable(
                f"{value!r} in column 'split' is none of {', '.join(SPLIT_NAMES)}: rename it, or leave the column out and "
                "ingest splits by document"
            )
        return split

    def _values(self, batch: pa.RecordBatch, path: str | None) -> pa.Array | None:
        if path is None:
            return None
        name = path if path in batch.schema.names else path.rpartition(".")[0]
        array = _storage(batch.column(batch.schema.get_field_index(name)))
        return _storage(pc.struct_field(array, "bytes")) if pa.types.is_struct(array.type) else array

    def _column(self, ours: str) -> str | None:
        """The Parquet path of one of our columns; of an image in a struct, as Hugging Face keeps them, its bytes."""
        names = [name for name in (self.data.columns.get(ours, ours), ours) if name in self.schema.names]
        if not names and ours == "image":
            names = self._images_by_features()
        if not names:
            return None
        kind = _plain(self.schema.field(names[0]).type)
        if ours == "image" and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return f"{names[0]}.bytes"
        return names[0]

    def _images_by_features(self) -> list[str]:
        """The one column that a Hugging Face dataset declares to be an image, if there is one."""
        try:
            features = json.loads(self.schema.metadata[b"huggingface"])["info"]["features"]
            names = [name for name, feature in features.items() if feature.get("_type") == "Image"]
        except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
            return []
        return names if len(names) == 1 and names[0] in self.schema.names else []

    def _check_columns(self) -> None:
        if not self.columns["image"]:
            raise Unreadable(SIDE_TABLE)
        for ours in sorted({*WANTED, *self.data.columns}):
            if not self.columns[ours]:
                raise Unreadable(
                    f"has no column {self.data.columns.get(ours, ours)!r} for {ours}; name yours with "
                    f'data.columns={{"{ours}": "…"}}; it has {shown(", ".join(self.schema.names))}'
                )
        for ours, path in self.columns.items():
            kind = self._kind(path) if path else None
            if kind is not None and not _is_read(kind, ours):
                raise Unreadable(
                    f"its column {path!r} is of type {kind}, which cannot be the {ours} of a line; "
                    f'name another with data.columns={{"{ours}": "…"}}'
                )

    def _kind(self, path: str) -> pa.DataType:
        if path in self.schema.names:
            return _plain(self.schema.field(path).type)
        return _plain(_plain(self.schema.field(path.rpartition(".")[0]).type).field("bytes").type)

    def _broken(self, error: BaseException, what: str) -> Exception:
        """A refusal; but where S3 failed, the end of the run, since Arrow has one kind of error for both."""
        if storage.is_remote(self.entry.uri) and "AWS Error" in str(error):
            return Outage(f"{self.entry.uri}: cannot be read ({_said(error)}); run ingest again")
        return Unreadable(f"{what} ({_said(error)})")

    def _check_footer(self) -> None:
        self.file.seek(max(0, self.entry.size - 8))
        end = bytes(self.file.read(8))
        if len(end) < 8 or end[4:] != b"PAR1":
            raise Unreadable("is no readable Parquet file (it has no footer): write it anew or take it away")
        if int.from_bytes(end[:4], "little") > MAX_FOOTER:
            raise Unreadable(f"has a footer of more than {MAX_FOOTER:,} bytes: write larger row groups")


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without the extension or the dictionary around it."""
    while isinstance(kind, pa.BaseExtensionType | pa.DictionaryType):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def _is_read(kind: pa.DataType, ours: str) -> bool:
    types = pa.types
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    if ours == "image":
        return any(
            is_(kind)
            for is_ in (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
        )
    if ours == "retain_until":
        return text or types.is_date(kind) or types.is_timestamp(kind) or types.is_null(kind)
    return text or types.is_integer(kind) or types.is_null(kind) or (ours == "order" and types.is_floating(kind))


def _stored(cell: pa.Scalar | None) -> pa.Scalar | None:
    """A cell without the dictionary around it; None for a null."""
    cell = cell.value if isinstance(cell, pa.DictionaryScalar) else cell
    return cell if cell is not None and cell.is_valid else None


def _size(cell: pa.Scalar | None) -> int:
    """Bytes of a cell's text or image."""
    cell = _stored(cell)
    return cell.as_buffer().size if hasattr(cell, "as_buffer") else 0


def _value(cell: pa.Scalar | None, ours: str) -> Any:
    """The Python value of a cell, its length checked first. Raises Unreadable."""
    if (size := _size(cell)) > (images.MAX_BYTES if ours == "image" else 4 * max(MAX_TEXT, MAX_NAME)):
        raise Unreadable(f"its {ours} has {size:,} bytes, more than such a value may have")
    cell = _stored(cell)
    try:
        return None if cell is None else cell.as_py()
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        raise Unreadable(f"its {ours} cannot be read ({_said(error)})") from None


def _said(error: BaseException) -> str:
    """What an error says, on one line."""
    return shown(" ".join(str(error).split()))[:300] or type(error).__name__

"""Content without what is to be erased: tables lose rows, JSON loses records, pages are taken away.

One pair of functions for every file, whoever wrote it: `holds` looks, reading little; `cleaned` gives the new content.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskocr_core import escaping
from maskocr_core.data import images, tombstones
from maskocr_core.erasure.doomed import Doomed, Owner, in_shard_folder, is_shard

SHOWN = "shown.json"  # which lines the pages of an artifact show
MARK = "[forgotten]"
PAGES = (".html", ".htm", ".svg")
WEIGHTS = (".safetensors",)
_OWNER = ("source", "document_id", "page_id")
_SAID = ("text", "reference", "read")  # what a living line says, or was read as, is its own
_NAMES = ("source", "document_id", "document", "doc", "page_id", "page")
_DROPPED = object()
_STUB = """<!doctype html><meta charset="utf-8"><title>Removed</title>
<p>This page showed lines that had to be forgotten. It was removed on {date}; the stage that drew it draws it anew.</p>
"""


def holds(name: str, file: Any, doomed: Doomed, shown: tuple[str, ...] = ()) -> bool:
    """Whether a file holds anything to be erased. name: its name in its artifact. shown: ids that it is said to show."""
    if doomed.lines.intersection(shown):
        return True
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in WEIGHTS:
        return False
    if suffix == ".parquet":
        return _parquet_holds(name, file, doomed)
    content = bytes(file.read())
    if suffix == ".arrow":
        table = pa.ipc.open_file(content).read_all()
        table = table.select([field.name for field in table.schema if not pa.types.is_binary(field.type)])
        return table_without(name, table, doomed) is not table
    if suffix == ".json":
        try:
            value = json.loads(content)
        except ValueError:
            return doomed.search.in_page(content.decode("utf-8", "replace"))
        return without(value, doomed) != value
    if suffix in images.SUFFIXES:
        return doomed.search.in_image(content)
    if suffix == ".md":
        said = content.decode("utf-8", "replace")
        return markdown_without(said, doomed) != said
    return doomed.search.in_page(content.decode("utf-8", "replace"))


def cleaned(name: str, content: bytes, doomed: Doomed, date: str) -> bytes | None:
    """What takes the place of a file that `holds`: None where it has to go."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".parquet":
        table = pq.read_table(io.BytesIO(content), page_checksum_verification=True)
        kept = table_without(name, table, doomed)
        return None if not kept.num_rows and in_shard_folder(name) else encoded(kept)
    if suffix == ".json":
        try:
            value = without(json.loads(content), doomed)
        except ValueError:
            return None
        return b"{}\n" if value is _DROPPED else as_json(value)
    if suffix == ".md":  # a model card names sources, and most of it is about others
        return markdown_without(content.decode("utf-8", "replace"), doomed).encode()
    return _STUB.format(date=date).encode() if suffix in PAGES[:2] else None


def lists_shown(path: str) -> bool:
    """Whether a file says which lines the pages beside it show."""
    return PurePosixPath(path).name == SHOWN


def shown_by(lists: Iterable[tuple[str, bytes]]) -> dict[str, tuple[str, ...]]:
    """By path or URI, the ids of the lines that a page shows. lists: (path or URI, content) of the files that say so."""
    return {
        path.removesuffix(SHOWN) + page: tuple(ids)
        for path, content in lists
        for page, ids in json.loads(content).items()
    }


def as_json(value: Any) -> bytes:
    """JSON as artifacts are written."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def encoded(table: pa.Table) -> bytes:
    """A table as the Parquet file that `lines.write` would make of it."""
    import tempfile
    from pathlib import Path

    from maskocr_core.data import lines

    with tempfile.TemporaryDirectory() as folder:
        lines.write(table, Path(folder) / "table.parquet")
        return (Path(folder) / "table.parquet").read_bytes()


def table_without(name: str, table: pa.Table, doomed: Doomed) -> pa.Table:
    """The table without rows of what is erased; the same object where there are none.

    A line that somebody else owns too stays, as his. Rows of a table that belongs to a shard go with the shard's line.
    """
    columns = set(table.schema.names)
    if set(tombstones.KEY) <= columns and columns & {"image", "rank"}:
        return _filtered(table, ~doomed.hidden.hides(table))
    if "line_id" in columns:
        kept = np.array([line not in doomed.lines for line in table["line_id"].to_pylist()], bool)
        if (place := in_shard_folder(name)) is not None:
            kept &= np.array([not moved(doomed, line, place[1]) for line in table["line_id"].to_pylist()], bool)
        if "pair" in columns and not kept.all():  # half a pair says nothing
            torn = set(table.filter(pa.array(~kept))["pair"].to_pylist())
            kept &= np.array([pair not in torn for pair in table["pair"].to_pylist()], bool)
        return _redacted(_handed_over(_filtered(table, kept), doomed), doomed)
    if {"source", "document_id"} <= columns:
        pairs = zip(table["source"].to_pylist(), table["document_id"].to_pylist())
        table = _filtered(table, np.array([not doomed.hidden.hides_document(*pair) for pair in pairs], bool))
    return _filtered(table, np.array([not _said(row, doomed) for row in _strings(table)], bool))


def moved(doomed: Doomed, line: str, shard: str) -> bool:
    """Whether a line stays but is read from another shard now."""
    return shard in doomed.left.get(line, ()) and all(owner.shard != shard for owner in doomed.heirs[line])


def without(value: Any, doomed: Doomed) -> Any:
    """A JSON value without records and strings of what is erased; `_DROPPED` for a value that has to go whole."""
    if isinstance(value, dict):
        if _is_doomed(value, doomed):
            return _DROPPED
        value = _heir_of(value, doomed)
        kept = {key: without(item, doomed) for key, item in value.items() if not doomed.search.spans(key)}
        return {key: item for key, item in kept.items() if item is not _DROPPED}
    if isinstance(value, list):
        kept = [(item, without(item, doomed)) for item in value]
        # A string is dropped from a list (of ids, say) where it is nothing but the name.
        return [new for item, new in kept if new is not _DROPPED and not (new == MARK and new != item)]
    return text_without(value, doomed) if isinstance(value, str) else value


def _parquet_holds(name: str, file: Any, doomed: Doomed) -> bool:
    """Reads the columns that tell, a row group at a time; images never."""
    parquet = pq.ParquetFile(file, page_checksum_verification=True)
    schema = parquet.schema_arrow
    columns = list(tombstones.KEY) if is_shard(schema) else [f.name for f in schema if not pa.types.is_binary(f.type)]
    for group in range(parquet.num_row_groups):
        table = parquet.read_row_group(group, columns=columns)
        if is_shard(schema):
            if doomed.hidden.hides(table).any():
                return True
        elif table_without(name, table, doomed) is not table:
            return True
    return False


def _filtered(table: pa.Table, kept: np.ndarray) -> pa.Table:
    return table if kept.all() else table.filter(pa.array(kept))


def _handed_over(table: pa.Table, doomed: Doomed) -> pa.Table:
    """Lines that stay, under the names of those who keep them."""
    columns = [name for name in _OWNER if name in table.schema.names]
    if not columns or not doomed.heirs:
        return table
    heirs = pa.array(sorted(doomed.heirs), pa.string())
    places = np.flatnonzero(pc.is_in(table["line_id"].combine_chunks(), heirs).to_numpy(zero_copy_only=False))
    values = {name: table[name].to_pylist() for name in columns}
    changed = False
    for place in places:
        owners = doomed.heirs[table["line_id"][int(place)].as_py()]
        owner = {name: values[name][place] for name in columns}
        if (heir := _heir(owner, owners)) is not None:
            changed = True
            for name in columns:
                values[name][place] = getattr(heir, name)
    if not changed:
        return table
    for name in columns:
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values[name], table.schema.field(name).type))
    return table


def _heir(owner: dict[str, Any], owners: list[Owner]) -> Owner | None:
    """Who takes a line over; None where one of its owners has it already."""
    named = [all(getattr(heir, name) == value for name, value in owner.items()) for heir in owners]
    return None if any(named) else owners[0]


def _redacted(table: pa.Table, doomed: Doomed) -> pa.Table:
    """Names and ids taken out of the sentences of a table, such as the reasons of a quarantine."""
    for place, field in enumerate(table.schema):
        if field.type != pa.string() or field.name in ("line_id", *_OWNER, *_SAID):
            continue
        new = {text: text_without(text, doomed) for text in table[field.name].unique().to_pylist() if text}
        if any(text != now for text, now in new.items()):
            column = [new.get(text, text) for text in table[field.name].to_pylist()]
            table = table.set_column(place, field, pa.array(column, pa.string()))
    return table


def _strings(table: pa.Table) -> list[tuple[str, ...]]:
    names = [field.name for field in table.schema if field.type == pa.string()]
    columns = [table[name].to_pylist() for name in names]
    return [tuple(text for text in row if text) for row in zip(*columns)] if columns else [()] * table.num_rows


def _said(strings: tuple[str, ...], doomed: Doomed) -> bool:
    return any(doomed.search.spans(text) for text in strings)


def _is_doomed(record: dict[str, Any], doomed: Doomed) -> bool:
    """Whether a record is one of a line that is erased, or of a source, document or page that is forgotten whole."""
    line = record.get("line_id")
    if isinstance(line, str):
        return line in doomed.lines
    if isinstance(record.get("source"), str) and isinstance(record.get("document_id"), str):
        return doomed.hidden.hides_document(record["source"], record["document_id"])
    named = [record[name] for name in _NAMES if isinstance(record.get(name), str)]
    return any(name in doomed.names for name in named)


def _heir_of(record: dict[str, Any], doomed: Doomed) -> dict[str, Any]:
    owners = doomed.heirs.get(record["line_id"]) if isinstance(record.get("line_id"), str) else None
    owner = {name: record[name] for name in _OWNER if name in record}
    heir = _heir(owner, owners) if owners and owner else None
    return record | {name: getattr(heir, name) for name in owner} if heir else record


def text_without(text: str, doomed: Doomed) -> str:
    """A sentence with ids, names and texts of what is erased marked out."""
    if " ".join(text.split()) in doomed.texts or text in doomed.texts or text in doomed.lines:
        return MARK
    if spans := doomed.search.spans(text):
        return _marked(text, spans)
    if len(text) > 60 and doomed.search.in_page(text):  # an image in base64, or a page inside JSON
        return MARK
    return text


def markdown_without(text: str, doomed: Doomed) -> str:
    """The same for Markdown, where a name may stand escaped."""
    plain, places = escaping.unescaped(text)
    spans = [(places[begin], places[end]) for begin, end in doomed.search.spans(plain)]
    return text_without(_marked(text, spans), doomed)


def _marked(text: str, spans: list[tuple[int, int]]) -> str:
    pieces, end = [], 0
    for begin, stop in spans:
        pieces += [text[end:begin], MARK]
        end = stop
    return "".join([*pieces, text[end:]])

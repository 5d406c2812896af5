"""From what archives and factories have to rows of the line schema.

Line images with their text, pages with PAGE XML or ALTO, Parquet files; in a folder, in .tar, .tar.gz or .zip, in S3.
`plan` says what there is, in units that can be read apart from one another; `read` gives the rows of one of them, and a
sentence for everything that did not become a row. docs/ingest.md describes the forms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskocr_core.config import Data
from maskocr_core.data.readers import files, line_images, page_image, pages, parquet, planning
from maskocr_core.data.readers.outline import Outline, outlined
from maskocr_core.data.readers.units import Outage, Refused, Unit, Unreadable, share
from maskocr_core.services import storage

__all__ = ["Outline", "Refused", "Unit", "is_model", "outline", "plan", "read", "split_of"]
MAX_TABLE = 16 << 30  # of a Parquet file in an archive, which is copied to be read


@dataclass(frozen=True)
class Labelled(Unit):
    """A unit of which only the labelled lines are read."""


def plan(uri: str, data: Data) -> list[Unit]:
    """Everything below `uri` in units of about `data.shard_lines` lines at most, in a fixed order.

    Of a list of files (`list+URI`) those on it, after the labelled lines of what is to be read beside them.
    Raises ValueError if nothing there can be a line, or if the storage does not answer.
    """
    try:
        listed = storage.listing(uri)
        beside = planning.plan(listed.beside, data) if listed and listed.beside else []
        return [_labelled(unit) for unit in beside] + planning.plan(uri, data)
    except (Outage, OSError) as error:
        raise ValueError(f"{uri}: {error}") from None


def read(unit: Unit, data: Data) -> Iterator[dict[str, Any] | Refused]:
    """Rows (with `split`: train, val, test, unlabeled, or None where the data bring none) and refusals, in a fixed order.

    Raises ValueError if the storage does not answer; whatever is wrong with the data is refused.
    """
    try:
        for row in _table(unit, data) if unit.kind == "parquet" else _items(unit):
            if not isinstance(unit, Labelled) or isinstance(row, Refused) or _is_labelled(row):
                yield row
    except (Outage, OSError) as error:
        raise ValueError(str(error)) from None


def outline(uri: str, data: Data, sample: int = 500) -> Outline:
    """What `ingest` would find below `uri`, from its directory and about `sample` lines; nothing is written."""
    units = plan(uri, data)
    return outlined(uri, data, units, lambda unit: read(unit, data), sample)


def is_model(transfer_uri: str) -> bool:
    """Whether a `transfer_uri` names a trained recogniser rather than labelled lines."""
    return transfer_uri.startswith("models:/") or (Path(transfer_uri) / "recognizer.safetensors").is_file()


def split_of(unit_id: str, labelled: bool, data: Data) -> str:
    """A split by the hash of a document or page: stable when other documents come, never by line."""
    if not labelled:
        return "unlabeled"
    place = share(unit_id)
    if place < data.test_share:
        return "test"
    return "val" if place < data.test_share + data.validation_share else "train"


def _labelled(unit: Unit) -> Labelled:
    # A name of its own: the same files may be on the list too, and then they are read whole.
    name = hashlib.sha256(f"labelled {unit.name}".encode()).hexdigest()[:32]
    return Labelled(**(vars(unit) | {"name": name}))


def _is_labelled(row: dict[str, Any]) -> bool:
    return row["text"] is not None and row["split"] != "unlabeled"


def _table(unit: Unit, data: Data) -> Iterator[dict[str, Any] | Refused]:
    try:
        with files.seekable(unit.archive, unit.table, MAX_TABLE) as file:
            yield from parquet.Table(unit.table, file, data).rows(*(unit.groups or (0, None)))
    except Unreadable as error:
        yield Refused(unit.table.name, str(error))


def _items(unit: Unit) -> Iterator[dict[str, Any] | Refused]:
    wanted = [entry for item in unit.items for entry in item.entries]
    try:
        with files.reading(unit.archive, wanted, page_image.MAX_BYTES) as read_entry:
            for item in unit.items:
                if item.form == "refused":
                    yield Refused(item.name, item.reason)
                else:
                    form = pages if item.form == "page" else line_images
                    yield from form.rows(item, read_entry, unit.source)
    except Unreadable as error:
        # The archive was read when it was listed, and cannot be any more.
        for item in unit.items:
            yield Refused(item.name, str(error))

"""From a URI to units of work: what lies there, sorted by form, divided so that it stays divided as it is when data grow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from maskocr_core.config import Data
from maskocr_core.data import images
from maskocr_core.data.readers import archives, files, items, pages, parquet, xml_file
from maskocr_core.data.readers.rows import check_name
from maskocr_core.data.readers.units import (
    Entry,
    Item,
    Read,
    Refused,
    Unit,
    Unreadable,
    pack,
    unit_of_items,
    unit_of_table,
)
from maskocr_core.services import storage

BYTES_OF_A_ROW = 8_000  # of a Parquet file in an archive, whose rows nobody counts before it is read


def plan(uri: str, data: Data) -> list[Unit]:
    """Units of everything below `uri`, in a fixed order: Parquet files by name, then items, then archives by name.

    Raises ValueError if nothing there can be a line.
    """
    found = [Entry(file.name, file.size, file.uri) for file in storage.files(uri)]
    root = uri.rstrip("/").rpartition("/")[2]
    source = root[: len(root) - len(archives.suffix(root))]
    packed = [entry for entry in found if archives.suffix(entry.name)]
    units = list(_units(None, [entry for entry in found if not archives.suffix(entry.name)], source, data))
    for archive in packed:
        # An archive is a folder of its name; the one that the URI names is the root itself.
        named = archive.name[: -len(archives.suffix(archive.name))]
        folder = "" if archives.suffix(root) and len(found) == 1 else named
        units += _units(archive, _members(archive, folder), source, data)
    refused = [item for unit in units for item in unit.items if item.form == "refused"]
    if all(unit.kind == "items" for unit in units) and len(refused) == sum(len(unit.items) for unit in units):
        raise ValueError(_nothing(uri, refused, data))
    return units


def _members(archive: Entry, folder: str) -> list[Entry | Refused]:
    try:
        check_name(archive.name, "its name")
        return list(archives.members(archive, folder))
    except Unreadable as error:
        return [Refused(archive.name, str(error))]


def _units(archive: Entry | None, found: list[Entry | Refused], source: str, data: Data) -> Iterator[Unit]:
    """Units of one folder, or of one archive."""
    refused = [items.refused(entry.item, entry.reason) for entry in found if isinstance(entry, Refused)]
    entries = [entry for entry in found if isinstance(entry, Entry) and not _is_hidden(entry.name)]
    loose = []
    for entry in entries:
        if not entry.name.lower().endswith(".parquet"):
            loose.append(entry)
            continue
        try:
            check_name(entry.name, "its name")
            yield from _of_table(archive, entry, source, data)
        except Unreadable as error:
            refused.append(items.refused(entry.name, str(error)))
    for packed in pack([*refused, *_gathered(archive, loose)], data.shard_lines):
        yield unit_of_items(packed, source, archive)


def _of_table(archive: Entry | None, entry: Entry, source: str, data: Data) -> Iterator[Unit]:
    if archive:
        yield unit_of_table(entry, None, entry.size // BYTES_OF_A_ROW + 1, source, archive)
        return
    with entry.open() as file:
        for start, stop, rows in parquet.Table(entry, file, data).units(data.shard_lines):
            yield unit_of_table(entry, (start, stop), rows, source, None)


def _gathered(archive: Entry | None, loose: list[Entry]) -> Iterator[Item]:
    page_files = [entry for entry in loose if entry.name.lower().endswith(".xml")]
    try:
        with files.reading(archive if page_files else None, page_files, xml_file.MAX_BYTES) as read:
            yield from items.gather(loose, lambda entry: _image_named_by(entry, read))
    except Unreadable as error:
        yield items.refused(archive.name, str(error))


def _image_named_by(entry: Entry, read: Read) -> str:
    try:
        return pages.image_named_by(read(entry, xml_file.MAX_BYTES))
    except Unreadable:
        return ""  # it is refused when it is read


def _is_hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".")


def _nothing(uri: str, refused: list[Item], data: Data) -> str:
    name = data.columns.get("image", "image")
    if any(item.reason == parquet.SIDE_TABLE for item in refused):
        return f'{uri}: no Parquet file has a column {name!r}; name yours with data.columns={{"image": "…"}}'
    first = f"; refused: {refused[0].name}: {refused[0].reason}" if refused else ""
    return (
        f"{uri}: holds neither Parquet files nor line images ({', '.join(images.SUFFIXES)}) nor pages with PAGE XML or "
        f"ALTO, nor archives of them ({', '.join(archives.SUFFIXES)}){first}"
    )

"""From what people have (Parquet files, or image files with their text beside them) to rows of the line schema."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskocr_core.config import Data
from maskocr_core.data import images, lines
from maskocr_core.services import storage

TEXT_SUFFIXES = (".gt.txt", ".txt")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
}


@dataclass(frozen=True)
class Refused:
    """An item that did not become a line, and why."""

    item: str
    reason: str


def read(uri: str, data: Data) -> Iterator[dict[str, Any] | Refused]:
    """Rows (with `split`: train, val, test, unlabeled, or None where the data bring none) and refusals, in a fixed order.

    Raises ValueError if nothing below `uri` can be a line, or a Parquet file lacks a column.
    """
    found = storage.files(uri)
    parquet = [file for file in found if file.name.endswith(".parquet")]
    if parquet:
        return _parquet(uri, parquet, data)
    if any(file.name.lower().endswith(images.SUFFIXES) for file in found):
        return _pairs(uri, found)
    raise ValueError(f"{uri}: holds neither Parquet files nor line images ({', '.join(images.SUFFIXES)})")


def is_model(transfer_uri: str) -> bool:
    """Whether a `transfer_uri` names a trained recogniser rather than labelled lines."""
    return transfer_uri.startswith("models:/") or (Path(transfer_uri) / "recognizer.safetensors").is_file()


def split_of(unit: str, labelled: bool, data: Data) -> str:
    """A split by the hash of a document or page: stable when other documents come, never by line."""
    if not labelled:
        return "unlabeled"
    place = int.from_bytes(hashlib.sha256(unit.encode()).digest()[:8]) / 2**64
    if place < data.test_share:
        return "test"
    return "val" if place < data.test_share + data.validation_share else "train"


def _parquet(uri: str, files: list[storage.File], data: Data) -> Iterator[dict[str, Any] | Refused]:
    opened = {file.name: _open_parquet(file) for file in files}
    with_images = {name for name, file in opened.items() if _column(file, "image", data)}
    if not with_images:
        raise ValueError(
            f'{uri}: no Parquet file has a column \'image\'; name yours with data.columns={{"image": "…"}}'
        )
    # Labelled lines first: of two equal images the one with a text is kept.
    for file in sorted(files, key=lambda file: _named_after(file) == "unlabeled"):
        if file.name not in with_images:
            yield Refused(file.name, "has no column of images; taken for a side table")
            continue
        yield from _parquet_rows(file, opened[file.name], data)


def _split_named(value: object, file: storage.File, fallback: str | None) -> str | None:
    """The split that a row names, else the one its file is named after. Raises ValueError for a name that is no split's."""
    if value is None or not str(value).strip():
        return fallback
    split = _SPLIT_NAMES.get(str(value).strip().lower())
    if not split:
        raise ValueError(
            f"{file.uri}: {value!r} in column 'split' is none of {', '.join(_SPLIT_NAMES)}: rename it, or leave the "
            "column out and ingest splits by document"
        )
    return split


def _named_after(file: storage.File) -> str | None:
    return _SPLIT_NAMES.get(re.split(r"[.\-_]", file.name.rpartition("/")[2].lower())[0])


def _open_parquet(file: storage.File) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(storage.open_input(file.uri), page_checksum_verification=True)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{file.uri} is no readable Parquet file ({error}): write it anew or take it away") from None


def _parquet_rows(file: storage.File, parquet: pq.ParquetFile, data: Data) -> Iterator[dict[str, Any] | Refused]:
    columns = {
        ours: _column(parquet, ours, data)
        for ours in ("image", "page_id", "document_id", "text", "source", "order", "license", "split")
    }
    for ours in sorted({"page_id", "document_id", *data.columns}):
        if not columns[ours]:
            raise ValueError(
                f"{file.uri} has no column {data.columns.get(ours, ours)!r} for {ours}; "
                f'name yours with data.columns={{"{ours}": "…"}}; it has {", ".join(parquet.schema_arrow.names)}'
            )
    fallback = _named_after(file)
    number = 0
    for batch in parquet.iter_batches(64, columns=[name for name in columns.values() if name]):
        for values in batch.to_pylist():
            row = {ours: values.get(theirs) if theirs else None for ours, theirs in columns.items()}
            item = f"{file.name}:{number}"
            number += 1
            if row["page_id"] is None or row["document_id"] is None:
                yield Refused(item, "names no page or no document, so that it could be on two sides of a split")
                continue
            image = (
                row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
            )  # Hugging Face keeps images as structs
            split = _split_named(row["split"], file, fallback)
            yield _row(
                item,
                image,
                row["text"],
                str(row["page_id"]),
                str(row["document_id"]),
                row["source"] or file.name.rpartition("/")[2],
                split,
                row["order"],
                row["license"],
            )


def _column(parquet: pq.ParquetFile, ours: str, data: Data) -> str | None:
    names = parquet.schema_arrow.names
    return next((name for name in (data.columns.get(ours, ours), ours) if name in names), None)


def _pairs(uri: str, files: list[storage.File]) -> Iterator[dict[str, Any] | Refused]:
    """Images with `.gt.txt` or `.txt` beside them; the folder of an image is its document, an image alone is unlabelled."""
    by_name = {file.name: file for file in files}
    source = uri.rstrip("/").rpartition("/")[2]
    found = {}
    for file in files:
        if file.name.lower().endswith(images.SUFFIXES):
            stem = file.name.rpartition(".")[0]
            found[file] = next((by_name[stem + suffix] for suffix in TEXT_SUFFIXES if stem + suffix in by_name), None)
    used = {transcription.name for transcription in found.values() if transcription}
    # Labelled lines first: of two equal images the one with a text is kept.
    for file, transcription in sorted(found.items(), key=lambda pair: pair[1] is None):
        text = None
        if transcription:
            try:
                text = bytes(storage.open_input(transcription.uri).read()).decode("utf-8-sig")
            except UnicodeDecodeError:
                yield Refused(file.name, f"{transcription.name} is not UTF-8")
                continue
        folder = file.name.rpartition("/")[0] or source
        yield _row(
            file.name,
            bytes(storage.open_input(file.uri).read()),
            text,
            folder,
            folder.split("/")[0],
            source,
            None,
            None,
            None,
        )
    for file in files:
        if file.name.endswith(".txt") and file.name not in used:
            yield Refused(file.name, "a transcription without an image beside it")


def _row(
    item: str,
    image: bytes | None,
    text: str | None,
    page: str,
    document: str,
    source: str,
    split: str | None,
    order: int | None,
    license: str | None,
) -> dict[str, Any] | Refused:
    try:
        height, width = images.size(image or b"")
    except ValueError as error:
        return Refused(item, str(error))
    text = unicodedata.normalize("NFC", str(text)).strip() if text else None
    if not text and split in ("train", "val", "test"):
        split = "unlabeled"
    return {
        "line_id": lines.line_id(image),
        "page_id": page,
        "document_id": document,
        "source": str(source),
        "image": image,
        "height": height,
        "width": width,
        "text": (text or None) if split != "unlabeled" else None,
        "order": order if order is not None and order >= 0 else None,
        "license": None if license is None else str(license),
        "split": split,
    }

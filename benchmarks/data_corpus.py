"""Raw lines for `data.py`: real ones out of Parquet packs, repeated with other bytes where more are wanted than there are."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

FILE_LINES = 4096  # of one Parquet file
SPLITS = ("train", "val", "test")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("page", "doc", "source", "split", "text", "license")]
    + [("image", pa.binary()), ("height", pa.int32()), ("width", pa.int32())]
)

Row = dict[str, Any]


def real(pack: Path) -> list[Row]:
    """The lines of a pack of Parquet files in the form of `sample/`, each image once.

    Raises ValueError if the folder holds none.
    """
    rows: dict[bytes, Row] = {}
    for path in sorted(pack.glob("*.parquet")):
        if "image" in pq.read_schema(path).names:
            for row in pq.read_table(path).to_pylist():
                rows.setdefault(row["image"], {name: row.get(name) for name in SCHEMA.names})
    if not rows:
        raise ValueError(
            f"{pack} holds no Parquet file with a column 'image': give a pack in the form of sample/target"
        )
    return list(rows.values())


def lines(rows: list[Row], count: int) -> Iterator[Row]:
    """The labelled rows as they are, then `count` unlabelled ones: those that there are and, as long as more are wanted, copies.

    A copy has the same pixels and other bytes, on a page and in a document of its own.
    Raises ValueError if no row is unlabelled.
    """
    unlabelled = [row for row in rows if row["split"] not in SPLITS]
    if not unlabelled:
        raise ValueError("the pack has no unlabelled lines to repeat: give one with a file unlabeled*.parquet")
    yield from (row for row in rows if row["split"] in SPLITS)
    for number in range(count):
        lap, place = divmod(number, len(unlabelled))
        yield _copy(unlabelled[place], lap) if lap else unlabelled[place]


def write_parquet(rows: Iterator[Row], folder: Path) -> dict[str, int]:
    """Write raw Parquet files of one split each, 512 rows a row group; {"lines", "bytes", "files"}, bytes being those of the images."""
    folder.mkdir(parents=True)
    waiting: dict[str, list[Row]] = {}
    counts = {"lines": 0, "bytes": 0, "files": 0}

    def flush(split: str) -> None:
        table = pa.Table.from_pylist(waiting.pop(split), schema=SCHEMA)
        pq.write_table(table, folder / f"{split}-{counts['files']:04d}.parquet", row_group_size=512, compression="zstd")
        counts["files"] += 1

    for row in rows:
        split = row["split"] if row["split"] in SPLITS else "unlabeled"
        waiting.setdefault(split, []).append(row)
        counts["lines"] += 1
        counts["bytes"] += len(row["image"])
        if len(waiting[split]) == FILE_LINES:
            flush(split)
    for split in sorted(waiting):
        flush(split)
    return counts


def write_pairs(rows: Iterator[Row], folder: Path) -> dict[str, int]:
    """Write `<document>/<number>.<format>` with `.gt.txt` beside each labelled one; counts as `write_parquet`."""
    counts = {"lines": 0, "bytes": 0, "files": 0}
    for number, row in enumerate(rows):
        document = folder / row["doc"].replace("/", "_")
        document.mkdir(parents=True, exist_ok=True)
        stem = f"{number:07d}"
        (document / f"{stem}.{suffix(row['image'])}").write_bytes(row["image"])
        if row["text"]:
            (document / f"{stem}.gt.txt").write_text(row["text"])
        counts["lines"] += 1
        counts["bytes"] += len(row["image"])
        counts["files"] += 1 + bool(row["text"])
    return counts


def suffix(image: bytes) -> str:
    """What a file with these bytes is called: webp, png, jpeg or tiff."""
    with Image.open(io.BytesIO(image)) as opened:
        return opened.format.lower()


def as_png(row: Row) -> Row:
    """The same line as a grayscale PNG."""
    with Image.open(io.BytesIO(row["image"])) as opened:
        buffer = io.BytesIO()
        opened.convert("L").save(buffer, "PNG")
    return row | {"image": buffer.getvalue()}


def _copy(row: Row, lap: int) -> Row:
    return row | {
        "image": _marked(row["image"], lap),
        "page": f"{row['page']} copy {lap}",
        "doc": f"{row['doc']} copy {lap}",
        "split": "unlabeled",
        "text": None,
    }


def _marked(image: bytes, mark: int) -> bytes:
    """The same pixels in other bytes: WebP with one chunk more, which decoders pass over; other formats as PNG with a note."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        content = image[8:] + b"COPY" + struct.pack("<II", 4, mark)
        return b"RIFF" + struct.pack("<I", len(content)) + content
    note, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    note.add_text("copy", str(mark))
    with Image.open(io.BytesIO(image)) as opened:
        opened.convert("L").save(buffer, "PNG", pnginfo=note)
    return buffer.getvalue()

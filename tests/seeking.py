"""Looking for lines in everything that a folder, a bucket or a git repository holds, without a word from the code under test.

Files are taken for what their bytes say they are: Parquet and Arrow are read column by column, pictures are decoded and
compared by what they look like, base64 is looked into, and the rest is searched as text, escaped or not.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

BASE64 = re.compile(rb"[A-Za-z0-9+/]{80,}={0,2}")
PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"II*\x00", b"MM\x00*")


def look(picture: bytes) -> np.ndarray | None:
    """(16 × 128,) bool, what a picture looks like from afar; None for what is no picture."""
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            small = np.asarray(opened.convert("L").resize((128, 16), Image.Resampling.BOX), float)
    except (OSError, ValueError, SyntaxError):
        return None
    spread = small - small.mean(axis=1, keepdims=True)
    return (spread > np.median(spread)).ravel()


@dataclass
class Sought:
    """What is looked for: ids and names, texts, encoded images."""

    ids: list[str]
    texts: list[str]
    images: list[bytes]
    looks: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.looks = [look(image) for image in self.images]

    def found_in(self, content: bytes) -> set[str]:
        """Which of "id", "text", "bytes" and "picture" a file holds."""
        found: set[str] = set()
        for piece in _pieces(content):
            if isinstance(piece, str):
                found |= self._said(piece)
            else:
                found |= self._shown(piece)
        return found

    def _said(self, text: str) -> set[str]:
        plain = html.unescape(re.sub(r"</?[a-z]+(\s[^>]*)?>", "", text))
        escaped = [json.dumps(string)[1:-1] for string in self.ids + self.texts]
        kinds = {"id"} if any(one in text or one in plain for one in self.ids) else set()
        if any(one in text or one in plain for one in self.texts):
            kinds.add("text")
        return kinds | ({"text"} if any(one in text for one in escaped) else set())

    def _shown(self, picture: bytes) -> set[str]:
        kinds = {"bytes"} if any(image in picture for image in self.images) else set()
        seen = look(picture)
        if seen is not None and any(np.mean(seen != own) < 0.12 for own in self.looks if own is not None):
            kinds.add("picture")
        return kinds


def _pieces(content: bytes) -> Iterator[str | bytes]:
    if content[:4] == b"PAR1":
        yield from _cells(pq.read_table(io.BytesIO(content)))
    elif content[:6] == b"ARROW1":
        yield from _cells(pa.ipc.open_file(content).read_all())
    elif content.startswith(PICTURES):
        yield content
    else:
        text = content.decode("utf-8", "replace")
        yield BASE64.sub(b"", content).decode("utf-8", "replace")
        yield text
        for match in BASE64.finditer(re.sub(rb"\\n|[\r\n]", b"", content)):
            encoded = match[0][: len(match[0]) // 4 * 4]
            inside = base64.b64decode(encoded)
            if inside.startswith(PICTURES):
                yield inside
            elif b"<svg" in inside[:300] or b"<html" in inside[:300]:
                yield from _pieces(inside)


def _cells(table: pa.Table) -> Iterator[str | bytes]:
    for column in table.columns:
        if pa.types.is_string(column.type):
            yield "\n".join(text for text in column.unique().to_pylist() if text)
        elif pa.types.is_binary(column.type):
            yield from (cell for cell in column.to_pylist() if cell)


def in_folder(folder: Path, *, without: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """Every file below a folder, git's objects unpacked; names that begin with one of `without` are left out."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(without) and "/.git/objects/" not in f"/{name}":
            yield name, path.read_bytes()
    for git in folder.rglob(".git"):
        command = ["git", "cat-file", "--batch-all-objects", "--batch", "--unordered"]
        done = subprocess.run(command, cwd=git.parent, capture_output=True, check=True)
        yield f"{git.relative_to(folder)}: objects", done.stdout


def in_bucket(client, bucket: str, prefix: str = "") -> Iterator[tuple[str, bytes]]:
    """Every version of every object of a bucket."""
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Versions", ()):
            version = {} if found["VersionId"] in ("null", "") else {"VersionId": found["VersionId"]}
            yield found["Key"], client.get_object(Bucket=bucket, Key=found["Key"], **version)["Body"].read()

"""Where the bytes of an entry come from: a file here or in S3, or a member of an archive."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from maskocr_core.data.readers import archives
from maskocr_core.data.readers.units import Entry, Read, Unreadable


@contextmanager
def reading(archive: Entry | None, wanted: Iterable[Entry], most: int) -> Iterator[Read]:
    """A way to read entries: of one archive, or files where `archive` is None. Raises Unreadable for a broken archive.

    wanted: all that may be asked for; most: bytes of the largest.
    """
    if archive is None:
        yield _read
        return
    with archives.opened(archive, wanted, most) as blocks:

        def read(entry: Entry, most: int) -> bytes:
            _check_size(entry.size, most)
            return b"".join(blocks(entry))

        yield read


@contextmanager
def seekable(archive: Entry | None, entry: Entry, most: int) -> Iterator[Any]:
    """A seekable file of an entry; a member of an archive is copied into a nameless file for it."""
    if archive is None:
        with entry.open() as file:
            yield file
        return
    _check_size(entry.size, most)
    with archives.opened(archive, [entry], most) as blocks, tempfile.TemporaryFile() as spool:
        for block in blocks(entry):
            spool.write(block)
        yield spool


def _read(entry: Entry, most: int) -> bytes:
    _check_size(entry.size, most)
    try:
        with entry.open() as file:
            content = bytes(file.read(most + 1))
    except OSError as error:
        raise entry.failure(error) from None
    _check_size(len(content), most)
    return content


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise Unreadable(f"has {size:,} bytes, more than the {most:,} that such a file may have")

"""Line images with their text beside them, as `.gt.txt` or `.txt`; an image alone is an unlabelled line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from maskocr_core.data import images
from maskocr_core.data.readers.rows import MAX_TEXT, place, row
from maskocr_core.data.readers.units import Item, Read, Refused, Unreadable

MAX_TEXT_BYTES = 16 * MAX_TEXT


def rows(item: Item, read: Read, source: str) -> Iterator[dict[str, Any] | Refused]:
    """The one line of an image."""
    try:
        text = None
        if item.text:
            try:
                text = read(item.text, MAX_TEXT_BYTES).decode("utf-8-sig")
            except UnicodeDecodeError:
                raise Unreadable(f"{item.text.name} is not UTF-8") from None
            except Unreadable as error:
                raise Unreadable(f"{item.text.name} {error}") from None
        yield row(item.name, read(item.files[0], images.MAX_BYTES), text, place(item.name, source))
    except Unreadable as error:
        yield Refused(item.name, str(error))

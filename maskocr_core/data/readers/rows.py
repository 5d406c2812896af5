"""From an image, a text and a place to one row of the line schema: the rules that all forms share."""

from __future__ import annotations

import datetime
import math
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from maskocr_core.data import images, lines
from maskocr_core.data.readers.units import Refused, Unreadable

MAX_TEXT, MAX_NAME = 2_000, 1_000  # characters
SPLIT_NAMES = {
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
class Place:
    """Where a line comes from, and the split that this says, if any."""

    page: str
    document: str
    source: str
    split: str | None = None


def place(name: str, source: str, page: str | None = None) -> Place:
    """The place of a file by its path below the root: the document is the first folder that is not named after a split.

    page: its page where that is not its folder.
    """
    folders = name.split("/")[:-1]
    split = SPLIT_NAMES.get(folders[0].lower()) if folders else None
    below = folders[1:] if split and len(folders) > 1 else folders
    return Place(page or "/".join(folders) or source, below[0] if below else source, source, split)


def row(
    item: str,
    image: bytes | None,
    text: object,
    at: Place,
    *,
    order: object = None,
    license: object = None,
    retain_until: object = None,
) -> dict[str, Any] | Refused:
    """The row of a line, or why it is none."""
    try:
        for what, name in (("document", at.document), ("page", at.page), ("source", at.source)):
            check_name(name, f"the name of its {what}")
        height, width = images.size(image or b"")
        text = clean(text)
        until, place = _date(retain_until), _order(order)
    except ValueError as error:
        return Refused(item, str(error))
    split = "unlabeled" if not text and at.split in ("train", "val", "test") else at.split
    return {
        "line_id": lines.line_id(image),
        "page_id": at.page,
        "document_id": at.document,
        "source": at.source,
        "image": image,
        "height": height,
        "width": width,
        "text": text if split != "unlabeled" else None,
        "order": place,
        "license": None if license is None else str(license),
        "retain_until": until,
        "split": split,
    }


def clean(text: object) -> str | None:
    """NFC without the white space around it; None if nothing is left. Raises Unreadable for what is no text of one line."""
    if text is None:
        return None
    text = str(text)
    # Normalisation takes long on long texts, hence the length first.
    if len(text) > MAX_TEXT:
        raise Unreadable(f"its text has {len(text):,} characters; a line has at most {MAX_TEXT:,}")
    text = unicodedata.normalize("NFC", text).strip()
    for number, character in enumerate(text):
        if character in "\n\r\u2028\u2029":
            raise Unreadable("its text has several lines; an image of a line has a text of one line")
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise Unreadable(f"its text has the control character U+{ord(character):04X} at {number}: take it out")
    return text or None


@lru_cache(maxsize=65_536)
def check_name(name: str, what: str) -> None:
    """Raise Unreadable for a name that cannot be shown or stored."""
    if len(name) > MAX_NAME:
        raise Unreadable(f"{what} has {len(name):,} characters, more than {MAX_NAME:,}: give a shorter one")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise Unreadable(f"{what} has control characters or is not UTF-8: rename it")


def shown(name: str) -> str:
    """A name with its control characters escaped, so that it can be listed."""
    return "".join(
        character if unicodedata.category(character) not in ("Cc", "Cs") else f"\\u{ord(character):04x}"
        for character in name[:MAX_NAME]
    )


def _order(value: object) -> int | None:
    """Place in the nested order of subsets. None, nan, nothing and -1 stand for none."""
    if value is None or value == "" or value != value:
        return None
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if number == -1:
        return None
    if not (0 <= number < 2**31 and number.is_integer()):
        raise Unreadable(
            f"order {str(value)[:40]!r} is no whole number from 0 on: mend it, or leave the column out, and subsets "
            "are nested by a hash"
        )
    return int(number)


def _date(value: object) -> datetime.date | None:
    if value is None or value == "":
        return None
    if isinstance(value, datetime.datetime):
        return value.date()
    if isinstance(value, datetime.date):
        return value
    try:
        return datetime.datetime.fromisoformat(str(value).strip()).date()
    except ValueError:
        raise Unreadable(f"retain_until {str(value)[:40]!r} is no date: write it as YYYY-MM-DD") from None

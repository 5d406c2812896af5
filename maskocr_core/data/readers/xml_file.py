"""XML from strangers: no DTD, no entities, nothing fetched, and bounds on size and number of elements."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import iterparse

from maskocr_core.data.readers.units import Unreadable

MAX_BYTES, MAX_ELEMENTS, MAX_DEPTH = 32 << 20, 1_000_000, 100
MAX_POINTS, MAX_COORDINATES = 10_000, 400_000  # points of one outline, characters of one attribute
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf", re.IGNORECASE)


def parse(content: bytes) -> Element:
    """The root element. Raises Unreadable with the reason."""
    if len(content) > MAX_BYTES:
        raise Unreadable(f"has {len(content):,} bytes; a page file has at most {MAX_BYTES:,}")
    depth = count = 0
    root = None
    try:
        for event, element in iterparse(io.BytesIO(content), ("start", "end"), forbid_dtd=True):
            if event == "end":
                depth -= 1
                continue
            root = element if root is None else root
            count, depth = count + 1, depth + 1
            if count > MAX_ELEMENTS or depth > MAX_DEPTH:
                raise Unreadable(f"has more than {MAX_ELEMENTS:,} elements, or more than {MAX_DEPTH} in one another")
    except DefusedXmlException:
        raise Unreadable(
            "has a document type or entities, which page files need not and attackers do: take them out"
        ) from None
    except (ParseError, ValueError, LookupError) as error:
        raise error if isinstance(error, Unreadable) else Unreadable(f"is no readable XML ({error})") from None
    if root is None:
        raise Unreadable("is no readable XML (it is empty)")
    return root


def name_of(element: Element) -> tuple[str, str]:
    """(namespace, name) of an element."""
    space, _, name = element.tag.rpartition("}")
    return space.lstrip("{"), name


def every(element: Element, name: str) -> Iterator[Element]:
    """All descendants of a name in the element's own namespace, in the order of the file."""
    return element.iter(_qualified(element, name))


def first(element: Element | None, name: str) -> Element | None:
    """The first child of a name in the element's own namespace."""
    return None if element is None else element.find(_qualified(element, name))


def points(text: str | None) -> list[tuple[float, float]] | None:
    """`x,y x,y` or `x y x y`, as found in PAGE and ALTO. Raises Unreadable if it is neither."""
    if text is None or not text.strip():
        return None
    if len(text) > MAX_COORDINATES:
        raise Unreadable(f"its coordinates have {len(text):,} characters")
    if _NUMBER.sub("", text).strip(" ,;\t\r\n"):
        raise Unreadable(f"its coordinates {text[:40]!r} are no numbers")
    numbers = [float(number) for number in _NUMBER.findall(text)]
    if len(numbers) % 2 or len(numbers) > 2 * MAX_POINTS:
        raise Unreadable(
            f"its coordinates are {len(numbers):,} numbers: x and y of at most {MAX_POINTS:,} points are wanted"
        )
    return list(zip(numbers[::2], numbers[1::2]))


def number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise Unreadable(f"{text[:40]!r} is no number") from None


def _qualified(element: Element, name: str) -> str:
    space = name_of(element)[0]
    return f"{{{space}}}{name}" if space else name

"""ALTO, versions 2 to 4.

Source: https://www.loc.gov/standards/alto/
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from maskocr_core.data.readers import xml_file
from maskocr_core.data.readers.layout import Layout, Line
from maskocr_core.data.readers.units import Refused, Unreadable

_NAMESPACE = re.compile(r"http://www\.loc\.gov/standards/alto/ns-v([234])#")
UNITS = ("pixel", "mm10", "inch1200")  # the last two in tenths of a millimetre and 1,200ths of an inch
SOFT_HYPHEN = "\u00ad"


def layout(root: Element) -> Layout:
    """What an `alto` element says of its page. Raises Unreadable for a version, unit or number of pages that is not read."""
    namespace = xml_file.name_of(root)[0]
    if not _NAMESPACE.fullmatch(namespace):
        raise Unreadable(f"is ALTO of namespace {namespace[:100]!r}; versions 2, 3 and 4 are read")
    description = xml_file.first(root, "Description")
    measured = xml_file.first(description, "MeasurementUnit")
    unit = "pixel" if measured is None else (measured.text or "").strip()
    if unit not in UNITS:
        raise Unreadable(f"measures in {unit[:40]!r}; export it with MeasurementUnit {', '.join(UNITS)}")
    pages = list(xml_file.every(root, "Page"))
    if len(pages) != 1:
        raise Unreadable(f"has {len(pages)} pages; a file of one page is wanted")
    name = xml_file.first(xml_file.first(description, "sourceImageInformation"), "fileName")
    size = xml_file.number(pages[0].get("WIDTH")), xml_file.number(pages[0].get("HEIGHT"))
    if unit != "pixel" and not all(size):
        raise Unreadable(
            f"measures in {unit} and gives its page no WIDTH and HEIGHT: by these its image says how long a px is"
        )
    return Layout(("" if name is None else name.text or "").strip(), *size, list(_lines(pages[0])))


def _lines(page: Element) -> Iterator[Line | Refused]:
    # Some programs write no SP at all; where others leave one out, two Strings are parts of one word.
    gap = "" if next(xml_file.every(page, "SP"), None) is not None else " "
    for number, element in enumerate(xml_file.every(page, "TextLine")):
        name = element.get("ID") or str(number)
        try:
            box = _box(element)
            polygon = xml_file.first(xml_file.first(element, "Shape"), "Polygon")
            outline = None if polygon is None else xml_file.points(polygon.get("POINTS"))
            yield Line(name, _text(element, gap), _baseline(element.get("BASELINE"), box), outline, box)
        except Unreadable as error:
            yield Refused(name, str(error))


def _box(line: Element) -> tuple[float, float, float, float] | None:
    x, y, width, height = (xml_file.number(line.get(name)) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT"))
    return None if None in (x, y, width, height) else (x, y, x + width, y + height)


def _baseline(text: str | None, box: tuple[float, float, float, float] | None) -> list[tuple[float, float]] | None:
    """Points, or before version 4.1 a single height."""
    try:
        height = float(text or "")
    except ValueError:
        return xml_file.points(text)
    return None if box is None else [(box[0], height), (box[2], height)]


def _text(line: Element, gap: str) -> str | None:
    parts: list[str] = []
    for element in line:
        name = xml_file.name_of(element)[1]
        if name == "String":
            parts += [gap] if parts and gap else []
            parts.append(element.get("CONTENT") or "")
        elif name == "SP":
            parts.append(" ")
        elif name == "HYP":
            # What the image shows of a soft hyphen is a hyphen.
            parts.append((element.get("CONTENT") or "-").replace(SOFT_HYPHEN, "-"))
    return "".join(parts) or None

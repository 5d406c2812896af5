"""PAGE XML, the schemas of 2013-07-15 to 2019-07-15.

Source: https://github.com/PRImA-Research-Lab/PAGE-XML
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from maskocr_core.data.readers import xml_file
from maskocr_core.data.readers.layout import Layout, Line
from maskocr_core.data.readers.units import Refused, Unreadable

_NAMESPACE = re.compile(r"https?://schema\.primaresearch\.org/PAGE/gts/pagecontent/(\d{4}-\d{2}-\d{2})")
OLDEST, NEWEST = "2013-07-15", "2019-07-15"


def layout(root: Element) -> Layout:
    """What a `PcGts` element says of its page. Raises Unreadable for a version that is not read."""
    namespace = xml_file.name_of(root)[0]
    version = _NAMESPACE.fullmatch(namespace)
    if not version or not OLDEST <= version[1] <= NEWEST:
        raise Unreadable(f"is PAGE XML of namespace {namespace[:100]!r}; those of {OLDEST} to {NEWEST} are read")
    page = xml_file.first(root, "Page")
    if page is None:
        raise Unreadable("is PAGE XML without a Page")
    size = xml_file.number(page.get("imageWidth")), xml_file.number(page.get("imageHeight"))
    return Layout(page.get("imageFilename") or "", *size, list(_lines(page)))


def _lines(page: Element) -> Iterator[Line | Refused]:
    for number, element in enumerate(xml_file.every(page, "TextLine")):
        name = element.get("id") or str(number)
        try:
            coordinates, baseline = xml_file.first(element, "Coords"), xml_file.first(element, "Baseline")
            yield Line(
                name,
                _text(element),
                None if baseline is None else xml_file.points(baseline.get("points")),
                None if coordinates is None else xml_file.points(coordinates.get("points")),
            )
        except Unreadable as error:
            yield Refused(name, str(error))


def _text(line: Element) -> str | None:
    """The text of the line itself, not of its words; of several readings the one of the lowest index."""
    readings = line.findall(line.tag.replace("TextLine", "TextEquiv"))
    chosen = min(readings, key=lambda reading: _index(reading.get("index")), default=None)
    unicode = xml_file.first(chosen, "Unicode")
    return None if unicode is None else unicode.text


def _index(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else 0

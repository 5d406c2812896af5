"""From a page file and its image to the rows of its lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from maskocr_core.data.readers import alto, cutting, line_images, page_image, page_xml, xml_file
from maskocr_core.data.readers.layout import Layout, Line, Points
from maskocr_core.data.readers.rows import place, row, shown
from maskocr_core.data.readers.units import Entry, Item, Read, Refused, Unreadable

MAX_COVER = 20  # times that the lines of a page may cover it, before they are taken for an attack
_ASPECT = 0.01  # how far the proportions of the image may be from those the page file gives


def rows(item: Item, read: Read, source: str) -> Iterator[dict[str, Any] | Refused]:
    """The lines of one page, in the order of its file."""
    try:
        layout = _layout(read(item.files[0], xml_file.MAX_BYTES))
    except Unreadable as error:
        image = "" if len(item.files) < 2 else f"; its image {shown(item.files[1].name)} is left out with it"
        yield Refused(item.name, f"{error}{image}")
        return
    if layout is None:
        yield Refused(item.name, "is neither PAGE XML nor ALTO; taken for a side file")
        for number, image in enumerate(item.files[1:]):
            # Then the image beside it is a line image like any other.
            yield from line_images.rows(Item("line", image.name, (image,), None if number else item.text), read, source)
        return
    if not layout.lines:
        yield Refused(item.name, "has no TextLine: the page must be divided into lines first")
        return
    page = reason = None
    try:
        page, scale = _pixels(item, layout, read)
    except Unreadable as error:
        reason = str(error)
    at = place(item.name, source, page=item.name[: -len(".xml")])
    spacing, covered = _spacing(layout), 0
    for line in layout.lines:
        name = f"{item.name}#{shown(line.item if isinstance(line, Refused) else line.name)}"
        try:
            if isinstance(line, Refused):
                raise Unreadable(line.reason)
            if page is None:
                raise Unreadable(reason)
            trace = _trace(page, line, scale, spacing)
            covered += trace.area
            if covered > MAX_COVER * page.size:
                raise Unreadable(f"it and the lines before it cover the page more than {MAX_COVER} times")
            yield row(name, cutting.png(cutting.cut(page, trace)), line.text, at)
        except Unreadable as error:
            yield Refused(name, str(error))


def image_named_by(content: bytes) -> str:
    """The image that a page file names; empty where it is broken or names none."""
    try:
        layout = _layout(content)
    except Unreadable:
        return ""
    return layout.image if layout else ""


def _layout(content: bytes) -> Layout | None:
    root = xml_file.parse(content)
    name = xml_file.name_of(root)[1]
    return page_xml.layout(root) if name == "PcGts" else alto.layout(root) if name == "alto" else None


def _pixels(item: Item, layout: Layout, read: Read) -> tuple[np.ndarray, tuple[float, float]]:
    """The page, and what its coordinates are to be multiplied by."""
    entry = _image(item, layout)
    try:
        page = page_image.decode(read(entry, page_image.MAX_BYTES))
    except Unreadable as error:
        raise Unreadable(f"the image of its page, {shown(entry.name)}, {error}") from None
    height, width = page.shape
    if not layout.width or not layout.height or layout.width <= 0 or layout.height <= 0:
        return page, (1.0, 1.0)
    scale = width / layout.width, height / layout.height
    if not abs(scale[0] / scale[1] - 1) <= _ASPECT:
        raise Unreadable(
            f"the image of its page, {shown(entry.name)}, has {width} × {height} px, and the page file is about one of "
            f"{layout.width:g} × {layout.height:g}: bring the image that the page file was made from"
        )
    return page, scale


def _image(item: Item, layout: Layout) -> Entry:
    """The image by the name that the page file gives, else by the file's own stem."""
    if len(item.files) < 2:
        named = f" named {shown(layout.image)!r}" if layout.image else ""
        raise Unreadable(f"the image of its page{named} is not there: put it beside {item.name}")
    name = layout.image.replace("\\", "/").rpartition("/")[2]
    return next((entry for entry in item.files[1:] if entry.name.rpartition("/")[2] == name), item.files[1])


def _trace(page: np.ndarray, line: Line, scale: tuple[float, float], spacing: float) -> cutting.Trace:
    def scaled(points: Points | None) -> Points | None:
        return [(x * scale[0], y * scale[1]) for x, y in points] if points else None

    box = None
    if line.box:
        (left, top), (right, bottom) = scaled([line.box[:2], line.box[2:]])
        box = left, top, right, bottom
    return cutting.trace(page.shape, scaled(line.baseline), scaled(line.polygon), box, spacing * scale[1])


def _spacing(layout: Layout) -> float:
    """The usual distance of a baseline to the next below it; a fortieth of the page where there is only one."""
    middles = sorted(
        float(np.mean([y for _, y in line.baseline]))
        for line in layout.lines
        if isinstance(line, Line) and line.baseline
    )
    gaps = [gap for gap in np.diff(middles) if np.isfinite(gap) and gap > cutting.MIN_SIDE]
    return float(np.median(gaps)) if gaps else (layout.height or 1600.0) / 40

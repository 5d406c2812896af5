"""Pages for tests: rendered lines set on paper, straight, turned or bent, and the page files that describe them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

import cv2
import numpy as np
import rendered

Points = list[tuple[float, float]]
BASELINE = 35 / 48  # of a rendered line's height


@dataclass(frozen=True)
class Line:
    """A line as it lies on a page: its clean rendering, text, baseline and polygon."""

    image: np.ndarray
    text: str
    baseline: Points
    polygon: Points


def page(
    *,
    lines: int = 4,
    angle: float = 0.0,
    radius: float = 0.0,
    seed: int = 0,
    pitch: int = 58,
    shade: float = 0.0,
    size: int = 32,
    width: int = 1000,
    only: int | None = None,
) -> tuple[np.ndarray, list[Line]]:
    """A page as uint8 (H, W) and its lines.

    angle: degrees by which all is turned; radius: px of the arc on which the lines lie, positive for a hill, negative for
    a valley; shade: grey that the paper gains from left to right. A pitch below 48 px makes lines
    reach into one another. only: the one line that is drawn.
    """
    height = lines * pitch + 60
    ink = np.zeros((height, width), np.uint8)
    found = []
    for number in range(lines):
        text = rendered.words(seed * 100 + number)
        image = rendered.line(text, size=size, degrade=0.0)[:, : width - 80]
        h, w = image.shape
        top = 20 + number * pitch
        if only in (None, number):
            ink[top : top + h, 40 : 40 + w] = np.maximum(ink[top : top + h, 40 : 40 + w], 255 - image)
        x = np.unique(np.append(np.arange(40, 40 + w, 40), 40 + w - 1)).astype(float)
        found.append(
            (
                image,
                text,
                [(at, top + BASELINE * h) for at in x],
                [(at, top + 2) for at in x] + [(at, top + h - 2) for at in reversed(x)],
            )
        )
    ink, forward = _bent(ink, radius) if radius else _turned(ink, angle)
    paper = 255 - shade * np.linspace(0, 1, ink.shape[1])[None]
    image = np.clip(paper * (1 - ink / 255.0), 0, 255).astype(np.uint8)
    return image, [Line(line, text, forward(along), forward(around)) for line, text, along, around in found]


def _turned(ink: np.ndarray, angle: float) -> tuple[np.ndarray, Callable[[Points], Points]]:
    height, width = ink.shape
    side = int(np.hypot(height, width)) + 40
    shape = (height, width) if angle == 0 else (side, side)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0)
    matrix[:, 2] += (shape[1] - width) / 2, (shape[0] - height) / 2

    def forward(points: Points) -> Points:
        return [tuple(matrix[:, :2] @ point + matrix[:, 2]) for point in points]

    return cv2.warpAffine(ink, matrix, shape[::-1], flags=cv2.INTER_CUBIC), forward


def _bent(ink: np.ndarray, radius: float) -> tuple[np.ndarray, Callable[[Points], Points]]:
    height, width = ink.shape
    side, r = np.sign(radius), abs(radius)
    sag = int(r * (1 - np.cos(width / 2 / r))) + 40
    centre = (width / 2 + 40, height / 2 + sag / 2 + side * r)

    def forward(points: Points) -> Points:
        placed = []
        for u, v in points:
            angle, reach = (u - width / 2) / r, r + side * (height / 2 - v)
            placed.append((centre[0] + reach * np.sin(angle), centre[1] - side * reach * np.cos(angle)))
        return placed

    y, x = np.mgrid[0 : height + sag, 0 : width + 80].astype(np.float64)
    reach = np.hypot(x - centre[0], y - centre[1])
    angle = np.arctan2(x - centre[0], side * (centre[1] - y))
    u, v = width / 2 + r * angle, height / 2 - side * (reach - r)
    return cv2.remap(ink, u.astype(np.float32), v.astype(np.float32), cv2.INTER_CUBIC), forward


def page_xml(
    image: np.ndarray,
    lines: list[Line],
    *,
    version: str = "2019-07-15",
    name: str = "0001.png",
    size: tuple[int, int] | None = None,
    baselines: bool = True,
    polygons: bool = True,
    texts: bool = True,
) -> str:
    """The PAGE XML of a page."""
    height, width = size or image.shape
    body = []
    for number, line in enumerate(lines):
        coordinates = _points(line.polygon) if polygons else ""
        body.append(f'<TextLine id="l{number}"><Coords points="{coordinates}"/>')
        body += [f'<Baseline points="{_points(line.baseline)}"/>'] if baselines else []
        body += [f"<TextEquiv><Unicode>{escape(line.text)}</Unicode></TextEquiv>"] if texts else []
        body.append("</TextLine>")
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<PcGts xmlns="http://schema.primaresearch.org/PAGE/gts/pagecontent/{version}">'
        "<Metadata><Creator>a test</Creator></Metadata>"
        f'<Page imageFilename={quoteattr(name)} imageWidth="{width}" imageHeight="{height}"><TextRegion id="r">'
        f"{''.join(body)}</TextRegion></Page></PcGts>"
    )


def alto(
    image: np.ndarray,
    lines: list[Line],
    *,
    version: int = 4,
    name: str = "0001.png",
    unit: str = "pixel",
    polygons: bool = True,
) -> str:
    """The ALTO of a page; before version 4 a baseline is one height."""
    height, width = image.shape
    body = []
    for number, line in enumerate(lines):
        x, y = np.array(line.polygon).T
        box = f'HPOS="{x.min():.0f}" VPOS="{y.min():.0f}" WIDTH="{np.ptp(x):.0f}" HEIGHT="{np.ptp(y):.0f}"'
        baseline = (
            _points(line.baseline, " ") if version == 4 else f"{np.mean([point[1] for point in line.baseline]):.1f}"
        )
        body.append(f'<TextLine ID="l{number}" {box} BASELINE="{baseline}">')
        body += [f'<Shape><Polygon POINTS="{_points(line.polygon, " ")}"/></Shape>'] if polygons else []
        body.append('<SP WIDTH="9"/>'.join(f"<String CONTENT={quoteattr(word)}/>" for word in line.text.split()))
        body.append("</TextLine>")
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<alto xmlns="http://www.loc.gov/standards/alto/ns-v{version}#"><Description>'
        f"<MeasurementUnit>{unit}</MeasurementUnit><sourceImageInformation><fileName>{escape(name)}</fileName>"
        f'</sourceImageInformation></Description><Layout><Page WIDTH="{width}" HEIGHT="{height}"><PrintSpace><TextBlock>'
        f"{''.join(body)}</TextBlock></PrintSpace></Page></Layout></alto>"
    )


def _points(points: Points, between: str = ",") -> str:
    return " ".join(f"{x:.1f}{between}{y:.1f}" for x, y in points)

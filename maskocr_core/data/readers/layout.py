"""What page files say of a page, in whichever format: its image, its size and its lines."""

from __future__ import annotations

from dataclasses import dataclass, field

from maskocr_core.data.readers.units import Refused

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """One text line: what it reads and where it lies, in px of the page."""

    name: str
    text: str | None
    baseline: Points | None = None
    polygon: Points | None = None
    box: tuple[float, float, float, float] | None = None  # left, top, right, bottom


@dataclass(frozen=True)
class Layout:
    """One page. `width` and `height` are those the coordinates were made for."""

    image: str
    width: float | None
    height: float | None
    lines: list[Line | Refused] = field(default_factory=list)

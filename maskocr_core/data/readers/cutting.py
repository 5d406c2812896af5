"""From a page to the image of one line: sampled along its baseline, and cleared of its neighbours.

Rows of the result run parallel to the baseline, columns along its normals, so that slanted and curved lines come out
straight. How far it reaches above and below the baseline is the 95th percentile of the polygon's distance from it, so
that a single spike of the polygon does not shrink the whole line. What lies outside the polygon becomes the line's own
background, with a soft edge, since half letters of other lines would be learned as part of this one.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from maskocr_core.data import images
from maskocr_core.data.readers.layout import Points
from maskocr_core.data.readers.units import Unreadable

MAX_LINE_HEIGHT = 128  # px; more than `data.height` ever asks for
MIN_SIDE = 3  # px; below, nothing can be read
MAX_PIXELS = 32 << 20  # of one line as it lies on the page
_FAR = 1e6  # px; no page has such a coordinate
_ABOVE, _BELOW = 0.75, 0.25  # of the distance of two baselines, where there is no polygon


@dataclass(frozen=True)
class Path:
    """A baseline sampled every px: points, and unit normals that point below the text."""

    points: np.ndarray
    normals: np.ndarray


@dataclass(frozen=True)
class Trace:
    """Where one line lies: its path, how many px it reaches above and below it, and the polygon it must not leave."""

    path: Path
    above: int
    below: int
    polygon: np.ndarray | None

    @property
    def area(self) -> int:
        return (self.above + self.below) * len(self.path.points)


def trace(
    shape: tuple[int, int],
    baseline: Points | None,
    polygon: Points | None,
    box: tuple[float, float, float, float] | None = None,
    spacing: float = 40.0,
) -> Trace:
    """Where a line lies on a page of the given shape. Raises Unreadable for a line that is none.

    spacing: distance of two baselines of the page, for a line that has nothing but a baseline.
    """
    outline = _checked(polygon, 3, "polygon", shape) if polygon else None
    frame = outline
    if frame is None and box is not None:
        left, top, right, bottom = box
        frame = _checked([(left, top), (right, top), (right, bottom), (left, bottom)], 3, "box", shape)
    if baseline:
        path, above, below = _along(_checked(baseline, 2, "baseline", shape), frame, outline is not None, spacing)
    elif frame is not None:
        path, above, below = _straight(frame)
    else:
        raise Unreadable("has neither baseline nor polygon nor box")
    found = Trace(path, max(1, int(np.ceil(above))), max(0, int(np.ceil(below))), outline)
    width, height = len(path.points), found.above + found.below
    if min(width, height) < MIN_SIDE:
        raise Unreadable(f"is {width} × {height} px: too small to be read")
    if found.area > MAX_PIXELS or max(width, height) >= 1 << 15:
        raise Unreadable(f"is {width:,} × {height:,} px: too large for a line")
    return found


def cut(page: np.ndarray, line: Trace) -> np.ndarray:
    """Grayscale uint8 of a line, at most 128 px high."""
    rows = np.arange(-line.above, line.below, dtype=np.float64)[:, None]
    x, y = (line.path.points[:, axis] + rows * line.path.normals[:, axis] for axis in (0, 1))
    # Pixels are sampled from the part of the page around the line: OpenCV's maps reach no farther than 32,767 px.
    left, right = np.clip([np.floor(x.min()) - 2, np.ceil(x.max()) + 3], 0, page.shape[1]).astype(int)
    top, bottom = np.clip([np.floor(y.min()) - 2, np.ceil(y.max()) + 3], 0, page.shape[0]).astype(int)
    part = page[top:bottom, left:right]
    if part.size == 0 or part.size > 4 * MAX_PIXELS or max(part.shape) >= 1 << 15:
        raise Unreadable("lies outside of the page, or over all of it")
    x, y = (x - left).astype(np.float32), (y - top).astype(np.float32)
    pixels = cv2.remap(part, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    mask = np.full(part.shape, 255, np.uint8)
    if line.polygon is not None:
        mask[:] = 0
        cv2.fillPoly(mask, [np.rint((line.polygon - (left, top)) * 16).astype(np.int32)], 255, shift=4)
    mask = cv2.remap(mask, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return _shrunk(_cleared(pixels, mask))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _checked(given: Points, least: int, what: str, shape: tuple[int, int]) -> np.ndarray:
    """Float (n, 2) without repeated points, on the page for the greater part."""
    points = np.asarray(given, np.float64).reshape(-1, 2)
    if not np.isfinite(points).all() or np.abs(points).max(initial=0) > _FAR:
        raise Unreadable(f"its {what} has coordinates that are no px of a page")
    points = points[np.append(True, (np.diff(points, axis=0) != 0).any(axis=1))]
    if len(points) < least:
        raise Unreadable(f"its {what} has {len(points)} different points; {least} are wanted")
    low, high = points.min(axis=0), points.max(axis=0)
    size = np.array(shape[::-1])
    inside = np.clip(high, 0, size) - np.clip(low, 0, size)
    if (inside < 0.5 * (high - low)).any() or (high < 0).any() or (low > size).any():
        raise Unreadable(f"its {what} lies outside of the page, which has {size[0]} × {size[1]} px")
    if np.linalg.norm(np.diff(points, axis=0), axis=1).sum() > 8 * size.sum():
        raise Unreadable(f"its {what} is longer than four times round the page")
    return points


def _straight(frame: np.ndarray) -> tuple[Path, float, float]:
    """The bounding box as it is, its lower edge the baseline."""
    left, top = np.floor(frame.min(axis=0))
    right, bottom = np.ceil(frame.max(axis=0))
    return _path(np.array([(left, bottom), (max(right - 1, left + 1), bottom)])), bottom - top, 0.0


def _along(baseline: np.ndarray, frame: np.ndarray | None, tight: bool, spacing: float) -> tuple[Path, float, float]:
    """The path of a baseline that reaches to both ends of its frame, and how far the line goes above and below it."""
    run, rise = baseline[-1] - baseline[0]
    # Some programs write the points of right-to-left scripts the other way round; nobody writes upside down.
    if run < 0 and abs(run) >= abs(rise):
        baseline = baseline[::-1]
    path = _path(baseline)
    if frame is None:
        return path, _ABOVE * spacing, _BELOW * spacing
    above, below = _reach(path, frame, tight)
    height = max(above + below, MIN_SIDE)
    path = _path(_extended(_smoothed(path.points, 0.3 * height), frame, 2 * height))
    return path, *_reach(path, frame, tight)


def _path(polyline: np.ndarray) -> Path:
    """A polyline sampled every px of its length."""
    steps = np.linalg.norm(np.diff(polyline, axis=0), axis=1)
    at = np.concatenate([[0.0], np.cumsum(steps)])
    if at[-1] < 1:
        raise Unreadable("its baseline or polygon has no length")
    wanted = np.arange(np.floor(at[-1] + 1e-3) + 1)
    points = np.column_stack([np.interp(wanted, at, polyline[:, axis]) for axis in (0, 1)])
    tangents = np.gradient(points, axis=0)
    tangents /= np.maximum(np.linalg.norm(tangents, axis=1, keepdims=True), 1e-9)
    return Path(points, np.column_stack([-tangents[:, 1], tangents[:, 0]]))


def _smoothed(points: np.ndarray, sigma: float) -> np.ndarray:
    """The path without the kinks of a clicked polyline; its ends stay where they are."""
    reach = min(int(4 * sigma) + 1, len(points) - 1)
    before = 2 * points[0] - points[reach:0:-1]
    after = 2 * points[-1] - points[-2 : -2 - reach : -1]
    return gaussian_filter1d(np.concatenate([before, points, after]), sigma, axis=0)[reach : reach + len(points)]


def _extended(points: np.ndarray, frame: np.ndarray, most: float) -> np.ndarray:
    """The path and, at each end, the straight piece to where the frame ends: baselines often stop short of it."""
    nearest = cKDTree(points).query(frame)[1]
    pieces = [points]
    for end, inner in ((0, min(8, len(points) - 1)), (len(points) - 1, max(len(points) - 9, 0))):
        outwards = (points[end] - points[inner]) / max(np.linalg.norm(points[end] - points[inner]), 1e-9)
        beyond = min(((frame[nearest == end] - points[end]) @ outwards).max(initial=0.0), most)
        if beyond > 0.5:
            pieces.insert(0 if end == 0 else len(pieces), (points[end] + outwards * beyond)[None])
    return np.concatenate(pieces)


def _reach(path: Path, frame: np.ndarray, tight: bool) -> tuple[float, float]:
    """How far the frame goes above and below the path, robustly.

    tight: the frame follows the text; a box does so only where the line is straight, so that less of it counts.
    """
    closed = np.concatenate([frame, frame[:1]])
    around = _path(closed).points
    nearest = cKDTree(path.points).query(around)[1]
    offset = ((around - path.points[nearest]) * path.normals[nearest]).sum(axis=1)
    bins = nearest // 4
    reach = []
    for signed in (-offset, offset):
        farthest = np.zeros(bins.max() + 1)
        np.maximum.at(farthest, bins, signed)
        farthest = farthest[np.unique(bins)]
        reach.append(float(np.percentile(farthest, 95 if tight else 10)))
    return reach[0], reach[1]


def _cleared(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The line with its own background outside the mask, which is widened a little and softened at its edge."""
    if mask.min() == 255:
        return pixels
    inside = mask >= 128
    if not inside.any():
        raise Unreadable("its polygon lies outside of the page, or away from its baseline")
    background = _background(pixels, inside)
    margin = max(1, round(0.03 * mask.shape[0]))
    mask = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1)))
    weight = cv2.GaussianBlur(mask, (5, 5), 0).astype(np.float32) / 255
    return np.rint(pixels * weight + background * (1 - weight)).astype(np.uint8)


def _background(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The brightness of the paper under each column, float32: the median of stretches of the line, since ink covers less than half."""
    height, width = pixels.shape
    stretch = 4 * height
    centres, medians = [], []
    for start in range(0, width, stretch):
        known = pixels[:, start : start + stretch][inside[:, start : start + stretch]]
        if known.size:
            centres.append(start + stretch / 2)
            medians.append(np.median(known))
    return np.interp(np.arange(width), centres, medians).astype(np.float32)


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape
    scale = min(1.0, MAX_LINE_HEIGHT / height, images.MAX_WIDTH / width)
    if scale == 1:
        return pixels
    # Pillow resizes in whole numbers, so that every processor gives the same bytes.
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=None))

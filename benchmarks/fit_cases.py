"""Real lines as cases for the domain fit: targets with their own unlabelled sources, foreign sources, and damaged lines.

A target's labelled lines are those of `train` and `val`; its own sources are the pack's unlabelled lines. Packs without any
lend half of their documents as unlabelled, none of which is among the labelled ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from maskocr_core.data import images
from maskocr_core.data.domain_fit import features, orientation
from maskocr_core.data.domain_fit.yardstick import Lines

PACKS = Path(__file__).parents[2] / "shared" / "data"
TARGETS = ("fr_hand", "medieval_hand", "fraktur_print")
CONTROLS = ("early_print_fr", "modern_hand_fr")  # further targets, of which nothing is demanded
SOURCE_LINES = 300  # a source is a repository with at least so many lines
TURNED, TURNED_OF_TARGET = 100, 1000

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
DAMAGE: dict[str, Change] = {
    "noise": lambda pixels, random: random.integers(0, 256, pixels.shape).astype(np.uint8),
    "blank": lambda pixels, random: np.full_like(pixels, 230),
    "inverted": lambda pixels, random: 255 - pixels,
    "upside down": lambda pixels, random: pixels[::-1, ::-1],
    "mirrored": lambda pixels, random: pixels[:, ::-1],
    "rotated by 90°": lambda pixels, random: np.rot90(pixels),
    "columns shuffled": lambda pixels, random: pixels[:, random.permutation(pixels.shape[1])],
}


@lru_cache
def pack(name: str) -> pd.DataFrame:
    """All labelled and unlabelled lines of a pack that may be used for choices: none of `test`."""
    files = sorted(
        path for path in (PACKS / name).glob("*.parquet") if path.stem.split("-")[0] in ("train", "val", "unlabeled")
    )
    return pd.concat([pd.read_parquet(path) for path in files], ignore_index=True)


def labelled(name: str, count: int | None = None) -> pd.DataFrame:
    """The target's lines: all, or the first `count` of the pack's own nested order."""
    frame = pack(name)
    frame = frame[frame["split"] != "unlabeled"]
    if not has_unlabelled(name):
        frame = frame[frame["doc"].map(_side)]
    return frame if count is None else frame[frame["split"] == "train"].sort_values("order", kind="stable").head(count)


def own(name: str) -> dict[str, pd.DataFrame]:
    """The target's own unlabelled sources by name."""
    frame = pack(name)
    frame = frame[frame["split"] == "unlabeled"] if has_unlabelled(name) else frame[~frame["doc"].map(_side)]
    return _by_source(frame)


def foreign(name: str) -> dict[str, pd.DataFrame]:
    """The sources of all other packs."""
    found = {}
    for other in (*TARGETS, *CONTROLS):
        if other != name:
            frame = pack(other)
            found |= _by_source(frame[frame["split"] == "unlabeled"] if has_unlabelled(other) else frame)
    return found


@lru_cache(maxsize=256)
def target_lines(name: str, count: int | None = None) -> Lines:
    return described(labelled(name, count), lines=10**9, turned=TURNED_OF_TARGET)


def described(frame: pd.DataFrame, *, change: Change | None = None, lines: int = 600, turned: int = TURNED) -> Lines:
    """At most `lines` lines of a frame, chosen by digest, as `sampling` would describe them."""
    frame = frame.assign(place=frame["id"].map(_place)).sort_values("place").head(lines)
    random = np.random.default_rng(0)
    encoded = list(frame["image"]) if change is None else [_changed(image, change, random) for image in frame["image"]]
    rows = np.arange(min(turned, len(frame)))
    after = [features.described(orientation.turned(encoded[row])) for row in rows]
    return Lines(
        list(frame["id"]),
        features.described(encoded),
        list(frame["page"]),
        list(frame["doc"]),
        list(frame["source"]),
        np.stack(after),
        rows,
    )


def joined(*parts: Lines) -> Lines:
    """Several as one source, the lines of each named after its number."""
    starts = np.cumsum([0, *(len(part.line_ids) for part in parts)])
    return Lines(
        [f"{number}/{line}" for number, part in enumerate(parts) for line in part.line_ids],
        np.concatenate([part.features for part in parts]),
        [page for part in parts for page in part.pages],
        [document for part in parts for document in part.documents],
        [source for part in parts for source in part.sources],
        np.concatenate([part.turned for part in parts]),
        np.concatenate([part.turned_rows + start for part, start in zip(parts, starts)]),
    )


def cases(name: str) -> Iterator[tuple[str, str, Lines]]:
    """(kind, name, lines): own and foreign sources, and damaged lines of the target's own."""
    for source, frame in own(name).items():
        yield "own", source, described(frame)
    for source in foreign(name):
        yield "foreign", source, described_once(source)
    mixed = pd.concat(own(name).values())
    for kind, change in DAMAGE.items():
        yield "damaged", kind, described(mixed, change=change, lines=400)
    good, bad = described(mixed, lines=420), described(mixed[::-1], change=DAMAGE["noise"], lines=180)
    yield "mixed", "70 % good, 30 % noise", joined(good, bad)


@lru_cache(maxsize=64)
def described_once(source: str) -> Lines:
    """A foreign source, described once for all targets."""
    found = next(sources[source] for name in (*TARGETS, *CONTROLS) if source in (sources := foreign(name)))
    return described(found)


@lru_cache
def has_unlabelled(name: str) -> bool:
    return bool((pack(name)["split"] == "unlabeled").any())


def _by_source(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    groups = {str(source).split("/")[-1]: lines for source, lines in frame.groupby("source")}
    return {source: lines for source, lines in groups.items() if len(lines) >= SOURCE_LINES}


def _changed(image: bytes, change: Change, random: np.random.Generator) -> bytes:
    pixels = np.ascontiguousarray(change(images.decode(image), random))[: images.MAX_HEIGHT]
    return cv2.imencode(".png", pixels)[1].tobytes()


def _side(document: str) -> bool:
    return hashlib.sha256(document.encode()).digest()[0] < 128


def _place(identity: str) -> str:
    return hashlib.sha256(identity.encode()).hexdigest()

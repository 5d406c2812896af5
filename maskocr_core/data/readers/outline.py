"""What `ingest` would find, told before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from maskocr_core.config import Data
from maskocr_core.data.readers import parquet
from maskocr_core.data.readers.units import Refused, Unit
from maskocr_core.services import storage

SAMPLED_UNITS, SHOWN_REFUSALS = 16, 10


@dataclass(frozen=True)
class Outline:
    """What lies below a URI, and what became of a sample of it."""

    uri: str
    files: int
    bytes: int
    forms: dict[str, int]  # "Parquet files", "line images with text", …
    units: int
    lines: int  # known from footers and names, guessed for page files
    columns: dict[str, str]  # ours → that of the first Parquet file
    splits: dict[
        str, int
    ]  # of the sampled lines: those the data name, and "by document" or "by page" for those ingest splits
    sampled: int
    refused: int  # in the sample
    refusals: tuple[Refused, ...]  # the first of them

    def render(self) -> list[str]:
        """Plain lines of text."""
        found = ", ".join(f"{count:,} {form}" for form, count in self.forms.items())
        shown = [f"{self.uri}: {self.files:,} files, {self.bytes / 1e6:,.1f} MB", f"found: {found}"]
        shown.append(f"about {self.lines:,} lines in {self.units:,} units")
        if self.columns:
            shown.append("columns: " + ", ".join(f"{ours} ← {theirs}" for ours, theirs in self.columns.items()))
        shown.append(
            "splits: " + (", ".join(f"{count:,} {how}" for how, count in self.splits.items()) or "no line was read")
        )
        shown.append(f"sample: {self.sampled:,} lines read, {self.refused:,} items refused")
        return shown + [f"refused: {refused.item}: {refused.reason}" for refused in self.refusals]


def outlined(
    uri: str, data: Data, units: list[Unit], read: Callable[[Unit], Iterator[dict[str, Any] | Refused]], sample: int
) -> Outline:
    """The outline of planned units, a sample of whose lines is read from units evenly spread over all."""
    found = storage.files(uri)
    chosen = units[:: -(-len(units) // SAMPLED_UNITS)]
    rows, refusals = [], []
    for unit in chosen:
        for row in islice(read(unit), -(-sample // len(chosen))):
            (refusals if isinstance(row, Refused) else rows).append(row)
    # Those that are known without reading come from all units.
    planned = [Refused(item.name, item.reason) for unit in units for item in unit.items if item.form == "refused"]
    known = set(planned)
    refusals = planned + [refusal for refusal in refusals if refusal not in known]
    return Outline(
        uri,
        len(found),
        sum(file.size for file in found),
        _forms(units),
        len(units),
        sum(unit.lines for unit in units),
        _columns(units, data),
        dict(Counter(_split(row, data) for row in rows).most_common()),
        len(rows),
        len(refusals),
        tuple(refusals[:SHOWN_REFUSALS]),
    )


def _forms(units: list[Unit]) -> dict[str, int]:
    tables = {(unit.archive and unit.archive.name, unit.table.name) for unit in units if unit.table}
    found = Counter({"Parquet files": len(tables)})
    for item in (item for unit in units for item in unit.items):
        if item.form == "line":
            found["line images with text" if item.text else "line images without text"] += 1
        elif item.form == "page":
            found["page files"] += 1
    found["archives"] = len({unit.archive.name for unit in units if unit.archive})
    return {form: count for form, count in found.items() if count}


def _columns(units: list[Unit], data: Data) -> dict[str, str]:
    first = next((unit for unit in units if unit.table and not unit.archive), None)
    if first is None:
        return {}
    with first.table.open() as file:
        return {ours: theirs for ours, theirs in parquet.Table(first.table, file, data).columns.items() if theirs}


def _split(row: dict[str, Any], data: Data) -> str:
    """How a row comes to its split."""
    if row["split"]:
        return f"{row['split']} (named by the data)"
    return f"labelled, split by {data.split_unit}" if row["text"] else "unlabeled"

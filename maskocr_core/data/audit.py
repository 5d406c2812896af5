"""Every line measured, and what the whole set must hold: no page on two sides of a split, no source that is mostly bad."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa

from maskocr_core.artifacts import Artifact
from maskocr_core.data import images, lines, quality
from maskocr_core.progress import Progress

COMMON_HEIGHT = (
    48  # px to which widths are brought before they are compared, so that limits hold for scans of any resolution
)


def measure(artifact: Artifact) -> pd.DataFrame:
    """One row a line: its metadata, `characters`, `pixels_per_character`, the measurements of `quality.measure`, and `reasons`.

    `reasons` is empty for a good line, else why it is quarantined. A line that cannot be decoded has no measurements.
    """
    rows = []
    total = sum(lines.index(artifact, split).num_rows for split in lines.SPLITS)
    progress = Progress("validate", total=total)
    for split in lines.SPLITS:
        for batch in lines.images(artifact, split):
            for row in batch.to_pylist():
                image = row.pop("image")
                rows.append({"split": split, **row, **_measured(image, row)})
            progress.update(len(rows))
    frame = pd.DataFrame(rows)
    frame["characters"] = frame["text"].str.len()
    frame["pixels_per_character"] = frame["width"] * COMMON_HEIGHT / frame["height"] / frame["characters"]
    return frame.drop(columns=["order", "license", "text"])


def shared_units(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Pages and documents with lines in more than one labelled split, transfer lines included.

    A page is known by its source, document and name: "1" is a page of many documents.
    """
    labelled = frame[frame["split"] != "unlabeled"]
    units = {"document_id": ["source", "document_id"], "page_id": ["source", "document_id", "page_id"]}
    sides = {unit: labelled.groupby(columns)["split"].nunique() for unit, columns in units.items()}
    return {unit: sorted(" / ".join(key) for key in counts[counts > 1].index) for unit, counts in sides.items()}


def refuse_leaks(shared: dict[str, list[str]]) -> None:
    """Raises ValueError if a page is on two sides of a split: its test score would be of lines half seen."""
    if pages := shared["page_id"]:
        raise ValueError(
            f"{len(pages)} pages have lines in more than one labelled split (first: {pages[0]}): "
            "a page belongs to one split; correct the column 'split', or leave it out and ingest splits by document"
        )


def refuse_bad_sources(frame: pd.DataFrame, max_refused: float) -> None:
    """Raises ValueError for a source of which more than `max_refused` was quarantined, with its three worst reasons and lines."""
    for source, group in frame.groupby("source"):
        bad = group[group["reasons"] != ""]
        if len(bad) > max_refused * len(group):
            worst = "; ".join(f"{row.line_id}: {row.reasons}" for row in bad.head(3).itertuples())
            raise ValueError(
                f"source {source}: {len(bad):,} of {len(group):,} lines are bad ({worst}): leave the source out, "
                f"mend it, or raise quality.max_refused above {len(bad) / len(group):.2f}"
            )


def as_table(frame: pd.DataFrame) -> pa.Table:
    """The frame as Parquet keeps it, without pandas' own metadata."""
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)


def _measured(image: bytes, row: dict) -> dict:
    try:
        measured = quality.measure(images.decode(image))
    except ValueError as error:
        return {"reasons": str(error)}
    return {**measured, "reasons": "; ".join(quality.reasons({**row, **measured}))}

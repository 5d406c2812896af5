"""From verdicts on sources to the side table that says which lines are drawn, and how often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from maskocr_core import config
from maskocr_core.artifacts import Artifact
from maskocr_core.data import features, fit, images, lines
from maskocr_core.progress import Progress

TARGET_SPLITS = ("train", "val")  # never test: the selection is a choice


def describe(artifact: Artifact, quarantined: set[str]) -> dict[str, fit.Lines]:
    """Features of the labelled target lines (under "") and of the unlabelled lines of each source, quarantined ones left out."""
    rows: dict[str, list[tuple]] = {}
    total = sum(lines.index(artifact, split).num_rows for split in (*TARGET_SPLITS, "unlabeled"))
    progress, done = Progress("fit", total=total), 0
    for split in (*TARGET_SPLITS, "unlabeled"):
        for batch in lines.images(artifact, split):
            for row in batch.to_pylist():
                if row["line_id"] not in quarantined:
                    described = features.describe(images.prepare(row["image"], features.HEIGHT, images.MAX_WIDTH))
                    key = row["source"] if split == "unlabeled" else ""
                    rows.setdefault(key, []).append((row["line_id"], described, row["page_id"], row["document_id"]))
            done += batch.num_rows
            progress.update(done)
    return {
        source: fit.Lines(ids, np.stack(described), pages, documents)
        for source, columns in sorted(rows.items())
        for ids, described, pages, documents in [tuple(zip(*columns))]
    }


def judge_sources(described: dict[str, fit.Lines], settings: config.Fit) -> list[dict[str, Any]]:
    """One record a source: verdict, weight, statistics, reasons, and `line_weights` by line id.

    Raises ValueError if there is no unlabelled line at all.
    """
    target = described[""]
    sources = [source for source in described if source]
    if not sources:
        raise ValueError(
            "there is no unlabelled line to pre-train on: add images without text, or a Parquet file with split 'unlabeled'"
        )
    thresholds = fit.Thresholds(accept_kid_ratio=settings.accept_kid_ratio, reject_kid_ratio=settings.reject_kid_ratio)
    records = []
    for source in sources:
        verdict = fit.judge(target, described[source], thresholds, settings.seed)
        record = verdict.record()
        records.append(
            record
            | {
                "source": source,
                "lines": len(described[source].line_ids),
                "coverage_interval": record["coverage"],
                "coverage": record["coverage"]["value"] if record["coverage"] else None,
                "kid_ratio": record["kid"]["ratio"] if record["kid"] else None,
                "line_weights": dict(zip(described[source].line_ids, verdict.line_weights.tolist())),
            }
        )
    return records


def selection(artifact: Artifact, quarantined: set[str], verdicts: list[dict[str, Any]]) -> pa.Table:
    """Every line that is admitted: labelled ones outside the quarantine with weight 1, unlabelled ones as their source's verdict says."""
    weights = {identity: weight for record in verdicts for identity, weight in record["line_weights"].items()}
    rows = []
    for split in lines.SPLITS:
        for identity in lines.index(artifact, split)["line_id"].to_pylist():
            weight = weights.get(identity, 0.0) if split == "unlabeled" else float(identity not in quarantined)
            if weight > 0:
                rows.append({"line_id": identity, "split": split, "weight": weight})
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["line_id"]), schema=lines.SELECTION)

"""Where the lines came from that a model was trained on and judged by: sources, their licences, documents and lines."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq

from maskocr_core.artifacts import Artifact

USES = {
    "train": "fine-tuning",
    "val": "choice of the checkpoint, calibration",
    "test": "evaluation",
    "unlabeled": "pre-training",
    "transfer-train": "transfer training",
    "transfer-val": "choice in transfer training, evaluation of what is forgotten",
    "protected-test": "evaluation of what is forgotten",
}


def sources(artifact: Artifact, splits: Iterable[str], admitted: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of {use, source, license, documents, lines} of some splits of an ingested artifact, in the order of the splits.

    license: None where the lines bring none. admitted: the sources of unlabelled lines of which domain fit admits any.
    Documents count as one licence: that of their first line.
    """
    table = pq.read_table(io.BytesIO(artifact.read_bytes("documents.parquet")))
    grouped = table.group_by(["split", "source", "license"], use_threads=False).aggregate(
        [("document_id", "count"), ("lines", "sum")]
    )
    order, kept = list(splits), set(admitted)
    rows = [row for row in grouped.to_pylist() if row["split"] in order]
    rows.sort(key=lambda row: (order.index(row["split"]), row["source"], row["license"] or ""))
    return [
        {"use": USES[row["split"]]}
        | {name: row[name] for name in ("source", "license")}
        | {"documents": row["document_id_count"], "lines": row["lines_sum"]}
        for row in rows
        if row["split"] != "unlabeled" or row["source"] in kept
    ]

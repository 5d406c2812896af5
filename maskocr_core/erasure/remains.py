"""What a re-packed artifact of lines says of the lines that are left: as ingest would write it for them alone."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines, tombstones
from maskocr_core.erasure.doomed import Doomed, in_shard_folder


def tell(artifact: Artifact, aside: Path, new: dict[str, bytes | None], doomed: Doomed) -> None:
    """Write `documents` and `duplicates.parquet`. new: content by name of the files that are not the artifact's any more."""
    touched = {name for name in new if in_shard_folder(name)}
    if "documents.parquet" in artifact.names():
        lines.write(_documents(artifact, touched, new, doomed), aside / "documents.parquet")
    if "duplicates.parquet" in artifact.names():
        table = lines.read_table(artifact, "duplicates.parquet")
        lines.write(_duplicates(table, touched, new, doomed), aside / "duplicates.parquet")


def _duplicates(table: pa.Table, touched: set[str], new: dict[str, bytes | None], doomed: Doomed) -> pa.Table:
    """Copies that are left, each at its new place; a line of which one copy is left has no duplicates."""
    rows = table.filter(pa.array(~doomed.hidden.hides(table))).to_pylist()
    copies = Counter(row["line_id"] for row in rows)
    places = {name: _places(new[name]) for name in touched if new[name] is not None}
    kept, ranks = [], Counter()
    for row in (row for row in rows if copies[row["line_id"]] > 1):
        if row["shard"] in places:
            row["place"] = places[row["shard"]][tuple(row[name] for name in tombstones.KEY)]
        row["rank"] = ranks[row["line_id"]]
        ranks[row["line_id"]] += 1
        kept.append(row)
    return pa.Table.from_pylist(kept, schema=table.schema)


def _places(shard: bytes) -> dict[tuple[str, ...], int]:
    table = pq.read_table(io.BytesIO(shard), columns=list(tombstones.KEY))
    return {key: place for place, key in enumerate(zip(*(table[name].to_pylist() for name in tombstones.KEY)))}


def _documents(artifact: Artifact, touched: set[str], new: dict[str, bytes | None], doomed: Doomed) -> pa.Table:
    """The table of documents; those of which single lines were erased are counted anew."""
    table = lines.read_table(artifact, "documents.parquet")
    rows = table.to_pylist()
    splits = {name.split("/")[0] for name in touched}
    counted = {
        (row["source"], row["document_id"], row["split"]): row | {"lines": 0, "first_expiry": None}
        for row in rows
        if row["split"] in splits and (row["source"], row["document_id"]) in doomed.documents
    }
    for name in [name for name in artifact.names() if in_shard_folder(name) and name.split("/")[0] in splits]:
        if name in new and new[name] is None:
            continue
        file = io.BytesIO(new[name]) if name in new else artifact.open(name)
        parquet = pq.ParquetFile(file)
        wanted = [c for c in ("source", "document_id", "retain_until") if c in parquet.schema_arrow.names]
        for row in parquet.read(columns=wanted).to_pylist():
            if (known := counted.get((row["source"], row["document_id"], name.split("/")[0]))) is not None:
                known["lines"] += 1
                limits = [day for day in (known["first_expiry"], row.get("retain_until")) if day]
                known["first_expiry"] = min(limits, default=None)
    rows = [counted.get((row["source"], row["document_id"], row["split"]), row) for row in rows]
    return pa.Table.from_pylist([row for row in rows if row["lines"]], schema=table.schema)

"""ingest: raw lines → Parquet shards of one schema."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from maskocr_core.config import Config
from maskocr_core.stages import stage


@stage(reads=("data",))
def ingest(config: Config, *, data_uri: str, transfer_uri: str = "", lines_out: Path) -> dict[str, float]:
    """Turn raw line images and their texts into Parquet shards, one folder a split; count and list what is refused.

    data_uri: your lines: a folder or s3://bucket/prefix with Parquet files, or images with .gt.txt or .txt beside them.
    transfer_uri: labelled lines of a related domain in the same forms, or a trained recognizer (a folder, or models:/name@alias); empty for none.
    lines_out: the shards, `<split>/part-*.parquet`, and `refused.parquet`.
    """
    from maskocr_core.data import lines, readers
    from maskocr_core.progress import Progress

    writers = {split: lines.ShardWriter(lines_out, split, config.data.shard_lines) for split in lines.SPLITS}
    refused: list[readers.Refused] = []
    counts: Counter[str] = Counter()
    first_seen: dict[str, str] = {}
    has_transfer = bool(transfer_uri) and not readers.is_model(transfer_uri)
    # A transfer source only lends its labels: it needs no test lines, and those it brings have no use here.
    lending = config.data.model_copy(update={"test_share": 0.0})
    sources = [("", data_uri, config.data)] + ([("transfer-", transfer_uri, lending)] if has_transfer else [])
    progress = Progress("ingest")
    for prefix, uri, data in sources:
        for row in readers.read(uri, data):
            if isinstance(row, readers.Refused):
                refused.append(row)
                continue
            split = prefix + (
                row.pop("split") or readers.split_of(row[f"{data.split_unit}_id"], row["text"] is not None, data)
            )
            if split not in writers:
                counts["unused"] += 1
            elif row["line_id"] in first_seen:
                refused.append(
                    readers.Refused(row["line_id"], f"the same image as a line of split {first_seen[row['line_id']]}")
                )
            else:
                first_seen[row["line_id"]] = split
                counts[split] += 1
                writers[split].add(row)
                progress.update(sum(counts.values()), refused=len(refused))
    for writer in writers.values():
        writer.flush()
    _write_refused(refused, lines_out)
    _demand(counts, refused, data_uri, transfer_uri if has_transfer else "")
    progress.done(
        sum(counts.values()), refused=len(refused), **{split: counts[split] for split in lines.SPLITS if counts[split]}
    )
    return {"refused": float(len(refused)), **{split.replace("-", "_"): float(counts[split]) for split in lines.SPLITS}}


def _write_refused(refused: list, lines_out: Path) -> None:
    import pyarrow as pa

    from maskocr_core.data import lines

    table = pa.table(
        {"item": [row.item for row in refused], "reason": [row.reason for row in refused]},
        schema=pa.schema([("item", pa.string()), ("reason", pa.string())]),
    )
    lines.write(table, lines_out / "refused.parquet")


def _demand(counts: Counter[str], refused: list, data_uri: str, transfer_uri: str) -> None:
    """Refuse data with which no later stage could do its work, naming what is missing and the mend."""
    worst = f"; refused: {refused[0].item}: {refused[0].reason}" if refused else ""
    if not sum(counts.values()):
        raise ValueError(f"{data_uri}: none of the {len(refused)} items is a line{worst}")
    wanted = [("train", "labelled lines to fine-tune on"), ("val", "validation lines"), ("test", "test lines")]
    missing = [(data_uri, what) for split, what in wanted if not counts[split]]
    if transfer_uri:
        missing += [(transfer_uri, what) for split, what in wanted[:2] if not counts[f"transfer-{split}"]]
    for uri, what in missing:
        raise ValueError(
            f"{uri}: there are no {what}{worst}; label more documents, set data.split_unit=page where documents are few, "
            "or bring a column 'split' with train, val, test and unlabeled"
        )

"""fit: unlabelled lines + labelled target lines → a verdict on each source, and the selection of lines."""

from __future__ import annotations

from pathlib import Path

from maskocr_core.config import Config
from maskocr_core.stages import stage


@stage(reads=("data", "fit"))
def fit(config: Config, *, lines: Path, validation: Path, selection_out: Path) -> dict[str, float]:
    """Judge whether each unlabelled source looks like the target's labelled lines, and select lines with their weights.

    lines: shards as ingest writes them.
    validation: the quarantine, as validate writes it; its lines are left out everywhere.
    selection_out: `selection.parquet` (line id, split, weight) and `verdicts.json`, one record a source.
    """
    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import lines as schema
    from maskocr_core.data import selecting

    quarantined = set(schema.read_table(Artifact(validation), "quarantine.parquet")["line_id"].to_pylist())
    described = selecting.describe(Artifact(lines), quarantined)
    verdicts = selecting.judge_sources(described, config.fit)
    for record in verdicts:
        print(
            f"fit: {record['source']}: {record['verdict']} ({record['lines']:,} lines, weight {record['weight']:.2f}). {' '.join(record['reasons'])}",
            flush=True,
        )
    table = selecting.selection(Artifact(lines), quarantined, verdicts)
    schema.write(table, selection_out / "selection.parquet")
    artifacts.write_json(
        selection_out / "verdicts.json",
        [{name: value for name, value in record.items() if name != "line_weights"} for record in verdicts],
    )
    selected = table.filter([split == "unlabeled" for split in table["split"].to_pylist()])
    if not selected.num_rows:
        raise ValueError(
            "no unlabelled line was accepted: bring lines that look like the labelled ones; the verdicts above say how each source differs"
        )
    counts = {
        verdict: sum(record["verdict"] == verdict for record in verdicts)
        for verdict in ("accept", "down-weight", "reject", "undecided")
    }
    return {f"sources_{verdict.replace('-', '_')}": float(count) for verdict, count in counts.items()} | {
        "lines_selected": float(selected.num_rows)
    }

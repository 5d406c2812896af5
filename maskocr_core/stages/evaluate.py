"""evaluate: recognisers + test lines (+ champion) → scores, report, verdict."""

from __future__ import annotations

from pathlib import Path

from maskocr_core.config import Config
from maskocr_core.stages import scratch, stage


def _champion_version(config: Config) -> str:
    from maskocr_core.services import tracking

    return f"{tracking.uri()} {tracking.version_of(config.registry, 'champion') or 'none'}"


@stage(reads=("data", "gate", "registry"), also=_champion_version)
def evaluate(
    config: Config, *, lines: Path, validation: Path, selection: Path, recognizers: Path, evaluation_out: Path
) -> dict[str, float]:
    """Read the test lines with every start and with the champion, if there is one; compare, and give a verdict.

    lines: shards as ingest writes them.
    validation: what validate has to say of the data, for the report and the model card.
    selection: admitted line ids and the verdicts on sources, as fit writes them.
    recognizers: the best recognizers of each start, as finetune writes them.
    evaluation_out: `summary.json`, `predictions.parquet`, `report.html`, `report.png`, and `shown.json`: which lines they show.
    """
    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import batches
    from maskocr_core.data import lines as schema
    from maskocr_core.judging import comparison, report
    from maskocr_core.services import tracking
    from maskocr_core.training import reading

    test_lines = batches.Lines(
        Artifact(lines), schema.selected(Artifact(lines), Artifact(selection), "test"), config.data
    )
    runs = Artifact(recognizers).read_json("runs.json")
    champion = tracking.champion_folder(config.registry)
    folder = Artifact(recognizers).local(scratch(evaluation_out) / "recognizers")
    readings = reading.read_starts(folder, runs["runs"], test_lines)
    champion_texts = reading.read_with(champion, test_lines, "champion") if champion else None
    test = comparison.Test(test_lines.texts, test_lines.documents, config.gate.confidence, config.gate.min_documents)
    candidate = reading.candidate(runs["runs"])
    rows, verdict = comparison.compare(test, readings, candidate, champion_texts)
    summary = {
        "verdict": verdict,
        "candidate": candidate,
        "data_version": Artifact(lines).version,
        "selection_version": Artifact(selection).version,
        "documents": len(set(test_lines.documents)),
        "lines": len(test_lines),
        "confidence": config.gate.confidence,
        "starts": [reading.with_costs(row, runs) for row in rows],
        "examples": reading.examples(test_lines, readings, candidate),
        "fit": Artifact(selection).read_json("verdicts.json"),
        "notes": reading.notes(Artifact(lines), runs) + Artifact(validation).read_json("verdict.json")["notes"],
    }
    artifacts.write_json(evaluation_out / "summary.json", summary)
    schema.write(reading.predictions(test_lines, readings, champion_texts), evaluation_out / "predictions.parquet")
    # Pictures stand in the page alone, which erasure removes whole: of a summary it takes out lines one by one.
    report.render(summary | {"pictures": reading.pictures(Artifact(recognizers))}, evaluation_out)
    examples = {example["line_id"] for example in summary["examples"]}
    shown = {"report.html": examples | reading.pictured(Artifact(recognizers)), "summary.json": examples}
    artifacts.write_json(evaluation_out / "shown.json", {name: sorted(ids) for name, ids in shown.items()})
    return {f"{row['start']}_cer": row["cer"]["all"]["value"] for row in rows} | {
        "test_lines": float(len(test_lines)),
        "test_documents": float(summary["documents"]),
    }

"""validate: lines → quality report, quarantine, verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from maskocr_core.config import Config
from maskocr_core.stages import scratch, stage

if TYPE_CHECKING:
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data.qa.audit import Findings


@stage(reads=("data", "quality"))
def validate(config: Config, *, lines: Path, validation_out: Path) -> dict[str, float]:
    """Measure every line, check the whole with Great Expectations, quarantine bad lines with the reason, refuse leaks.

    lines: shards as ingest writes them.
    validation_out: `quarantine.parquet`, `near_duplicates.parquet`, a file a shard in `measurements/`, `verdict.json`, and for people `contact_sheet.html` and `data_docs/` (open index.html).
    """
    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import lines as schema
    from maskocr_core.data.qa import audit, contact_sheet, leaks
    from maskocr_core.services import expectations

    findings = _measured(Artifact(lines), validation_out)
    audit.write_quarantine(findings, validation_out / "quarantine.parquet")
    contact_sheet.write(Artifact(lines), findings.quarantined(), validation_out)
    found = leaks.find(Artifact(lines), findings)
    schema.write(leaks.table(found), validation_out / "near_duplicates.parquet")
    report = {"success": False, "expectations": []}
    if findings.lines > findings.refused:
        sound = leaks.beside(findings, found, scratch(validation_out))
        report = expectations.check(sound, validation_out / "data_docs")
    notes = leaks.notes(found) + audit.notes(findings) + audit.cut(findings, config.data)
    verdict = report | {"notes": notes, "quarantined": findings.refused, "kinds": findings.kinds}
    artifacts.write_json(validation_out / "verdict.json", verdict)
    failed = [row for row in report["expectations"] if not row["success"]]
    _say(findings, failed, notes)
    faults = leaks.faults(found, config.data) + audit.bad_shards(findings, config.quality)
    if faults:
        print(f"validate: what was refused can be seen in {validation_out / contact_sheet.PAGE}", flush=True)
        for further in faults[1:]:
            print(f"validate: also {further}", flush=True)
        raise ValueError(faults[0])
    return {
        "lines": float(findings.lines),
        "quarantined": float(findings.refused),
        "expectations_failed": float(len(failed)),
        "shared_documents": float(len(leaks.torn_documents(found))),
        "near_duplicates": float(sum(found.near_pairs)),
        "equal_texts": float(sum(equal for equal, _ in found.equal_texts.values())),
    }


def _measured(artifact: Artifact, validation_out: Path) -> Findings:
    """Every shard measured, wherever there is room for it; the measurements lie in `validation_out`."""
    from maskocr_core import artifacts
    from maskocr_core.data import lines
    from maskocr_core.data.qa import audit
    from maskocr_core.progress import Progress
    from maskocr_core.services import mapping

    calls = {lines.part_of(shard): (artifact, shard) for shard in lines.shards(artifact, *lines.SPLITS)}
    progress = Progress("validate", total=sum(lines.count(artifact, split) for split in lines.SPLITS))
    done = [0, 0]

    def say(name: str, result: dict) -> None:
        done[0], done[1] = done[0] + result["lines"], done[1] + result["refused"]
        progress.update(done[0], quarantined=done[1])

    parts = scratch(validation_out) / "parts"
    results = mapping.over(audit.measure, calls, parts, say=say)
    for name in calls:
        artifacts.take_over(parts / name, validation_out, tuple(f"measurements/{split}" for split in lines.SPLITS))
    return audit.Findings(results, parts)


def _say(findings: Findings, failed: list[dict], notes: list[str]) -> None:
    """The few lines that a person needs."""
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in findings.kinds.most_common(6))
    seen = f" ({kinds}; see contact_sheet.html)" if kinds else ""
    print(f"validate: {findings.lines:,} lines measured, {findings.refused:,} quarantined{seen}", flush=True)
    for row in failed:
        few = f", such as {', '.join(row['observed'][:3])}" if row["observed"] else ""
        print(
            f"validate: {row['column']}: {row['unexpected_percent']:.1f} % of the lines are not as expected "
            f"({row['expectation'].removeprefix('expect_column_values_to_').replace('_', ' ')}{few}); see data_docs",
            flush=True,
        )
    for note in notes:
        print(f"validate: note: {note}", flush=True)

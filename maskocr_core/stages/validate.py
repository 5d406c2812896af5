"""validate: lines → quality report, quarantine, verdict."""

from __future__ import annotations

from pathlib import Path

from maskocr_core.config import Config
from maskocr_core.stages import stage


@stage(reads=("data", "quality"))
def validate(config: Config, *, lines: Path, validation_out: Path) -> dict[str, float]:
    """Measure every line, check the whole with Great Expectations, and quarantine bad lines with the reason.

    lines: shards as ingest writes them.
    validation_out: `quarantine.parquet`, `measurements.parquet`, `verdict.json` and `data_docs/` (open index.html).
    """
    from maskocr_core import artifacts
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import audit
    from maskocr_core.data import lines as schema
    from maskocr_core.services import expectations

    frame = audit.measure(Artifact(lines))
    shared = audit.shared_units(frame)
    audit.refuse_leaks(shared)
    audit.refuse_bad_sources(frame, config.quality.max_refused)
    quarantine = frame[frame["reasons"] != ""]
    report = expectations.check(frame[frame["reasons"] == ""].drop(columns=["reasons"]), validation_out / "data_docs")
    schema.write(audit.as_table(quarantine), validation_out / "quarantine.parquet")
    schema.write(audit.as_table(frame), validation_out / "measurements.parquet")
    failed = [row for row in report["expectations"] if not row["success"]]
    notes = (
        [
            f"{len(shared['document_id'])} documents have lines in more than one labelled split: new pages of known documents."
        ]
        if len(shared["document_id"])
        else []
    )
    artifacts.write_json(validation_out / "verdict.json", report | {"notes": notes, "quarantined": len(quarantine)})
    for row in failed:
        print(
            f"validate: expectation {row['expectation']} on {row['column']} does not hold ({row['observed']}); see data_docs",
            flush=True,
        )
    print(
        f"validate: {len(frame):,} lines measured, {len(quarantine):,} quarantined, {len(failed)} of {len(report['expectations'])} expectations not met",
        flush=True,
    )
    return {
        "lines": float(len(frame)),
        "quarantined": float(len(quarantine)),
        "expectations_failed": float(len(failed)),
        "shared_documents": float(len(shared["document_id"])),
    }

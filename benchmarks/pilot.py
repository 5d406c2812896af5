"""What a finished pilot came to, kept as a result: `python benchmarks/pilot.py NAME [WORK]` after `make pilot`.

NAME is the result's (`pilot` for the sample); WORK the pilot's folder, `work` here if not given. The newest run counts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import results

KEPT = (
    "start",
    "verdict",
    "reason",
    "cer",
    "wer",
    "exact",
    "validation_cer",
    "budget",
    "seeds",
    "steps",
    "learning_rate",
    "cpu_minutes",
    "curve",
)
FIT = ("source", "lines", "verdict", "weight", "coverage", "kid_ratio")


def main(name: str, work: Path) -> Path:
    """Take the newest evaluation under `work` and write it as `results/<name>.json`."""
    evaluation = max(work.glob("pipelines/*/*/evaluate/evaluation_out"), key=lambda path: path.stat().st_mtime)
    summary = json.loads((evaluation / "summary.json").read_text())
    told = json.loads((evaluation.parents[2] / "pilot.json").read_text())
    run = {key: summary[key] for key in ("verdict", "candidate", "documents", "lines", "confidence")}
    run["starts"] = [{key: row[key] for key in KEPT} for row in summary["starts"]]
    run["fit"] = [{key: row[key] for key in FIT} for row in summary["fit"]]
    return results.save(
        name,
        command=told["command"],
        commit=told["commit"],
        figures=figures(summary, told["minutes"]),
        seeds=told["seeds"],
        data={"lines": summary["data_version"]},
        runs=[run],
    )


def figures(summary: dict, minutes: float) -> dict[str, dict]:
    """Minutes of the whole road, and the CER of every start on test (with its interval) and validation lines."""
    found = {
        "minutes": {
            "value": minutes,
            "unit": "min of wall time after installation",
            "goal": 15,
            "better": "lower",
            "spread": None,
        }
    }
    for row in summary["starts"]:
        cer = row["cer"]["all"]
        values = {
            "cer": (cer["value"], "test", [cer["low"], cer["high"]]),
            "validation_cer": (row["validation_cer"], "validation", None),
        }
        for kind, (value, lines, spread) in values.items():
            unit = f"CER on the {lines} lines"
            found[f"{kind}_{row['start']}"] = {
                "value": value,
                "unit": unit,
                "goal": None,
                "better": "lower",
                "spread": spread,
            }
    return found


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "work")))

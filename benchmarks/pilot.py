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


def main(name: str, work: Path) -> Path:
    """Take the newest evaluation under `work` and write it as `results/<name>.json`."""
    evaluation = max(work.glob("pipelines/*/*/evaluate/evaluation_out"), key=lambda path: path.stat().st_mtime)
    summary = json.loads((evaluation / "summary.json").read_text())
    told = json.loads((evaluation.parents[2] / "pilot.json").read_text())
    figures = {
        "minutes": {
            "value": told["minutes"],
            "unit": "min of wall time after installation",
            "goal": 15,
            "better": "lower",
            "spread": None,
        }
    }
    for row in summary["starts"]:
        cer = row["cer"]["all"]
        figures[f"cer_{row['start']}"] = {
            "value": cer["value"],
            "unit": "CER on the test lines",
            "goal": None,
            "better": "lower",
            "spread": [cer["low"], cer["high"]],
        }
        figures[f"validation_cer_{row['start']}"] = {
            "value": row["validation_cer"],
            "unit": "CER on the validation lines",
            "goal": None,
            "better": "lower",
            "spread": None,
        }
    runs = [
        {
            name: row[name]
            for name in (
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
        }
        for row in summary["starts"]
    ]
    return results.save(
        name,
        command=told["command"],
        commit=told["commit"],
        figures=figures,
        seeds=told["seeds"],
        data={"lines": summary["data_version"]},
        runs=[
            {
                "starts": runs,
                "verdict": summary["verdict"],
                "candidate": summary["candidate"],
                "documents": summary["documents"],
                "lines": summary["lines"],
                "confidence": summary["confidence"],
                "fit": [
                    {key: row[key] for key in ("source", "lines", "verdict", "weight", "coverage", "kid_ratio")}
                    for row in summary["fit"]
                ],
            }
        ],
    )


if __name__ == "__main__":
    print(main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "work")))

"""How long `maskocr --help` takes, beside an interpreter that does nothing: `python benchmarks/cli.py`.

The two are timed in turn, 15 times each; the goal is under half a second.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import results

ROUNDS = 15
COMMANDS = {"help": [sys.executable, "-m", "maskocr_core.cli", "--help"], "bare": [sys.executable, "-c", "pass"]}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> Path:
    for command in COMMANDS.values():
        seconds(command)
    rounds = [{name: round(seconds(command), 4) for name, command in COMMANDS.items()} for _ in range(ROUNDS)]
    helps, ratios = [row["help"] for row in rounds], [row["help"] / row["bare"] for row in rounds]
    return results.save(
        "cli",
        command="python benchmarks/cli.py",
        runs=rounds,
        figures={
            "help_seconds": {
                "value": statistics.median(helps),
                "unit": "s",
                "goal": 0.5,
                "better": "lower",
                "spread": [min(helps), max(helps)],
            },
            "help_over_bare_interpreter": {
                "value": statistics.median(ratios),
                "unit": "×",
                "goal": None,
                "better": "lower",
                "spread": [min(ratios), max(ratios)],
            },
        },
    )


if __name__ == "__main__":
    print(main())

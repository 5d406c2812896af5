"""Which lines each step was made of, on demand: a file of each worker of each attempt in the folder MASKOCR_STEP_LOG."""

from __future__ import annotations

import json
import os
from pathlib import Path

from maskocr_core.training.exchange import Place


class StepLog:
    """Rows `{step, attempt, rank, world, process, line_ids}`, written before the step is made; nothing unless MASKOCR_STEP_LOG is set."""

    def __init__(self, attempt: int, place: Place):
        self.attempt, self.place = attempt, place
        folder = os.environ.get("MASKOCR_STEP_LOG")
        self.path = Path(folder) / f"{attempt:04d}-{place.rank}.jsonl" if folder else None
        if self.path:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, step: int, line_ids: list[str]) -> None:
        if self.path:
            row = {"step": step, "attempt": self.attempt, "rank": self.place.rank, "world": self.place.world}
            with self.path.open("a") as file:
                file.write(json.dumps(row | {"process": os.getpid(), "line_ids": line_ids}) + "\n")


def rows(folder: Path) -> list[dict]:
    """All whole rows of all attempts, by attempt and rank."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:  # a kill tore it off
                continue
    return found


def final(folder: Path) -> dict[int, list[str]]:
    """Step → the ids of the lines that the weights at the end learnt from: those of the last attempt at that step."""
    last: dict[int, list[dict]] = {}
    for row in rows(folder):
        before = last.get(row["step"], [])
        if before and before[0]["attempt"] != row["attempt"]:
            before = []
        last[row["step"]] = [*before, row]
    return {step: sorted(line for row in made for line in row["line_ids"]) for step, made in sorted(last.items())}

"""The comparison of starts on the test lines: readings in, the summary that report, MLflow and the printed table share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maskocr_core.judging import gate, metrics, statistics

TITLES = {
    "scratch": "from scratch",
    "transfer": "transfer",
    "pretrained": "pre-trained",
    "both": "pre-trained + transfer",
}


@dataclass(frozen=True)
class Readings:
    """What one start read: texts by mark (`quarter`, `half`, `all`), one list of N texts for each seed."""

    start: str
    by_mark: dict[str, list[list[str]]]


@dataclass(frozen=True)
class Test:
    """The test lines: N references and the document of each, and how intervals are made."""

    references: Sequence[str]
    documents: Sequence[str]
    confidence: float
    min_documents: int

    def interval(self, readings: list[list[str]], words: bool = False) -> dict[str, float]:
        """Interval of CER (or WER) of one or more readings of all lines; edits are means over seeds."""
        errors = [metrics.line_errors(self.references, texts) for texts in readings]
        edits = np.mean([error.word_edits if words else error.edits for error in errors], axis=0)
        lengths = errors[0].words if words else errors[0].characters
        return asdict(statistics.ratio_interval(edits, lengths, self.documents, self.confidence, self.min_documents))

    def difference(self, a: list[list[str]], b: list[list[str]]) -> statistics.Difference:
        """Paired difference in CER, a minus b."""
        errors_a, errors_b = (
            [metrics.line_errors(self.references, texts) for texts in readings] for readings in (a, b)
        )
        edits_a, edits_b = (np.mean([error.edits for error in errors], axis=0) for errors in (errors_a, errors_b))
        return statistics.paired_difference(
            edits_a, edits_b, errors_a[0].characters, self.documents, self.confidence, self.min_documents
        )


def compare(
    test: Test, readings: list[Readings], candidate: str, champion: list[str] | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the table, one a start, and the verdict as plain dicts.

    candidate: the start chosen on validation. champion: what the champion reads of the same lines now, None without one.
    The starts are held against `scratch`, or against the first one where scratch was not run.
    """
    base = next((row for row in readings if row.start == "scratch"), readings[0])
    standings = [
        gate.baseline(row.start)
        if row is base
        else gate.compare(row.start, base.start, test.difference(row.by_mark["all"], base.by_mark["all"]))
        for row in readings
    ]
    rows = [_row(test, reading, standing) for reading, standing in zip(readings, standings)]
    chosen = next(row for row in readings if row.start == candidate)
    against = test.difference(chosen.by_mark["all"], [champion]) if champion is not None else None
    return rows, asdict(gate.decide(f"the start {candidate!r}", standings, against))


def table(summary: dict[str, Any]) -> str:
    """The summary as the plain table that `make pilot` ends with."""
    base = next((row["start"] for row in summary["starts"] if row["verdict"] == "baseline"), "scratch")
    head = ("start", "CER after ¼ of the steps", "½", "all", f"against {base}")
    rows = [
        (TITLES[row["start"]], *(_cell(row["cer"][mark]) for mark in ("quarter", "half", "all")), row["verdict"])
        for row in summary["starts"]
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *rows))


def _row(test: Test, reading: Readings, standing: gate.Comparison) -> dict[str, Any]:
    edits = [metrics.line_errors(test.references, texts).edits for texts in reading.by_mark["all"]]
    return {
        "start": reading.start,
        "verdict": standing.verdict,
        "reason": standing.reason,
        "seeds": len(reading.by_mark["all"]),
        "cer": {mark: test.interval(texts) for mark, texts in reading.by_mark.items()},
        "wer": test.interval(reading.by_mark["all"], words=True),
        "exact": float(np.mean([metrics.exact(row) for row in edits])),
    }


def _cell(interval: dict[str, float]) -> str:
    low, high = interval["low"], interval["high"]
    bounds = "too few documents" if np.isnan(low) else f"{100 * low:.1f}–{100 * high:.1f}"
    return f"{100 * interval['value']:.1f} % [{bounds}]"

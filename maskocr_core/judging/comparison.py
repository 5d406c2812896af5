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
    """What one start read: texts by mark (`quarter`, `half`, `all`), one list of N texts for each seed.

    budget: labelled lines that it was fine-tuned on. confidences: of the texts at `all`, (N,) for each seed, as the
    recogniser gives them.
    """

    start: str
    by_mark: dict[str, list[list[str]]]
    budget: int = 0
    confidences: tuple[list[float], ...] = ()


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
    test: Test,
    readings: list[Readings],
    candidate: Readings,
    champion: list[str] | None,
    checks: Sequence[gate.Comparison] = (),
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the table, one a start, and the verdict as plain dicts.

    candidate: what the recogniser read that was chosen on validation, one seed of its start. champion: what the champion
    reads of the same lines now, None without one. checks: what else the verdict hangs on. The starts are held against `scratch`, or against the first one where scratch
    was not run.
    """
    base = next((row for row in readings if row.start == "scratch"), readings[0])
    standings = [
        gate.baseline(row.start)
        if row is base
        else gate.compare(row.start, base.start, test.difference(row.by_mark["all"], base.by_mark["all"]))
        for row in readings
    ]
    rows = [_row(test, reading, standing) for reading, standing in zip(readings, standings)]
    against = test.difference(candidate.by_mark["all"], [champion]) if champion is not None else None
    return rows, asdict(gate.decide(f"the start {candidate.start!r}", standings, against, checks))


def efficiency(test: Test, readings: Sequence[Readings]) -> list[dict[str, Any]]:
    """For each start and budget the CER after all steps, with its interval and each seed's own, by start and budget."""
    return [
        {
            "start": row.start,
            "budget": row.budget,
            "cer": test.interval(row.by_mark["all"]),
            "by_seed": [test.interval([texts])["value"] for texts in row.by_mark["all"]],
        }
        for row in sorted(readings, key=lambda row: (row.start, row.budget))
    ]


def forgetting(name: str, test: Test, before: Readings | None, after: Readings) -> dict[str, Any]:
    """How a start reads a protected set after fine-tuning, and, where it was trained to read before, how it did then.

    Negative `difference` (after minus before): nothing was forgotten.
    """
    row = {
        "set": name,
        "start": after.start,
        "after": test.interval(after.by_mark["all"]),
        "before": None,
        "difference": None,
    }
    if before:
        difference = asdict(test.difference(after.by_mark["all"], before.by_mark["all"]))
        row |= {"before": test.interval(before.by_mark["all"]), "difference": difference}
    return row


def protected(
    sets: dict[str, tuple[Test, list[list[str]], list[str]]], margin: float, small_blocks: bool
) -> list[gate.Comparison]:
    """The check of each protected set. sets: by name its lines, what the candidate reads (a list a seed), and the champion."""
    differences = {name: test.difference(read, [champion]) for name, (test, read, champion) in sets.items()}
    if not differences:
        return []
    confidence = next(iter(sets.values()))[0].confidence
    bounds = statistics.below_margin(list(differences.values()), margin, confidence)
    return [
        gate.protected(name, difference, bound, margin, small_blocks)
        for (name, difference), bound in zip(differences.items(), bounds)
    ]


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

"""What readings are worth: the expected cost of their errors, and whether pre-training earns what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from maskocr_core.judging import cost, curves, gate, roi
from maskocr_core.judging.comparison import Readings, Test
from maskocr_core.judging.prices import Prices
from maskocr_core.judging.roi import Compute
from maskocr_core.judging.weights import Weights


def costs(
    test: Test, readings: Sequence[Readings], candidate: Readings, champion: Readings | None, weights: Weights
) -> tuple[dict[str, Any], list[gate.Comparison]]:
    """Expected cost a line of every start, and whether the candidate's errors cost more than the champion's.

    The candidate, one seed of its start, is held against the champion, or without one against the baseline, with every
    weight halved and doubled in turn. Returns what the summary holds, and the gate's check, none without a champion.
    """
    settings = (test.confidence, test.min_documents)
    per_line = {row.start: _means(test, row, weights) for row in readings}
    found = {
        "name": weights.name,
        "unit": weights.unit,
        "starts": [
            {"start": start} | finite(asdict(cost.expected_cost(costs, test.documents, *settings)))
            for start, costs in per_line.items()
        ],
        "against": None,
        "difference": None,
        "sensitivity": None,
    }
    other = champion or next((row for row in readings if row.start == "scratch"), readings[0])
    if other.start == candidate.start:
        return found, []
    against = cost.cost_difference(
        _means(test, candidate, weights), _means(test, other, weights), test.documents, *settings
    )
    moved = cost.sensitivity(
        test.references, candidate.by_mark["all"], other.by_mark["all"], test.documents, weights, *settings
    )
    found |= {
        "against": other.start,
        "difference": finite(asdict(against)),
        "sensitivity": {"holds": moved.holds, "reason": moved.reason},
    }
    return found, [gate.cost(against.value, against.low, against.high, weights.unit)] if champion else []


def _means(test: Test, row: Readings, weights: Weights) -> np.ndarray:
    return np.mean([cost.line_costs(test.references, texts, weights) for texts in row.by_mark["all"]], axis=0)


def points(efficiency: Sequence[dict[str, Any]], confidence: float) -> list[curves.Point]:
    """Rows of `comparison.efficiency` as points of curves; a start that errs nowhere has no place on a logarithmic scale."""
    return [
        curves.Point(
            row["start"], row["budget"], tuple(row["by_seed"]), row["cer"]["low"], row["cer"]["high"], confidence
        )
        for row in efficiency
        if min(row["by_seed"]) > 0
    ]


def label_efficiency(measured: Sequence[curves.Point], target_cer: float | None = None) -> list[dict[str, Any]]:
    """The fitted curve of each start, and how many labels it saves at a CER.

    target_cer: a share; None for what scratch reaches with its largest budget.
    """
    fitted = {start: curves.fit(measured, start) for start in dict.fromkeys(point.start for point in measured)}
    rows = []
    for start, curve in fitted.items():
        row = {"start": start, "curve": asdict(curve), "saving": None}
        scratch = fitted.get("scratch")
        if scratch and start != "scratch" and not scratch.reason and not curve.reason:
            target = target_cer or curves.cer_at(scratch, scratch.largest)
            row["saving"] = asdict(curves.labels_saved(scratch, curve, target))
        rows.append(row)
    return rows


def returns(measured: Sequence[curves.Point], compute: dict[str, Compute], prices: Prices) -> list[dict[str, Any]]:
    """Go, no-go or not yet, with the numbers behind it, for each start that is held against scratch; none without scratch."""
    starts = dict.fromkeys(point.start for point in measured)
    if "scratch" not in starts:
        return []
    others = [start for start in starts if start != "scratch"]
    return [asdict(roi.judge(measured, compute, prices, start, prices.target_cer)) for start in others]


def compute_of(rows: Sequence[dict[str, Any]]) -> dict[str, Compute]:
    """Hours of processors and GPUs of each start, from the rows of the comparison."""
    return {
        row["start"]: Compute(
            gpu_hours=(row["gpu_minutes"]["pretrain"] + row["gpu_minutes"]["transfer"]) / 60,
            cpu_hours=(row["cpu_minutes"]["pretrain"] + row["cpu_minutes"]["transfer"]) / 60,
            tuning_gpu_hours=row["gpu_minutes"]["finetune"] / 60,
            tuning_cpu_hours=row["cpu_minutes"]["finetune"] / 60,
        )
        for row in rows
    }


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same without numbers that are none, for which JSON has no word: None in their place."""
    return {
        name: finite(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for name, value in values.items()
    }

"""Verdicts of the domain fit on real lines, how they move with every threshold, and what it costs: `python -m benchmarks.fit`.

Targets are the three of the bars and two more as controls. `--docs` only writes the tables of docs/fit.md anew.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import fit_cases, results
from maskocr_core.data.domain_fit import fit, likeness, yardstick

NAME = "fit"
DOCUMENT = Path(__file__).parents[1] / "docs" / "fit.md"
SMALL = (150, 400)
SEEDS = (0, 1, 2, 3, 4)
# Limits that are settings and constants of the method alike: (half, double), bounded to what is possible. A quantile is
# halved and doubled in its tail, and a share may not exceed 1 nor rejection be stricter than acceptance.
MOVED: dict[str, tuple[Any, Any]] = {
    "accept_kid_ratio": (1.5, 6.0),
    "reject_kid_ratio": (50.0, 200.0),
    "accept_coverage": (0.5, 1.0),
    "coverage_slack": (0.025, 0.1),
    "reject_coverage": (0.25, 0.8),
    "radius_quantile": (0.975, 0.9),
    "refuse_radius": (1.0, 3.0),
    "SHRINKAGE": (0.1, 0.4),
    "NEIGHBOURS": (3, 10),
    "GROUP_LINES": (50, 200),
    "MIN_GROUPS": (2, 6),
    "KID_LINES": (150, 600),
    "REFUSE_QUANTILE": (0.995, 0.98),
    "ALIKE_RATIO": (0.5, 2.0),
    "CONFIDENCE": (0.975, 0.9),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", action="store_true", help="only write the tables of docs/fit.md anew")
    if not parser.parse_args().docs:
        measure()
    DOCUMENT.write_text(render(DOCUMENT.read_text()))


def measure() -> None:
    cases = {name: list(fit_cases.cases(name)) for name in (*fit_cases.TARGETS, *fit_cases.CONTROLS)}
    verdicts = [row for name in cases for row in judged(name, cases[name])]
    small = [row for count in SMALL for name in cases for row in judged(name, cases[name], count=count)]
    usual = {name: [row for row in verdicts if row["target"] == name] for name in cases}
    moved = [
        {"threshold": threshold, "side": side, "value": value, "target": name}
        | against(usual[name], judged(name, cases[name], **{threshold: value}))
        for threshold, values in MOVED.items()
        for side, value in zip(("halved", "doubled"), values)
        for name in cases
    ]
    seeds = {seed: [row["verdict"] for name in cases for row in judged(name, cases[name], seed=seed)] for seed in SEEDS}
    other = sum(any(found[place] != verdict for found in seeds.values()) for place, verdict in enumerate(seeds[0]))
    speeds = [speed() for _ in range(5)]
    results.save(
        NAME,
        command="python -m benchmarks.fit",
        figures={
            **{
                f"{kind}_as_they_should_be_{where}": _counted(verdicts, kind, names)
                for where, names in (("in_targets", fit_cases.TARGETS), ("in_control_targets", fit_cases.CONTROLS))
                for kind in ("own", "foreign", "damaged", "mixed")
            },
            "foreign_accepted_with_150_lines": _figure(
                sum(row["kind"] == "foreign" and row["verdict"] == "accept" for row in small if row["labels"] == 150),
                "sources",
                0,
                "lower",
            ),
            "verdicts_that_another_seed_moves": _figure(other, f"of {len(seeds[0])} verdicts", 0, "lower"),
            **{
                f"cpu_minutes_per_million_lines_{name}": _spread([found[name] for found in speeds], "CPU minutes")
                for name in speeds[0]
            },
        },
        runs=[{"verdicts": verdicts, "small_targets": small, "moved": moved, "speed": speeds}],
        seeds=list(SEEDS),
        data={name: results.digest(fit_cases.PACKS / name) for name in cases},
    )


def judged(name: str, cases: list, *, count: int | None = None, seed: int = 0, **moved: Any) -> list[dict[str, Any]]:
    """A row for each case of a target; `moved` are thresholds, or constants of the method."""
    with _constants({key: value for key, value in moved.items() if key.isupper()}):
        limits = replace(yardstick.Thresholds(), **{key: value for key, value in moved.items() if key.islower()})
        measured = yardstick.calibrate(fit_cases.target_lines(name, count), limits, seed)
        return [_row(name, measured, *case) | ({"labels": count} if count else {}) for case in cases]


def as_it_should_be(row: dict[str, Any]) -> bool:
    """Whether a verdict is what the kind of the case asks for."""
    if row["kind"] == "mixed":
        return row["verdict"] == "accept" and row["good_kept"] > 0.95 and row["bad_kept"] == 0
    wanted = {"own": ("accept",), "foreign": ("reject", "down-weight"), "damaged": ("reject",)}
    return row["verdict"] in wanted[row["kind"]]


def tallied(rows: list[dict[str, Any]]) -> dict[str, str]:
    """`7/7` and the like by kind: how many verdicts are as they should be."""
    total, right = (Counter(row["kind"] for row in chosen) for chosen in (rows, filter(as_it_should_be, rows)))
    return {kind: f"{right[kind]}/{total[kind]}" for kind in total}


def against(usual: list[dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """`tallied`, and each verdict that is another one than usual."""
    moves = [
        {"kind": row["kind"], "source": row["source"], "from": before["verdict"], "to": row["verdict"]}
        for before, row in zip(usual, rows, strict=True)
        if before["verdict"] != row["verdict"]
    ]
    return tallied(rows) | {"moves": moves}


def speed() -> dict[str, float]:
    """CPU minutes of one thread for a million lines: describing them (decoding included), and holding them against a target."""
    frame = fit_cases.labelled("fr_hand").head(500)
    begin = time.process_time()
    lines = fit_cases.described(frame, turned=1)
    described = time.process_time()
    measured = yardstick.calibrate(fit_cases.target_lines("fr_hand"), yardstick.Thresholds())
    calibrated = time.process_time()
    for first in range(0, 500, 64):
        measured.distances(measured.whitened(lines.features[first : first + 64]))
    judged_ = time.process_time()
    per_million = 1e6 / 500 / 60
    return {"described": (described - begin) * per_million, "weighed": (judged_ - calibrated) * per_million}


def _row(name: str, measured: yardstick.Yardstick, kind: str, source: str, lines: yardstick.Lines) -> dict[str, Any]:
    verdict = fit.judge(measured, lines)
    row = {"target": name, "kind": kind, "source": source, "lines": len(lines.line_ids), "verdict": verdict.verdict}
    row |= {"weight": round(verdict.weight, 3), "refused": round(verdict.refused, 4), "reasons": list(verdict.reasons)}
    if verdict.coverage and verdict.kid:
        row |= {
            "coverage": [round(verdict.coverage[name], 4) for name in ("value", "low", "high")],
            "kid_ratio": [round(verdict.kid[name] / verdict.kid["limit"], 3) for name in ("value", "low", "high")],
        }
    if kind == "mixed":
        good = np.array([line.startswith("0/") for line in lines.line_ids])
        row |= {"good_kept": float(verdict.kept[good].mean()), "bad_kept": float(verdict.kept[~good].mean())}
    return row


@contextmanager
def _constants(changed: dict[str, Any]) -> Iterator[None]:
    modules = {key: next(room for room in (likeness, yardstick, fit) if hasattr(room, key)) for key in changed}
    before = {key: getattr(module, key) for key, module in modules.items()}
    try:
        for key, value in changed.items():
            setattr(modules[key], key, value)
        yield
    finally:
        for key, value in before.items():
            setattr(modules[key], key, value)


def _counted(rows: list[dict[str, Any]], kind: str, names: tuple[str, ...]) -> dict[str, Any]:
    found = [as_it_should_be(row) for row in rows if row["kind"] == kind and row["target"] in names]
    return _figure(sum(found), f"of {len(found)} sources", len(found), "higher")


def _figure(value: float, unit: str, goal: float | None, better: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "goal": goal, "better": better, "spread": [value, value]}


def _spread(values: list[float], unit: str) -> dict[str, Any]:
    return _figure(float(np.median(values)), unit, None, "lower") | {"spread": [min(values), max(values)]}


def render(text: str) -> str:
    """`text` with every block `<!-- fit NAME -->` … `<!-- end -->` filled anew from the committed result."""
    result = results.load(NAME)
    return re.sub(
        r"<!-- fit (\w+) -->\n.*?<!-- end -->",
        lambda match: f"<!-- fit {match[1]} -->\n{BLOCKS[match[1]](result)}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def _verdict_table(result: dict[str, Any]) -> str:
    lines = [
        "| target | source | kind | verdict | refused | covered [95 %] | KID ratio [95 %] |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["runs"][0]["verdicts"]:
        coverage, ratio = (
            _interval(row.get(name), spec) for name, spec in (("coverage", ".2f"), ("kid_ratio", ",.1f"))
        )
        verdict = row["verdict"] + (f" {row['weight']:.2f}" if row["verdict"] == "down-weight" else "")
        mark = "" if as_it_should_be(row) else " (!)"
        lines.append(
            f"| {row['target']} | {row['source']} | {row['kind']} | {verdict}{mark} | {100 * row['refused']:.0f} % | {coverage} | {ratio} |"
        )
    return "\n".join([*lines, "", _made_by(result)])


def _sensitivity_table(result: dict[str, Any]) -> str:
    run = result["runs"][0]
    names = (*fit_cases.TARGETS, *fit_cases.CONTROLS)
    lines = [f"| limit | value | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    usual = {name: tallied([row for row in run["verdicts"] if row["target"] == name]) for name in names}
    lines.append(f"| as they are | | {' | '.join(_tally(usual[name]) for name in names)} |")
    for threshold, values in MOVED.items():
        for side, value in zip(("halved", "doubled"), values):
            found = {row["target"]: row for row in run["moved"] if (row["threshold"], row["side"]) == (threshold, side)}
            cells = [_tally(found[name]) for name in names]
            cells = [
                "=" if cell == _tally(usual[name]) and not found[name]["moves"] else cell
                for cell, name in zip(cells, names)
            ]
            lines.append(f"| {threshold.lower()} | {value:g} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _made_by(result)])


def _moves_table(result: dict[str, Any]) -> str:
    lines = ["| limit | value | target | verdicts that move |", "|---|---|---|---|"]
    for row in result["runs"][0]["moved"]:
        if row["moves"]:
            moves = "; ".join(f"{one['source']}: {one['from']} → {one['to']}" for one in row["moves"])
            lines.append(f"| {row['threshold'].lower()} | {row['value']:g} | {row['target']} | {moves} |")
    return "\n".join([*lines, "", _made_by(result)])


def _small_table(result: dict[str, Any]) -> str:
    lines = [
        "| target | labelled lines | own | foreign | damaged | weight of foreign lines | noise refused | blanks refused |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = result["runs"][0]["small_targets"]
    for count in SMALL:
        for name in (*fit_cases.TARGETS, *fit_cases.CONTROLS):
            chosen = [row for row in rows if row["labels"] == count and row["target"] == name]
            cells = [
                _verdicts([row for row in chosen if row["kind"] == kind]) for kind in ("own", "foreign", "damaged")
            ]
            weights = [row["weight"] for row in chosen if row["kind"] == "foreign"]
            cells.append(f"{min(weights):g} to {max(weights):g}")
            refused = {row["source"]: row["refused"] for row in chosen if row["kind"] == "damaged"}
            cells += [f"{100 * refused[damage]:.0f} %" for damage in ("noise", "blank")]
            lines.append(f"| {name} | {count} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _made_by(result)])


def _cost(result: dict[str, Any]) -> str:
    figures = result["figures"]
    parts = []
    for name, what in (("described", "to decode and describe"), ("weighed", "to hold against a target of 4,182 lines")):
        row = figures[f"cpu_minutes_per_million_lines_{name}"]
        parts.append(f"{row['value']:.1f} CPU minutes [{row['spread'][0]:.1f}, {row['spread'][1]:.1f}] {what}")
    return f"A million lines take {' and '.join(parts)} (median, least and most of 5 runs). {_made_by(result)}"


def _verdicts(rows: list[dict[str, Any]]) -> str:
    counts = Counter(row["verdict"] for row in rows)
    return ", ".join(
        f"{counts[verdict]} {verdict}"
        for verdict in ("accept", "down-weight", "undecided", "reject")
        if counts[verdict]
    )


def _tally(row: dict[str, Any]) -> str:
    return " ".join(row[kind] for kind in ("own", "foreign", "damaged", "mixed"))


def _interval(values: list[float] | None, spec: str) -> str:
    return "–" if values is None else f"{values[0]:{spec}} [{values[1]:{spec}}, {values[2]:{spec}}]"


def _made_by(result: dict[str, Any]) -> str:
    return f"Made by `{result['command']}` on {result['cpu']}."


BLOCKS = {
    "verdicts": _verdict_table,
    "sensitivity": _sensitivity_table,
    "moves": _moves_table,
    "small": _small_table,
    "cost": _cost,
}

if __name__ == "__main__":
    main()

"""The report of a run: one HTML file that needs nothing else, and one PNG of its plots.

Texts come from strangers' documents, so nothing in them may act: jinja2 escapes every value, a content security policy
forbids scripts and any load, and control characters (among them the right-to-left overrides that make a text look like
another, https://trojansource.codes) are spelled out.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskocr_core import escaping
from maskocr_core.judging.metrics import NORMALISATION, normalise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW_DOCUMENTS = 10
"""Below this many test documents the report warns that its intervals are wide."""
_COLOURS = {"scratch": "#6b7280", "transfer": "#b45309", "pretrained": "#1d4ed8", "both": "#047857"}
_LINE_STYLES = ("-", "--", ":", "-.")
_PARTS = (
    "candidate",
    "candidate_seed",
    "candidate_cer",
    "sizes",
    "efficiency",
    "curves",
    "returns",
    "priced",
    "costs",
    "calibration",
    "confidence_plot",
    "forgetting",
    "slices",
    "classes",
    "confusions",
    "fit",
    "pictures",
    "notes",
)
_KEPT = "\n\t"  # control characters that a text may have in the report


def render(summary: dict[str, Any], out: Path) -> None:
    """Write `report.html` and `report.png` into the folder `out`. The same summary gives the same bytes.

    summary, rates as shares, left as it is:
      verdict: {verdict, reason, lines: [{name, verdict, value, bound, reason}]} (`gate.Verdict` as a dict)
      data_version: str;  documents, lines: int, of the test set
      starts: [{start, verdict, budget, size, seeds, learning_rate, cer: {quarter, half, all}, wer, exact,
        cpu_minutes: {finetune, pretrain?, transfer?}, gpu_minutes?: the same, curve: [[step, validation CER], ...]}], where `wer` and each of
        the three `cer` (after a quarter, half and all of the steps) are {value, low, high}
      candidate?, candidate_seed?, candidate_cer?: the start, the seed and {value, low, high} of what may be registered
      sizes?: as `reading.sizes` makes them
      examples?: [{line_id, start_name, reference, read, image_png: base64 or None}]
      pictures?: [{title, png: base64}] of pre-training;  confidence_plot?: PNG as base64
      priced?: whether prices were given;  efficiency?, curves?, returns?, costs?, calibration?, forgetting?, slices?, classes?, confusions?: as `comparison`,
        `value`, `slices` and `calibration` make them; a part that is not given is left out
      fit?: [{source, lines, verdict, weight, coverage, kid_ratio, reasons: [str]}];  notes?: [str]
    A number that is None or nan is shown as a dash. Raises jinja2.UndefinedError or KeyError for a missing key.
    """
    out.mkdir(parents=True, exist_ok=True)
    figure = _figure(summary["starts"])
    several_budgets = len({row["budget"] for row in summary.get("efficiency", ())}) > 1
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            dict.fromkeys(_PARTS, ()) | summary,
            labels_plot=base64.b64encode(_image(_labels_figure(summary), "svg")).decode() if several_budgets else "",
            plots=base64.b64encode(_image(figure, "svg")).decode(),
            examples=_by_line(summary.get("examples", ())),
            few_documents=FEW_DOCUMENTS,
            normalisation=NORMALISATION,
        )
    )
    (out / "report.html").write_text(page, encoding="utf-8", errors="replace")
    documents, lines = summary["documents"], summary["lines"]
    figure.suptitle(f"Verdict: {summary['verdict']['verdict']}  ({documents:,} test documents, {lines:,} lines)")
    (out / "report.png").write_bytes(_image(figure, "png"))


def marked(text: str, other: str) -> list[tuple[str, bool]]:
    """`text`, normalised as it was scored, cut into runs of (characters, are they missing from `other`?)."""
    from rapidfuzz.distance import Levenshtein

    text, other = normalise(text), normalise(other)
    differs = [True] * len(text)
    for block in Levenshtein.opcodes(text, other):
        if block.tag == "equal":
            differs[block.src_start : block.src_end] = [False] * (block.src_end - block.src_start)
    runs = groupby(zip(text, differs, strict=True), key=itemgetter(1))
    return [("".join(character for character, _ in run), differ) for differ, run in runs]


def _environment() -> Any:
    environment = escaping.environment(Path(__file__).parent, _KEPT)
    environment.filters.update(
        percent=_percent, points=_points, number=_number, total=_total, marked=marked, measured=_measured
    )
    return environment


def _by_line(examples: Any) -> list[list[dict[str, Any]]]:
    """Readings of the same line together, in the order given, so that its image stands once."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        lines.setdefault(example["line_id"], []).append(example)
    return list(lines.values())


def _known(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def _percent(share: float | None, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}" if _known(share) else "–"


def _points(share: float | None) -> str:
    return f"{100 * share:+.2f}".replace("-", "−") if _known(share) else "–"


def _number(value: float | None, spec: str = ",.0f") -> str:
    return format(value, spec) if _known(value) else "–"


def _measured(value: float | None, unit: str) -> str:
    """A line's value, bound or limit with its unit."""
    if not _known(value):
        return "–"
    if unit == "count":
        return f"{value:,.0f}"
    return f"{value:+.3g}".replace("-", "−") if unit == "cost" else _points(value)


def _total(parts: dict[str, float | None]) -> float:
    return sum(number for number in parts.values() if _known(number))


def _figure(starts: list[dict[str, Any]]) -> Figure:
    """Validation CER against steps on the left; test CER with intervals on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.0 + 0.3 * len(starts)), layout="constrained")
    curves, forest = figure.subplots(1, 2)
    for axes in (curves, forest):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", labelsize=9)
    _draw_curves(curves, starts)
    _draw_forest(forest, starts)
    return figure


def _draw_curves(axes: Axes, starts: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for label, style, start in _styled(starts):
        if start["curve"]:
            steps, rates = zip(*start["curve"], strict=True)
            axes.plot(steps, [100 * rate for rate in rates], label=label, linewidth=1.6, **style)
    axes.set_yscale("log")  # the first validations read nothing; a linear axis would flatten the end, which decides
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_title("Validation CER, % (log scale)", loc="left", fontsize=10)
    axes.set_xlabel("fine-tuning step", fontsize=9)
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=9)


def _draw_forest(axes: Axes, starts: list[dict[str, Any]]) -> None:
    rows = list(_styled(starts))
    for row, (_, style, start) in enumerate(rows):
        # Earlier points above and paler: one reads down a row how much the last steps still gave.
        for offset, (moment, alpha) in enumerate((("quarter", 0.35), ("half", 0.6), ("all", 1.0))):
            rate, y = start["cer"][moment], row + 0.22 * (offset - 1)
            look = {"color": style["color"], "alpha": alpha}
            if _known(rate["low"]) and _known(rate["high"]):
                axes.plot([100 * rate["low"], 100 * rate["high"]], [y, y], linewidth=1.6, **look)
            if _known(rate["value"]):
                axes.plot(100 * rate["value"], y, "o", markersize=5, **look)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(axis="x", color="#e5e7eb", linewidth=0.8)
    axes.set_title("Test CER, % with interval, after a quarter, half and all steps", loc="left", fontsize=10)


def _labels_figure(summary: dict[str, Any]) -> Figure:
    """Test CER against labelled lines, with what was fitted, on logarithmic axes."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    fitted = {row["start"]: row["curve"] for row in summary.get("curves", ())}
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in summary.get("efficiency", ()):
        rows.setdefault(row["start"], []).append(row)
    for start, points in rows.items():
        colour = _COLOURS.get(start, "#111827")
        budgets = [point["budget"] for point in points]
        for point in points:
            cer = point["cer"]
            axes.plot(point["budget"], 100 * cer["value"], "o", color=colour, markersize=5)
            if _known(cer["low"]) and _known(cer["high"]):
                axes.plot([point["budget"]] * 2, [100 * cer["low"], 100 * cer["high"]], color=colour, linewidth=1.2)
        curve = fitted.get(start)
        label = escaping.spelled_out(start, _KEPT).replace("$", r"\$")
        if curve and curve["a"] is not None:
            along = np.geomspace(min(budgets), max(budgets), 50)
            axes.plot(along, 100 * curve["a"] * along ** -curve["b"], color=colour, linewidth=1.6, label=label)
        else:
            axes.plot(
                budgets, [100 * point["cer"]["value"] for point in points], color=colour, linewidth=1, label=label
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    every = sorted({point["budget"] for points in rows.values() for point in points})
    axes.set_xticks(every, [f"{budget:,}" for budget in every])
    axes.xaxis.set_minor_formatter(NullFormatter())
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_title("Test CER, %", loc="left", fontsize=10)
    axes.set_xlabel("labelled lines", fontsize=9)
    if rows:
        axes.legend(frameon=False, fontsize=9)
    return figure


def _styled(starts: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, str], dict[str, Any]]]:
    """(label, colour and line style, start): a colour for each start, a line style for each label budget."""
    budgets = sorted({start["budget"] for start in starts}, reverse=True)
    for start in starts:
        label = start["start"] if len(budgets) == 1 else f"{start['start']}, {start['budget']:,} lines"
        style = {
            "color": _COLOURS.get(start["start"], "#111827"),
            "linestyle": _LINE_STYLES[budgets.index(start["budget"]) % len(_LINE_STYLES)],
        }
        yield (
            escaping.spelled_out(label, _KEPT).replace("$", r"\$"),
            style,
            start,
        )  # a dollar would start matplotlib's formulas


def _image(figure: Figure, form: str) -> bytes:
    import matplotlib

    content = io.BytesIO()
    # A fixed salt and no date: the same run gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "maskocr"}):
        figure.savefig(content, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return content.getvalue()

"""A plan as people read it: a table in the terminal, Markdown in the documentation, and what it supposes below."""

from __future__ import annotations

from collections.abc import Callable

from maskocr_core.planning.assumptions import Assumptions, written
from maskocr_core.planning.hardware import DEVICES
from maskocr_core.planning.plan import Plan

CAUTION = (
    "Computed from formulas. In the one trial on a GPU, an H100, paper-19m reached 2 % of the peak: see docs/plan.md."
)
_ROWS: list[tuple[str, Callable[[Plan], str]]] = [
    ("encoder: width × depth", lambda plan: plan.encoder),
    ("stem", lambda plan: plan.stem),
    ("hidden steps (mask.hide)", lambda plan: plan.hidden),
    ("parameters of the encoder", lambda plan: _many(plan.encoder_parameters)),
    ("… of what predicts", lambda plan: _many(plan.parameters["predictor"])),
    ("operations a line, forward: stem", lambda plan: _many(plan.forward["stem"])),
    ("… blocks", lambda plan: _many(plan.forward["blocks"])),
    ("… cross-attention for hidden steps", lambda plan: _many(plan.forward["asking"])),
    ("… head", lambda plan: _many(plan.forward["head"])),
    ("… labels, no gradient", lambda plan: _many(plan.labelling)),
    ("operations a line, backward", lambda plan: _many(sum(plan.backward.values()))),
    ("updates", lambda plan: f"{plan.updates:,}"),
    ("steps of 8 px seen", lambda plan: _many(plan.steps_seen)),
    ("operations in all", lambda plan: f"{plan.operations:.2e}"),
    ("weights, gradients, moments", lambda plan: _bytes(plan.state_bytes)),
    ("activations a line", lambda plan: _bytes(plan.line_bytes)),
    ("lines at once, of a processor's part", lambda plan: f"{plan.lines_at_once:,}/{plan.lines_per_gpu:,}"),
    ("memory a processor", lambda plan: _bytes(plan.memory_bytes)),
    ("processor-hours by matrix products", lambda plan: _hours(plan.limits["products"])),
    ("… by memory traffic", lambda plan: _hours(plan.limits["memory traffic"])),
    ("… by decoding lines", lambda plan: _hours(plan.limits["decoding"])),
    ("… by the network", lambda plan: _hours(plan.limits["network"])),
    ("processor-hours", lambda plan: _hours(plan.gpu_hours)),
    ("limited by", lambda plan: plan.limit),
    ("days", lambda plan: f"{plan.days:.2f}"),
    ("shards", lambda plan: f"{plan.shards:,}"),
    ("bytes in the store", lambda plan: _bytes(plan.stored_bytes)),
    ("GET and HEAD requests an epoch", lambda plan: _many(plan.gets_per_epoch)),
    ("cost: processors", lambda plan: f"{plan.cost['processors']:,.2f}"),
    ("cost: storage", lambda plan: f"{plan.cost['storage']:,.2f}"),
    ("cost: requests", lambda plan: f"{plan.cost['requests']:,.2f}"),
    ("cost in all", lambda plan: f"{plan.total_cost:,.2f}"),
]


def show(plans: list[Plan], assumed: Assumptions) -> None:
    """Print the table and what it supposes."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", *(plan.recipe for plan in plans), title=CAUTION)
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify, column.overflow = "right", "fold"
    for title, cell in _ROWS:
        table.add_row(title, *map(cell, plans))
    console = Console()
    console.print(table)
    console.print("It supposes:")
    for flag, value, about in supposed(assumed):
        console.print(f"  {flag} {value}  {about}", markup=False, highlight=False)


def markdown(plans: list[Plan], assumed: Assumptions) -> str:
    """The same table and list as Markdown."""
    lines = [f"| | {' | '.join(plan.recipe for plan in plans)} |", "|---" * (len(plans) + 1) + "|"]
    lines += [f"| {title} | {' | '.join(map(cell, plans))} |" for title, cell in _ROWS]
    lines += ["", f"{CAUTION} It supposes:", ""]
    lines += [f"- `{flag} {value}`: {about}" for flag, value, about in supposed(assumed)]
    return "\n".join(lines)


def supposed(assumed: Assumptions) -> list[tuple[str, str, str]]:
    """(flag, value, what it is and where it comes from) of every assumption."""
    values = assumed.model_dump()
    if values["price_per_gpu_hour"] is None:
        values["price_per_gpu_hour"] = DEVICES[assumed.gpu].price_per_hour
    return [
        (f"--{name.replace('_', '-')}", written(value), field.description)
        for (name, field), value in zip(Assumptions.model_fields.items(), values.values())
    ]


def _many(number: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _bytes(number: float) -> str:
    return f"{_many(number)}B"


def _hours(number: float) -> str:
    return f"{number:,.2f}"

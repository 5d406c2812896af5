"""What people are told of a registered model: its page in MLflow, and the card that goes with it: what it is, what it was trained on and under which licences, how well it
reads, and where it must not be trusted (after Mitchell et al., "Model cards for model reporting", arXiv 1810.03993)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskocr_core import escaping
from maskocr_core.judging.comparison import TITLES, table


def text(
    summary: dict[str, Any], recognizer: dict[str, Any], sources: list[dict[str, Any]], made: dict[str, Any]
) -> str:
    """Markdown.

    summary: of the evaluation, as `evaluate` writes it. recognizer: facts of the weights, as `checkpoint.load_recognizer`
    gives them, with the number of `characters`. sources: as `provenance.sources` gives them. made: `maskocr`, `commit`,
    `recipe`, `model`, and `origins`: models from outside by what they gave (`transfer`, `encoder`, `labels`).
    Values of strangers are escaped, so that none is markup.
    """
    environment = escaping.markdown(Path(__file__).parent)
    environment.filters["percent"] = lambda share: "–" if share is None or share != share else f"{100 * share:.2f}"
    start = next(row for row in summary["starts"] if row["start"] == summary["candidate"])
    facts = {"start": start, "titles": TITLES, "recognizer": recognizer, "sources": sources, "made": made}
    return environment.get_template("model_card.md.j2").render(summary | facts)


def shown(summary: dict[str, Any]) -> str:
    """Markdown for the page of the model version: the verdict and why, the table of the starts, each line of the gate.

    summary: of the evaluation, as `evaluate` writes it; values of strangers in it are escaped.
    """
    environment = escaping.markdown(Path(__file__).parent)
    environment.filters["numbers"] = _numbers
    return environment.get_template("version.md.j2").render(summary | {"table": table(summary)})


def _numbers(line: dict[str, Any]) -> str:
    """Value, bound and limit of a line of the verdict, those that it has; CER in points. Nothing of a line without a value."""
    if line["value"] is None:
        return ""
    factor = 100 if line["unit"] in ("CER points", "ECE") else 1
    said = [f"{name} {factor * line[name]:.3g}" for name in ("value", "bound", "limit") if line[name] is not None]
    return f" ({', '.join(said)}; {line['unit']})" if said else ""

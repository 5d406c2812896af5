"""The card that goes with a registered model: what it is, what it was trained on and under which licences, how well it
reads, and where it must not be trusted (after Mitchell et al., "Model cards for model reporting", arXiv 1810.03993)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskocr_core import escaping
from maskocr_core.judging.comparison import TITLES


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

"""The tables of README.md and docs/, made from `results/*.json` or computed, between their marks: `python benchmarks/readme.py`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import ablation, coverage, data_figures, method_figures, results, train_figures
from benchmarks import comparison as whole
from maskocr_core import config, recipes
from maskocr_core.judging.comparison import TITLES
from maskocr_core.planning import assumptions, plan, table

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def render(text: str) -> str:
    """`text` with every block `<!-- table NAME -->` … `<!-- end -->` filled anew."""

    def fill(match: re.Match[str]) -> str:
        kind, _, name = match[1].partition(" ")
        content = COMPUTED[kind](name) if kind in COMPUTED else BLOCKS[kind](results.load(name))
        return f"<!-- {match[1]} -->\n{content}\n<!-- end -->"

    names = "|".join([*BLOCKS, *COMPUTED])
    return re.sub(rf"<!-- ((?:{names}) \w+) -->\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def comparison(result: dict[str, Any]) -> str:
    """A pilot's table, with its command, data version and seeds."""
    run = result["runs"][0]
    lines = [
        "| start | test CER after ¼ of the steps | after ½ | after all | validation CER | against scratch | CPU minutes: start + fine-tuning |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in run["starts"]:
        minutes = row["cpu_minutes"]
        before = minutes["pretrain"] + minutes["transfer"]
        cells = [
            TITLES[row["start"]],
            *(_interval(row["cer"][mark]) for mark in ("quarter", "half", "all")),
            f"{100 * row['validation_cer']:.1f} %",
            row["verdict"],
            f"{before:.1f} + {minutes['finetune']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    sources = "; ".join(
        f"{row['source']}: {row['verdict']}"
        + (f" (weight {row['weight']:.2f})" if row["verdict"] == "down-weight" else "")
        for row in run["fit"]
    )
    seeds = len(result["seeds"])
    spread = "no spread over seeds is known" if seeds == 1 else f"means over {seeds} seeds"
    lines.append("")
    lines.append(
        f"`{result['command']}`: {result['figures']['minutes']['value']:.1f} minutes on {result['cores']} cores ({result['cpu']}), {seeds} seed"
        f"{'' if seeds == 1 else 's'} ({spread}); {run['starts'][0]['budget']} labels, {run['starts'][0]['steps']} steps a start; {run['lines']} test lines of "
        f"{run['documents']} documents, {100 * run['confidence']:g} % intervals clustered by document; data version `{result['data']['lines'][:12]}`. Sources: {sources}."
    )
    return "\n".join(lines)


def figure(result: dict[str, Any]) -> str:
    """All figures of a result, one a line."""
    return (
        "\n".join(
            f"- {name.replace('_', ' ')}: {row['value']:.3g} {row['unit']} [{row['spread'][0]:.3g}, {row['spread'][1]:.3g}]"
            + (f", goal {row['goal']:g}" if row["goal"] else "")
            for name, row in sorted(result["figures"].items())
        )
        + f"\n\nMade by `{result['command']}`."
    )


def planned(gpu: str) -> str:
    """What `maskocr plan` computes for the six paper sizes on a kind of processor."""
    assumed = assumptions.assume(gpu=gpu)
    plans = [plan.plan(config.load(size), assumed) for size in recipes.PAPER_SIZES]
    return f"{table.markdown(plans, assumed)}\n\nMade by `maskocr plan --gpu {gpu}`."


def transcript(name: str) -> str:
    """What commands said, as they were typed for real."""
    return f"```console\n{(results.FOLDER / f'{name}.txt').read_text()}```"


def _interval(cer: dict[str, float]) -> str:
    return f"{100 * cer['value']:.1f} % [{100 * cer['low']:.1f}, {100 * cer['high']:.1f}]"


BLOCKS = {
    "comparison": comparison,
    "figure": figure,
    "data": data_figures.table,
    "train": train_figures.table,
    "coverage": coverage.table,
    "ablation": ablation.table,
    "method": method_figures.table,
    "whole": whole.table,
    "operating": whole.operating,
}
COMPUTED = {"plan": planned, "transcript": transcript}

if __name__ == "__main__":
    for page in PAGES:
        page.write_text(render(page.read_text()))

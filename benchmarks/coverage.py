"""How often an interval holds the truth: `python benchmarks/coverage.py [--worlds N]`

Collections are drawn whose true CER is known: documents differ in how hard they are, lines of a document in how many errors
they have. Of each the CER is estimated from few documents, and so is the difference between two recognisers; each with the
interval that the reports print, with one that takes lines for independent, and with a bootstrap of documents. A 95 % interval
should hold the truth in 95 of 100 collections.

Writes `results/coverage.json`; about three minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import results
from maskocr_core.judging import statistics

DOCUMENTS = (4, 6, 10, 20, 40)
LINES, CHARACTERS = 60, 40  # of a document, of a line
CER, BETWEEN, WITHIN = 0.06, 0.25, 1.0  # true rate; spread over documents and over lines, relative to it
GAIN, GAIN_SPREAD = 0.1, 0.15  # of the other recogniser: errors that it avoids, and how that differs by document
CONFIDENCE, RESAMPLED = 0.95, 400
SEED = 0
METHODS = {
    "documents": "t interval over documents (what reports print)",
    "bootstrap": "bootstrap of documents, percentiles",
    "lines": "lines taken for independent",
}


def world(documents: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Edits of two recognisers on the same lines, (documents, LINES) each."""
    hard = random.gamma(1 / BETWEEN**2, BETWEEN**2, documents)[:, None]
    line = random.gamma(1 / WITHIN**2, WITHIN**2, (documents, LINES))
    avoided = 1 - GAIN + GAIN_SPREAD * random.normal(0, 1, documents)[:, None]
    rate = CER * CHARACTERS * hard * line
    return random.poisson(rate), random.poisson(rate * np.clip(avoided, 0, None))


def held(values: np.ndarray, truth: float, random: np.random.Generator) -> dict[str, bool]:
    """Whether each interval of the mean edits a character of (documents, LINES) values holds the truth."""
    documents = len(values)
    names = np.repeat(np.arange(documents), LINES)
    characters = np.full(values.size, CHARACTERS)
    ours = statistics.paired_difference(values.ravel(), np.zeros(values.size), characters, names, CONFIDENCE)
    means = values.sum(1) / (LINES * CHARACTERS)
    drawn = means[random.integers(0, documents, (RESAMPLED, documents))].mean(1)
    single = values.ravel() / CHARACTERS
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2) * single.std(ddof=1) / np.sqrt(single.size)
    bounds = {
        "documents": (ours.low, ours.high),
        "bootstrap": np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]),
        "lines": (single.mean() - reach, single.mean() + reach),
    }
    return {name: bool(low <= truth <= high) for name, (low, high) in bounds.items()}


def measure(worlds: int) -> list[dict[str, Any]]:
    rows = []
    for documents in DOCUMENTS:
        random = np.random.default_rng([SEED, documents])
        counts = {(what, name): 0 for what in ("cer", "difference") for name in METHODS}
        for _ in range(worlds):
            one, other = world(documents, random)
            for what, values, truth in (("cer", one, CER), ("difference", other - one, -GAIN * CER)):
                for name, holds in held(values, truth, random).items():
                    counts[what, name] += holds
        rows += [
            {"documents": documents, "what": what, "method": name, "held": count / worlds}
            for (what, name), count in counts.items()
        ]
    return rows


def table(result: dict[str, Any]) -> str:
    """Coverage by number of documents, of a CER and of a difference between two recognisers."""
    runs, worlds = result["runs"][0]["rows"], result["runs"][0]["worlds"]
    lines = [
        f"| 95 % interval of | made by | {' | '.join(f'{n} documents' for n in DOCUMENTS)} |",
        f"|---|---|{'---|' * len(DOCUMENTS)}",
    ]
    for what, title in (("cer", "a CER"), ("difference", "a difference of two")):
        for name, method in METHODS.items():
            cells = [f"{100 * row['held']:.1f} %" for row in runs if (row["what"], row["method"]) == (what, name)]
            lines.append(f"| {title} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + (
        f"\n\n`{result['command']}`: share of {worlds:,} collections whose truth the interval holds (standard error "
        f"{100 * np.sqrt(0.95 * 0.05 / worlds):.1f} points at 95 %); {LINES} lines of {CHARACTERS} characters a document, CER {100 * CER:g} %."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=2000, help="collections drawn for each number of documents")
    worlds = parser.parse_args().worlds
    rows = measure(worlds)
    figures = {
        f"coverage_{row['what']}_{row['method']}_{row['documents']}": {
            "value": row["held"],
            "unit": "share of collections whose truth the 95 % interval holds",
            "goal": CONFIDENCE if row["method"] == "documents" else None,
            "better": "higher",
            "spread": [row["held"] - 2 * _error(row["held"], worlds), row["held"] + 2 * _error(row["held"], worlds)],
        }
        for row in rows
    }
    command = "python benchmarks/coverage.py"
    print(
        results.save(
            "coverage", command=command, figures=figures, seeds=[SEED], runs=[{"worlds": worlds, "rows": rows}]
        )
    )


def _error(share: float, worlds: int) -> float:
    return float(np.sqrt(share * (1 - share) / worlds))


if __name__ == "__main__":
    main()

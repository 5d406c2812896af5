"""Do two collections of texts speak alike? What images cannot show: language, alphabet and script.

In handwriting, textual divergence explains more of the error on a new domain than visual divergence does (arXiv 2411.17332).
Only labelled lines have a text: the target's can be held against a transfer source's, and unlabelled lines against nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from maskocr_core.data import scripts
from maskocr_core.data.domain_fit.yardstick import MIN_GROUPS, grouped, prediction_limit

MAX_CHARACTERS = 20_000  # of each side: the divergence of bigrams depends on how many there are
UNKNOWN = 0.02  # share of the target's characters from which on their lack is said: one in fifty, about one a line
COMMON, RARE = 0.5, 0.05  # shares of lines: a script of most target lines that hardly a transfer line has


def compare(target: Sequence[str], documents: Sequence[str], transfer: Sequence[str]) -> dict[str, Any]:
    """How far the texts of a transfer source are from the target's, with a sentence for each thing that is amiss.

    documents: of the target's texts. Returns `lines` of the source; `divergence` of character bigrams (Jensen-Shannon, in
    bits, at equal numbers of characters) and `limit`, that of a further document of the target (None with fewer than
    MIN_GROUPS groups of documents); `unknown`, characters that the source does not have, and `unknown_share` of the
    target's characters that they are; `scripts` and `target_scripts`, shares of lines by script; and `warnings`.
    """
    group, count = grouped(np.asarray(documents, str))
    parts = [[text for text, mine in zip(target, group) if mine == number] for number in range(count)]
    size = min(MAX_CHARACTERS, *(_characters(texts) for texts in (transfer, target, *parts)))
    limit = None
    if count >= MIN_GROUPS:
        left_out = [
            divergence(_cut(part, size), _cut([text for other in parts if other is not part for text in other], size))
            for part in parts
        ]
        limit = prediction_limit(float(np.mean(left_out)), float(np.std(left_out, ddof=1)), count)
    letters, known = Counter("".join(target)), set("".join(transfer))
    unknown = Counter({letter: number for letter, number in letters.items() if letter not in known and letter.strip()})
    found = {
        "lines": len(transfer),
        "divergence": divergence(_cut(target, size), _cut(transfer, size)),
        "limit": limit,
        "unknown": [letter for letter, _ in sorted(unknown.items(), key=lambda one: (-one[1], one[0]))],
        "unknown_share": sum(unknown.values()) / max(1, letters.total()),
        "scripts": _scripts(transfer),
        "target_scripts": _scripts(target),
    }
    return found | {"warnings": _warnings(found)}


def divergence(a: str, b: str) -> float:
    """Jensen-Shannon divergence of the character bigrams of two texts, in bits: 0 for the same, 1 for nothing in common."""
    counts = [Counter(zip(text, text[1:])) for text in (a, b)]
    names = sorted(set(counts[0]) | set(counts[1]))
    if not names:
        return 0.0
    p, q = (np.array([count[name] for name in names], float) / max(1, count.total()) for count in counts)
    middle = (p + q) / 2
    return float(
        sum(
            (share * np.log2(np.divide(share, middle, where=share > 0, out=np.ones_like(share)))).sum()
            for share in (p, q)
        )
        / 2
    )


def _warnings(found: dict[str, Any]) -> list[str]:
    said = []
    foreign = [
        script
        for script, share in found["target_scripts"].items()
        if share >= COMMON and found["scripts"].get(script, 0.0) < RARE
    ]
    if foreign:
        said.append(
            f"The target is written in {', '.join(foreign)}, which hardly a line of this source is: it lends no letters."
        )
    if found["unknown_share"] >= UNKNOWN and not foreign:
        few = " ".join(found["unknown"][:12])
        said.append(f"{found['unknown_share']:.1%} of the target's characters never occur in this source: {few}")
    if found["limit"] is not None and found["divergence"] > found["limit"]:
        said.append(
            f"Its texts are of another kind or language: pairs of characters diverge by {found['divergence']:.2f} bits, "
            f"a further document of the target by at most {found['limit']:.2f}."
        )
    return said


def _scripts(texts: Sequence[str]) -> dict[str, float]:
    counts = Counter(script for text in texts for script in scripts.of(text))
    return {script: number / len(texts) for script, number in sorted(counts.items())}


def _characters(texts: Sequence[str]) -> int:
    return sum(len(text) + 1 for text in texts)


def _cut(texts: Sequence[str], size: int) -> str:
    """Lines from all over the texts, joined, about `size` characters of them."""
    step = max(1, _characters(texts) // max(1, size))
    return "\n".join(
        [*texts[::step], *(texts[place] for first in range(1, step) for place in range(first, len(texts), step))]
    )[:size]

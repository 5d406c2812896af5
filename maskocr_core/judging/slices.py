"""Where the errors are: error rates of parts of the test lines, of classes of characters, and what is read for what.

A slice tells where to look; it decides nothing unless it is protected (`gate.protected`). Of many slices some look bad by
luck alone, which their intervals, each for itself, do not count.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from maskocr_core.judging import metrics, statistics

SHORT, LONG = 20, 60
"""Characters below which a line is short and from which it is long: a catchword or number, and a full line of prose."""
THIRDS = ("lowest third", "middle third", "highest third")
MOST_SLICES = 40  # of one kind: the worst are shown


@dataclass(frozen=True)
class Facts:
    """What is known of each of N lines beside its text. grades: numbers by name, such as contrast; nan where unknown."""

    sources: Sequence[str]
    documents: Sequence[str]
    grades: dict[str, np.ndarray]


@dataclass(frozen=True)
class Slice:
    """CER (a share) with its interval over documents of the lines of one kind; `low` and `high` are None on too few."""

    kind: str
    name: str
    lines: int
    documents: int
    characters: int
    value: float
    low: float | None
    high: float | None


def slices(
    references: Sequence[str],
    readings: Sequence[Sequence[str]],
    facts: Facts,
    confidence: float = 0.95,
    min_documents: int = statistics.MIN_DOCUMENTS,
) -> list[Slice]:
    """By source, document, length and grade: the CER of N lines read by one or more recognisers, edits averaged over them.

    Of a kind with many members the worst are given. Lines without text are in none.
    """
    errors = [metrics.line_errors(references, texts) for texts in readings]
    edits, characters = np.mean([error.edits for error in errors], axis=0), errors[0].characters
    found = []
    for kind, names in _kinds(characters, facts).items():
        own = [
            _slice(kind, name, np.flatnonzero(names == name), edits, characters, facts, confidence, min_documents)
            for name in dict.fromkeys(names[names != ""])
        ]
        found += sorted((one for one in own if one), key=lambda one: -one.value)[:MOST_SLICES]
    return found


def members(references: Sequence[str], facts: Facts, slice_: str) -> np.ndarray:
    """(M,) places of the lines of a slice, which is named `kind=name`.

    Raises ValueError, with the names there are, for one without lines.
    """
    kind, _, name = slice_.partition("=")
    kinds = _kinds(metrics.line_errors(references, references).characters, facts)
    places = np.flatnonzero(kinds.get(kind, np.array([], str)) == name)
    if not len(places):
        there = ", ".join(f"{kind}={one}" for one in dict.fromkeys(kinds.get(kind, ())) if one) or "none of that kind"
        raise ValueError(f"gate.slices: no test line is of {slice_!r}; there are {there}")
    return places


def _slice(kind, name, rows, edits, characters, facts, confidence, min_documents) -> Slice | None:
    if not characters[rows].sum():
        return None
    documents = [facts.documents[row] for row in rows]
    interval = statistics.ratio_interval(edits[rows], characters[rows], documents, confidence, min_documents)
    low, high = (None if np.isnan(bound) else bound for bound in (interval.low, interval.high))
    return Slice(kind, str(name), len(rows), interval.documents, int(characters[rows].sum()), interval.value, low, high)


def _kinds(characters: np.ndarray, facts: Facts) -> dict[str, np.ndarray]:
    """For each kind of slice the name of the one that each line is in, "" for none."""
    length = np.select([characters < SHORT, characters < LONG], ["short", "medium"], "long")
    kinds = {"source": np.array(facts.sources), "length": length}
    for name, values in facts.grades.items():
        known = np.isfinite(values)
        if known.any():
            cuts = np.quantile(values[known], [1 / 3, 2 / 3])
            thirds = np.array(THIRDS)[np.searchsorted(cuts, np.nan_to_num(values))]
            kinds[name] = np.where(known, thirds, "")
    return kinds | {"document": np.array(facts.documents)}


def character_class(character: str) -> str:
    """`digit`, `upper case`, `lower case`, `other letter`, `punctuation`, `space` or `other`, by Unicode category."""
    category = unicodedata.category(character)
    named = {"Nd": "digit", "Lu": "upper case", "Ll": "lower case", "Zs": "space"}
    by_first = {"L": "other letter", "M": "other letter", "N": "digit", "P": "punctuation", "S": "punctuation"}
    return named.get(category) or by_first.get(category[0], "other")


def by_character_class(references: Sequence[str], readings: Sequence[str]) -> list[dict[str, Any]]:
    """For each class of characters how many there are, and which share of them is read otherwise or not at all.

    Characters that were read where none is are counted as `invented`, by their own class. Alignment: Levenshtein, one of
    the shortest where there are several.
    """
    there, wrong, invented = Counter(), Counter(), Counter()
    for reference, reading in metrics.paired(references, readings):
        there.update(map(character_class, reference))
        for edit in Levenshtein.editops(reference, reading):
            if edit.tag == "insert":
                invented[character_class(reading[edit.dest_pos])] += 1
            else:
                wrong[character_class(reference[edit.src_pos])] += 1
    return [
        {
            "class": name,
            "characters": there[name],
            "wrong": wrong[name] / there[name] if there[name] else None,
            "invented": invented[name],
        }
        for name in sorted(there | invented, key=lambda name: -there[name])
    ]


def confusions(references: Sequence[str], readings: Sequence[str], most: int = 15) -> list[dict[str, Any]]:
    """What is read for what, most frequent first: {"written", "read", "times", "of", "line"}; "" where nothing is.

    of: how often `written` occurs (all characters, where nothing was written). line: number of a line that shows it.
    """
    times: Counter[tuple[str, str]] = Counter()
    there: Counter[str] = Counter()
    example: dict[tuple[str, str], int] = {}
    for number, (reference, reading) in enumerate(metrics.paired(references, readings)):
        there.update(reference)
        there[""] += len(reference)
        for edit in Levenshtein.editops(reference, reading):
            written = "" if edit.tag == "insert" else reference[edit.src_pos]
            pair = (written, "" if edit.tag == "delete" else reading[edit.dest_pos])
            times[pair] += 1
            example.setdefault(pair, number)
    ranked = sorted(times, key=lambda pair: (-times[pair], pair))[:most]
    return [
        {"written": pair[0], "read": pair[1], "times": times[pair], "of": there[pair[0]], "line": example[pair]}
        for pair in ranked
    ]


def as_rows(found: Sequence[Slice]) -> list[dict[str, Any]]:
    """For JSON, by kind. Documents and sources are named by the keys that erasure looks for."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    keys = {"document": "document_id", "source": "source"}
    for one in found:
        row = asdict(one)
        by_kind[one.kind].append({keys.get(one.kind, "name"): row.pop("name")} | row)
    return [{"kind": kind, "rows": rows} for kind, rows in by_kind.items()]

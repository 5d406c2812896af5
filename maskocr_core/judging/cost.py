"""What errors cost: edits weighed by what they hit. What it costs to have a person read instead: `reviews`.

A CER counts a wrong comma like a wrong digit in an amount. Here each edit of the alignment that `metrics` counts (a
least one, as rapidfuzz finds it) costs what a versioned file of weights says of the character's class and of the field
it lies in. Where several alignments are least, rapidfuzz picks one by the texts alone: no weight moves it, so costs are
linear in the weights of classes, and two sets of weights price the same edits.

The expected cost per line is a ratio estimator, costs over lines, with the intervals of `statistics`, clustered by
document.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from rapidfuzz.distance import LCSseq, Levenshtein

from maskocr_core.judging import statistics
from maskocr_core.judging.metrics import paired
from maskocr_core.judging.statistics import MIN_DOCUMENTS, Difference, Interval
from maskocr_core.judging.weights import CLASSES, SEARCHED, Weights

Decision = Literal["cheaper", "dearer", "undecided", "too few documents"]


@dataclass(frozen=True)
class Change:
    """The difference in expected cost, candidate minus other, with one weight multiplied by a factor.

    weight: `classes.digit`, `fields.amount` or `fatal_cost`. low, high: None where documents are too
    few. flips: whether the decision is another one than with the weights as given.
    """

    weight: str
    factor: float
    value: float
    low: float | None
    high: float | None
    decision: Decision
    flips: bool


@dataclass(frozen=True)
class Sensitivity:
    """The decision with the weights as given, whether it holds under every change, and the changes."""

    decision: Decision
    holds: bool
    reason: str
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class _Edits:
    """E edits of N lines: line (E,) int64, class (E,) int64 by its place in `CLASSES`, fields (E, F) bool: which each
    touches; lost (N, F) int64: places of a field that the reading does not have."""

    line: np.ndarray
    kind: np.ndarray
    fields: np.ndarray
    lost: np.ndarray


def line_costs(references: Sequence[str], readings: Sequence[str], weights: Weights) -> np.ndarray:
    """Cost of the errors in each of N lines: (N,) float64, 0 where the normalised texts are equal.

    An edit costs the weight of its class, times the weight of the field it touches: a character of the field replaced
    or left out, or one inserted in it or right at its ends. Of several such fields the greatest weight counts. Doubled
    weights of classes and a doubled fatal cost double every cost. Raises ValueError if there are not as many readings
    as references.
    """
    return _priced(_edits(references, readings, weights), weights)


def expected_cost(
    costs: np.ndarray, documents: Sequence[str], confidence: float = 0.95, min_documents: int = MIN_DOCUMENTS
) -> Interval:
    """Expected cost per line with its t interval, clustered by document, in the unit of the weights.

    costs: (N,), which may be means over seeds. documents: N document ids. Bounds are nan below `min_documents`.
    Raises ValueError as `statistics.ratio_interval` does, and where there is no line.
    """
    return statistics.ratio_interval(costs, one_a_line(costs), documents, confidence, min_documents)


def cost_difference(
    costs_a: np.ndarray,
    costs_b: np.ndarray,
    documents: Sequence[str],
    confidence: float = 0.95,
    min_documents: int = MIN_DOCUMENTS,
) -> Difference:
    """Difference in expected cost per line between two readings of the same lines, a minus b: negative where a is
    cheaper.

    costs_a, costs_b: (N,), which may be means over seeds. documents: N document ids. Raises ValueError as
    `expected_cost`.
    """
    return statistics.paired_difference(costs_a, costs_b, one_a_line(costs_a), documents, confidence, min_documents)


def sensitivity(
    references: Sequence[str],
    candidate: Sequence[Sequence[str]],
    other: Sequence[Sequence[str]],
    documents: Sequence[str],
    weights: Weights,
    confidence: float = 0.95,
    min_documents: int = MIN_DOCUMENTS,
) -> Sensitivity:
    """Does the decision between candidate and other hang on a weight? Each one is halved and doubled, alone.

    references, documents: of N lines. candidate, other: one list of N readings for each seed. It is of errors alone;
    what a review costs is varied by `reviews.review`. Raises ValueError as `line_costs` and `cost_difference` do.
    """
    sides = [[_edits(references, texts, weights) for texts in readings] for readings in (candidate, other)]

    def difference(changed: Weights) -> Difference:
        costs = (np.mean([_priced(seed, changed) for seed in side], axis=0) for side in sides)
        return cost_difference(*costs, documents, confidence, min_documents)

    decision = _decision(difference(weights))
    changes = []
    for name, factor, changed in _variants(weights):
        found = difference(changed)
        low, high = (None if math.isnan(bound) else bound for bound in (found.low, found.high))
        verdict = _decision(found)
        changes.append(Change(name, factor, found.value, low, high, verdict, verdict != decision))
    flips = [f"{change.weight} × {change.factor:g} ({change.decision})" for change in changes if change.flips]
    reason = (
        f"The decision ({decision}) hangs on the weights of {weights.name}: another with {', '.join(flips)}."
        if flips
        else f"The decision ({decision}) stays the same with every weight of {weights.name} halved and doubled."
    )
    return Sensitivity(decision, not flips, reason, tuple(changes))


def _edits(references: Sequence[str], readings: Sequence[str], weights: Weights) -> _Edits:
    pairs = paired(references, readings)
    patterns = [re.compile(field.pattern) for field in weights.fields]
    line_of, kinds, touched = [], [], []
    lost = np.zeros((len(references), len(patterns)), dtype=np.int64)
    for line, (reference, reading) in enumerate(pairs):
        if reference == reading:
            continue
        found = [list(pattern.finditer(reference, 0, SEARCHED)) for pattern in patterns]
        for field, (pattern, matches) in enumerate(zip(patterns, found)):
            there = [match.group() for match in matches]
            read_as = [match.group() for match in pattern.finditer(reading, 0, SEARCHED)]
            lost[line, field] = len(there) - LCSseq.similarity(there, read_as)
        for edit in Levenshtein.editops(reference, reading):
            inserted = edit.tag == "insert"
            line_of.append(line)
            kinds.append(_class_of(reading[edit.dest_pos] if inserted else reference[edit.src_pos]))
            touched.append([any(m.start() <= edit.src_pos < m.end() + inserted for m in matches) for matches in found])
    fields = np.array(touched, dtype=bool).reshape(len(touched), len(patterns))
    return _Edits(np.array(line_of, dtype=np.int64), np.array(kinds, dtype=np.int64), fields, lost)


def _priced(edits: _Edits, weights: Weights) -> np.ndarray:
    by_class = np.array([getattr(weights.classes, name) for name in CLASSES])
    by_field = np.array([field.weight for field in weights.fields])
    factors = np.where(edits.fields.any(axis=1), np.where(edits.fields, by_field, 0.0).max(axis=1, initial=0.0), 1.0)
    fatal = edits.lost @ np.array([weights.fatal_cost * field.fatal for field in weights.fields], dtype=np.float64)
    return np.bincount(edits.line, weights=by_class[edits.kind] * factors, minlength=len(edits.lost)) + fatal


def _class_of(character: str) -> int:
    category = unicodedata.category(character)
    name = {"N": "digit", "L": "letter", "M": "letter", "P": "punctuation", "Z": "space"}.get(category[0], "other")
    return CLASSES.index(name)


def _variants(weights: Weights) -> Iterator[tuple[str, float, Weights]]:
    """Each weight in turn, halved and doubled: its name, the factor, and all weights with it."""
    for factor in (0.5, 2.0):
        for name in CLASSES:
            changed = weights.classes.model_copy(update={name: factor * getattr(weights.classes, name)})
            yield f"classes.{name}", factor, weights.model_copy(update={"classes": changed})
        for place, field in enumerate(weights.fields):
            fields = list(weights.fields)
            fields[place] = field.model_copy(update={"weight": factor * field.weight})
            yield f"fields.{field.name}", factor, weights.model_copy(update={"fields": tuple(fields)})
        if any(field.fatal for field in weights.fields):
            yield "fatal_cost", factor, weights.model_copy(update={"fatal_cost": factor * weights.fatal_cost})


def _decision(difference: Difference) -> Decision:
    if math.isnan(difference.low):
        return "too few documents"
    return "cheaper" if difference.high < 0 else "dearer" if difference.low > 0 else "undecided"


def one_a_line(costs: np.ndarray) -> np.ndarray:
    """(N,) float64 ones for N costs: what costs per line are divided by. Raises ValueError where there is no line."""
    if len(costs) == 0:
        raise ValueError("no line was read, so there is no cost per line: give at least one")
    return np.ones(len(costs))

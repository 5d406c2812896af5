"""Character and word errors of lines: one definition, versioned, so that two numbers with the same version compare.

A character is a Unicode code point of normalised text, a word what stands between spaces. CER and WER are ratio
estimators (all edits over all reference characters or words), never means of the rates of single lines: a mean lets a
line of three letters weigh as much as one of eighty. Source: Levenshtein distance as rapidfuzz computes it
(https://rapidfuzz.github.io/RapidFuzz/).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

NORMALISATION = 1
"""Version of `normalise`. Raise it with any change there: scores of different versions do not compare."""


@dataclass(frozen=True)
class LineErrors:
    """Edit counts of N lines, each array (N,) int64, in the order of the lines given.

    edits, characters: Levenshtein edits, and code points in the reference. word_edits, words: the same over words.
    A line with an empty reference has 0 characters and as many edits as characters were read, so that text invented on
    an empty line counts against the whole without a division by zero.
    """

    edits: np.ndarray
    characters: np.ndarray
    word_edits: np.ndarray
    words: np.ndarray


def normalise(text: str) -> str:
    """Text as it is scored: NFC, each run of white space one space, none at the ends. Case, punctuation and invisible
    format characters stay, because a transcription that lost them lost something."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def paired(references: Sequence[str], readings: Sequence[str]) -> list[tuple[str, str]]:
    """Each reference with what was read of it, both normalised. Raises ValueError if there is not one reading a line."""
    if len(references) != len(readings):
        raise ValueError(
            f"{len(references)} references but {len(readings)} readings: "
            "give one reading a line, '' where nothing was read"
        )
    return [(normalise(reference), normalise(reading)) for reference, reading in zip(references, readings)]


def line_errors(references: Sequence[str], readings: Sequence[str]) -> LineErrors:
    """Edit counts between N references and the N texts read, both normalised here.

    Raises ValueError if there are not as many readings as references.
    """
    counts = np.zeros((4, len(references)), dtype=np.int64)
    for line, (reference, reading) in enumerate(paired(references, readings)):
        words = reference.split()
        counts[:, line] = (
            Levenshtein.distance(reference, reading),
            len(reference),
            Levenshtein.distance(words, reading.split()),
            len(words),
        )
    return LineErrors(*counts)


def cer(edits: np.ndarray, lengths: np.ndarray) -> float:
    """Edits per reference character (or per word, given word counts) over all lines, a share that may exceed 1.

    edits, lengths: (N,) counts. Raises ValueError if all references together are empty: there is no rate then.
    """
    total = np.sum(lengths)
    if total <= 0:
        raise ValueError("no reference has any text, so there is no error rate: give labelled lines")
    return float(np.sum(edits) / total)


def exact(edits: np.ndarray) -> float:
    """Share of lines read without any edit. edits: (N,) counts. Raises ValueError if there is no line."""
    if len(edits) == 0:
        raise ValueError("no line was read, so there is no share of exact lines: give at least one")
    return float(np.mean(np.asarray(edits) == 0))

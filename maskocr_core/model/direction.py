"""Logical order of a right-to-left line, and the order in which its characters stand in the mirrored image.

CTC emits characters from left to right. A right-to-left line is therefore mirrored (`data.images.prepare`): its first
character then stands at the left. Its numbers and Latin words, which run left to right on the page, now stand there
from right to left, so the recogniser is taught them backwards, and what it reads is turned round again. Everywhere
else a text is logical: in the data, in predictions, in scores, in reports.

Which characters run left to right is decided by the Unicode Bidirectional Algorithm in a right-to-left paragraph
(https://www.unicode.org/reports/tr9/, rules W1–W7, N0–N2, I1–I2), as in whatever program set or showed the line, with
the classes that Python's `unicodedata` gives. Brackets are mirrored with their run (L4): in the mirrored image an
opening bracket looks as it does in a left-to-right line, inside a number or a Latin word too.

Limits. Explicit embeddings, overrides and isolates (U+202A–202E, U+2066–2069) are passed over, as characters without
a width of their own: their order is not followed. Only (), [] and {} are paired by N0. A page cannot tell every
logical order: a number beside a Latin word, or Latin words with nothing right-to-left between them, may have come from
several; `logical_order` gives one of them that looks the same.
"""

from __future__ import annotations

import re
import unicodedata

from maskocr_core.config import Direction

_PAIRED = {"(": ")", "[": "]", "{": "}"}
_FACING = "()[]{}<>«»‹›≤≥⟨⟩"
_MIRROR = str.maketrans(_FACING, "".join(b + a for a, b in zip(_FACING[::2], _FACING[1::2])))

# Bidirectional classes as single letters, so that the rules are substitutions: strong L, R, A (Arabic letter), E and N
# (European and Arabic number), + (separator of European numbers), comma (of both), % (terminator), M (mark), b (passed
# over), O (all others).
_LETTERS = {"L": "L", "R": "R", "AL": "A", "EN": "E", "AN": "N", "ES": "+", "CS": ",", "ET": "%", "NSM": "M"}
_LETTERS |= dict.fromkeys(("BN", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"), "b")


def reading_order(text: str, direction: Direction) -> str:
    """Characters of a logical text in the order in which they stand, left to right, in the prepared image.

    A left-to-right text is its own; a right-to-left one has its left-to-right runs turned round.
    """
    if direction == "ltr":
        return text
    return _with_runs_turned(text, "R")


def logical_order(read: str, direction: Direction) -> str:
    """The logical text whose characters stand in the prepared image in the order `read`: undoes `reading_order`."""
    if direction == "ltr":
        return read
    classes, text, before = _classes(read), [], "R"
    for stretch in re.finditer(r"^[Mb]+|[RA][Mb]*|[^RA]+", classes):
        part = read[slice(*stretch.span())]
        if stretch[0][0] in "RAMb":
            before = stretch[0][0] if stretch[0][0] in "RA" else before
            text.append(part)
        else:
            text.append(_logical_stretch(part, before))
    return "".join(text)


def _logical_stretch(read: str, before: str) -> str:
    """The same for a stretch without right-to-left letters, after one of class `before`.

    Turned round it is what stands on the page, from left to right. What is one run there is one run of the text; where
    it falls apart (two numbers, words that a bracket parts), the first piece of the text stands furthest to the right.
    Where that does not give the order read, the runs may be those of the reading itself.
    """
    page = _turned(read)
    runs = _runs(page, _levels(page, _classes(page), before))
    text = "".join(run if level == 2 else _turned(run) for level, run in reversed(runs))
    candidates = [text, _with_runs_turned(read, before)]
    return next((candidate for candidate in candidates if _with_runs_turned(candidate, before) == read), text)


def _with_runs_turned(text: str, before: str) -> str:
    levels = _levels(text, _classes(text), before)
    return "".join(_turned(run) if level == 2 else run for level, run in _runs(text, levels))


def _turned(run: str) -> str:
    """A run the other way round, brackets mirrored; marks stay behind the letter that they stand on."""
    clusters = [run[slice(*found.span())] for found in re.finditer(r"^[Mb]+|[^Mb][Mb]*", _classes(run))]
    return "".join(reversed(clusters)).translate(_MIRROR)


def _runs(text: str, levels: list[int]) -> list[tuple[int, str]]:
    """(level, characters) of each stretch of one level."""
    marks = "".join(map(str, levels))
    return [(int(found[0][0]), text[slice(*found.span())]) for found in re.finditer(r"1+|2+", marks)]


def _classes(text: str) -> str:
    return "".join(_LETTERS.get(unicodedata.bidirectional(character) or "L", "O") for character in text)


def _levels(text: str, classes: str, before: str) -> list[int]:
    """Embedding level of each character in a right-to-left paragraph: 1, or 2 where it runs left to right.

    before: class of the strong character that precedes the text: R, or A for an Arabic letter.
    """
    kept = [place for place, class_ in enumerate(classes) if class_ != "b"]
    resolved = before + "".join(classes[place] for place in kept)
    resolved = re.sub(r"(.)M+", lambda found: found[1] * len(found[0]), resolved)  # W1
    resolved = re.sub(r"A[^LRA]+", lambda found: found[0].replace("E", "N"), resolved)  # W2
    resolved = resolved.replace("A", "R")  # W3
    resolved = re.sub(r"(?<=E)[+,](?=E)", "E", resolved)  # W4
    resolved = re.sub(r"(?<=N),(?=N)", "N", resolved)
    resolved = re.sub(r"(?<=E)%+|%+(?=E)", lambda found: "E" * len(found[0]), resolved)  # W5
    resolved = re.sub(r"[+,%]", "O", resolved)  # W6
    resolved = re.sub(r"L[^LR]+", lambda found: found[0].replace("E", "L"), resolved)  # W7
    resolved = _with_brackets(" " + "".join(text[place] for place in kept), resolved)
    resolved = re.sub(r"(?<=L)O+(?=L)", lambda found: "L" * len(found[0]), resolved)  # N1; N2 leaves the others at 1
    levels = [1] * len(text)
    for place, class_ in zip(kept, resolved[1:]):
        levels[place] = 2 if class_ in "LEN" else 1  # I1, I2
    for place, class_ in enumerate(classes):
        if class_ == "b" and place:
            levels[place] = levels[place - 1]
    return levels


def _with_brackets(text: str, classes: str) -> str:
    """Classes after N0: a pair of brackets goes right to left with anything so inside, else with what precedes it."""
    resolved, open_, pairs = list(classes), [], []
    for place, character in enumerate(text):
        if classes[place] != "O":
            continue
        if character in _PAIRED:
            open_.append((place, _PAIRED[character]))
        elif any(character == closing for _, closing in open_):
            while open_[-1][1] != character:
                open_.pop()
            pairs.append((open_.pop()[0], place))
    for begin, end in sorted(pairs):
        inside = set(resolved[begin + 1 : end])
        if inside & set("REN"):
            resolved[begin] = resolved[end] = "R"
        elif "L" in inside:
            strong = next(class_ for class_ in reversed(resolved[:begin]) if class_ in "LREN")
            resolved[begin] = resolved[end] = "L" if strong == "L" else "R"
    return "".join(resolved)

"""Scripts of a text, by the Unicode property Script of its letters (Unicode Standard Annex 24).

Look-alikes of another script (a Cyrillic А in a French name) are the commonest fault of typed transcriptions: they look
right to the person who corrects them and cost every model that learns from them.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

# Scripts that one language writes together in one word count as one.
_TOGETHER = {"Hira": "Jpan", "Kana": "Jpan", "Hani": "Jpan", "Hrkt": "Jpan"}
_OF_NO_SCRIPT = ("Zyyy", "Zinh", "Zzzz")  # common, inherited, unknown


def of(text: str) -> tuple[str, ...]:
    """ISO 15924 codes of the scripts that the letters of a text are in, sorted: ("Grek", "Latn"); () without letters."""
    return tuple(sorted({script for character in text if (script := _of_letter(character))}))


def mixed_words(text: str) -> list[str]:
    """The words of a text in which letters of several scripts stand together."""
    return [word for word in text.split() if len(of(word)) > 1]


@lru_cache(maxsize=65536)
def _of_letter(character: str) -> str:
    """The script of a letter, "" for anything else."""
    from fontTools.unicodedata import script

    if unicodedata.category(character)[0] != "L":
        return ""
    found = script(character)
    return "" if found in _OF_NO_SCRIPT else _TOGETHER.get(found, found)

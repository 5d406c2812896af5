"""Characters and their classes. Class 0 is special; the order of characters is kept for ever once given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from maskocr_core.config import Direction
from maskocr_core.model import direction as order

SPECIAL = 0  # no character: the blank of CTC, the beginning and the end of a text for the autoregressive decoder


@dataclass(frozen=True)
class Vocabulary:
    """Characters in the order of their classes 1, 2, …"""

    characters: str

    @classmethod
    def of(cls, texts: Iterable[str], direction: Direction = "ltr") -> Vocabulary:
        """The characters of logical texts, as they stand in the prepared images of lines of this direction."""
        read = (order.reading_order(text, direction) for text in texts)
        return cls("".join(sorted({character for text in read for character in text})))

    def __len__(self) -> int:
        """Number of classes V, the special one included."""
        return len(self.characters) + 1

    def union(self, other: Vocabulary) -> Vocabulary:
        """This vocabulary with the characters it lacks appended, so that its own classes stay where they are."""
        return Vocabulary(self.characters + "".join(c for c in other.characters if c not in self.characters))

    def encode(self, text: str) -> list[int]:
        """Classes of the characters; one that is not in the vocabulary has none and is left out."""
        return [place + 1 for place in (self.characters.find(c) for c in text) if place >= 0]

    def decode(self, classes: Iterable[int]) -> str:
        """The characters of classes 1, 2, …"""
        return "".join(self.characters[label - 1] for label in classes)

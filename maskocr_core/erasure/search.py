"""Finding lines again, wherever they stand: by id, by name, by text, by image.

A text or a name is looked for where a word begins, so that any number of them costs one pass over the content; short ones
are not looked for at all, since they would be found everywhere. Images are compared by the perceptual hash of near duplicates.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from maskocr_core.data import images
from maskocr_core.data.qa import near_duplicates

MIN_NAME, MIN_TEXT = 4, 8  # characters
_LENGTHS = (16, 8, 4)  # of the first characters by which a string is looked up
_LINE_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
_WORD = re.compile(r"(?<![^\W_])\S")
_INLINE = re.compile(r"</?(?:mark|b|i|u|em|strong|span|del|ins|small|sub|sup|bdi|bdo)(?:\s[^>]*)?>")
_EMBEDDED = re.compile(r"data:image/([a-z+.-]+)(?:;[a-z0-9=-]+)*;base64,([A-Za-z0-9+/=\s]+)")
_BARE = re.compile(r"(?:iVBOR|/9j/|UklGR|SUkq|TU0A)[A-Za-z0-9+/\s]{60,}={0,2}")  # PNG, JPEG, WebP and TIFF in base64


def fingerprint(encoded: bytes) -> bytes | None:
    """The perceptual hash of an encoded image; None for one that cannot be decoded."""
    try:
        return near_duplicates.fingerprint(images.decode(encoded))
    except ValueError:
        return None


class Search:
    """What is looked for: line ids, names of documents and pages, texts, and images by their hashes."""

    def __init__(self, lines: Iterable[str], names: Iterable[str], texts: Iterable[str], prints: Iterable[str]):
        self.lines, self.names = frozenset(lines), frozenset(names)
        self.texts = frozenset(" ".join(text.split()) for text in texts)
        self._starts: dict[int, dict[str, list[str]]] = {length: defaultdict(list) for length in _LENGTHS}
        long_enough = {name for name in self.names if len(name) >= MIN_NAME}
        for string in long_enough | {text for text in self.texts if len(text) >= MIN_TEXT}:
            length = next(length for length in _LENGTHS if length <= len(string))
            self._starts[length][string[:length]].append(string)
        self._looked_for = any(self._starts.values())
        self._prints = np.frombuffer(bytes.fromhex("".join(sorted(prints))), np.uint64).reshape(-1, 4)

    def spans(self, content: str) -> list[tuple[int, int]]:
        """Where ids, names and texts stand in a plain text, in order and without overlap."""
        found = [match.span() for match in _LINE_ID.finditer(content) if match[0] in self.lines] if self.lines else []
        if self._looked_for:
            for match in _WORD.finditer(content):
                begin = match.start()
                for length, starts in self._starts.items():
                    for string in starts.get(content[begin : begin + length], ()):
                        end = begin + len(string)
                        if content.startswith(string, begin) and not content[end : end + 1].isalnum():
                            found.append((begin, end))
        found.sort(key=lambda span: (span[0], -span[1]))
        apart: list[tuple[int, int]] = []
        for begin, end in found:
            if not apart or begin >= apart[-1][1]:
                apart.append((begin, end))
        return apart

    def in_image(self, encoded: bytes) -> bool:
        """Whether an encoded image looks like one of the lines."""
        if not len(self._prints) or (print_ := fingerprint(encoded)) is None:
            return False
        differing = np.bitwise_count(self._prints ^ np.frombuffer(print_, np.uint64)).sum(axis=1, dtype=int)
        return bool((differing <= near_duplicates.MAX_DISTANCE).any())

    def in_page(self, page: str) -> bool:
        """Whether HTML, SVG or any other text says or shows one of the lines; embedded images are looked at too."""
        if self.spans(page):
            return True
        for kind, encoded in _EMBEDDED.findall(page):
            if (content := _decoded(encoded)) is None:
                continue
            if kind.startswith("svg") and self.in_page(content.decode("utf-8", "replace")):
                return True
            if not kind.startswith("svg") and self.in_image(content):
                return True
        bare = _EMBEDDED.sub("", page)
        if any(self.in_image(content) for match in _BARE.finditer(bare) if (content := _decoded(match[0]))):
            return True
        # Words may be escaped, broken over lines or marked up one by one.
        plain = " ".join(html.unescape(_INLINE.sub("", bare)).split())
        return plain != page and bool(self.spans(plain))


def _decoded(encoded: str) -> bytes | None:
    digits = "".join(encoded.split())
    try:
        return base64.b64decode(
            digits[: len(digits) // 4 * 4], validate=True
        )  # what is beyond the end belongs to the text
    except (binascii.Error, ValueError):
        return None

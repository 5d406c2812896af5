"""How large the pages of a Parquet column are, from their own headers, before anybody allocates room for them.

Sizes in a footer are claims, and pyarrow allocates what a page header asks for: a file of 1 MB can hold a page of 2 GB,
or one value of a dictionary a hundred thousand times. No value is longer than the page or dictionary that it lies in, so
that the largest page says how many rows may be read at once. The headers are Thrift's compact protocol.

Sources: https://github.com/apache/parquet-format (PageHeader), https://github.com/apache/thrift (compact protocol)
"""

from __future__ import annotations

from typing import Any, BinaryIO

from maskocr_core.data.readers.units import Unreadable

MAX_PAGE = 256 << 20
MAX_PAGES = 200_000  # of one column in one row group
_HEADERS = (256, 1 << 14, 1 << 20, 16 << 20)  # bytes in which a header is looked for; statistics may make it long
_UNCOMPRESSED, _COMPRESSED = 2, 3  # fields of PageHeader
_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY, _STRUCT = (1, 2), 3, (4, 5, 6), 7, 8, 12


def largest(file: BinaryIO, chunk: Any, size: int) -> int:
    """Bytes of the largest page of a column chunk, compressed or not. Raises Unreadable for pages that are too large or broken.

    chunk: the pyarrow ColumnChunkMetaData; size: of the file.
    """
    position = chunk.data_page_offset
    # The same choice as Arrow's, or it would read other pages than those looked at here.
    if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < position:
        position = chunk.dictionary_page_offset
    end = position + chunk.total_compressed_size
    if not 0 <= position <= end <= size:
        raise Unreadable("a column lies outside of the file")
    most = 0
    for _ in range(MAX_PAGES):
        if position >= end:
            return most
        header, length = _header(file, position, end)
        page, packed = header.get(_UNCOMPRESSED, -1), header.get(_COMPRESSED, -1)
        if page < 0 or packed < 0 or position + length + packed > end:
            raise Unreadable("the header of a page is broken")
        most = max(most, page, packed)
        if most > MAX_PAGE:
            raise Unreadable(f"has a page of {most:,} bytes; at most {MAX_PAGE:,} are read: write smaller row groups")
        position += length + packed
    raise Unreadable(f"has more than {MAX_PAGES:,} pages in one row group")


def _header(file: BinaryIO, position: int, end: int) -> tuple[dict[int, Any], int]:
    """The fields of the page header at a position, and its length."""
    for most in _HEADERS:
        file.seek(position)
        content = bytes(file.read(min(most, end - position)))
        try:
            compact = _Compact(content)
            return compact.struct(), compact.at
        except IndexError:
            if len(content) < most:
                break
    raise Unreadable("the header of a page is broken")


class _Compact:
    """A reader of Thrift's compact protocol that keeps integers and skips the rest. Raises IndexError at the end."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            fields[number] = self._value(head & 15, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if depth > 8:
            raise Unreadable("the header of a page is broken")
        if kind in _BOOLEANS:
            return None
        if kind in _INTEGERS:
            return self._zigzag()
        if kind in (_BYTE, _DOUBLE):
            return self._skip(1 if kind == _BYTE else 8)
        if kind == _BINARY:
            return self._skip(self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        # Page headers have no lists or maps, and skipping one could be made to take for ever.
        raise Unreadable("the header of a page is broken")

    def _byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.content):
            raise IndexError

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise Unreadable("the header of a page is broken")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

"""Members of .tar, .tar.gz and .zip archives, here or in S3: listed, and read one by one. Nothing is ever extracted.

Archives are untrusted: a path may lead out of them, a member may be a link or a device, and a few bytes may expand to
terabytes. What a member claims is checked when it is listed and counted again when it is read.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from maskocr_core.data.readers.rows import check_name, shown
from maskocr_core.data.readers.units import Entry, Outage, Refused, Unreadable

SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")
FOREIGN = (".7z", ".rar", ".gz", ".bz2", ".tbz2", ".xz", ".txz", ".zst")
MAX_RATIO = 200  # images are compressed already; a page of black and white in a raw TIFF stays below
FREE_BYTES = 64 << 20  # what may be expanded whatever the ratio
MAX_MEMBERS = 1_000_000
_BLOCK = 1 << 20
_ZIPPED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError),
    *(UnicodeError, OverflowError, ValueError, RuntimeError, AttributeError, IndexError),
)


class _Careful:
    """A file whose header cannot make anyone read, and so allocate, more than `most` bytes at once."""

    most = 64 << 20

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = self.most + 1
        content = super().read(min(size, self.most + 1))  # type: ignore[misc]
        if len(content) > self.most:
            raise Unreadable(f"has a directory or header of more than {self.most:,} bytes")
        return content


class _File(_Careful, io.BufferedReader):
    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size)
        except OSError as error:
            # zipfile would take it for a broken archive.
            raise Outage(f"an archive cannot be read ({error}); run ingest again") from None


class _Gzip(_Careful, gzip.GzipFile):
    most = _BLOCK


def suffix(name: str) -> str:
    """The suffix that makes a name an archive's, or an empty string."""
    return next((ending for ending in SUFFIXES if name.lower().endswith(ending)), "")


def members(archive: Entry, folder: str) -> Iterator[Entry | Refused]:
    """The members of an archive, named below `folder`, and what is refused of it; a broken archive as far as it goes.

    Raises ValueError if the archive's file cannot be reached.
    """
    names: set[str] = set()
    listed = _zip_members if suffix(archive.name) == ".zip" else _tar_members
    try:
        with _open(archive) as file:
            for number, (name, size, offset, reason) in enumerate(listed(archive, file)):
                if number == MAX_MEMBERS:
                    raise Unreadable(f"has more than {MAX_MEMBERS:,} members: make several archives of it")
                inside = re.sub(r"(^|/)(\./)+", r"\1", name.replace("\\", "/")).strip("/")
                item = f"{shown(archive.name)}/{shown(inside)}"
                reason = reason or _unsafe(name.replace("\\", "/"))
                if not reason and inside in names:
                    reason = "comes twice in the archive; the first is read"
                names.add(inside)
                path = f"{folder}/{inside}" if folder else inside
                yield Refused(item, reason) if reason else Entry(path, size, archive.uri, True, offset)
    except _BROKEN as error:
        where = "" if not names else f" after {len(names):,} members"
        yield Refused(shown(archive.name), f"is broken{where}: {error or type(error).__name__}")


@contextmanager
def opened(archive: Entry, wanted: Iterable[Entry], most: int) -> Iterator[Callable[[Entry], Iterator[bytes]]]:
    """A way to the bytes of the members of one archive, in blocks; it raises Unreadable where they are broken.

    wanted: all that may be asked for; most: bytes of the largest. Raises Unreadable if the archive cannot be opened.
    """
    with ExitStack() as stack:
        try:
            file = stack.enter_context(_open(archive))
            if suffix(archive.name) == ".zip":
                at = _in_zip(zipfile.ZipFile(file))
            elif suffix(archive.name) == ".tar":
                at = _in_tar(file, None)
            else:
                at = _in_tar(*_spooled(file, wanted, most, stack))
        except _BROKEN as error:
            raise Unreadable(f"{shown(archive.name)} is broken: {error or type(error).__name__}") from None

        def blocks(entry: Entry) -> Iterator[bytes]:
            try:
                yield from _blocks(at(entry), entry)
            except _BROKEN as error:
                raise Unreadable(f"is broken in its archive: {error or type(error).__name__}") from None

        yield blocks


def _in_zip(opened: zipfile.ZipFile) -> Callable[[Entry], BinaryIO]:
    found = {info.header_offset: info for info in opened.infolist()}
    return lambda entry: opened.open(found[entry.offset])  # type: ignore[return-value]


def _in_tar(file: BinaryIO, places: dict[int, int] | None) -> Callable[[Entry], BinaryIO]:
    def at(entry: Entry) -> BinaryIO:
        if places is not None and entry.offset not in places:
            raise Unreadable("it lies behind a broken place")
        file.seek(entry.offset if places is None else places[entry.offset])
        return file

    return at


def _zip_members(archive: Entry, file: BinaryIO) -> Iterator[tuple[str, int, int, str]]:
    """(name, size, offset, reason of refusal) of each file in a zip."""
    infos = zipfile.ZipFile(file).infolist()
    ends = sorted(info.header_offset for info in infos) + [archive.size]
    following = dict(zip(ends, ends[1:]))
    for info in infos:
        if info.is_dir():
            continue
        reason = ""
        if info.flag_bits & 1:
            reason = "is encrypted: pack it without a password"
        elif info.compress_type not in _ZIPPED:
            reason = "is packed by a method other than deflate: pack it anew"
        elif info.external_attr >> 28 not in (0, 8):  # a plain file, or no word about it
            reason = "is a link or a device; only plain files are read"
        elif info.header_offset + info.compress_size > following[info.header_offset]:
            reason = "shares its bytes with another member, as in a zip bomb"
        elif info.file_size > 1 << 20 and info.file_size > MAX_RATIO * info.compress_size:
            reason = f"expands more than {MAX_RATIO} times, as in a zip bomb"
        yield info.filename, info.file_size, info.header_offset, reason


def _tar_members(archive: Entry, file: BinaryIO) -> Iterator[tuple[str, int, int, str]]:
    packed = suffix(archive.name) != ".tar"
    room = FREE_BYTES + MAX_RATIO * archive.size if packed else archive.size
    with tarfile.TarFile(fileobj=_Gzip(fileobj=file) if packed else file, errorlevel=2) as tar:
        last = -1
        while (info := tar.next()) is not None:
            tar.members.clear()  # or a million of them would stay
            if info.size < 0 or info.offset <= last:
                raise Unreadable("a member begins before the one it follows")
            last = info.offset
            if info.offset_data + (0 if info.issparse() else info.size) > room:
                raise Unreadable(f"expands more than {MAX_RATIO} times" if packed else "it is shorter than it says")
            if info.isdir():
                continue
            plain = info.isreg() and not info.issparse()
            reason = "" if plain else "is a link, a device or a sparse file; only plain files are read"
            yield info.name, info.size, info.offset_data, reason
        # tarfile takes a broken header for the end.
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise Unreadable("a header is broken, or the end is missing")


def _spooled(file: BinaryIO, wanted: Iterable[Entry], most: int, stack: ExitStack) -> tuple[BinaryIO, dict[int, int]]:
    """The wanted members of a .tar.gz, copied in one pass into a nameless file, and where each lies in it."""
    spool = stack.enter_context(tempfile.TemporaryFile())
    places = {}
    unpacked = _Gzip(fileobj=file)
    for entry in sorted(set(wanted), key=lambda entry: entry.offset):
        if entry.size > most:
            continue
        try:
            unpacked.seek(entry.offset)
            for block in _blocks(unpacked, entry):
                spool.write(block)
        except _BROKEN:
            break  # what lies behind the broken place is refused when it is asked for
        places[entry.offset] = spool.tell() - entry.size
    return spool, places


def _blocks(file: BinaryIO, entry: Entry) -> Iterator[bytes]:
    """The bytes of a member, no fewer than it claims and no more."""
    left = entry.size
    while left:
        block = file.read(min(_BLOCK, left))
        if not block:
            raise Unreadable(f"ends {left:,} bytes before its end")
        left -= len(block)
        yield block


def _unsafe(path: str) -> str:
    if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in path.split("/"):
        return "has a path that leads out of the archive"
    if suffix(path) or path.lower().endswith(FOREIGN):
        return "is an archive in an archive: unpack the outer one"
    try:
        check_name(path, "its name")
    except Unreadable as error:
        return str(error)
    return ""


def _open(archive: Entry) -> _File:
    file = _File(archive.open(), _BLOCK)
    if suffix(archive.name) != ".zip":
        file.most = _BLOCK
    return file

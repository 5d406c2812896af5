"""Files on this machine (`disk`) or in S3 (`s3`), by URI: the same questions to either."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from maskocr_core.services import disk, s3
from maskocr_core.services.stored import File

LIST = "list+"  # before the URI of a file that lists which files are meant
_LIST_FORMAT = 1
_FRESH = 3600.0  # seconds


@dataclass(frozen=True)
class Listing:
    """What `list+URI` stands for: some of the files below `root`, and what is read `beside` them (a URI or nothing)."""

    root: str
    beside: str
    files: tuple[File, ...]


def is_remote(uri: str) -> bool:
    return uri.startswith(s3.SCHEME)


def _keeper(uri: str) -> ModuleType:
    """The module that keeps what `uri` names."""
    return s3 if is_remote(uri) else disk


def absolute(uri: str) -> str:
    """A local path made absolute, so that it is the same text from every working folder; other URIs as they are."""
    if uri.startswith(LIST):
        return LIST + absolute(uri.removeprefix(LIST))
    if not uri or is_remote(uri) or uri.startswith("models:/"):
        return uri
    path = Path(uri)
    return str(path.parent.resolve() / path.name)  # a link keeps its own name, of which a source may be called


def listed(uris: str) -> list[str]:
    """The URIs of an argument that takes several, separated by commas; a name with a comma in it cannot be given."""
    return [uri.strip() for uri in uris.split(",") if uri.strip()]


def files(uri: str, *, some: bool = True) -> list[File]:
    """All files below a folder or `s3://bucket/prefix`, the one file that `uri` names, or those of `list+URI`; by name.

    Raises ValueError if nothing is there, unless `some` is false.
    """
    if listed := listing(uri):
        return list(listed.files)
    found = sorted(_keeper(uri).files(uri), key=lambda file: file.name)
    if some and not found:
        raise ValueError(f"{uri}: there is no file here; give a folder or s3://bucket/prefix that holds line images")
    return found


def fingerprint(uri: str) -> str:
    """sha256 over names, sizes and stamps below `uri`: changes when any file there does."""
    # The name of the folder counts: image files take it for their source.
    digest = hashlib.sha256(f"{uri.rstrip('/').rpartition('/')[2]}\n".encode())
    listed = listing(uri)
    for file in listed.files if listed else files(uri):
        digest.update(f"{file.name}\0{file.size}\0{file.stamp}\n".encode())
    if listed and listed.beside:
        digest.update(fingerprint(listed.beside).encode())
    return digest.hexdigest()


def put_list(uri: str, listed: Listing) -> str:
    """Write a list of files to `uri`, whose last name should be the root's: a source may be called so.

    Returns `list+uri`.
    """
    entries = [{"name": file.name, "size": file.size, "stamp": file.stamp} for file in listed.files]
    facts = {"format_version": _LIST_FORMAT, "root": listed.root, "beside": listed.beside, "files": entries}
    put(uri, json.dumps(facts, indent=1, ensure_ascii=False).encode())
    return LIST + uri


def listing(uri: str) -> Listing | None:
    """The list that `list+URI` names; None for a URI of another form. Raises ValueError if no list is there."""
    if not uri.startswith(LIST):
        return None
    place = uri.removeprefix(LIST)
    try:
        facts = json.loads(content(place))
        if facts["format_version"] != _LIST_FORMAT:
            raise KeyError
        found = [File(f"{facts['root']}/{entry['name']}", **entry) for entry in facts["files"]]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise ValueError(f"{place} is no list of files of format {_LIST_FORMAT}, as `fresh` writes it") from None
    return Listing(facts["root"], facts["beside"], tuple(found))


def clock(uri: str) -> float:
    """What time it is where a file at `uri` would lie: it is written, and its time read. Seconds since 1970."""
    put(uri, b"")
    (marker,) = files(uri)
    return marker.modified


def open_input(uri: str) -> Any:
    """A seekable binary file for `uri` that reads only the ranges asked for (a pyarrow NativeFile).

    Raises ValueError if it cannot be opened.
    """
    return _keeper(uri).open_input(uri)


def content(uri: str) -> bytes:
    """A whole file as it is at one moment, though it may be replaced meanwhile. Raises ValueError if it cannot be opened."""
    return _keeper(uri).content(uri)


def fetched(uri: str, folder: Path, most: int = 1 << 20) -> Path:
    """A small file, of at most `most` bytes, as a local one: itself where it lies here, else copied into `folder`."""
    if not is_remote(uri):
        return Path(uri)
    with open_input(uri) as file:
        if file.size() > most:
            raise ValueError(f"{uri} has {file.size():,} bytes, at most {most:,} were expected: is it the right file?")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / uri.rpartition("/")[2]
        path.write_bytes(file.read())
        return path


def put(uri: str, content: bytes) -> None:
    """Write a whole file: here under a temporary name, synced and renamed; an object of S3 is visible only when it is whole.

    Raises OSError (ENOSPC on a full disk) or ValueError (S3); what was there before is then as it was.
    """
    _keeper(uri).put(uri, content)


def replace(uri: str, change: Callable[[bytes | None], bytes]) -> None:
    """Replace the content of a small file by `change(content)` (None: there is no file yet), losing no other writer's change.

    Here under a lock and by rename; in S3 by a conditional PUT, tried again when another writer was faster.
    """
    _keeper(uri).replace(uri, change)


def create(uri: str, content: bytes) -> bool:
    """Write a small file where there is none; False if another writer made it. Of two at once, one gets it."""

    def only_where_there_is_none(found: bytes | None) -> bytes:
        # A PUT whose answer was lost is sent again by the client: what it then finds is its own.
        if found not in (None, content):
            raise _Taken
        return content

    try:
        replace(uri, only_where_there_is_none)
    except _Taken:
        return False
    return True


class _Taken(Exception):
    """Another writer was faster."""


def erase(uri: str) -> None:
    """Remove a file or object for good: in S3 every version of it, where the bucket keeps versions. Absent is fine.

    A store may keep the bytes of what was deleted until it cleans up (SeaweedFS: vacuum; disks: until overwritten).
    """
    _keeper(uri).erase(uri)


def erase_below(uri: str, which: Callable[[str], bool] = lambda name: True) -> None:
    """Remove every file below a folder or prefix for good, or those which are meant by their name there, half-written ones too.

    Nothing there is fine.
    """
    if _keeper(uri) is disk:
        if not Path(uri).is_dir():
            return
        disk.sweep(Path(uri), which)
    for file in _keeper(uri).files(uri.rstrip("/") + "/"):
        if which(file.name):
            erase(file.uri)


def holds(uri: str) -> bool:
    """Whether any file lies below a folder or prefix."""
    return _keeper(uri).holds(uri.rstrip("/") + "/")


def exists(uri: str) -> bool:
    """Whether the object or file is there."""
    return _keeper(uri).exists(uri)


def renewed(uri: str) -> bool:
    """Whether the object or file is there. One that is older than an hour gets the time of a new one.

    Whoever cleans up goes by that time, and cannot know that it is about to be used again.
    """
    if not exists(uri):
        return False
    found = files(uri, some=False)
    if found and found[0].modified < time.time() - _FRESH:
        _keeper(uri).renew(uri)
    return bool(found)

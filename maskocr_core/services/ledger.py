"""The ledger: who decided what about which model, when and why, as numbered JSON files that are only ever added to.

Each entry holds the SHA-256 of the file before it (`sha256sum 00000001.json` is `previous` of the second) and one of
its own content, so that whoever reads them finds an entry that was changed, removed or put between. Two writers never
get one number: a file is made under a lock here, by a conditional PUT in S3, and only where there is none.
Sources: Haber & Stornetta, How to time-stamp a digital document, 1991, https://doi.org/10.1007/BF00196791;
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from maskocr_core.services import storage, tracking
from maskocr_core.services.stored import File

FORMAT_VERSION = 1
MOVES = ("promotion", "rollback", "seen")  # the kinds of entries that say who is champion
ATTEMPTS = 50  # how often another writer may be faster
_NAME = re.compile(r"\d{8}\.json")
_MEND = "bring back the file as it was (a copy, or an older version of the object)"


@dataclass(frozen=True)
class Entry:
    """One decision, or what was seen of one.

    version: None where the alias was taken away. verdict, verdict_digest: the gate's word on the version, and the
    sha256 of the summary.json that it comes from. replaces: the version that had the alias before; of a verdict the champion
    that the version was judged against, None where there was none. confirms: number of
    the entry that a confirmation gives its reason to. override: whether the gate's hold, or a doubt about its verdict,
    was passed over. id: tells an entry from a twin that another writer made in the same second.
    """

    kind: Literal["verdict", "promotion", "rollback", "seen", "confirmation"]
    model: str
    version: str | None
    who: str
    reason: str = ""
    alias: str | None = None
    verdict: str | None = None
    verdict_digest: str | None = None
    replaces: str | None = None
    confirms: int | None = None
    override: bool = False
    when: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    number: int = 0
    previous: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def what(self) -> str:
        """What it is, in words: `promotion, override`, `confirmation of 7`."""
        return self.kind + (f" of {self.confirms}" if self.confirms else "") + (", override" if self.override else "")

    @property
    def change(self) -> str:
        """The version it is about and the other one: `1 → 3` of a move, `3 against 1` of a verdict."""
        version = self.version or "none"
        if not self.replaces:
            return version
        return f"{version} against {self.replaces}" if self.kind == "verdict" else f"{self.replaces} → {version}"


@dataclass(frozen=True)
class Book:
    """What was read at a place: entries and the sha256 of their files up to the first fault, and that fault."""

    place: str
    entries: tuple[Entry, ...]
    digests: tuple[str, ...]
    fault: str | None

    def demand_whole(self) -> Book:
        """This book. Raises ValueError with the fault if it has one."""
        if self.fault:
            raise ValueError(self.fault)
        return self


def place() -> str:
    """MASKOCR_LEDGER; else `ledger` beside MLflow's embedded database; else `ledger` in MASKOCR_STORE.

    Raises ValueError where MLflow is shared and neither is set: every machine would begin a ledger of its own.
    """
    if given := os.environ.get("MASKOCR_LEDGER"):
        return storage.absolute(given.rstrip("/"))
    if folder := tracking.embedded():
        return str(folder / "ledger")
    if store := os.environ.get("MASKOCR_STORE"):
        return f"{store.rstrip('/')}/ledger"
    raise ValueError(
        f"MLflow at {tracking.uri()} is shared and the ledger of its promotions has no place that is: "
        "set MASKOCR_LEDGER to s3://bucket/prefix or to a folder that every machine mounts"
    )


def who() -> str:
    """Who acts: MASKOCR_WHO, else the user of this process at this host. What they say is written down, not proved."""
    import getpass
    import socket

    if given := os.environ.get("MASKOCR_WHO", "").strip():
        return storable(given)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    return storable(f"{user}@{socket.gethostname()}")


def storable(text: str) -> str:
    """The text without what UTF-8 cannot hold (bytes of another encoding in an argument or variable)."""
    return text.encode(errors="replace").decode()


def read(place: str) -> Book:
    """All entries at a place, the chain verified: a place where nothing is holds none.

    The fault names the first entry that was changed, exchanged, removed or added. What comes after it is left out,
    since nothing vouches for it. Raises ValueError if the place cannot be read.
    """
    entries: list[Entry] = []
    digests: list[str] = []
    fault = None
    for file in _files(place):
        name, uri, number = file.name, file.uri, len(entries) + 1
        if not _NAME.fullmatch(name):
            fault = f"{uri} is no entry of the ledger: take it away"
        elif name != _name(number):
            fault = f"the ledger at {place} has {name} and no {_name(number)}, which was removed: {_MEND}"
        if fault:
            break
        content = _content(file)
        entry = _parsed(content)
        if isinstance(entry, str):
            fault = f"{uri} {entry}"
            break
        if entry.number != number or (number == 1 and entry.previous):
            fault = f"{uri} was exchanged: it holds entry {entry.number} of a ledger; {_MEND}"
            break
        if number > 1 and entry.previous != digests[-1]:
            # The entry vouches for itself, so it is what it says it follows on that is another now.
            fault = f"{place}/{_name(number - 1)} was exchanged: {name} was written after another one; {_MEND}"
            entries, digests = entries[:-1], digests[:-1]
            break
        entries.append(entry)
        digests.append(hashlib.sha256(content).hexdigest())
    return Book(place, tuple(entries), tuple(digests), fault)


def append(place: str, write: Callable[[tuple[Entry, ...]], Entry | None]) -> Entry | None:
    """Add the entry that `write` makes of those so far; returns it with its number.

    write: asked again whenever another writer was faster, so that it decides on what is there; it may raise to give up,
    or return None if there is nothing to add any more.
    Raises ValueError if the chain is broken or cannot be written.
    """
    for _ in range(ATTEMPTS):
        book = read(place).demand_whole()
        entry = write(book.entries)
        if entry is None:
            return None
        number = len(book.entries) + 1
        entry = dataclasses.replace(entry, number=number, previous=book.digests[-1] if number > 1 else "")
        if storage.create(f"{place}/{_name(number)}", _encoded(dataclasses.asdict(entry))):
            return entry
    raise ValueError(f"{place}: other writers were faster {ATTEMPTS} times: try again")


def digest(entry: Entry) -> str:
    """sha256 of the file of an entry."""
    return hashlib.sha256(_encoded(dataclasses.asdict(entry))).hexdigest()


def last_move(entries: Sequence[Entry], model: str) -> Entry | None:
    """The entry that says who is champion of a model; None if it never had one."""
    return next((entry for entry in reversed(entries) if entry.model == model and entry.kind in MOVES), None)


def champion(entries: Sequence[Entry], model: str) -> str | None:
    """The champion by the ledger; None where there never was one, or its alias was taken away."""
    last = last_move(entries, model)
    return last.version if last else None


def champions(entries: Sequence[Entry], model: str) -> list[str]:
    """Versions that were champion, each after the one it replaced, without those rolled back, here or in the UI."""
    found: list[str] = []
    for entry in entries:
        if entry.model != model or entry.kind not in MOVES or not entry.version:
            continue
        if entry.kind != "promotion" and entry.version in found:
            while found[-1] != entry.version:
                found.pop()
        else:
            found.append(entry.version)
    return found


def verdict_on(entries: Sequence[Entry], model: str, version: str | None) -> Entry | None:
    """The gate's latest verdict on a version: numbers begin anew where a registered model was deleted whole."""
    mine = (e for e in reversed(entries) if e.kind == "verdict" and (e.model, e.version) == (model, version))
    return next(mine, None)


def unconfirmed(entries: Sequence[Entry], model: str) -> list[Entry]:
    """Moves that were only seen, and of which nobody gave the reason."""
    confirmed = {entry.confirms for entry in entries if entry.kind == "confirmation"}
    return [e for e in entries if e.model == model and e.kind == "seen" and e.number not in confirmed]


def _files(place: str) -> list[File]:
    """The JSON files at a place, by name."""
    here = storage.holds(place) if storage.is_remote(place) else any(Path(place).glob("*.json"))
    return [file for file in storage.files(place) if file.name.endswith(".json")] if here else []


def _content(file: File) -> bytes:
    # A command reads the ledger several times; an object whose ETag is the same holds the same.
    return _object(file.uri, file.stamp) if storage.is_remote(file.uri) else Path(file.uri).read_bytes()


@lru_cache(maxsize=4096)
def _object(uri: str, stamp: str) -> bytes:
    return storage.content(uri)


def _name(number: int) -> str:
    return f"{number:08}.json"


def _encoded(facts: dict[str, Any]) -> bytes:
    """The file of an entry: its facts and the sha256 over them, in the one form that is valid."""
    sealed = facts | {"sha256": hashlib.sha256(_json(facts)).hexdigest()}
    return _json(sealed) + b"\n"


def _json(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False).encode()


def _parsed(content: bytes) -> Entry | str:
    """The entry in a file, or what is the matter with it."""
    try:
        facts = json.loads(content)
        facts.pop("sha256")
        intact = _encoded(facts) == content
    except (ValueError, AttributeError, KeyError, TypeError):
        return f"is damaged: it holds no JSON of an entry; {_MEND}"
    if not intact:
        return f"was changed after it was written: {_MEND}"
    if facts.get("format_version") != FORMAT_VERSION:
        found = facts.get("format_version")
        return f"has format_version {found!r}, not {FORMAT_VERSION}: install the maskocr that wrote it"
    return Entry(**facts)

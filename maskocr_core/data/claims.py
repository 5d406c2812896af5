"""Which run takes which new objects: numbered JSON files of claims, so that each object is processed once.

A claim is `claimed` by a run until it is `done`, when a model made of its objects is registered, or `returned`, when
they were too few: then they are new again and count next time. Number n + 1 is made by a conditional PUT (here under a
lock), and only by one who has read all claims up to n, so that two claimers never get the same object. What is new is
told by name and stamp (the ETag in S3), not by time, so that an object that comes late is not missed.
Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import dataclasses
import json
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from maskocr_core.data.readers import archives, files, items, pages, xml_file
from maskocr_core.data.readers.rows import check_name
from maskocr_core.data.readers.units import Entry, Outage, Unreadable
from maskocr_core.services import storage
from maskocr_core.services.stored import File

FORMAT_VERSION = 1
ATTEMPTS = 50  # how often another claimer may be faster
CLOCK = "clock"  # a file whose only content is its time
_NAME = re.compile(r"\d{8}\.json")


@dataclass(frozen=True)
class Claim:
    """Objects that a run takes. `again`: claimed before, and read along because what belongs to them is new.

    data: the root below which the objects lie. taken: when, by the store's clock. together: names of those of which
    none is read without the others. id: tells it from a twin.
    """

    data: str
    run: str
    taken: float
    objects: tuple[File, ...]
    again: tuple[File, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    state: Literal["claimed", "done", "returned"] = "claimed"
    reason: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    number: int = 0

    @property
    def files(self) -> tuple[File, ...]:
        """All that is to be read, by name."""
        return tuple(sorted((*self.objects, *self.again), key=lambda file: file.name))


@dataclass(frozen=True)
class Taken:
    """What `take` came to. claim: None where nothing is new.

    waiting: objects too young to be taken, or of a pair of which one is. halves: without the other half of a pair.
    vanished: names of objects that an unfinished claim had, and that are gone or changed. held: unfinished claims of
    other runs. now: the time by the store's clock. ended: claims that had come to something, which is said of them now.
    """

    claim: Claim | None
    waiting: tuple[str, ...]
    halves: tuple[str, ...]
    vanished: tuple[str, ...]
    held: tuple[Claim, ...]
    now: float
    ended: tuple[Claim, ...] = ()


class _Lost(Exception):
    """Another writer was faster."""


def take(
    data_uri: str,
    claims_uri: str,
    run: str,
    settle: float,
    abandoned: float,
    came_of: Callable[[Claim], str | None] = lambda claim: None,
) -> Taken:
    """Claim the new objects below `data_uri` for `run`, or go on with an unfinished claim, which is never mixed with others.

    That is the run's own, else one of a run that has held it for longer than `abandoned` seconds. settle: seconds below
    which an object is too young to be taken. came_of: what an unfinished claim came to, if its run got that far and died
    before it said so: it is ended, and nobody goes on with it. Raises ValueError if a store does not answer.
    """
    data_uri, claims_uri = (storage.absolute(uri).rstrip("/") for uri in (data_uri, claims_uri))
    now = storage.clock(f"{claims_uri}/{CLOCK}")
    vanished: list[str] = []
    ended: list[Claim] = []
    for _ in range(ATTEMPTS):
        every = read(claims_uri)
        claims = [claim for claim in every if claim.data == data_uri]
        open_claims = [claim for claim in claims if claim.state == "claimed"]
        if came := [(claim, reason) for claim in open_claims if (reason := came_of(claim))]:
            ended += [end(claims_uri, claim, "done", reason) for claim, reason in came]
            continue
        found = storage.files(data_uri, some=False)
        groups, halves = grouped(found)
        kept = {(o.name, o.stamp) for claim in claims if claim.state != "returned" for o in claim.objects}
        new, waiting = _new(groups, kept, now - settle)
        mine = next((claim for claim in open_claims if claim.run == run), None)
        mine = mine or next((claim for claim in open_claims if now - claim.taken > abandoned), None)
        try:
            if mine:
                claim, gone = _gone_on_with(claims_uri, mine, run, now, abandoned, found)
                vanished += gone
                if claim is None:
                    continue
            else:
                number = max((claim.number for claim in every), default=0) + 1
                claim = _made(claims_uri, Claim(data_uri, run, now, (), number=number), new, kept)
        except _Lost:
            continue
        held = tuple(other for other in open_claims if other is not mine)
        return Taken(claim, waiting, halves, tuple(vanished), held, now, tuple(ended))
    raise ValueError(f"{claims_uri}: other claimers were faster {ATTEMPTS} times: try again")


def end(claims_uri: str, claim: Claim, state: Literal["done", "returned"], reason: str) -> Claim:
    """Say of an unfinished claim that it is done, or that its objects are new again; saying it twice is saying it once.

    Raises ValueError where another run has taken the claim over, or has ended it otherwise.
    """

    def ended(found: Claim) -> Claim:
        if found.run != claim.run or found.state not in ("claimed", state):
            raise ValueError(_lost(found))
        return dataclasses.replace(found, state=state, reason=found.reason if found.state == state else reason)

    return _changed(claims_uri, claim.number, ended)


def renew(claims_uri: str, claim: Claim) -> Claim:
    """Say that the run which holds a claim goes on with it. Raises ValueError where it holds it no longer."""
    now = storage.clock(f"{claims_uri}/{CLOCK}")

    def renewed(found: Claim) -> Claim:
        if found.run != claim.run or found.state != "claimed":
            raise ValueError(_lost(found))
        return dataclasses.replace(found, taken=now)

    return _changed(claims_uri, claim.number, renewed)


def read(claims_uri: str) -> list[Claim]:
    """All claims at a place, by number; none where nothing is. Raises ValueError for a file that holds no claim."""
    found = storage.files(claims_uri, some=False)
    return [_parsed(storage.content(file.uri), file.uri) for file in found if _NAME.fullmatch(file.name)]


def record(claim: Claim) -> dict[str, Any]:
    """A claim as JSON-able values."""
    return {"format_version": FORMAT_VERSION, **dataclasses.asdict(claim)}


def of_record(facts: dict[str, Any]) -> Claim:
    """The claim in a `record`. Raises KeyError or TypeError if it is none, ValueError if a newer version wrote it."""
    facts = dict(facts)
    if (version := facts.pop("format_version")) != FORMAT_VERSION:
        raise ValueError(f"format_version {version!r} is not {FORMAT_VERSION}; install the maskocr that wrote it")
    for part in ("objects", "again"):
        facts[part] = tuple(File(**entry) for entry in facts[part])
    return Claim(**facts | {"together": tuple(map(tuple, facts["together"]))})


def grouped(found: Iterable[File]) -> tuple[list[tuple[File, ...]], tuple[str, ...]]:
    """What belongs together, by the rules of ingest: an image and its text, a page file and its images, a table alone.

    Also the names of halves: a text without its image, a page file without its page. Other files are left aside.
    """
    by_name = {file.name: file for file in found if _is_readable(file.name)}
    alone = [name for name in by_name if name.lower().endswith(".parquet") or archives.suffix(name)]
    groups: list[tuple[File, ...]] = [(by_name[name],) for name in alone]
    loose = [Entry(file.name, file.size, file.uri) for file in by_name.values() if file.name not in set(alone)]
    used: set[str] = set()
    for item in items.gather(loose, _image_named_by):
        if item.form == "line" or (item.form == "page" and len(item.files) > 1):
            groups.append(tuple(by_name[entry.name] for entry in item.entries))
        used |= {entry.name for entry in item.entries if item.form != "page" or len(item.files) > 1}
    halves = [entry.name for entry in loose if entry.name not in used]
    return groups, tuple(sorted(name for name in halves if name.lower().endswith((".xml", ".txt"))))


def _new(
    groups: list[tuple[File, ...]], kept: set[tuple[str, str]], latest: float
) -> tuple[list[tuple[File, ...]], tuple[str, ...]]:
    """Groups in which something is new and nothing too young, and the names of the new objects of those that wait."""
    new, waiting = [], set()
    for group in groups:
        fresh = [file for file in group if (file.name, file.stamp) not in kept]
        if fresh and all(file.modified <= latest for file in group):
            new.append(group)
        else:
            waiting.update(file.name for file in fresh)
    return new, tuple(sorted(waiting))


def _made(claims_uri: str, empty: Claim, groups: list[tuple[File, ...]], kept: set[tuple[str, str]]) -> Claim | None:
    """The empty claim with the objects of the groups, written; None where there are none. Raises _Lost.

    Its number is one more than that of the last claim when `kept` was read, or an object could be claimed twice.
    """
    if not groups:
        return None
    every = sorted({file for group in groups for file in group}, key=lambda file: file.name)
    claim = dataclasses.replace(
        empty,
        objects=tuple(file for file in every if (file.name, file.stamp) not in kept),
        again=tuple(file for file in every if (file.name, file.stamp) in kept),
        together=tuple(tuple(file.name for file in group) for group in groups if len(group) > 1),
    )
    if not storage.create(_place(claims_uri, claim.number), _encoded(claim)):
        raise _Lost
    return claim


def _gone_on_with(
    claims_uri: str, claim: Claim, run: str, now: float, abandoned: float, found: list[File]
) -> tuple[Claim | None, list[str]]:
    """An unfinished claim as `run` holds it from now on, and the names of what is no longer as it was claimed.

    What belongs to a vanished object is new again, to be claimed with whatever comes in its place. None where nothing
    is left. Raises _Lost.
    """
    there = {(file.name, file.stamp) for file in found}
    gone = {file.name for file in claim.files if (file.name, file.stamp) not in there}
    whole = [group for group in claim.together if not gone & set(group)]
    paired = {name for group in claim.together for name in group}
    alone = {file.name for file in claim.files} - paired - gone
    left = alone | {name for group in whole for name in group}

    def taken_over(current: Claim) -> Claim:
        if current.state != "claimed" or (current.run != run and now - current.taken <= abandoned):
            raise _Lost
        objects, again = (tuple(file for file in part if file.name in left) for part in (claim.objects, claim.again))
        current = dataclasses.replace(current, run=run, taken=now, objects=objects, again=again, together=tuple(whole))
        if objects:
            return current
        return dataclasses.replace(current, state="returned", reason="all its objects vanished or changed")

    held = _changed(claims_uri, claim.number, taken_over)
    return (held if held.state == "claimed" else None), sorted(gone)


def _changed(claims_uri: str, number: int, change: Callable[[Claim], Claim]) -> Claim:
    """A claim after `change`, of which no other writer's change is lost."""
    place, made = _place(claims_uri, number), []

    def changed(content: bytes | None) -> bytes:
        if content is None:
            raise ValueError(f"{place} is gone: bring the claim back, or its objects will be taken for new ones")
        made.append(change(_parsed(content, place)))
        return _encoded(made[-1])

    storage.replace(place, changed)
    return made[-1]


def _is_readable(name: str) -> bool:
    try:
        check_name(name, "its name")
    except Unreadable:
        return False
    return not name.rpartition("/")[2].startswith(".")


def _image_named_by(entry: Entry) -> str:
    try:
        with files.reading(None, [entry], xml_file.MAX_BYTES) as content:
            return pages.image_named_by(content(entry, xml_file.MAX_BYTES))
    except Unreadable:
        return ""
    except Outage as error:
        raise ValueError(str(error)) from None


def _place(claims_uri: str, number: int) -> str:
    return f"{claims_uri}/{number:08}.json"


def _lost(claim: Claim) -> str:
    return (
        f"claim {claim.number} is {claim.state}, by run {claim.run}: its objects are no longer this run's; "
        "start a run anew for what is new"
    )


def _encoded(claim: Claim) -> bytes:
    return (json.dumps(record(claim), indent=1, ensure_ascii=False) + "\n").encode()


def _parsed(content: bytes, place: str) -> Claim:
    try:
        return of_record(json.loads(content))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{place} is damaged: it holds no claim; bring it back as it was") from None
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None

"""`maskocr forget`: hide lines from every reader at once, then erase them wherever they lie, and say what was done.

The order is that of a thing that may be killed at any moment: the tombstone, a journal of what is to be erased, unfinished
work, artifacts, versions of the data, the store, MLflow, a search for what is left, the record, and the journal goes.
"""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from maskocr_core.data import tombstones
from maskocr_core.erasure import doomed as doom
from maskocr_core.erasure import past, places, repack, tracked
from maskocr_core.erasure.doomed import Doomed
from maskocr_core.erasure.past import Past
from maskocr_core.erasure.places import Places
from maskocr_core.services import history, logged, storage


@dataclass(frozen=True)
class Asked:
    """What is to be forgotten: a document (of a source), a source, lines past their date, or what is listed already."""

    reason: str
    document: str | None = None
    source: str | None = None
    expired_on: datetime.date | None = None
    listed: bool = False

    def stones(self, found: Places) -> list[dict[str, str]]:
        """The tombstones it needs. Raises ValueError if nothing, or two things at once, are asked for."""
        if not self.reason and not self.listed:
            raise ValueError("say why with --reason: whoever reads the list of tombstones later must understand it")
        ways = [bool(self.document or self.source), self.expired_on is not None, self.listed]
        if sum(ways) != 1:
            raise ValueError("say what to forget: --document ID, --source S, both, --expired, or --listed")
        if self.listed:
            return []
        if self.expired_on:
            return [tombstones.entry(self.reason, *row) for row in doom.expired(found.shards(), self.expired_on)]
        parts = [self.source or tombstones.ANY_SOURCE, *([self.document] if self.document else [])]
        return [tombstones.entry(self.reason, *parts)]


def day(given: str | None) -> datetime.date:
    """A date as people write it, or today in UTC. Raises ValueError for another form than YYYY-MM-DD."""
    if given is None:
        return datetime.datetime.now(datetime.UTC).date()
    try:
        return datetime.date.fromisoformat(given)
    except ValueError:
        raise ValueError(f"{given!r} is no date: the form is YYYY-MM-DD") from None


@dataclass
class Transcript:
    """What was done: said as it happens, and counted for the record, which has no names in it."""

    say: Callable[[str], None]
    date: str
    act: bool = True
    counts: Counter = field(default_factory=Counter)
    models: list[str] = field(default_factory=list)

    def did(self, what: str, sentence: str) -> None:
        self.counts[what] += 1
        self.say(("" if self.act else "would be: ") + sentence)


def forget(
    asked: Asked, found: Places, work: Path, *, dry_run: bool, even_if_unknown: bool, say: Callable[[str], None]
) -> bool:
    """Erase what is asked for from all the places; whether nothing of it is left there.

    work: MASKOCR_WORK, where the journal lies. Raises ValueError if nobody knows what is asked for, RuntimeError if a
    stage is at work: its readers see the tombstone, but nothing is erased under its feet.
    """
    date = day(None).isoformat()
    told = Transcript(say, date, act=not dry_run)
    places.demand_store(found.artifacts, os.environ.get("MASKOCR_TOMBSTONES"))
    known = tombstones.entries(tombstones.location())
    stones = asked.stones(found)
    hidden = tombstones.of([*known, *stones])
    doomed = doom.resolve(found.shards(), hidden)
    _demand_known(asked, stones, known, doomed, even_if_unknown)
    if (before := doom.load(work, hidden)) is not None:
        say("taking up an erasure that did not end")
        doomed.join(before)
    _tell_what(doomed, say)
    if dry_run:
        _erase(doomed, found, told)
        say("nothing was changed (--dry-run)")
        return not doomed
    tombstones.add(stones)
    say(f"tombstone: {tombstones.location()}; every reader passes over these lines from now on")
    if not doomed:
        say("nothing of it was found here")
        return True
    doom.save(doomed, work)
    with repack.idle(list(found.folders)) as busy:
        if busy:
            raise RuntimeError(
                f"the lines are hidden from every reader, but nothing was erased yet: {busy[0]} is at work; "
                "wait for it or end it, then give the same command again"
            )
        _erase(doomed, found, told)
    return _conclude(asked, stones, doomed, found, told, work)


def _demand_known(
    asked: Asked, stones: list[dict[str, str]], known: list[dict[str, str]], doomed: Doomed, even_if_unknown: bool
) -> None:
    there = {entry["digest"] for entry in known}
    if not stones and asked.expired_on:
        return
    if asked.listed or even_if_unknown or all(stone["digest"] in there for stone in stones):
        return
    rows = pa.Table.from_pylist([dict(zip(tombstones.KEY, row)) for row in sorted(doomed.rows)])
    if not doomed.rows or not tombstones.of(stones).hides(rows).any():
        what = " of ".join(
            f"{kind} {name!r}" for kind, name in (("document", asked.document), ("source", asked.source)) if name
        )
        raise ValueError(
            f"no line of {what} is in the folders and repositories searched, nothing was changed: check the name, give "
            "more folders with --work, or keep it out of data to come with --even-if-unknown"
        )


def _tell_what(doomed: Doomed, say: Callable[[str], None]) -> None:
    if doomed:
        kept = f", {len(doomed.heirs)} of them kept because another document has them too" if doomed.heirs else ""
        documents = f"{len(doomed.documents)} document{'s' * (len(doomed.documents) > 1)}"
        say(f"to be erased: {len(doomed.rows)} lines of {documents}{kept}")


def _erase(doomed: Doomed, found: Places, told: Transcript) -> None:
    if not doomed:
        return
    _unfinished(found, told)
    _artifacts(doomed, found, told)
    for kept in found.pasts:
        _versions(kept, doomed, told)
    _store(doomed, told)
    _roots(doomed, found, told)
    with places.databases(found.folders) as databases:
        for _ in databases:
            if logged.is_there():
                _tracking(doomed, told)


def _unfinished(found: Places, told: Transcript) -> None:
    import shutil

    for folder in [one for root in found.folders for one in repack.unfinished(root)]:
        told.did("unfinished", f"unfinished work removed: {folder}")
        if told.act:
            shutil.rmtree(folder)
    if uri := places.unfinished_in_store():
        told.did("unfinished", f"unfinished work removed: {uri}")
        if told.act:
            storage.erase_below(uri)


def _artifacts(doomed: Doomed, found: Places, told: Transcript) -> None:
    elsewhere: dict[tuple[int, int], bool] = {}
    for artifact in found.artifacts:
        done = repack.repack(artifact, doomed, told.date, told.act)
        if not done:
            continue
        told.did("artifacts", f"re-packed: {artifact.folder}")
        for name in done.rewritten:
            told.did("files rewritten", f"  rewritten: {name}")
        for name in done.removed:
            told.did("files removed", f"  removed: {name}")
        if not any(repository in artifact.folder.parents for repository in found.repositories):
            elsewhere |= done.elsewhere  # the last name of a file that was replaced tells whether there are more
    if count := sum(elsewhere.values()):
        told.did("other names", f"LEFT: {count} of these files have another name outside the folders searched (--work)")


def _versions(kept: Past, doomed: Doomed, told: Transcript) -> None:
    repository = kept.repository
    if told.act and history.has_changed(repository):
        commit = history.commit(repository, "Forget what the list of tombstones names")
        told.did("versions", f"new data version: {repository} at commit {commit[:8]}, pushed")
        kept = past.look(repository)
    for md5, path in past.doomed_objects(kept, doomed).items():
        if told.act and md5 in kept.current:
            told.did("objects left", f"LEFT: {repository}/{path} is data that nobody re-packs: remove it and commit")
            continue
        commits = sorted(commit[:8] for commit in kept.commits[md5])
        told.did("objects", f"object erased: {md5} ({path}), of versions {', '.join(commits) or 'nobody committed'}")
        if told.act:
            past.erase(kept, md5)
    for store in kept.unreachable:
        told.did("remotes left", f"LEFT: remote {store} cannot be searched from here")
    for commit in sorted(kept.missing):
        told.did("versions left", f"LEFT: what version {commit[:8]} holds is in no store of {repository}")


def _store(doomed: Doomed, told: Transcript) -> None:
    from maskocr_core.erasure import redact

    for uri in places.stored():
        with storage.open_input(uri) as file:
            if redact.holds(uri.rpartition("/")[2], file, doomed):
                told.did("objects", f"object erased: {uri}")
                if told.act:
                    storage.erase(uri)


def _roots(doomed: Doomed, found: Places, told: Transcript) -> None:
    """Whole objects go: what a finished run left for people to look at is read by no later stage."""
    from maskocr_core.erasure import redact

    files = list(found.in_roots())
    lists = [file.uri for file in files if redact.lists_shown(file.name)]
    shown = redact.shown_by((uri, storage.content(uri)) for uri in lists)
    for file in files:
        if file.size > places.LARGE and not file.name.endswith((".parquet", *redact.WEIGHTS)):
            told.did("objects left", f"LEFT: {file.uri} is too large to be searched")
            continue
        with storage.open_input(file.uri) as opened:
            if redact.holds(file.name, opened, doomed, shown.get(file.uri, ())):
                told.did("objects", f"object erased: {file.uri}")
                if told.act:
                    storage.erase(file.uri)


def _tracking(doomed: Doomed, told: Transcript) -> None:
    for place, path, what in tracked.clean(doomed, told.date, told.act):
        told.did(f"MLflow files {what}", f"MLflow {place}: {path} {what}")
    for model, version, said in tracked.flag(doomed, told.date, told.act):
        told.models.append(f"{model}/{version}")
        told.did("models flagged", f"MLflow model {model} version {version}: {tracked.TAG} = {said}")


def _conclude(
    asked: Asked, stones: list[dict[str, str]], doomed: Doomed, found: Places, told: Transcript, work: Path
) -> bool:
    """Search again, write the record, and close the journal where nothing is left that could be erased."""
    left = list(Places(found.folders, found.repositories).still_holding(doomed))
    left = [(path, state) for path, state in left if path != work / doom.JOURNAL]
    for path, state in left:
        told.did("files left", f"LEFT: {path} {state}; it is none that maskocr re-packs")
    record = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "reason": asked.reason,
        "tombstones": [stone["digest"] for stone in stones],
        "lines": len(doomed.rows),
        "lines_kept_by_others": len(doomed.heirs),
        "done": dict(sorted(told.counts.items())),
        "models": told.models,
    }
    base = tombstones.location().rpartition("/")[0]
    uri = f"{base}/forgotten/{record['at'].replace(':', '')}-{tombstones.digest(*record['tombstones'])[:8]}.json"
    storage.replace(uri, lambda _: (json.dumps(record, indent=1) + "\n").encode())
    (work / doom.JOURNAL).unlink(missing_ok=True)
    told.say(f"searched again: {len(left)} files hold any of it; record: {uri}")
    told.say(
        "left to you: the raw data it came from, other clones and work folders (there: maskocr forget --listed), backups, "
        "what a store keeps of deleted objects, and the models listed above: they are flagged, not unlearned"
    )
    return not left

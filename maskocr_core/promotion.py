"""Who made which version champion, when and why: promotions, roll-backs, and moves that somebody made in the MLflow UI.

The ledger decides who is champion, and MLflow's alias follows it. A command writes its entry, then moves the alias,
then tags the registered model with the number of the entry. Cut off between the first two, it leaves an entry that the
tag does not name and an alias that points to what the entry replaces: the next command moves the alias. Any other
difference between alias and ledger is a move that somebody made elsewhere, and becomes an entry of its own.

Another tag names the last entry and its sha256, so that a ledger whose end was cut off, or another ledger, is noticed.
The description of the registered model tells people in the UI what the ledger says.
MLflow can compare nothing when it moves an alias: of two commands the ledger lets one win; a move in the UI within the
same second as a command may be overwritten by it unseen.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from maskocr_core import champions
from maskocr_core.config import Registry
from maskocr_core.services import ledger, registered
from maskocr_core.services.ledger import Book, Entry

CHAMPION = "champion"
UNKNOWN = "unknown"
FOLLOWED = "maskocr.champion_entry"  # number of the last entry that the alias was moved for
LAST = "maskocr.ledger"  # number and sha256 of the last entry of this model


def promote(registry: Registry, version: str, reason: str, override: bool = False, who: str | None = None) -> Entry:
    """Make a version champion and write down who did it and why; returns the entry.

    override: also against the gate's hold, and where its verdict is missing or was changed. who: else `ledger.who()`.
    Raises ValueError without a reason, for a version that is not there or is champion already, against the gate without
    `override`, and where another version became champion in the meantime.
    """
    reason = _demand_reason(reason)
    notice(registry)
    entries = book_of(registry).entries
    champion, verdict = ledger.champion(entries, registry.model), ledger.verdict_on(entries, registry.model, version)
    tags = registered.version_tags(registry, version)
    if tags is None:
        raise ValueError(f"{registry.model} has no version {version}, or it was deleted: MLflow lists those it has")
    if version == champion:
        raise ValueError(f"{registry.model} version {version} is champion already")
    objection = _objection(version, verdict, tags, champion)
    if objection and not override:
        raise ValueError(f"{objection}; --override with a reason promotes it all the same")
    entry = _about(registry, entries, "promotion", version, who or ledger.who(), reason, champion, bool(objection))
    return _move(registry, entry)


def roll_back(registry: Registry, reason: str, who: str | None = None) -> Entry:
    """Make the version champion again that the champion replaced, or the last one where the alias was taken away.

    Twice in a row goes two champions back. Raises ValueError without a reason, where there is no earlier champion or
    its version was deleted, and where another version became champion in the meantime.
    """
    reason = _demand_reason(reason)
    notice(registry)
    entries = book_of(registry).entries
    champion = ledger.champion(entries, registry.model)
    earlier = [version for version in ledger.champions(entries, registry.model) if version != champion]
    if not earlier:
        raise ValueError(f"{registry.model} has no earlier champion to roll back to")
    version = earlier[-1]
    if registered.version_tags(registry, version) is None:
        raise ValueError(
            f"version {version} was champion before, and was deleted: promote another one with maskocr promote"
        )
    entry = _about(registry, entries, "rollback", version, who or ledger.who(), reason, champion)
    return _move(registry, entry)


def confirm(registry: Registry, reason: str, who: str | None = None) -> Entry:
    """Give the reason of the latest move that was only seen; returns the entry, whose `confirms` is the number of that.

    Raises ValueError without a reason, and where no move wants one.
    """
    reason = _demand_reason(reason)
    notice(registry)
    book_of(registry)

    def of_the_latest(entries: Sequence[Entry]) -> Entry:
        if not (unconfirmed := ledger.unconfirmed(entries, registry.model)):
            raise ValueError(f"nothing to confirm: the ledger knows the reason of every move of {registry.model}")
        seen = unconfirmed[-1]
        return Entry(
            kind="confirmation",
            model=registry.model,
            version=seen.version,
            who=who or ledger.who(),
            reason=reason,
            alias=CHAMPION,
            confirms=seen.number,
        )

    return _written(registry, ledger.append(ledger.place(), of_the_latest))


def record_verdict(
    registry: Registry, version: str, verdict: str, digest: str, reason: str, alias: str | None, against: str | None
) -> Entry:
    """Write down the gate's verdict on a new version; returns the entry.

    digest: sha256 of the evaluation's summary.json, which the version carries as its tag `verdict_digest`. alias: what
    the version is called now. against: the champion that it was judged against, None where there was none. Raises
    ValueError where the ledger is not whole.
    """
    book_of(registry)
    entry = Entry(
        kind="verdict",
        model=registry.model,
        version=version,
        who=ledger.who(),
        reason=ledger.storable(reason),
        alias=alias,
        verdict=verdict,
        verdict_digest=digest,
        replaces=against,
    )
    return _written(registry, ledger.append(ledger.place(), lambda entries: entry))


def is_recorded(registry: Registry, version: str, digest: str) -> bool:
    """Whether the ledger has the verdict with this digest on a version. Raises ValueError where the ledger is not whole."""
    verdict = ledger.verdict_on(book_of(registry).entries, registry.model, version)
    return verdict is not None and verdict.verdict_digest == digest


def notice(registry: Registry) -> Entry | None:
    """Bring ledger and alias together: finish a command that was cut off, write down a move that was made elsewhere.

    Returns the entry of such a move, by an unknown person and as of now; None if there was none. Says on standard error
    what it did. Raises ValueError where the ledger is not whole.
    """
    book_of(registry)

    def if_it_was_moved(entries: Sequence[Entry]) -> Entry | None:
        last = ledger.last_move(entries, registry.model)
        cut_off = last is not None and _is_cut_off(registry, last)
        # Read after the entries: a command moves the alias once its entry is there, so that what is new here is either
        # nobody's entry, or the entry with the number that the one below would have, and then `append` asks again.
        now = registered.version_of(registry, CHAMPION)
        if now == (last.version if last else None):
            return None
        if cut_off and now == last.replaces:
            _follow(registry)
            _say(f"version {last.version} is champion now: the command of {last.who} ({last.when}) was cut off")
            return None
        return _about(registry, entries, "seen", now, UNKNOWN, "", last.version if last else None)

    seen = ledger.append(ledger.place(), if_it_was_moved)
    if seen is None:
        champions.tell(registry)  # what a command that was cut off left untold
    else:
        _written(registry, seen)
        what = f"version {seen.version} was made champion" if seen.version else "the alias champion was taken away"
        _say(f'{what} without maskocr; who did it may say why: maskocr promote --confirm --reason "…"')
    return seen


def _about(
    registry: Registry,
    entries: Sequence[Entry],
    kind: Literal["promotion", "rollback", "seen"],
    version: str | None,
    who: str,
    reason: str,
    replaces: str | None,
    override: bool = False,
) -> Entry:
    """An entry about the champion, with what the gate said of the version."""
    verdict = ledger.verdict_on(entries, registry.model, version)
    return Entry(
        kind=kind,
        model=registry.model,
        version=version,
        who=who,
        reason=reason,
        alias=CHAMPION,
        verdict=verdict.verdict if verdict else None,
        verdict_digest=verdict.verdict_digest if verdict else None,
        replaces=replaces,
        override=override,
    )


def _move(registry: Registry, entry: Entry) -> Entry:
    """Write the entry of a move away from `entry.replaces`, and let the alias follow; ValueError if another one won."""

    def unless_another_won(entries: Sequence[Entry]) -> Entry:
        last = ledger.last_move(entries, entry.model)
        if not last or last.version == entry.replaces:
            if (alias := registered.version_of(registry, CHAMPION)) == entry.replaces:
                return entry
            # The entry of whoever moved it may have come after `entries` were read.
            last = ledger.last_move(ledger.read(ledger.place()).entries, entry.model)
            if not last or last.version != alias:
                last = Entry("seen", entry.model, alias, UNKNOWN)
        who = "in MLflow itself"
        if last.kind != "seen":
            who = f"by {last.who}, {last.when}" + (f': "{last.reason}"' if last.reason else "")
        raise ValueError(
            f"version {entry.version} was not made champion: "
            + (f"version {last.version} was" if last.version else "the alias was taken away")
            + f" in the meantime ({who}); look at that, and decide again"
        )

    written = ledger.append(ledger.place(), unless_another_won)
    _follow(registry)
    return _written(registry, written)


def _follow(registry: Registry) -> None:
    """Move the alias to the ledger's champion, and again if by then the ledger has another."""
    place, followed = ledger.place(), None
    # What was only seen is where the alias is already.
    while (last := ledger.last_move(ledger.read(place).entries, registry.model)) != followed and last.kind != "seen":
        registered.move_alias(registry, CHAMPION, last.version)
        registered.tag_model(registry, FOLLOWED, str(last.number))
        followed = last


def _is_cut_off(registry: Registry, last: Entry) -> bool:
    """Whether the alias was not moved for this entry yet, and still can be."""
    followed = registered.model_tags(registry).get(FOLLOWED, "0")
    return (
        last.kind in ("promotion", "rollback")
        and not (followed.isdigit() and int(followed) >= last.number)
        and registered.version_tags(registry, last.version) is not None
    )


def book_of(registry: Registry) -> Book:
    """The ledger. Raises ValueError if it is not whole, or is not the one that MLflow's tag speaks of."""
    book = ledger.read(ledger.place())
    if fault := fault_of(registry, book):
        raise ValueError(fault)
    return book


def fault_of(registry: Registry, book: Book) -> str | None:
    """What is the matter with a ledger: in itself, or because MLflow's tag speaks of another one; None if nothing is."""
    if book.fault:
        return book.fault
    number, _, digest = registered.model_tags(registry).get(LAST, "0 ").partition(" ")
    wanted = int(number) if number.isdigit() else 0
    if wanted and (book.digests[wanted - 1 : wanted] or ("",))[0] != digest:
        state = "holds another one" if wanted <= len(book.digests) else f"ends with entry {len(book.digests)}"
        return (
            f"MLflow knows entry {wanted} of the ledger, and the one at {book.place} {state}: bring back what was "
            f"there, set MASKOCR_LEDGER to where it is, or delete the tag {LAST} of {registry.model} to begin anew"
        )
    return None


def _written(registry: Registry, entry: Entry) -> Entry:
    """The entry, after MLflow was told of it."""
    registered.tag_model(registry, LAST, f"{entry.number} {ledger.digest(entry)}")
    champions.tell(registry)
    return entry


def _objection(version: str, verdict: Entry | None, tags: dict[str, str], champion: str | None) -> str | None:
    """Why the version must not be promoted as a matter of course, or None. champion: the one that it would replace."""
    if verdict is None:
        return f"the ledger holds no verdict on version {version}"
    if changed := changed_tags(verdict, tags):
        return f"version {version}: {changed[0]}"
    if verdict.verdict == "hold":
        return f"the gate holds version {version}: {verdict.reason.rstrip('.')}"
    if verdict.replaces != champion:
        against = f"against version {verdict.replaces}" if verdict.replaces else "when there was no champion"
        now = f"the champion is version {champion} now" if champion else "there is none now"
        return f"version {version} was judged {against}, and {now}: evaluate it again"
    return None


def changed_tags(verdict: Entry, tags: dict[str, str]) -> list[str]:
    """Tags of a version that do not say what the ledger says."""
    return [
        f"the tag {name} is {repr(tags[name]) if name in tags else 'missing'}, entry {verdict.number} says {said!r}"
        for name, said in (
            ("verdict", verdict.verdict),
            ("verdict_digest", verdict.verdict_digest),
            ("judged_against", verdict.replaces or ""),
        )
        if tags.get(name) != said
    ]


def _demand_reason(reason: str) -> str:
    if not reason.strip():
        raise ValueError('say why: --reason "…" is kept in the ledger for whoever asks later')
    return ledger.storable(reason.strip())


def _say(message: str) -> None:
    print(f"noticed: {message}", file=sys.stderr, flush=True)

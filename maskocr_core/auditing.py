"""What the ledger of promotions says, and what a person has to look at in it."""

from __future__ import annotations

from dataclasses import dataclass

from maskocr_core import promotion
from maskocr_core.config import Registry
from maskocr_core.services import ledger, registered, tracking
from maskocr_core.services.ledger import Book, Entry


@dataclass(frozen=True)
class Row:
    """An entry of the ledger, and what a person has to look at about it."""

    entry: Entry
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Audit:
    """What `audit` found. fault: what is the matter with the ledger itself; rows end before it."""

    place: str
    model: str
    champion: str | None
    rows: tuple[Row, ...]
    fault: str | None

    @property
    def clean(self) -> bool:
        """Whether the chain is whole and nothing is flagged."""
        return not self.fault and not any(row.flags for row in self.rows)


def audit(registry: Registry) -> Audit:
    """Every entry about the model, and what is flagged: moves without reason, verdict or in spite of it, changed tags.

    Notices moves made in the UI first. A ledger that is not whole raises nothing here: it is what an audit is to find.
    """
    tracking.check()
    place = ledger.place()
    book = ledger.read(place)
    fault = promotion.fault_of(registry, book)
    if not fault:
        promotion.notice(registry)
        book = promotion.book_of(registry)
    rows = _rows(registry, book)
    return Audit(place, registry.model, registered.version_of(registry, promotion.CHAMPION), rows, fault)


def _rows(registry: Registry, book: Book) -> tuple[Row, ...]:
    mine = [entry for entry in book.entries if entry.model == registry.model]
    unconfirmed = {entry.number for entry in ledger.unconfirmed(mine, registry.model)}
    current = {entry.version: entry.number for entry in mine if entry.kind == "verdict"}
    rows = []
    for entry in mine:
        flags = []
        if entry.number in unconfirmed:
            flags.append("no reason")
            if entry.version and not entry.verdict:
                flags.append("no verdict")
            if entry.verdict == "hold":
                flags.append("against hold")
        if entry.kind == "verdict" and current[entry.version] == entry.number:
            tags = registered.version_tags(registry, entry.version)
            flags += promotion.changed_tags(entry, tags) if tags is not None else []
        rows.append(Row(entry, tuple(flags)))
    return tuple(rows)

"""What a test line shares with the lines that a model learns from: its page, its image, its text.

A page or an image on two sides of a split makes a test score one of lines half seen, and fails. A document on two sides
is what small collections have, and is stated. An equal text alone warns: registers repeat themselves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskocr_core.artifacts import Artifact
from maskocr_core.config import Data
from maskocr_core.data import lines, readers, tombstones
from maskocr_core.data.qa import repeats
from maskocr_core.data.qa.audit import EXAMPLES, Findings
from maskocr_core.data.qa.near_duplicates import Fingerprints, pairs

LABELLED = tuple(split for split in lines.SPLITS if split != "unlabeled")
HELD_OUT = ("val", "test", "transfer-val", "protected-test")
LEARNT = ("train", "transfer-train")
MIN_HASHED = 20  # documents that lie where their hash puts them, before a split is known to be ours and not brought
PAIRS = pa.schema(
    [
        pa.field("pair", pa.int32(), nullable=False),  # two rows a pair, so that every row names one line
        pa.field("line_id", pa.string(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("split", "source", "document_id", "page_id")),
        pa.field("distance", pa.int32(), nullable=False),  # bits of 256
        pa.field("equal_text", pa.bool_(), nullable=False),
    ]
)
MAX_PAIRS = 1000  # near duplicates of either kind that are listed; all are counted
Unit = tuple[str, ...]  # (source, document) or (source, document, page): "1" is a page of many documents


@dataclass(frozen=True)
class Leaks:
    """What lies on several sides of the labelled splits."""

    pages: dict[Unit, list[str]]  # the splits of each page that is torn
    documents: dict[Unit, list[str]]  # the splits of every labelled document
    images: dict[str, dict[str, str]]  # of line ids with copies across a held-out border, a place in each split
    near: list[dict[str, Any]]  # rows of PAIRS: the first MAX_PAIRS pairs of equal, and of different text
    near_pairs: tuple[int, int]  # how many there are with equal and with different text
    equal_texts: dict[str, tuple[int, int]]  # of each held-out split, its lines with a text learnt elsewhere, and all


def find(artifact: Artifact, findings: Findings) -> Leaks:
    """Look for everything that is shared. Holds the pages of labelled lines and the fingerprints of held-out ones in memory."""
    pages = _sides(findings, 3)
    near, near_pairs, equal_texts = _compared(findings)
    return Leaks(
        pages={page: splits for page, splits in pages.items() if len(splits) > 1},
        documents=_sides(findings, 2),
        images=_copies(artifact, findings),
        near=near,
        near_pairs=near_pairs,
        equal_texts=equal_texts,
    )


def torn_documents(leaks: Leaks) -> dict[Unit, list[str]]:
    """The documents with lines in several labelled splits."""
    return {document: splits for document, splits in leaks.documents.items() if len(splits) > 1}


def faults(leaks: Leaks, data: Data) -> list[str]:
    """What makes the data unfit to be tested on: a sentence each, with three examples and the mend."""
    found = []
    if leaks.pages:
        found.append(
            f"{len(leaks.pages)} pages have lines in more than one labelled split ({_listed(leaks.pages)}): "
            "a page belongs to one split; correct the column 'split', or leave it out and ingest splits by document"
        )
    torn = torn_documents(leaks)
    if torn and data.split_unit == "document" and _is_ours(leaks.documents, data):
        found.append(
            f"{len(torn)} documents have lines in more than one labelled split ({_listed(torn)}) while all others lie where "
            "ingest puts them: some lines bring a split of their own; give it for all of them or for none"
        )
    if leaks.images:
        first = sorted(leaks.images.items())[:EXAMPLES]
        examples = "; ".join(f"{identity} in {' and '.join(places.values())}" for identity, places in first)
        found.append(
            f"{len(leaks.images)} images lie in more than one labelled split ({examples}): take each out of all but one"
        )
    if leaks.near_pairs[0]:
        same = [pair for pair in zip(leaks.near[::2], leaks.near[1::2]) if pair[0]["equal_text"]]
        worst = sorted(same, key=lambda pair: (pair[0]["distance"], pair[0]["line_id"]))[:EXAMPLES]
        examples = "; ".join(
            f"{_place(one)} and {_place(other)}, {one['distance']} of 256 bits" for one, other in worst
        )
        found.append(
            f"{leaks.near_pairs[0]:,} pairs of near-duplicate images with equal text lie on two sides of a split ({examples}): "
            "take one of each two out"
        )
    return found


def notes(leaks: Leaks) -> list[str]:
    """What a report of a test score has to say beside it, as sentences."""
    found = []
    known = []
    for split, learnt in (("val", "train"), ("test", "train"), ("test", "val")):
        held = [splits for splits in leaks.documents.values() if split in splits]
        shared = sum(learnt in splits and not (learnt == "val" and "train" in splits) for splits in held)
        if shared:
            known.append(f"{shared} of {len(held)} {_NAMES[split]} documents also have {_NAMES[learnt]} pages")
    if known:
        found.append(f"new pages of known documents: {', '.join(known)}.")
    texts = [f"{n:,} of {total:,} {_NAMES[split]} lines" for split, (n, total) in leaks.equal_texts.items() if n]
    if texts:
        found.append(f"equal texts: {', '.join(texts)} have a text that a training line has too.")
    if leaks.near_pairs[1]:
        found.append(
            f"near duplicates: {leaks.near_pairs[1]:,} pairs of lines on two sides of a split look alike and have different texts; "
            "perhaps one of each two is wrongly transcribed."
        )
    return found


def table(leaks: Leaks) -> pa.Table:
    """The near duplicates, as PAIRS."""
    return pa.Table.from_pylist(leaks.near, schema=PAIRS)


def beside(findings: Findings, leaks: Leaks, folder: Path) -> Iterator[pa.Table]:
    """FACTS of the good lines, a shard at a time, with what `services.expectations` asks of the whole beside each line.

    That is `script_count`, `times_read`, `page_also_in` and `image_also_in`. folder: for files of the moment.
    """
    repeated = repeats.find((table["line_id"].to_pylist() for _, table in findings.facts()), folder)
    for shard, table in findings.facts():
        split = shard.split("/")[0]
        good = table.filter(pc.equal(table["reasons"], ""))
        identities = good["line_id"].to_pylist()
        pages = zip(*(good[name].to_pylist() for name in ("source", "document_id", "page_id")))
        columns = {
            "script_count": pc.list_value_length(pc.utf8_split_whitespace(good["scripts"])),
            "times_read": pa.array([repeated.get(identity, 1) for identity in identities], pa.int32()),
            "page_also_in": pa.array([_far_side(leaks.pages.get(page), split) for page in pages], pa.string()),
            "image_also_in": pa.array([_far_side(leaks.images.get(one), split) for one in identities], pa.string()),
        }
        for name, column in columns.items():
            good = good.append_column(name, column)
        yield good


def _far_side(splits: Collection[str] | None, split: str) -> str | None:
    """Another labelled split of those given, if a held-out border lies between; an unlabelled line has no sides."""
    if not splits or split not in LABELLED or not set(splits) & set(HELD_OUT):
        return None
    return next((other for other in splits if other != split), None)


_NAMES = {
    "train": "training",
    "val": "validation",
    "test": "test",
    "transfer-val": "transfer validation",
    "protected-test": "protected",
}


def _sides(findings: Findings, depth: int) -> dict[Unit, list[str]]:
    """The labelled splits in which each page (depth 3) or document (2) has lines."""
    sides: dict[Unit, set[str]] = defaultdict(set)
    for result in findings.results.values():
        for page in result["pages"]:
            sides[tuple(page[:depth])].add(result["shard"].split("/")[0])
    return {unit: sorted(splits, key=lines.SPLITS.index) for unit, splits in sorted(sides.items())}


def _is_ours(documents: dict[Unit, list[str]], data: Data) -> bool:
    """Whether every document that is not torn lies where its hash puts it: then the data brought no split."""
    whole = [(unit[1], splits[0]) for unit, splits in documents.items() if len(splits) == 1]
    whole = [(document, split) for document, split in whole if split in ("train", "val", "test")]
    return len(whole) >= MIN_HASHED and all(readers.split_of(name, True, data) == split for name, split in whole)


def _copies(artifact: Artifact, findings: Findings) -> dict[str, dict[str, str]]:
    """Good lines of which copies, as ingest found them, lie in several labelled splits of which one is held out."""
    if "duplicates.parquet" not in artifact.names():
        return {}
    copies = lines.read_table(artifact, "duplicates.parquet")
    copies = copies.filter(pa.array(~tombstones.load().hides(copies)))
    places: dict[str, dict[str, str]] = defaultdict(dict)
    for copy in copies.select(["line_id", "source", "document_id", "page_id", "shard"]).to_pylist():
        split = copy["shard"].split("/")[0]
        if split in LABELLED:
            places[copy["line_id"]].setdefault(split, _place(copy | {"split": split}))
    torn = {identity: found for identity, found in places.items() if len(found) > 1 and set(found) & set(HELD_OUT)}
    if torn:  # two blank scraps are the same image and no leak
        for _, bad in findings.quarantined():
            for identity in bad["line_id"].to_pylist():
                torn.pop(identity, None)
    return torn


def _compared(findings: Findings) -> tuple[list[dict[str, Any]], tuple[int, int], dict[str, tuple[int, int]]]:
    """All held-out lines compared with all labelled ones on other sides, a shard of these at a time."""
    held = _held_out(findings)
    prints = {split: _fingerprints(one) for split, one in held.items()}
    seen = {split: np.zeros(one.num_rows, bool) for split, one in held.items()}
    near: list[dict[str, Any]] = []
    pairs_found = [0, 0]
    for split, others in findings.compared():
        other_prints, other_texts = _fingerprints(others), others["text_digest"].to_numpy()
        for side, one in held.items():
            texts = one["text_digest"].to_numpy()
            if split in LEARNT:
                seen[side] |= np.isin(texts, other_texts)
            # Two held-out splits meet once, not twice.
            if split == side or (split in HELD_OUT and lines.SPLITS.index(split) > lines.SPLITS.index(side)):
                continue
            for left, right, distance in pairs(prints[side], other_prints):
                equal = bool(texts[left] == other_texts[right])
                pairs_found[not equal] += 1
                number = len(near) // 2
                if pairs_found[not equal] <= MAX_PAIRS:
                    near += [_row(number, one, left, distance, equal), _row(number, others, right, distance, equal)]
    return near, tuple(pairs_found), {split: (int(found.sum()), len(found)) for split, found in seen.items()}


def _held_out(findings: Findings) -> dict[str, pa.Table]:
    """MEASURED of the good lines of each held-out split that has any."""
    held: dict[str, list[pa.Table]] = defaultdict(list)
    for split, found in findings.compared():
        if split in HELD_OUT and found.num_rows:
            held[split].append(found)
    return {split: pa.concat_tables(tables).combine_chunks() for split, tables in held.items()}


def _fingerprints(table: pa.Table) -> Fingerprints:
    aspect = table["width"].to_numpy() / table["height"].to_numpy()
    return Fingerprints.of(table["fingerprint"].to_pylist(), aspect)


def _row(number: int, table: pa.Table, place: int, distance: int, equal: bool) -> dict[str, Any]:
    line = table.select(["line_id", "split", "source", "document_id", "page_id"]).slice(place, 1).to_pylist()[0]
    return line | {"pair": number, "distance": distance, "equal_text": equal}


def _place(row: dict[str, Any]) -> str:
    return f"{row['split']} ({' / '.join(row[name] for name in ('source', 'document_id', 'page_id'))})"


def _listed(units: Iterable[Unit]) -> str:
    first = [" / ".join(unit) for unit in sorted(units)[:EXAMPLES]]
    return f"first: {', '.join(first)}"

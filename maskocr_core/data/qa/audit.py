"""Every line measured, a shard at a time, and what the whole must hold: no shard and no source that is mostly bad.

A shard is measured by `measure`, wherever `services.mapping` puts it; what its lines say together comes back as counts, and
one row a line as a file, so that nothing here grows with the number of lines.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from maskocr_core.artifacts import Artifact
from maskocr_core.config import STEP, Data, Quality
from maskocr_core.data import images, lines, scripts, side_tables
from maskocr_core.data.qa import near_duplicates, quality
from maskocr_core.services import disk

COMMON_HEIGHT = 48  # px to which widths are brought before they are compared, so that limits hold at any resolution
FEW_LINES = 50  # in a smaller shard a handful of bad lines is no sign of anything
EXAMPLES = 3
FACTS = pa.schema(
    [
        *(lines.SCHEMA.field(name) for name in ("line_id", "page_id", "document_id", "source")),
        pa.field("split", pa.string(), nullable=False),
        lines.SCHEMA.field("height"),
        lines.SCHEMA.field("width"),
        # As `quality.measure` gives them; null where the image cannot be decoded.
        *(pa.field(name, pa.float32()) for name in ("ink", "contrast", "background", "sharpness", "along_width")),
        pa.field("light_on_dark", pa.bool_()),
        # Null where the line is not labelled.
        pa.field("characters", pa.int32()),
        pa.field("pixels_per_character", pa.float32()),  # px of width, the line brought to COMMON_HEIGHT
        pa.field("scripts", pa.string()),  # ISO 15924, separated by spaces
        pa.field("kinds", pa.list_(pa.string())),  # of faults: what the contact sheet groups by; empty for a good line
        pa.field("reasons", pa.string()),  # the same as sentences
    ]
)
COMPARED = pa.schema(
    [
        pa.field("fingerprint", pa.binary(32)),  # `near_duplicates.fingerprint`
        pa.field("text_digest", pa.uint64()),  # of the text without its spaces; null where the line is not labelled
    ]
)
MEASURED = pa.schema([*FACTS, *COMPARED])


def measure(artifact: Artifact, shard: str, part: Path) -> dict[str, Any]:
    """Measure the lines of a shard that are read.

    Writes `measurements/<shard>` (MEASURED) below `part`, and for the calling process `facts.arrow` (FACTS) and, of a
    labelled shard, `compared.arrow` (MEASURED, good lines with a text only). Returns the counts that `Findings` adds up.
    """
    split = shard.split("/")[0]
    rows, texts = [], []
    for batch in lines.rows_of(artifact, shard):
        for row in batch.to_pylist():
            rows.append(_measured(row, split))
            texts.append(None if rows[-1]["kinds"] else row["text"])
    table = pa.Table.from_pylist(rows, schema=MEASURED)
    lines.write(table, part / "measurements" / shard)
    return leave(table, shard, part) | _of_texts([text for text in texts if text])


def leave(table: pa.Table, shard: str, part: Path) -> dict[str, Any]:
    """Write what `Findings` reads of a shard's MEASURED below `part`, and return what it counts, texts excepted."""
    part.mkdir(parents=True, exist_ok=True)
    facts = table.select(FACTS.names)
    side_tables.save(facts, part / "facts.arrow", "zstd")
    rows = facts.to_pylist()
    pages: set[tuple[str, ...]] = set()
    if shard.split("/")[0] != "unlabeled":
        compared = pc.and_(pc.equal(table["reasons"], ""), pc.is_valid(table["text_digest"]))
        side_tables.save(table.filter(compared), part / "compared.arrow", "zstd")
        pages = {(row["source"], row["document_id"], row["page_id"]) for row in rows}
    return {"shard": shard, "pages": sorted(pages), **_counts(rows)}


class Findings:
    """What the parts of `measure` say together: `results`, one of each shard, their files in folders of `parts`."""

    def __init__(self, results: dict[str, dict[str, Any]], parts: Path):
        self.results, self.parts = results, parts
        self.lines = sum(result["lines"] for result in results.values())
        self.refused = sum(result["refused"] for result in results.values())
        self.kinds: Counter[str] = Counter()
        self.sources: dict[str, dict[str, Any]] = {}
        for result in results.values():
            self.kinds.update(result["kinds"])
            for source, counts in result["sources"].items():
                known = self.sources.setdefault(source, {"lines": 0, "refused": 0, "across": 0, "worst": []})
                for name in ("lines", "refused", "across"):
                    known[name] += counts[name]
                known["worst"] = _worst(known["worst"] + counts["worst"])

    def facts(self) -> Iterator[tuple[str, pa.Table]]:
        """(shard, FACTS of its lines), a shard at a time."""
        for name, result in self.results.items():
            yield result["shard"], side_tables.load(self.parts / name / "facts.arrow")

    def quarantined(self) -> Iterator[tuple[str, pa.Table]]:
        """`facts` of the bad lines, of the shards that have any."""
        for shard, table in self.facts():
            bad = table.filter(pc.not_equal(table["reasons"], ""))
            if bad.num_rows:
                yield shard, bad

    def compared(self) -> Iterator[tuple[str, pa.Table]]:
        """(split, MEASURED of the good lines) of the labelled shards, a shard at a time."""
        for name, result in self.results.items():
            split = result["shard"].split("/")[0]
            if split != "unlabeled":
                yield split, side_tables.load(self.parts / name / "compared.arrow")

    def alphabet(self, splits: tuple[str, ...]) -> Counter[str]:
        """In how many lines of these splits each character stands."""
        found: Counter[str] = Counter()
        for result in self.results.values():
            if result["shard"].split("/")[0] in splits:
                found.update(result["alphabet"])
        return found


def write_quarantine(findings: Findings, path: Path) -> None:
    """Write FACTS of all bad lines as one table, a row group a shard."""
    with (
        disk.written(path) as aside,
        pq.ParquetWriter(aside, FACTS, write_page_checksum=True, compression="zstd") as writer,
    ):
        for _, bad in findings.quarantined():
            writer.write_table(bad)


def bad_shards(findings: Findings, settings: Quality) -> list[str]:
    """A sentence for each shard and each source of which too many lines are quarantined, with its three worst lines."""
    found = []
    for source, counts in sorted(findings.sources.items()):
        if counts["refused"] > settings.max_refused * counts["lines"]:
            found.append(_too_bad(f"source {source}", counts, "leave the source out", "quality.max_refused"))
    for result in findings.results.values():
        if result["lines"] >= FEW_LINES and result["refused"] > settings.max_refused_shard * result["lines"]:
            worst = _worst([line for counts in result["sources"].values() for line in counts["worst"]])
            shard = f"shard {result['shard']}"
            found.append(_too_bad(shard, result | {"worst": worst}, "leave it out", "quality.max_refused_shard"))
    return found


def notes(findings: Findings) -> list[str]:
    """What a person should know of scripts, characters and turned lines, as sentences."""
    found = []
    mixed = Counter()
    for result in findings.results.values():
        mixed.update(result["mixed"])
    if mixed:
        kinds = ", ".join(f"{count:,} with {kind.replace(' ', ' and ')}" for kind, count in mixed.most_common(EXAMPLES))
        words = sum(result["mixed_words"] for result in findings.results.values())
        found.append(
            f"script mix: {sum(mixed.values()):,} labelled lines have letters of several scripts ({kinds}), "
            f"{words:,} of them inside one word: look for look-alikes."
        )
    known = findings.alphabet(("train",))
    unseen = {character: n for character, n in findings.alphabet(("val", "test")).items() if character not in known}
    if unseen:
        ordered = sorted(unseen.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{_named(character)} in {n:,} lines" for character, n in ordered[:8])
        more = f" and {len(ordered) - 8} more" if len(ordered) > 8 else ""
        found.append(f"unseen characters: {len(ordered)} of val or test never occur in train ({listed}{more}).")
    for source, counts in sorted(findings.sources.items()):
        good = counts["lines"] - counts["refused"]
        if good >= FEW_LINES and counts["across"] > good / 2:
            found.append(
                f"turned lines: in {counts['across']:,} of {good:,} lines of source {source} the text seems to run along the height: were they turned by 90°?"
            )
    return found


def cut(findings: Findings, data: Data) -> list[str]:
    """A sentence on the labelled lines whose image training cuts at `data.max_width`, and whose text it does not."""
    count, first = 0, ""
    for _, table in findings.compared():
        # In px of the line as it is read; it may lose a step of margin.
        wide = table.filter(
            pc.greater(pc.multiply(table["width"], data.height), pc.multiply(table["height"], data.max_width + STEP))
        )
        count += wide.num_rows
        first = first or (wide["line_id"][0].as_py() if wide.num_rows else "")
    if not count:
        return []
    return [
        f"cut lines: {count:,} labelled lines, {first} the first, are wider than data.max_width={data.max_width} at a height of "
        f"{data.height} px: what is beyond is not read, and their texts have it. Cut them in two, or raise data.max_width."
    ]


def _measured(row: dict[str, Any], split: str) -> dict[str, Any]:
    """A row of MEASURED from one of `lines.SCHEMA`."""
    text = row["text"]
    measured = {name: row[name] for name in ("line_id", "page_id", "document_id", "source", "height", "width")}
    measured["split"] = split
    if text is not None:
        measured["characters"] = len(text)
        measured["scripts"] = " ".join(scripts.of(text))
        digest = hashlib.blake2b("".join(text.split()).encode(errors="replace"), digest_size=8).digest()
        measured["text_digest"] = int.from_bytes(digest, "big")
        if text:
            measured["pixels_per_character"] = row["width"] * COMMON_HEIGHT / row["height"] / len(text)
    try:
        pixels = images.decode(row["image"])
    except ValueError as error:
        return measured | {"kinds": ["broken"], "reasons": str(error)}
    measured |= quality.measure(pixels)
    found = quality.reasons(measured | {"text": text})
    fingerprint = near_duplicates.fingerprint(pixels)
    return measured | {"fingerprint": fingerprint, "kinds": list(found), "reasons": " ".join(found.values())}


def _counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    kinds, sources = Counter(), {}
    for row in rows:
        kinds.update(row["kinds"][:1])
        counts = sources.setdefault(row["source"], {"lines": 0, "refused": 0, "across": 0, "worst": []})
        counts["lines"] += 1
        if row["kinds"]:
            counts["refused"] += 1
            counts["worst"] = _worst([*counts["worst"], [row["line_id"], row["reasons"], len(row["kinds"])]])
        else:
            counts["across"] += row["along_width"] < 0
    return {
        "lines": len(rows),
        "refused": sum(counts["refused"] for counts in sources.values()),
        "kinds": kinds,
        "sources": sources,
    }


def _of_texts(texts: list[str]) -> dict[str, Any]:
    alphabet: Counter[str] = Counter()
    mixed: Counter[str] = Counter()
    for text in texts:
        alphabet.update(set(text))
        if len(found := scripts.of(text)) > 1:
            mixed[" ".join(found)] += 1
    return {"alphabet": alphabet, "mixed": mixed, "mixed_words": sum(bool(scripts.mixed_words(text)) for text in texts)}


def _worst(examples: list[list[Any]]) -> list[list[Any]]:
    """Of [line id, reasons, how many], those with most reasons."""
    return sorted(examples, key=lambda line: (-line[2], line[0]))[:EXAMPLES]


def _too_bad(what: str, counts: dict[str, Any], mend: str, knob: str) -> str:
    worst = "; ".join(f"{identity}: {reasons}" for identity, reasons, _ in counts["worst"])
    share = counts["refused"] / counts["lines"]
    return (
        f"{what}: {counts['refused']:,} of {counts['lines']:,} lines are bad ({worst}): {mend}, "
        f"mend it, or raise {knob} above {int(share * 100) / 100:.2f}"
    )


def _named(character: str) -> str:
    code = f"U+{ord(character):04X}"
    if not character.isprintable():
        return code
    return f"‘{'◌' if unicodedata.combining(character) else ''}{character}’ {code}"

"""A sample of the lines, described: bounded for the target and for each source, so that verdicts need no more memory when data grow."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines, side_tables
from maskocr_core.data.domain_fit import orientation, texts
from maskocr_core.data.domain_fit.yardstick import Lines
from maskocr_core.progress import Progress
from maskocr_core.services import mapping

TARGET_SPLITS = ("train", "val")  # never test: the selection is a choice
TARGET_LINES, SOURCE_LINES = 10_000, 1000  # lines, about, in the samples
TURNED_LINES, TURNED_TARGET_LINES = 100, 1500  # about, that are also described turned
TURNED_TARGET_SHARE = 0.4  # and no more of a small target: it costs five descriptions a line
AT_ONCE = 64  # lines described together

Describe = Callable[[list[bytes]], np.ndarray]  # N encoded lines to (N, F) float32
SAMPLE = pa.schema(
    [
        *(lines.SCHEMA.field(name) for name in ("line_id", "page_id", "document_id", "source", "text")),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("features", pa.list_(pa.float32())),  # null for transfer lines, of which only the text is asked for
        pa.field("turned", pa.list_(pa.float32())),  # (TURNS × F), null for most lines
    ]
)


@dataclass(frozen=True)
class Samples:
    """A sample of the lines of all shards: described target and sources, texts, and how many lines there are by source."""

    target: Lines
    sources: dict[str, Lines]
    target_texts: tuple[list[str], list[str]]  # texts and their documents
    transfer_texts: dict[str, list[str]]
    shards: dict[str, str]  # where described lines lie, by line id
    counts: dict[str, Counter[str]]  # `lines` and `quarantined` of each unlabelled source


def sample(artifact: Artifact, validation: Artifact, describe: Describe, folder: Path) -> Samples:
    """Describe a sample of the target's labelled lines and of each unlabelled source, quarantined lines left out.

    Raises ValueError if there is no unlabelled line, or no labelled one.
    """
    quarantined(validation)  # so that what it knows of its files travels to the workers with it
    wanted = lines.shards(artifact, *TARGET_SPLITS, "unlabeled", "transfer-train")
    counted = mapping.over(
        count, {lines.part_of(shard): (artifact, validation, shard) for shard in wanted}, folder / "counted"
    )
    sizes: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))  # by split and source
    for result in counted.values():
        for source, found in result["sources"].items():
            sizes[result["split"]][source].update(found)
    counts = dict(sizes["unlabeled"])
    if not counts:
        raise ValueError(
            "there is no unlabelled line to pre-train on: add images without text, or a Parquet file with split 'unlabeled'"
        )
    shares = _shares(sizes)
    calls = {lines.part_of(shard): (artifact, validation, shard, shares, describe) for shard in wanted}
    progress, seen = Progress("fit: sample", total=len(calls)), Counter()

    def say(name: str, result: dict[str, Any]) -> None:
        seen["shards"] += 1
        seen["lines"] += result["sampled"]
        progress.update(seen["shards"], lines_described=seen["lines"])

    mapping.over(look, calls, folder / "looked", say=say)
    table = pa.concat_tables(
        [SAMPLE.empty_table(), *(side_tables.load(folder / "looked" / name / "sample.arrow") for name in calls)]
    )
    return _samples(table.sort_by("line_id"), counts)


def count(artifact: Artifact, validation: Artifact, shard: str, part: Path) -> dict[str, Any]:
    """How many lines of a shard are read, and how many of them are in quarantine, by source."""
    index, bad = lines.index_of(artifact, shard, ["line_id", "source"]), quarantined(validation)
    sources: dict[str, Counter[str]] = defaultdict(Counter)
    for identity, source in zip(index["line_id"].to_pylist(), index["source"].to_pylist()):
        sources[source].update(lines=1, quarantined=int(identity in bad))
    return {"split": shard.split("/")[0], "sources": sources}


def look(
    artifact: Artifact,
    validation: Artifact,
    shard: str,
    shares: dict[tuple[str, str], tuple[float, float]],
    describe: Describe,
    part: Path,
) -> dict[str, Any]:
    """Write the sampled lines of a shard, described, as `sample.arrow` (SAMPLE) below `part`.

    shares: by split and source, of the lines that are sampled, and of those that are also described turned.
    """
    split, bad = shard.split("/")[0], quarantined(validation)
    index = lines.index_of(artifact, shard, ["line_id", "source"])
    chosen: dict[str, bool] = {}  # line id: also turned?
    for identity, source in zip(index["line_id"].to_pylist(), index["source"].to_pylist()):
        share, of_turned = shares[split, source]
        if identity not in bad and (place := lines.lot(identity, b"sample")) < share:
            chosen[identity] = split != "transfer-train" and place < of_turned
    rows = []
    for batch in lines.rows_of(artifact, shard) if chosen else ():
        found = [row for row in batch.to_pylist() if row["line_id"] in chosen]
        if found:
            rows += _described(found, shard, chosen, describe)
    side_tables.save(pa.Table.from_pylist(rows, schema=SAMPLE), part / "sample.arrow")
    return {"sampled": len(rows)}


def quarantined(validation: Artifact) -> frozenset[str]:
    """Ids of the lines in quarantine."""
    return _quarantined(validation, validation.version)


@lru_cache(maxsize=4)
def _quarantined(validation: Artifact, version: str) -> frozenset[str]:
    """`version`: a folder may hold another one later."""
    return frozenset(lines.read_table(validation, "quarantine.parquet")["line_id"].to_pylist())


def compared_texts(samples: Samples) -> list[dict[str, Any]]:
    """`texts.compare` of each transfer source, by its name as `source`."""
    target, documents = samples.target_texts
    return [
        {"source": source, **texts.compare(target, documents, found)}
        for source, found in sorted(samples.transfer_texts.items())
    ]


def _described(
    rows: list[dict[str, Any]], shard: str, chosen: dict[str, bool], describe: Describe
) -> list[dict[str, Any]]:
    kept = {name for name in SAMPLE.names if name in lines.SCHEMA.names}
    found = [{name: row[name] for name in kept} | {"shard": shard, "features": None, "turned": None} for row in rows]
    if shard.startswith("transfer-"):
        return found
    turned = [place for place, row in enumerate(rows) if chosen[row["line_id"]]]
    encoded = [row["image"] for row in rows]
    encoded += [image for place in turned for image in orientation.turned(rows[place]["image"])]
    features = np.concatenate([describe(encoded[first : first + AT_ONCE]) for first in range(0, len(encoded), AT_ONCE)])
    for place, row in enumerate(found):
        row["features"] = features[place]
    after = features[len(rows) :].reshape(len(turned), len(orientation.TURNS) * features.shape[1])
    for place, values in zip(turned, after):
        found[place]["turned"] = values
    return found


def _samples(table: pa.Table, counts: dict[str, Counter[str]]) -> Samples:
    splits = pc.list_element(pc.split_pattern(table["shard"], "/"), 0)
    labelled = table.filter(pc.is_in(splits, pa.array(TARGET_SPLITS)))
    if not labelled.num_rows:
        raise ValueError("there is no labelled line outside the quarantine: there is no target to hold sources against")
    unlabelled, transfer = (table.filter(pc.equal(splits, split)) for split in ("unlabeled", "transfer-train"))
    spoken: dict[str, list[str]] = defaultdict(list)
    for source, text in zip(transfer["source"].to_pylist(), transfer["text"].to_pylist()):
        spoken[source].append(text or "")
    return Samples(
        target=_lines(labelled),
        sources={
            source: _lines(unlabelled.filter(pc.equal(unlabelled["source"], source)))
            for source in sorted(set(unlabelled["source"].to_pylist()))
        },
        target_texts=([text or "" for text in labelled["text"].to_pylist()], labelled["document_id"].to_pylist()),
        transfer_texts=dict(spoken),
        shards=dict(zip(table["line_id"].to_pylist(), table["shard"].to_pylist())),
        counts=counts,
    )


def _lines(table: pa.Table) -> Lines:
    identities, pages, documents, sources = (
        table[name].to_pylist() for name in ("line_id", "page_id", "document_id", "source")
    )
    features = np.stack(table["features"].to_numpy())
    rows = np.flatnonzero(table["turned"].is_valid().to_numpy())
    turned = np.zeros((0, len(orientation.TURNS), features.shape[1]), np.float32)
    if len(rows):
        turned = np.stack(table["turned"].drop_null().to_numpy()).reshape(len(rows), *turned.shape[1:])
    return Lines(identities, features, pages, documents, sources, turned, rows)


def _shares(sizes: dict[str, dict[str, Counter[str]]]) -> dict[tuple[str, str], tuple[float, float]]:
    """What `look` samples of lines that are so many, by split and source."""
    good = {
        (split, source): found["lines"] - found["quarantined"]
        for split, sources in sizes.items()
        for source, found in sources.items()
    }
    target = max(1, sum(count for (split, _), count in good.items() if split in TARGET_SPLITS))
    of_target = TARGET_LINES / target, min(TURNED_TARGET_LINES / target, TURNED_TARGET_SHARE)
    bounds = dict.fromkeys(TARGET_SPLITS, of_target)
    return {
        (split, source): bounds.get(split, (SOURCE_LINES / max(1, count), TURNED_LINES / max(1, count)))
        for (split, source), count in good.items()
    }

"""ingest: raw lines → Parquet shards of one schema."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from maskocr_core.config import Config, Data
from maskocr_core.stages import scratch, stage


def _forgotten(config: Config) -> str:
    from maskocr_core.data import tombstones

    return tombstones.load().version


@stage(reads=("data",), also=_forgotten)
def ingest(
    config: Config, *, data_uri: str, transfer_uri: str = "", protected_uris: str = "", lines_out: Path
) -> dict[str, float]:
    """Turn raw line images and their texts into Parquet shards, one folder a split; count and list what is refused.

    data_uri: your lines: a folder, a tar or zip, or s3://bucket/prefix, with Parquet files, line images with .gt.txt or .txt beside them, or pages with PAGE XML or ALTO.
    transfer_uri: labelled lines of a related domain in the same forms, or a trained recognizer (a folder, or models:/name@alias); empty for none.
    protected_uris: labelled lines that a new model must go on reading, in the same forms: of older domains, say; several are separated by commas, empty for none.
    lines_out: the shards, `<split>/part-*.parquet`, and `refused`, `documents` and `duplicates.parquet`.
    """
    from maskocr_core import artifacts
    from maskocr_core.data import lines, packing, readers
    from maskocr_core.progress import Progress
    from maskocr_core.services import mapping

    sources = _sources(config, data_uri, transfer_uri, protected_uris)
    stamps = {uri: _stamps(uri) for _, given, _ in sources for uri in _read(given)}
    calls = {
        f"{prefix}{unit.name}": (unit, data, prefix)
        for prefix, uri, data in sources
        for unit in readers.plan(uri, data)
    }
    progress, counts = Progress("ingest", total=len(calls)), Counter()

    def say(name: str, came: dict[str, int]) -> None:
        counts.update(came, parts=1)
        progress.update(counts["parts"], lines=sum(counts[split] for split in lines.SPLITS), refused=counts["refused"])

    parts = scratch(lines_out) / "parts"
    mapping.over(packing.pack, calls, parts, say=say)
    for uri, before in stamps.items():
        _demand_unchanged(uri, before)
    for name in calls:
        artifacts.take_over(parts / name, lines_out, lines.SPLITS)
    copies = packing.join([parts / name for name in calls], lines_out)
    read = {split: counts[split] - copies.get(split, 0) for split in lines.SPLITS}
    worst = next((f"; refused: {row['item']}: {row['reason']}" for row in packing.refused(parts, calls)), "")
    _demand(read, counts["refused"], worst, sources)
    shown = {name: number for name, number in (*read.items(), ("unused", counts["unused"])) if number}
    progress.done(counts["parts"], lines=sum(read.values()), refused=counts["refused"], **shown)
    return {
        "refused": float(counts["refused"]),
        "copies": float(sum(copies.values())),
        "forgotten": float(counts["forgotten"]),
        "unused": float(counts["unused"]),
        **{split.replace("-", "_"): float(number) for split, number in read.items()},
    }


def outline(config: Config, *, data_uri: str, transfer_uri: str = "", protected_uris: str = "") -> Iterator[str]:
    """Lines of text on what `ingest` would find and do; nothing is written. Raises ValueError where ingest would at its start."""
    from maskocr_core.data import readers

    for _, uri, data in _sources(config, data_uri, transfer_uri, protected_uris):
        yield from readers.outline(uri, data).render()
    if transfer_uri and readers.is_model(transfer_uri):
        yield f"{transfer_uri}: a trained recognizer, of which ingest reads nothing"
    store = os.environ.get("MASKOCR_STORE")
    yield f"shards of at most about {config.data.shard_lines:,} lines would go {f'to {store}' if store else 'into the output folder'}"
    yield "nothing was written"


def _sources(config: Config, data_uri: str, transfer_uri: str, protected_uris: str) -> list[tuple[str, str, Data]]:
    """(prefix of its splits, URI, settings) of the data, of the transfer lines and of the protected ones, if there are any."""
    from maskocr_core.data import readers
    from maskocr_core.services import storage

    found = [("", storage.absolute(data_uri), config.data)]
    given_model = bool(transfer_uri) and readers.is_model(transfer_uri)
    config.demand_old_lines(given_model)  # here, or it would be known after hours of pre-training
    if transfer_uri and not given_model:
        # A transfer source only lends its labels: it needs no test lines, and those it brings have no use here.
        lending = config.data.model_copy(update={"test_share": 0.0})
        found.append(("transfer-", storage.absolute(transfer_uri), lending))
    # Of these nothing is trained on: all lines are test lines, but where the data bring a split, those of its test part.
    judging = config.data.model_copy(update={"test_share": 1.0, "validation_share": 0.0})
    for uri in storage.listed(protected_uris):
        found.append(("protected-", storage.absolute(uri), judging))
    return found


def _read(uri: str) -> list[str]:
    """The URIs whose files are read for one that is given: itself, and what a list of files names beside it."""
    from maskocr_core.services import storage

    listed = storage.listing(uri)
    return [uri, listed.beside] if listed and listed.beside else [uri]


def _stamps(uri: str) -> dict[str, str]:
    """What tells by name whether a file below a URI is another one by now."""
    from maskocr_core.services import storage

    return {file.name: file.stamp for file in storage.files(uri)}


def _demand_unchanged(uri: str, before: dict[str, str]) -> None:
    """Raises ValueError if a file that was to be read was written over or taken away since; new ones may come."""
    from maskocr_core.services import storage

    listed = storage.listing(uri)
    now = _stamps(listed.root if listed else uri)
    for name, stamp in before.items():
        if now.get(name) != stamp:
            what = "was written over" if name in now else "was taken away"
            raise ValueError(
                f"{name} in {listed.root if listed else uri} {what} while it was read: let those finish who write there, then run again"
            )


def _demand(read: dict[str, int], refused: int, worst: str, sources: list[tuple[str, str, Data]]) -> None:
    """Refuse data with which no later stage could do its work, naming what is missing and the mend."""
    if not sum(read.values()):
        raise ValueError(f"{sources[0][1]}: none of the {refused:,} items is a line{worst}")
    wanted = [("train", "labelled lines to fine-tune on"), ("val", "validation lines"), ("test", "test lines")]
    for prefix, uri, _ in sources:
        for split, what in {"": wanted, "transfer-": wanted[:2], "protected-": wanted[2:]}[prefix]:
            if not read[prefix + split]:
                raise ValueError(
                    f"{uri}: there are no {what}{worst}; label more documents, set data.split_unit=page where documents "
                    "are few, or bring a column 'split' with train, val, test and unlabeled"
                )

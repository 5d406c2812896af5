"""The contact sheet of what was refused: one page, opened without a network, on which a person sees whether rightly so.

Everything on it comes from strangers' files: pictures are decoded and encoded anew, jinja2 escapes every value, control
characters are spelled out, and a content security policy forbids scripts and any load.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.data import images, lines, pages

PAGE, SHOWN = "contact_sheet.html", "shown.json"
PER_KIND = 24  # lines shown of each kind of fault
MAX_PICTURES = 4 << 20  # bytes of all pictures together
MAX_GROUPS = 20  # kinds of reasons shown of what ingest refused
_IDENTITY = re.compile(r"[0-9a-f]{32}")  # a line id, where ingest refused a line and not a file
_PARTICULARS = re.compile(r"[:;,'‘]| of page |\S*\d")  # where what tells one item's reason from another's begins


def write(artifact: Artifact, quarantined: Iterable[tuple[str, pa.Table]], out: Path) -> None:
    """Write `contact_sheet.html` and `shown.json` into the folder `out`.

    artifact: lines, with `refused.parquet` where ingest wrote one. quarantined: (shard, table with `line_id`, `source`,
    `document_id`, `page_id`, `kinds` and `reasons` of its bad lines); a line stands under its first kind.
    """
    counts, chosen = _chosen(quarantined)
    pictures = _pictures(artifact, chosen)
    kinds = [
        {
            "kind": kind,
            "count": sum(counts[kind].values()),
            "sources": counts[kind].most_common(12),
            "lines": [line | {"picture": pictures.get(line["line_id"])} for line in chosen[kind]],
        }
        for kind in sorted(counts, key=lambda kind: (-sum(counts[kind].values()), kind))
    ]
    groups = _refused_at_ingest(artifact)
    page = pages.template(Path(__file__).with_name("contact_sheet.html.j2")).render(kinds=kinds, groups=groups)
    (out / PAGE).write_text(page, encoding="utf-8", errors="replace")
    items = [item for group in groups for item in group["items"] if _IDENTITY.fullmatch(item["item"])]
    shown = {line["line_id"] for kind in kinds for line in kind["lines"]} | {item["item"] for item in items}
    artifacts.write_json(out / SHOWN, {PAGE: sorted(shown)})


def _chosen(
    quarantined: Iterable[tuple[str, pa.Table]],
) -> tuple[dict[str, Counter[str]], dict[str, list[dict[str, Any]]]]:
    """How many lines each kind has by source, and PER_KIND of them, of the sources in turn; a digest chooses, so at random."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    kept: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    columns = ["line_id", "source", "document_id", "page_id", "kinds", "reasons"]
    for shard, table in quarantined:
        for row in table.select(columns).to_pylist():
            kind, source = row["kinds"][0], row["source"]
            counts[kind][source] += 1
            kept[kind][source].append(row | {"shard": shard})
        for sources in kept.values():
            for source, rows in sources.items():
                sources[source] = sorted(rows, key=lambda row: row["line_id"])[:PER_KIND]
    return counts, {kind: _in_turn(sources) for kind, sources in kept.items()}


def _in_turn(sources: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    ranked = [(rank, source, row) for source, rows in sources.items() for rank, row in enumerate(rows)]
    return [row for _, _, row in sorted(ranked, key=lambda one: one[:2])[:PER_KIND]]


def _pictures(artifact: Artifact, chosen: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Small pictures by line id, as far as they can be decoded and MAX_PICTURES allows."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for rows in chosen.values():
        for row in rows:
            wanted[row["shard"]].add(row["line_id"])
    pictures, left = {}, MAX_PICTURES
    for shard in sorted(wanted):
        for identity, image in _images(artifact, shard, wanted[shard]):
            try:
                picture = pages.picture(images.decode(image))
            except ValueError:
                continue
            if (left := left - len(picture["data"])) < 0:
                return pictures
            pictures[identity] = picture
    return pictures


def _images(artifact: Artifact, shard: str, line_ids: set[str]) -> Iterator[tuple[str, bytes]]:
    for batch in lines.rows_of(artifact, shard):
        for place, identity in enumerate(batch["line_id"].to_pylist()):
            if identity in line_ids:
                yield identity, batch["image"][place].as_py()


def _refused_at_ingest(artifact: Artifact) -> list[dict[str, Any]]:
    """What ingest refused, by reason without its particulars: `reason`, `count`, the first PER_KIND `items` and their reasons."""
    if "refused.parquet" not in artifact.names():
        return []
    groups: dict[str, dict[str, Any]] = {}
    for batch in lines.open_parquet(artifact, "refused.parquet").iter_batches(1024):
        for row in batch.to_pylist():
            reason = _PARTICULARS.split(row["reason"])[0].strip()[:60] or "other reasons"
            if len(groups) >= 50 * MAX_GROUPS and reason not in groups:
                reason = "other reasons"
            group = groups.setdefault(reason, {"reason": reason, "count": 0, "items": []})
            group["count"] += 1
            if len(group["items"]) < PER_KIND:
                group["items"].append(row)
    return sorted(groups.values(), key=lambda group: (-group["count"], group["reason"]))[:MAX_GROUPS]

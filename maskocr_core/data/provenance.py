"""Where the lines came from that a model was trained on and judged by: sources, their licences, documents and lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines

USES = {
    "train": "fine-tuning",
    "val": "choice of the checkpoint, calibration",
    "test": "evaluation",
    "unlabeled": "pre-training",
    "transfer-train": "transfer training",
    "transfer-val": "choice in transfer training, evaluation of what is forgotten",
    "protected-test": "evaluation of what is forgotten",
}


def sources(artifact: Artifact, splits: Iterable[str], admitted: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of {use, source, license, documents, lines} of some splits of an ingested artifact, in the order of the splits.

    license: None where the lines bring none; a document whose lines have several stands in several rows. admitted: the
    sources of unlabelled lines of which domain fit admits any. Lines that were forgotten are not among them.
    """
    kept, rows = set(admitted), []
    for split in splits:
        documents: dict[tuple[str, str], set[str]] = defaultdict(set)
        count: dict[tuple[str, str], int] = defaultdict(int)
        for shard in lines.shards(artifact, split):
            table = lines.index_of(artifact, shard, ("source", "document_id", "license"))
            for source, document, license_ in zip(
                *(table[n].to_pylist() for n in ("source", "document_id", "license"))
            ):
                documents[source, license_ or ""].add(document)
                count[source, license_ or ""] += 1
        rows += [
            {
                "use": USES[split],
                "source": source,
                "license": license_ or None,
                "documents": len(documents[source, license_]),
                "lines": count[source, license_],
            }
            for source, license_ in sorted(count)
            if split != "unlabeled" or source in kept
        ]
    return rows

"""Which documents a model was trained on, kept beside its weights as digests, so that it is known without the data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.data import lines, tombstones

NAME = "saw.json"


@dataclass(frozen=True)
class Saw:
    """documents: `tombstones.digest(source, document)` of each. complete: false where a model it started from does not say."""

    documents: frozenset[str] = frozenset()
    complete: bool = True

    def __or__(self, other: Saw) -> Saw:
        return Saw(self.documents | other.documents, self.complete and other.complete)

    def write(self, folder: Path) -> None:
        artifacts.write_json(folder / NAME, {"documents": sorted(self.documents), "complete": self.complete})


def of_lines(artifact: Artifact, selection: Artifact, splits: Iterable[str]) -> Saw:
    """The documents of the admitted lines of some splits; holds one shard's index at a time."""
    documents: set[tuple[str, str]] = set()
    for shard in lines.shards(artifact, *splits):
        table = lines.selected_of(artifact, selection, shard, ["source", "document_id"])
        documents.update(zip(table["source"].to_pylist(), table["document_id"].to_pylist()))
    return Saw(frozenset(tombstones.digest(*document) for document in documents))


def read(folder: Path) -> Saw:
    """What a folder says its model saw; incomplete where it does not say."""
    if not (folder / NAME).is_file():
        return Saw(complete=False)
    said = json.loads((folder / NAME).read_text())
    return Saw(frozenset(said["documents"]), said["complete"])

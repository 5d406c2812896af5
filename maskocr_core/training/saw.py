"""Which documents a model was trained on, or a codebook came of, kept beside it as digests, so that it is known without the data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.data import admitted, lines, tombstones

NAME = "saw.json"


@dataclass(frozen=True)
class Saw:
    """documents: `tombstones.digest(source, document)` of each. pages: the same of labelled pages, with the page's name.
    complete: false where a model it started from does not say."""

    documents: frozenset[str] = frozenset()
    complete: bool = True
    pages: frozenset[str] = frozenset()

    def __or__(self, other: Saw) -> Saw:
        complete = self.complete and other.complete
        return Saw(self.documents | other.documents, complete, self.pages | other.pages)

    def write(self, folder: Path) -> None:
        said = {"documents": sorted(self.documents), "complete": self.complete, "pages": sorted(self.pages)}
        artifacts.write_json(folder / NAME, said)


def of_lines(artifact: Artifact, selection: Artifact, splits: Iterable[str]) -> Saw:
    """The documents of the admitted lines of some splits, and the pages of labelled ones; holds one shard's index at a time."""
    documents: set[tuple[str, ...]] = set()
    pages: set[tuple[str, ...]] = set()
    for shard in lines.shards(artifact, *splits):
        table = admitted.selected_of(artifact, selection, shard, ["source", "document_id", "page_id"])
        columns = [table[name].to_pylist() for name in ("source", "document_id", "page_id")]
        documents.update(zip(*columns[:2]))
        if not shard.startswith("unlabeled/"):  # of these there are too many, and nothing of theirs but ink was learnt
            pages.update(zip(*columns))
    return Saw(_digests(documents), pages=_digests(pages))


def _digests(names: Iterable[tuple[str, ...]]) -> frozenset[str]:
    return frozenset(tombstones.digest(*parts) for parts in names)


def of_model(folder: Path) -> Saw:
    """What a pre-trained encoder saw, or a recogniser, whose folder of weights lies in the one that says it."""
    return read(folder if (folder / "encoder.json").is_file() else folder.parent)


def read(folder: Path) -> Saw:
    """What a folder says its model saw; incomplete where it does not say."""
    if not (folder / NAME).is_file():
        return Saw(complete=False)
    said = json.loads((folder / NAME).read_text())
    return Saw(frozenset(said["documents"]), said["complete"], frozenset(said.get("pages", ())))

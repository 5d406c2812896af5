"""Which objects of a store somebody still names, and what could not be read of those who might.

An object lies under its SHA-256, and a manifest has that of each of its files: so every digest that stands in a
manifest, in the lineage beside it, or in what stands for a file of unfinished work, counts as named, whatever URI is
with it. Read are the given places, all versions of the DVC repositories in them, and what MLflow keeps of runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from maskocr_core.artifacts import ELSEWHERE, LINEAGE, MANIFEST
from maskocr_core.config import Registry
from maskocr_core.services import storage

_TELLING = (MANIFEST, LINEAGE, ELSEWHERE)
_DIGEST = re.compile(rb"\b[0-9a-f]{64}\b")
_OF_A_MODEL = ("lines", "selection", "codebook", "encoder", "recognizers")  # outputs whose large files are in the store


@dataclass
class Named:
    """digests: of files and data versions. gaps: sentences on what might name more, and could not be read."""

    digests: set[str] = field(default_factory=set)
    gaps: list[str] = field(default_factory=list)

    def note(self, content: bytes) -> None:
        self.digests.update(digest.decode() for digest in _DIGEST.findall(content))


def look(known: Iterable[Path], given: Iterable[str]) -> Named:
    """known: folders that may be empty or missing. given: folders or s3:// prefixes that somebody says hold manifests.

    Raises ValueError for a given place without any, or that does not answer, and where MLflow does not.
    """
    named, given = Named(), [storage.absolute(place) for place in given]
    folders = [folder for folder in known if folder.is_dir()]
    for folder in folders:
        _read_place(str(folder), named)
    for place in given:
        if not _read_place(place, named):
            raise ValueError(f"{place}: no {MANIFEST} lies below it; give a folder or s3://bucket/prefix of artifacts")
    _read_versions([*folders, *(Path(place) for place in given if not storage.is_remote(place))], named)
    _read_mlflow(named)
    return named


def _read_place(place: str, named: Named) -> int:
    """How many manifests lie below it."""
    telling = [file for file in storage.files(place, some=False) if file.name.endswith(_TELLING)]
    for file in telling:
        try:
            named.note(storage.content(file.uri))
        except ValueError as error:  # work that goes on takes away what stands for a file, and writes a manifest
            named.gaps.append(str(error))
    return sum(file.name.rpartition("/")[2] == MANIFEST for file in telling)


def _read_versions(folders: list[Path], named: Named) -> None:
    from maskocr_core.erasure.places import Places
    from maskocr_core.services import history

    for past in Places.of(folders, []).pasts:
        if past.missing or past.unreachable:
            what = f"version {min(past.missing)[:8]}" if past.missing else f"remote {past.unreachable[0]}"
            named.gaps.append(f"{what} of the data repository {past.repository} cannot be read: `dvc pull` it there")
        for file in {file for folder in past.folders for file in folder}:
            # What no commit names has lost its name: a manifest is told by what it holds.
            if file.path.endswith((*_TELLING, "unnamed.html")):
                try:
                    named.note(history.read(past.stores, file.md5))
                except ValueError as error:
                    named.gaps.append(f"{file.path} of the data repository {past.repository} cannot be read: {error}")


def _read_mlflow(named: Named) -> None:
    """What runs and models keep, and whether all that registered models were made of is named by then."""
    from maskocr_core.services import logged, tracking

    if not logged.is_there():
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            named.gaps.append("there is no MLflow here: say with MLFLOW_TRACKING_URI where models are registered")
        return
    tracking.check()
    for place in logged.places():
        for path in logged.files(place.uri):
            if path.endswith(_TELLING):
                named.note(logged.read(place.uri, path))
    for model, version, _ in logged.versions():
        for what, digest in _lineage(model, version):
            if digest not in named.digests:
                named.gaps.append(
                    f"model {model}/{version} was made of {what} {digest[:12]}, of which no manifest was read: "
                    "give its place with --manifests, or delete that version of the model"
                )


def _lineage(model: str, version: str) -> Iterator[tuple[str, str]]:
    """(output, data version) of what a registered model was made of, by its tags and those of its pipeline's run."""
    import yaml

    from maskocr_core.services import logged, registered

    if lines := (registered.version_tags(Registry(model=model), version) or {}).get("data_version"):
        yield "lines", lines
    run = yaml.safe_load(logged.read(f"models:/{model}/{version}", "MLmodel")).get("run_id")
    try:
        above = logged.tags(run).get("mlflow.parentRunId")
        tags = logged.tags(above) if above else {}
    except Exception as error:  # of MLflow, whose classes only services know: a model outlives a run that was deleted
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
        return
    for what in _OF_A_MODEL:
        if digest := tags.get(f"version.{what}"):
            yield what, digest

"""Where things lie that may have to be erased: work folders, DVC repositories, the store, MLflow databases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from maskocr_core.artifacts import Artifact, in_store, work_folder
from maskocr_core.erasure import past, redact, repack
from maskocr_core.erasure.doomed import Doomed, Shard, is_shard
from maskocr_core.services import storage, tracking
from maskocr_core.services.stored import File

LARGE = 256 << 20  # bytes: a file beyond is not searched unless it is Parquet


@dataclass(frozen=True)
class Places:
    """Folders and DVC repositories, absolute and none inside another; prefixes of a store that pipelines write to."""

    folders: tuple[Path, ...]
    repositories: tuple[Path, ...]
    roots: tuple[str, ...] = ()

    @classmethod
    def of(cls, folders: list[Path], repositories: list[Path], roots: list[str] = ()) -> Places:
        """Those given that exist; repositories below the folders are found.

        Raises ValueError for one that is no repository, and for a root with nothing in it.
        """
        for root in roots:
            storage.files(root)
        for folder in repositories:
            if not (folder / ".dvc").is_dir() or not (folder / ".git").exists():
                raise ValueError(f"{folder} is no git and DVC repository: give the folder that holds .git and .dvc")
        there = {folder.resolve() for folder in folders if folder.is_dir()}
        inside = {place.parent.resolve() for folder in there for place in folder.rglob(".dvc") if place.is_dir()}
        found = {folder.resolve() for folder in repositories} | {one for one in inside if (one / ".git").exists()}
        tops = [folder for folder in there | found if not any(other in folder.parents for other in there | found)]
        return cls(tuple(sorted(tops)), tuple(sorted(found)), tuple(roots))

    @property
    def artifacts(self) -> list[Artifact]:
        """Finished artifacts, those in the workspaces of repositories included."""
        return [artifact for folder in self.folders for artifact in repack.below(folder)]

    @cached_property
    def pasts(self) -> list[past.Past]:
        return [past.look(repository) for repository in self.repositories]

    def shards(self) -> Iterator[Shard]:
        """Every file with lines that is kept anywhere here."""
        for artifact in self.artifacts:
            yield from repack.shards(artifact)
        for kept in self.pasts:
            yield from past.shards(kept)
        for uri in [*stored(), *(file.uri for file in self.in_roots() if file.name.endswith(".parquet"))]:
            opened = partial(storage.open_input, uri)
            if is_shard(pq.ParquetFile(opened()).schema_arrow):
                yield Shard(uri, uri, opened)

    def in_roots(self) -> Iterator[File]:
        """Every object below the roots."""
        for root in self.roots:
            yield from storage.files(root, some=False)

    def still_holding(self, doomed: Doomed) -> Iterator[tuple[Path, str]]:
        """Files of whatever kind that hold what is to be erased, or may (too large to be searched, unreadable)."""
        caches = [Path(kept.stores[0]) for kept in self.pasts]
        for folder in self.folders:
            for place, names, files in os.walk(folder):
                names[:] = [n for n in names if n != ".git" and Path(place, n) not in caches]
                for path in (Path(place, name) for name in files):
                    if (found := _state(path, doomed)) is not None:
                        yield path, found


def stored() -> list[str]:
    """URIs of the Parquet files in MASKOCR_STORE."""
    store = os.environ.get("MASKOCR_STORE")
    try:
        return [file.uri for file in storage.files(store) if file.name.endswith(".parquet")] if store else []
    except ValueError as error:
        if "there is no file here" in str(error):
            return []
        raise


def unfinished_in_store() -> str:
    """Where MASKOCR_STORE holds checkpoints of unfinished work; empty if it holds none, or there is no store."""
    uri = in_store(work_folder())
    return uri if uri and storage.holds(uri) else ""


def demand_store(artifacts: list[Artifact], given: str | None) -> None:
    """Raises ValueError if lines lie in a store whose readers would look elsewhere for tombstones."""
    for artifact in artifacts:
        store = repack.store_of(artifact)
        if store and not given and store != (os.environ.get("MASKOCR_STORE") or "").rstrip("/"):
            raise ValueError(
                f"{artifact.folder} lies in the store {store}: set MASKOCR_STORE={store}, "
                "so that the tombstone is where its readers look for it"
            )


@contextmanager
def databases(folders: tuple[Path, ...]) -> Iterator[Iterator[str]]:
    """MLflow's addresses, one after another in force: MLFLOW_TRACKING_URI, else every mlflow.db in the folders."""
    before = os.environ.get("MLFLOW_TRACKING_URI")

    def each() -> Iterator[str]:
        found = sorted({folder / "mlflow.db" for folder in folders if (folder / "mlflow.db").is_file()})
        own = tracking.uri()
        for uri in dict.fromkeys([own] if before else [own, *(f"sqlite:///{path}" for path in found)]):
            os.environ["MLFLOW_TRACKING_URI"] = uri
            yield uri

    try:
        yield each()
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if before:
            os.environ["MLFLOW_TRACKING_URI"] = before


def _state(path: Path, doomed: Doomed) -> str | None:
    if path.is_symlink() or not path.is_file():
        return None
    if path.stat().st_size > LARGE and path.suffix not in (".parquet", *redact.WEIGHTS):
        return "too large to be searched"
    try:
        with pa.OSFile(str(path)) as file:
            return "holds it" if redact.holds(path.name, file, doomed) else None
    except (OSError, ValueError, pa.ArrowException) as error:
        return f"cannot be read ({str(error)[:100]})"

"""What a stage leaves behind: a folder whose `manifest.json`, written last, lists every file with its digest.

A folder without a manifest does not exist for any reader. With `MASKOCR_STORE=s3://…` large files lie in that store
under their digest and the manifest holds their URIs, so that an artifact folder stays small wherever it is copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from maskocr_core.services import disk, s3, storage

FORMAT_VERSION, READABLE = 2, (1, 2)
MANIFEST = "manifest.json"
LINEAGE = "lineage.json"
_STORED = (".parquet", ".safetensors")
ELSEWHERE = ".stored.json"  # stands for a file of an unfinished folder that lies in the store already
_SHOWN = (".html", ".png", ".svg")  # pages for people, with the time in them: listed, but no part of the data version


@dataclass(frozen=True)
class Artifact:
    """A finished artifact folder. Raises ValueError on reading one that no stage finished or that a newer version wrote."""

    folder: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        if not path.is_file():
            raise ValueError(
                f"{self.folder} has no {MANIFEST}: the stage that writes it has not finished; run it first"
            )
        manifest = json.loads(path.read_text())
        if manifest.get("format_version") not in READABLE:
            raise ValueError(
                f"{path}: format_version {manifest.get('format_version')!r} is none of {READABLE}; install the maskocr that wrote it"
            )
        return manifest

    @property
    def version(self) -> str:
        """Data version: digest of the sorted names and digests of all files but pages for people."""
        return self.manifest["version"]

    @property
    def metrics(self) -> dict[str, float]:
        return self.manifest["metrics"]

    def names(self, prefix: str = "", suffix: str = "") -> list[str]:
        return [
            entry["name"]
            for entry in self.manifest["files"]
            if entry["name"].startswith(prefix) and entry["name"].endswith(suffix)
        ]

    def open(self, name: str) -> Any:
        """A seekable binary file for one of `names()`, wherever it lies."""
        return storage.open_input(self._entry(name).get("uri") or str(self.folder / name))

    def read_bytes(self, name: str) -> bytes:
        """The whole content of one file, its digest verified.

        Raises ValueError if the content is not what the manifest says.
        """
        with self.open(name) as file:
            content = bytes(file.read())
        if hashlib.sha256(content).hexdigest() != self._entry(name)["sha256"]:
            raise ValueError(
                f"{self.folder / name} was changed after it was written; restore it or run its stage again"
            )
        return content

    def verify(self, name: str) -> None:
        """Hash a file that is read in parts: once in a process, and again when it is another one by its size or time.

        What lies in a store is not fetched for that: its name there is its digest. Raises ValueError as `read_bytes` does.
        """
        entry = self._entry(name)
        if "uri" not in entry:
            path = self.folder / name
            if not path.is_file():
                raise ValueError(f"{path} is missing; restore it or run its stage again")
            status = path.stat()
            if _sha256_of(path, status.st_size, status.st_mtime_ns) != entry["sha256"]:
                raise ValueError(f"{path} was changed after it was written; restore it or run its stage again")

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def local(self, into: Path) -> Path:
        """A folder with all files: this one, or `into`, filled here with what lies in a store."""
        if not any("uri" in entry for entry in self.manifest["files"]):
            return self.folder
        for name in self.names():
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read_bytes(name))
        return into

    def _entry(self, name: str) -> dict[str, Any]:
        for entry in self.manifest["files"]:
            if entry["name"] == name:
                return entry
        raise ValueError(f"{self.folder} holds no {name}; it holds {', '.join(self.names()[:8]) or 'nothing'}")


@lru_cache(maxsize=1 << 16)
def _sha256_of(path: Path, size: int, time_ns: int) -> str:
    """`sha256` of a file of that size and time."""
    return sha256(path)


def finish(folder: Path, *, kind: str, config: dict[str, Any], metrics: dict[str, float]) -> Artifact:
    """Write lineage and, last, the manifest of a folder whose files are complete."""
    entries = []
    disk.sweep(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.name.endswith(ELSEWHERE):
            entries.append(
                json.loads(path.read_text()) | {"name": path.relative_to(folder).as_posix()[: -len(ELSEWHERE)]}
            )
            path.unlink()
        elif (name := path.relative_to(folder).as_posix()) not in (MANIFEST, LINEAGE):
            entries.append({"name": name, **_settled(path)})
    entries.sort(key=lambda entry: entry["name"])
    # Names count: a split is nothing but the folder that a shard lies in.
    data = sorted(f"{entry['name']} {entry['sha256']}" for entry in entries if not entry["name"].endswith(_SHOWN))
    version = hashlib.sha256("\n".join(data).encode()).hexdigest()
    write_json(folder / LINEAGE, lineage())
    write_json(
        folder / MANIFEST,
        {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "version": version,
            "config": config,
            "metrics": metrics,
            "files": entries,
        },
    )
    return Artifact(folder)


def settle(folder: Path) -> None:
    """With a store, move the large files of an unfinished folder there now; `finish` takes up what is left in their place.

    So that the worker that made a shard also stores it, wherever it runs.
    """
    if os.environ.get("MASKOCR_STORE"):
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in _STORED):
            path.with_name(path.name + ELSEWHERE).write_text(json.dumps(_settled(path)))


def take_over(part: Path, unfinished: Path, folders: tuple[str, ...]) -> None:
    """Link the files below `folders` of a finished part, or what stands for them, into an unfinished artifact."""
    for folder in folders:
        for path in sorted((part / folder).glob("*")):
            destination = unfinished / folder / path.name
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.unlink(missing_ok=True)
            link_or_copy(str(path), str(destination))


def work_folder() -> Path:
    """`MASKOCR_WORK`: unfinished and finished work, outside every output. Default: `work/stages` here."""
    return Path(os.environ.get("MASKOCR_WORK", "work/stages")).absolute()


def in_store(folder: Path) -> str:
    """Where MASKOCR_STORE keeps what must outlive the machine of a folder of unfinished work; empty without a store.

    The same text on every machine: below MASKOCR_WORK a folder is named by its stage and its key.
    """
    store = os.environ.get("MASKOCR_STORE")
    return f"{store.rstrip('/')}/unfinished/{folder.relative_to(work_folder())}".removesuffix("/.") if store else ""


def demand_room(destination: Path) -> None:
    """Raises ValueError if publishing at `destination` would replace something that is no artifact."""
    if destination.is_file() or (
        destination.is_dir() and any(destination.iterdir()) and not (destination / MANIFEST).is_file()
    ):
        raise ValueError(f"{destination} exists and was not made by maskocr: give a new folder for the output")


def publish(source: Path, destination: Path) -> None:
    """Make a finished folder appear at `destination` whole or not at all: linked (or copied) aside, then renamed."""
    import shutil

    demand_room(destination)
    aside = destination.with_name(f".{destination.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copytree(source, aside, copy_function=link_or_copy)
        if destination.is_dir():
            shutil.rmtree(destination)
        aside.rename(destination)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    write_bytes(path, (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename."""
    with disk.written(path) as aside:
        aside.write_bytes(content)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def link_or_copy(source: str, destination: str) -> None:
    """Give a file a second name, or a second copy where the file system has no links to there."""
    import shutil

    try:
        os.link(source, destination)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, destination)


def _settled(path: Path) -> dict[str, Any]:
    """The manifest's entry of a file but its name; the file itself goes into the store, if there is one for its kind."""
    entry = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    if path.suffix == ".parquet":
        entry["rows"] = _rows(path)
    if (store := os.environ.get("MASKOCR_STORE")) and path.suffix in _STORED:
        entry["uri"] = _move_to_store(path, store, entry["sha256"])
    return entry


def _move_to_store(path: Path, store: str, digest: str) -> str:
    uri = f"{store.rstrip('/')}/{digest[:2]}/{digest}{path.suffix}"
    if not storage.renewed(uri):
        s3.upload(path, uri)
    path.unlink()
    return uri


def _rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows


def code_commit() -> str | None:
    """The git commit of this code, `-dirty` where files differ from it; outside a checkout what an image says of itself.

    That is MASKOCR_COMMIT; None without it.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    described = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    found = ""
    with contextlib.suppress(FileNotFoundError):  # images have no git
        found = subprocess.run(described, capture_output=True, text=True, check=False).stdout.strip()
    return found or os.environ.get("MASKOCR_COMMIT") or None


def lineage() -> dict[str, Any]:
    """What is known of the code and the run that make something now."""
    from importlib.metadata import version

    return {
        "maskocr": version("maskocr"),
        "commit": code_commit(),
        "python": platform.python_version(),
        "run": os.environ.get("MASKOCR_RUN"),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }

"""Artifacts without what is to be erased: new folders beside the old ones, then exchanged; unfinished work deleted.

A folder is found by its manifest. Published artifacts share their files with those in MASKOCR_WORK by hard links, so each
copy is re-packed on its own, and names of a file that no searched folder holds are reported.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maskocr_core import artifacts
from maskocr_core.artifacts import LINEAGE, MANIFEST, Artifact
from maskocr_core.erasure import redact, remains
from maskocr_core.erasure.doomed import Doomed, Shard, in_shard_folder, is_shard
from maskocr_core.services import storage

REPORT = ("report.html", "report.png")  # of an evaluation, drawn from its summary.json
_NEW, _OLD = ".{}.repacked", ".{}.forgotten"
_NOT_OURS = (".git", ".dvc")


@dataclass
class Repacked:
    """What became of one artifact: names of rewritten and removed files, URIs in a store that it let go.

    elsewhere: files of it that have more names (hard links) than this one, by their (device, inode).
    """

    folder: Path
    rewritten: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    let_go: list[str] = field(default_factory=list)
    elsewhere: dict[tuple[int, int], bool] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.rewritten or self.removed)


def below(root: Path) -> Iterator[Artifact]:
    """Finished artifacts below a folder, whatever published them; what a killed erasure left half exchanged is put right."""
    for place, folders, files in os.walk(root):
        for name in [name for name in folders if name.startswith(".") and name.endswith((".repacked", ".forgotten"))]:
            folders.remove(name)
            _put_right(Path(place), name, folders)
        if _is_artifact(Path(place), files):
            folders[:] = []
            yield Artifact(Path(place))
        folders[:] = sorted(name for name in folders if name not in _NOT_OURS and not _is_unfinished(Path(place), name))


def unfinished(root: Path) -> Iterator[Path]:
    """Folders of work that no stage has finished."""
    for place, folders, _ in os.walk(root):
        for name in sorted(folders):
            if _is_unfinished(Path(place), name):
                yield Path(place) / name
        folders[:] = [name for name in folders if name not in _NOT_OURS and not _is_unfinished(Path(place), name)]


def shards(artifact: Artifact) -> Iterator[Shard]:
    """Files of an artifact that hold lines with their images."""
    for entry in artifact.manifest["files"]:
        name = entry["name"]
        if name.endswith(".parquet") and in_shard_folder(name) and exists(artifact, entry):
            if is_shard(pq.ParquetFile(artifact.open(name)).schema_arrow):
                yield Shard(name, entry["sha256"], lambda name=name: artifact.open(name))


def repack(artifact: Artifact, doomed: Doomed, date: str, act: bool = True) -> Repacked:
    """Rewrite an artifact without what is to be erased; with `act` false only say what would be."""
    done, new = Repacked(artifact.folder), {}
    shown = artifact.read_json(redact.SHOWN) if redact.SHOWN in artifact.names() else {}
    for entry in artifact.manifest["files"]:
        name = entry["name"]
        if not exists(artifact, entry):
            continue
        with artifact.open(name) as file:
            if not redact.holds(name, file, doomed, tuple(shown.get(name, ()))):
                continue
        new[name] = redact.cleaned(name, artifact.read_bytes(name), doomed, date)
        (done.removed if new[name] is None else done.rewritten).append(name)
        if "uri" in entry:
            done.let_go.append(entry["uri"])
    new |= _handed_on(artifact, doomed, new)
    new |= _drawn_again(artifact, new)
    if new and shown:
        new[redact.SHOWN] = redact.as_json(_still_shown(shown, new, doomed))
    config = redact.without(artifact.manifest["config"], doomed)  # a knob may name a source
    if config != artifact.manifest["config"]:
        done.rewritten.append(artifacts.MANIFEST)
    if (new or done.rewritten) and act:
        for path in [artifact.folder / name for name in (*done.rewritten, *done.removed)]:
            if path.is_file():
                done.elsewhere[(path.stat().st_dev, path.stat().st_ino)] = path.stat().st_nlink > 1
        _exchange(artifact, new, config, doomed, date)
    return done


def _still_shown(shown: dict[str, list[str]], new: dict[str, bytes | None], doomed: Doomed) -> dict[str, list[str]]:
    """What pages still show: one that was taken away shows nothing, whatever stands in its place."""
    gone = {n for n, content in new.items() if content is None or (n.endswith(redact.PAGES) and n not in REPORT)}
    return {name: [line for line in ids if line not in doomed.lines] for name, ids in shown.items() if name not in gone}


def _drawn_again(artifact: Artifact, new: dict[str, bytes | None]) -> dict[str, bytes]:
    """The report of an evaluation, from its summary that has no trace of the lines any more."""
    if artifact.manifest["kind"] != "evaluation" or not new.get("summary.json"):
        return {}
    return report(json.loads(new["summary.json"]))


def report(summary: dict[str, Any]) -> dict[str, bytes]:
    """The pages of a comparison, by name, drawn from its summary.

    Empty for a summary that another maskocr wrote, which lacks what pages show today: they go, and `evaluate` draws them anew.
    """
    return _report(json.dumps(summary))


@lru_cache(maxsize=4)  # a comparison lies in several folders and runs
def _report(summary: str) -> dict[str, bytes]:
    import tempfile

    from jinja2 import UndefinedError

    from maskocr_core.judging import report as drawing

    with tempfile.TemporaryDirectory() as folder:
        try:
            drawing.render(json.loads(summary), Path(folder))
        except (KeyError, UndefinedError):
            return {}
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _handed_on(artifact: Artifact, doomed: Doomed, new: dict[str, bytes | None]) -> dict[str, bytes]:
    """Rows of tables that lie beside their shards, moved with lines that are read from another shard now."""
    moving: dict[str, list[pa.Table]] = defaultdict(list)
    for name in new:
        place = in_shard_folder(name)
        if place is None:
            continue
        table = pq.read_table(artifact.open(name))
        if is_shard(table.schema):
            continue
        for number, line in enumerate(table["line_id"].to_pylist()):
            if redact.moved(doomed, line, place[1]):
                for target in _targets(artifact, doomed, line, place):
                    moving[target].append(redact.table_without("", table.slice(number, 1), doomed))
    handed = {}
    for name, rows in moving.items():
        content = io.BytesIO(new.get(name) or artifact.read_bytes(name))
        there = pq.read_table(content)
        known = set(there["line_id"].to_pylist())
        rows = [row.cast(there.schema) for row in rows if row["line_id"][0].as_py() not in known]
        if rows:
            handed[name] = redact.encoded(pa.concat_tables([there, *rows]))
    return handed


def _targets(artifact: Artifact, doomed: Doomed, line: str, place: tuple[str, str]) -> list[str]:
    """The table, in the same split, of the shard from which a line is read now; none if the artifact has no such table."""
    before, shard = place
    split = shard.split("/")[0]
    names = ["/".join(filter(None, (before, owner.shard))) for owner in doomed.heirs[line]]
    same = [name for name in names if name.split("/")[-2] == split]
    return [name for name in same if name in artifact.names()][:1]


def _exchange(artifact: Artifact, new: dict[str, bytes | None], config: Any, doomed: Doomed, date: str) -> None:
    folder = artifact.folder
    aside, old = (folder.with_name(form.format(folder.name)) for form in (_NEW, _OLD))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for entry in artifact.manifest["files"]:
        path = aside / entry["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry["name"] in new:
            if (content := new[entry["name"]]) is not None:
                path.write_bytes(content)
        elif "uri" in entry:
            stored = {name: value for name, value in entry.items() if name != "name"}
            path.with_name(path.name + artifacts.ELSEWHERE).write_text(json.dumps(stored))
        elif (folder / entry["name"]).is_file():
            artifacts.link_or_copy(str(folder / entry["name"]), str(path))
    for name in new.keys() - set(artifact.names()):
        (aside / name).write_bytes(new[name])
    if artifact.manifest["kind"] == "lines":
        remains.tell(artifact, aside, new, doomed)
    manifest = artifact.manifest
    with _store(artifact):
        artifacts.finish(aside, kind=manifest["kind"], config=config, metrics=manifest["metrics"])
    lineage = json.loads((folder / LINEAGE).read_text()) if (folder / LINEAGE).is_file() else {}
    erased = [*lineage.get("erased", ()), {"on": date, "was": artifact.version}]
    artifacts.write_json(aside / LINEAGE, lineage | {"erased": erased})
    folder.rename(old)
    aside.rename(folder)
    shutil.rmtree(old)


@contextmanager
def _store(artifact: Artifact) -> Iterator[None]:
    """New files go where the artifact's others lie: into its store, or beside its manifest."""
    before = os.environ.pop("MASKOCR_STORE", None)
    if (store := store_of(artifact)) is not None:
        os.environ["MASKOCR_STORE"] = store
    try:
        yield
    finally:
        os.environ.pop("MASKOCR_STORE", None)
        if before is not None:
            os.environ["MASKOCR_STORE"] = before


def store_of(artifact: Artifact) -> str | None:
    """The store in which an artifact's large files lie, or None."""
    uri = next((entry["uri"] for entry in artifact.manifest["files"] if "uri" in entry), None)
    return uri.rsplit("/", 2)[0] if uri else None


@contextmanager
def idle(roots: list[Path]) -> Iterator[list[Path]]:
    """Homes of stages and runs that are at work now, best none; in the others none begins while the block lasts."""
    with ExitStack() as held:
        busy = []
        for lock in sorted(lock for root in roots for lock in root.rglob(".lock") if lock.is_file()):
            file = held.enter_context(lock.open("r+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy.append(lock.parent)
        yield busy


def exists(artifact: Artifact, entry: dict[str, Any]) -> bool:
    """Whether a file of the manifest is there: an object of a shared store may have been erased from elsewhere."""
    return storage.exists(entry.get("uri") or str(artifact.folder / entry["name"]))


def _is_artifact(folder: Path, files: list[str]) -> bool:
    if MANIFEST not in files:
        return False
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return {"format_version", "kind", "files", "version"} <= manifest.keys()
    except (ValueError, AttributeError):
        return False


def _is_unfinished(parent: Path, name: str) -> bool:
    """As `@stage` lays out the home of a piece of work, and the sweep the folder of a run."""
    return (parent / ".lock").is_file() and (
        name.endswith(".unfinished")
        or name == "scratch"
        or (name == "checkpoints" and not (parent / "result.json").is_file())
    )


def _put_right(place: Path, name: str, folders: list[str]) -> None:
    own, _, state = name[1:].rpartition(".")
    if state == "forgotten" and not (place / own).exists():
        (place / name).rename(place / own)
        folders.append(own)
    else:
        shutil.rmtree(place / name)

"""What may go of MASKOCR_STORE, which many machines share: shards and weights that nobody names, and left checkpoints.

Looked at are objects under their digest and `unfinished/`, as `artifacts` lays them out, and nothing else: not the
ledger, the tombstones, claims, or what others keep there. Uploads in flight are no objects yet. Locks of other machines
cannot be seen, so age protects their work: a stage writes checkpoints as it goes, and one that makes a shard that is
there already renews its time.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from maskocr_core.artifacts import MANIFEST, work_folder
from maskocr_core.cleaning import named
from maskocr_core.cleaning.work import held
from maskocr_core.services import storage
from maskocr_core.services.stored import File
from maskocr_core.training import kept_runs

LEAST_DAYS = 1.0  # a machine elsewhere may be at work on what is younger
_OBJECT = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{62})\.(parquet|safetensors)")
_UNFINISHED = re.compile(r"(unfinished/(\w+)/([0-9a-f]{24}))/.+")
_DAY = 24 * 3600.0


@dataclass(frozen=True)
class Stored:
    """Objects that can be removed together, or are kept, and why. uri: of the one object, or what all lie below."""

    what: str
    uri: str
    files: tuple[File, ...]
    days: float
    why: str
    kept: bool = False

    @property
    def frees(self) -> int:
        """Bytes that removing it gives back; a bucket that keeps versions gives back those of the older ones too."""
        return sum(file.size for file in self.files)


def look(
    store: str, folders: Iterable[Path], manifests: Iterable[str], *, days: float = 30, now: float | None = None
) -> list[Stored]:
    """Everything the rule speaks of, what may go first; removes nothing.

    store: MASKOCR_STORE. folders: where manifests lie on this machine. manifests: all other places where some lie;
    without them no shard or weights go, since whoever has their manifest is not known. days: younger objects are kept,
    and those of less than LEAST_DAYS always. now: seconds since 1970. Raises ValueError if the store does not answer.
    """
    days, now = max(days, LEAST_DAYS), time.time() if now is None else now
    manifests = list(manifests)
    remote = storage.is_remote(store)
    files = storage.files(store, some=False) if remote or Path(store).is_dir() else []
    entries = [*_checkpoints(store, files, days, now), *_objects(store, files, list(folders), manifests, days, now)]
    return sorted(entries, key=lambda entry: entry.kept)


def delete(entries: Iterable[Stored], say: Callable[[str], None] = print) -> int:
    """Remove what is not kept; returns the bytes given back. What was written since `look` is left, and said."""
    freed = 0
    for entry in entries:
        if entry.kept:
            continue
        with held(_home(entry.uri)) as idle:
            there = _there(entry.uri)
            if not idle or not _times(there) <= _times(entry.files):
                say(f"{entry.uri}: in use by now, kept")
                continue
            # The index first: a checkpoint that none names is swept up by the next attempt, and never restored.
            for file in sorted(there, key=lambda file: not file.name.endswith(".json")):
                storage.erase(file.uri)
                freed += file.size
    return freed


def _checkpoints(store: str, files: list[File], days: float, now: float) -> Iterator[Stored]:
    homes: dict[tuple[str, str], list[File]] = defaultdict(list)
    for file in files:
        if match := _UNFINISHED.fullmatch(file.name):
            homes[match[1], match[2]].append(file)
    for (name, stage), mine in homes.items():
        uri = _below(store, name)
        home, age = _home(uri), _age(mine, now)
        finished = any(home.glob(f"*_out/{MANIFEST}"))
        what = f"{stage}, {'superseded' if finished else 'in part'}"
        state = "checkpoints of what is finished" if finished else "checkpoints of what was not finished"
        if stage == "runs":
            whole = any(file.name.endswith(f"/{kept_runs.RESULT}") for file in mine)
            what = "run of fine-tuning" if whole else "run of fine-tuning, in part"
            state = "its best recognizers were copied into the output of finetune" if whole else "it did not end"
        with held(home) as idle:
            kept = "at work now" if not idle else f"written within {days:g} days" if age < days else ""
        yield Stored(what, uri, tuple(mine), age, kept or f"{state}, unused for {days:g} days", bool(kept))


def _objects(
    store: str, files: list[File], folders: list[Path], manifests: list[str], days: float, now: float
) -> Iterator[Stored]:
    """Each object that may go for itself; those that are kept by why they are."""
    objects = {match[2]: file for file in files if (match := _OBJECT.fullmatch(file.name))}
    old = {digest: file for digest, file in objects.items() if _age([file], now) >= days}
    known = named.look(folders, manifests) if old else named.Named()
    kept: dict[str, list[File]] = defaultdict(list)
    for digest, file in objects.items():
        what = "shard" if file.name.endswith(".parquet") else "weights"
        if digest not in old:
            kept[f"written within {days:g} days"].append(file)
        elif digest in known.digests:
            kept["named by a manifest"].append(file)
        elif not manifests:
            kept["no manifest here names it: say with --manifests where all others lie"].append(file)
        elif known.gaps:
            kept[f"no manifest that was read names it, but {known.gaps[0]}"].append(file)
        else:
            why = f"named by no manifest, run or model, not written for {days:g} days"
            yield Stored(what, file.uri, (file,), _age([file], now), why)
    for why, mine in kept.items():
        what = f"{len(mine):,} shard{'s' * (len(mine) > 1)} and weights"
        yield Stored(what, store, tuple(mine), _age(mine, now), why, kept=True)


def _there(uri: str) -> list[File]:
    """What lies at a URI now; nothing where somebody else took it away."""
    return storage.files(uri, some=False) if storage.is_remote(uri) or Path(uri).exists() else []


def _times(files: Iterable[File]) -> set[tuple[str, float]]:
    return {(file.uri, file.modified) for file in files}


def _home(uri: str) -> Path:
    """The folder of the same work on this machine, which need not be there."""
    return work_folder().joinpath(*uri.rsplit("/", 2)[1:])


def _below(store: str, name: str) -> str:
    return f"{store.rstrip('/')}/{name}"


def _age(files: Iterable[File], now: float) -> float:
    """Days since the youngest of them was written."""
    return (now - max(file.modified for file in files)) / _DAY

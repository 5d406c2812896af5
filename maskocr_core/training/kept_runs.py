"""What a run of fine-tuning leaves below MASKOCR_STORE, so that any machine goes on with it, or takes it finished.

Its checkpoints are there by themselves. Beside them lie its curve, its log, the best recogniser at each mark and, last,
its result: copies of what is in the run's folder here. Without a store nothing is done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from maskocr_core import artifacts
from maskocr_core.services import storage

CHECKPOINTS, CURVE, RESULT = "checkpoints", "curve.json", "result.json"


@dataclass(frozen=True)
class KeptRun:
    """folder: of the run, below MASKOCR_WORK: its name is its key, the same on every machine."""

    folder: Path

    @cached_property
    def uri(self) -> str:
        """Where it is kept; empty without a store."""
        return artifacts.in_store(self.folder)

    @property
    def checkpoints(self) -> str:
        """Where its checkpoints lie; empty without a store."""
        return f"{self.uri}/{CHECKPOINTS}" if self.uri else ""

    def bring(self) -> None:
        """Bring here what another machine kept, if it came farther than this one."""
        if not self.uri or (self.folder / RESULT).is_file() or not storage.holds(self.uri):
            return
        files = {file.name: file.uri for file in storage.files(f"{self.uri}/")}
        theirs = json.loads(storage.content(files[CURVE])) if CURVE in files else []
        mine = json.loads((self.folder / CURVE).read_text()) if (self.folder / CURVE).is_file() else []
        if RESULT in files or len(theirs) > len(mine):
            # The curve after what it tells of, or nobody would fetch that again; last the result, with which a run counts as finished.
            for name in sorted(files, key=lambda name: (name == RESULT, name == CURVE)):
                if not name.startswith(f"{CHECKPOINTS}/"):
                    artifacts.write_bytes(self.folder / name, storage.content(files[name]))

    def is_kept(self) -> bool:
        """Whether the store has its result, so that no other machine makes it again; true without a store."""
        return not self.uri or storage.exists(f"{self.uri}/{RESULT}")

    def keep(self, *names: str) -> None:
        """Copy files of the run, or all files of a folder of it, to the store."""
        for path in (self.folder / name for name in names if self.uri):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    storage.put(f"{self.uri}/{file.relative_to(self.folder).as_posix()}", file.read_bytes())

    def drop_checkpoints(self) -> None:
        """A finished run is known by its result."""
        import shutil

        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
        if self.uri:
            storage.erase_below(self.checkpoints)

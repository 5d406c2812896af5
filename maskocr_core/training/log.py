"""The log of a run in a file, so that whoever started the workers can follow it, and a resumed run goes on with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from maskocr_core.services import periodic


class TrainingLog:
    """One JSON object a line: `step` and its figures. Steps at or after a resumed one are said again, the last one counts."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, step: int, figures: dict[str, float]) -> None:
        row = json.dumps({"step": step, **{name: round(value, 6) for name, value in figures.items()}})
        with self.path.open("a") as file:
            # A line break on both sides: a row that a kill or a full disk tore off stays alone.
            file.write(f"\n{row}\n")

    def rows(self) -> list[dict[str, float]]:
        """All whole rows, one a step, by step."""
        by_step = {row["step"]: row for row in _whole(self.path.read_bytes() if self.path.is_file() else b"")}
        return [by_step[step] for step in sorted(by_step)]


def _whole(content: bytes) -> Iterator[dict[str, float]]:
    for line in content.split(b"\n"):
        try:
            yield json.loads(line)
        except ValueError:
            continue


class Follower:
    """Calls `say` with each new row of a log while the block runs: `with Follower(path, say): …`"""

    EVERY_SECONDS = 1.0

    def __init__(self, path: Path, say: Callable[[dict[str, float]], None]):
        self.log, self.say = TrainingLog(path), say
        self.seen = max((row["step"] for row in self.log.rows()), default=0)
        self._read = 0, 0  # the file, and how many of its bytes were read
        self._following = periodic.now_and_then(self._look, self.EVERY_SECONDS, "follower")

    def __enter__(self) -> Follower:
        self._following.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._following.__exit__(*error)

    def _look(self) -> None:
        for row in self._added():
            if row["step"] > self.seen:
                self.seen = row["step"]
                self.say(row)

    def _added(self) -> Iterator[dict[str, float]]:
        """The rows since the last look, or all of them where the file is another one: a resume may put an earlier one back."""
        if not self.log.path.is_file():
            return iter(())
        with self.log.path.open("rb") as file:
            state, (inode, read) = os.fstat(file.fileno()), self._read
            begin = read if inode == state.st_ino and read <= state.st_size else 0
            file.seek(begin)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read = state.st_ino, begin + len(whole)
        return _whole(whole)

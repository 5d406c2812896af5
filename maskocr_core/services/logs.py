"""What a stage prints, kept on its run in MLflow: a pod's log is gone with the pod."""

from __future__ import annotations

import io
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from maskocr_core.config import Registry
from maskocr_core.services import periodic, tracking

EVERY_SECONDS = 30.0  # between two copies of a log that grew
FOLDER = "logs"


@contextmanager
def kept(registry: Registry, stage: str) -> Iterator[None]:
    """What Python prints meanwhile goes to `logs/<stage>.log` of the pipeline's run too: now and then, and at the end.

    An error ends the log with its traceback. A tracker that is away is said once and asked again, and costs the log alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{stage}.log"
        with _copied(path, registry), _Log(path) as log:
            with redirect_stdout(_Tee(sys.stdout, log)), redirect_stderr(_Tee(sys.stderr, log)):
                try:
                    yield
                except BaseException:
                    log.write(traceback.format_exc())
                    raise


class _Log:
    """The file, for several streams and threads; nothing is written once it is closed."""

    def __init__(self, path: Path):
        self._file, self._lock = path.open("w", encoding="utf-8"), threading.Lock()

    def write(self, text: str) -> None:
        with self._lock:
            if not self._file.closed:
                self._file.write(text)
                self._file.flush()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._file.close()


class _Tee(io.TextIOBase):
    """Writes to a stream and to a log; asked what it is, it answers as the stream, which libraries do when all is over."""

    def __init__(self, stream: io.TextIOBase, log: _Log):
        self.stream, self.log = stream, log

    def write(self, text: str) -> int:
        self.log.write(text)
        return self.stream.write(text)

    @property
    def closed(self) -> bool:
        return self.stream.closed

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()


@contextmanager
def _copied(path: Path, registry: Registry) -> Iterator[None]:
    """A thread that copies the file to the run while it grows; the last copy is made at the end, whatever that is."""
    size, told = 0, False

    def copy() -> None:
        nonlocal size, told
        if (now := path.stat().st_size) == size:
            return
        try:
            tracking.artifact_store(f"runs:/{tracking.run_id(registry)}").log_artifact(str(path), FOLDER)
        except Exception as error:  # a tracker has many ways to be away, and none is a reason to lose the stage
            if not told:
                print(f"{path.name} is not kept in MLflow for now: {error}", file=sys.__stderr__, flush=True)
            told = True
        else:
            size = now

    with periodic.now_and_then(copy, EVERY_SECONDS, "log"):
        yield

"""One function over many shards: inline, in processes, or as Ray tasks on the cluster that pre-training uses.

A shard in, a part out, known by its name: what is finished is not done again, a worker that dies costs only its part, and
the three ways give the same bytes. MASKOCR_MAP chooses the way (inline, processes, ray); unset, it is Ray where RAY_ADDRESS
names a cluster, else processes where there is work for several. MASKOCR_JOBS: how many at a time, by default one a core.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

from maskocr_core import artifacts
from maskocr_core.services import cluster

RESULT = "result.json"
WAYS = ("inline", "processes", "ray")
MAX_LOST = 3  # times that a part may cost a worker its life before the part is to blame
PATIENCE = 60.0  # s until a folder of another node, seen through NFS, must show what was renamed into it

Work = Callable[..., dict[str, Any]]


def over(
    work: Work,
    calls: dict[str, tuple[Any, ...]],
    folder: Path,
    *,
    say: Callable[[str, dict[str, Any]], None] = lambda name, result: None,
) -> dict[str, dict[str, Any]]:
    """Call `work(*call, part)` for every named call; what it returns (JSON-able), by name, in the order of `calls`.

    work: a function of a module; writes its files below the empty folder `part` (Path), which becomes `folder/<name>`,
    whole or not at all; one that is there already is not made again. Large files leave for MASKOCR_STORE from where they
    were made. Paths in a call are absolute, and an Artifact has read its manifest, so that they mean the same elsewhere.
    folder: belongs to one caller at a time. say: called with (name, result) as parts come in, old ones first.

    Raises what `work` raises, and RuntimeError where a part kills its workers; finished parts stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*"):  # what workers that were killed had begun
        shutil.rmtree(left, ignore_errors=True)
    results = {name: _result(folder, name) for name in calls if _is_there(folder, name)}
    for name, result in results.items():
        say(name, result)
    todo = {name: call for name, call in calls.items() if name not in results}
    jobs = _jobs(len(todo))
    for name, result in _WAYS[_way(jobs)](work, todo, folder, jobs):
        results[name] = result
        say(name, result)
    return {name: results[name] for name in calls}


def _way(jobs: int) -> str:
    given = os.environ.get("MASKOCR_MAP")
    if given and given not in WAYS:
        raise ValueError(f"MASKOCR_MAP={given} is none of {', '.join(WAYS)}")
    return given or ("ray" if cluster.given() else "processes" if jobs > 1 else "inline")


def _jobs(calls: int) -> int:
    given = os.environ.get("MASKOCR_JOBS", "")
    if given and not (given.isdigit() and int(given)):
        raise ValueError(f"MASKOCR_JOBS={given} is no number of jobs: give 1 or more, or unset it for one a core")
    # A process takes a second or two to start: it is not worth it for a part or two.
    most = min(int(given), calls) if given else min(len(os.sched_getaffinity(0)), calls // 2)
    return max(1, most)


def _inline(work: Work, todo: dict, folder: Path, jobs: int) -> Iterator[tuple[str, dict]]:
    for name, call in todo.items():
        yield name, _carry_out(work, name, folder, *call)


def _in_processes(work: Work, todo: dict, folder: Path, jobs: int) -> Iterator[tuple[str, dict]]:
    waiting, lost = dict(todo), Counter()
    idle: list[ProcessPoolExecutor] = []
    running: dict[Future, tuple[str, ProcessPoolExecutor]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = next(iter(waiting))
                worker = idle.pop() if idle else _worker()
                running[worker.submit(_carry_out, work, name, folder, *waiting.pop(name))] = name, worker
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                name, worker = running.pop(done)
                try:
                    result = done.result()
                except BrokenProcessPool:
                    lost[name] += 1
                    if lost[name] > MAX_LOST:
                        raise RuntimeError(
                            f"{name} cost {lost[name]} workers their lives: too little memory? Lower MASKOCR_JOBS"
                        ) from None
                    waiting[name] = todo[name]
                    continue
                idle.append(worker)
                yield name, result
    finally:
        for worker in [*idle, *(worker for _, worker in running.values())]:
            worker.shutdown(cancel_futures=True)


def _on_ray(work: Work, todo: dict, folder: Path, jobs: int) -> Iterator[tuple[str, dict]]:
    shared = not os.environ.get("MASKOCR_STORE")
    tombstones = os.environ.get("MASKOCR_TOMBSTONES", "s3://")
    if not shared and not tombstones.startswith("s3://"):
        raise ValueError(
            f"MASKOCR_TOMBSTONES={tombstones} is a file here, which nodes that share nothing but MASKOCR_STORE do not "
            "see, so that they would read what is forgotten: put it into that store, or unset it"
        )
    calls = {name: (work, name, folder if shared else None, *call) for name, call in todo.items()}
    for name, came in cluster.tasks(_carry_out, calls, jobs, retries=MAX_LOST):
        if shared and not _appears(folder, name):
            raise ValueError(
                f"a worker wrote {folder / name} where this process does not see it: give the nodes a common folder "
                "for MASKOCR_WORK, or set MASKOCR_STORE=s3://…"
            )
        yield name, came if shared else _unpacked(came, folder, name)


_WAYS = {"inline": _inline, "processes": _in_processes, "ray": _on_ray}


def _carry_out(work: Work, name: str, folder: Path | None, *call: Any) -> dict[str, Any]:
    """Make one part; its result, or its small files by name where the worker shares no folder with the caller."""
    if folder and _is_there(folder, name):  # by a worker that died, or its node, before it could say so
        return _result(folder, name)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
    try:
        with _one_thread():
            result = work(*call, part)
        artifacts.settle(part)
        (part / RESULT).write_text(json.dumps(result))
        if folder is None:
            return {str(path.relative_to(part)): path.read_bytes() for path in part.rglob("*") if path.is_file()}
        part.chmod(0o755)
        _publish(part, folder / name)
        return _result(folder, name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _publish(aside: Path, part: Path) -> None:
    try:
        aside.rename(part)
    except OSError:  # a worker given up for dead was not: its part is as good
        if not (part / RESULT).is_file():
            raise


def _unpacked(files: dict[str, bytes], folder: Path, name: str) -> dict[str, Any]:
    aside = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder))
    for path, content in files.items():
        (aside / path).parent.mkdir(parents=True, exist_ok=True)
        (aside / path).write_bytes(content)
    aside.chmod(0o755)
    _publish(aside, folder / name)
    return _result(folder, name)


def _is_there(folder: Path, name: str) -> bool:
    return (folder / name / RESULT).is_file()


def _appears(folder: Path, name: str) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not _is_there(folder, name):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
        os.listdir(folder)  # makes an NFS client look again
    return True


def _result(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / RESULT).read_text())


def _worker() -> ProcessPoolExecutor:
    """A process of its own pool: the death of one breaks no other, and says which part was its last."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """What a worker process is before it loads anything: one thread, and gone with its parent or with Ctrl-C."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    parent = parent_process()

    def end_with_it() -> None:
        parent.join()
        os._exit(1)

    Thread(target=end_with_it, daemon=True).start()


@contextmanager
def _one_thread() -> Iterator[None]:
    """As many workers as cores, so one thread each; and sums that do not depend on the way, since threads share them out."""
    import cv2
    from threadpoolctl import threadpool_limits

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        cv2.setNumThreads(threads)

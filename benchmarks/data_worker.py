"""One contender in a process of its own, on one core, told when to run: `data.py` starts it.

A line of JSON on stdin is a round and what is special to it; the answer on stdout is a line of JSON with seconds and memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import data_contenders

OUTPUTS = {"ingest": "lines", "validate": "validation", "fit": "selection"}


def read(contender: str, folder: str, number: int, decoder: str, height: int) -> dict[str, Any]:
    """An epoch in the order of round `number`; round 0 is no race, but looks at what comes."""
    decode = data_contenders.decoder(decoder, height)
    epoch = data_contenders.CONTENDERS[contender].read(Path(folder), decode, number)
    if number == 0:
        return _seen(epoch)
    with _timed() as result:
        for _ in epoch:
            pass
    return result


def write(contender: str, raw: str, folder: str, number: int) -> dict[str, Any]:
    """Raw Parquet files into a contender's own form, in a folder made anew."""
    files, empty = sorted(Path(raw).glob("*.parquet")), _emptied(Path(folder))
    with _timed() as result:
        data_contenders.CONTENDERS[contender].write(files, empty)
    return result


def stage(name: str, inputs: dict[str, str], folder: str, number: int) -> dict[str, Any]:
    """A stage of the base recipe, its output below `folder` made anew; one process, as on one core of many."""
    from maskocr_core import config, stages

    home = _emptied(Path(folder))
    os.environ.update(MASKOCR_WORK=str(home / "work"), MASKOCR_MAP="inline")
    carry_out, settings = stages.get(name), config.load("base")
    with _timed() as result:
        metrics = carry_out(settings, **inputs, **{f"{OUTPUTS[name]}_out": str(home / OUTPUTS[name])})
    return result | {"metrics": metrics}


def _seen(epoch: Iterator[Any]) -> dict[str, Any]:
    ink, lines, pixels, private = 0.0, 0, 0, 0.0
    for batch in epoch:
        pixels += batch.size if isinstance(batch, data_contenders.Pixels) else batch.numel()
        lines += 1 if isinstance(batch, data_contenders.Pixels) else len(batch)
        ink += float(batch.sum())
        private = max(private, _status("RssAnon"))
    return {"ink": ink, "lines": lines, "pixels": pixels, "private_mib": private}


@contextmanager
def _timed() -> Iterator[dict[str, float]]:
    result: dict[str, float] = {}
    began, cpu = time.perf_counter(), time.process_time()
    yield result
    result |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


def _emptied(folder: Path) -> Path:
    for path in (folder, folder.with_name(f"{folder.name}.cache")):
        shutil.rmtree(path, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _status(field: str) -> float:
    """MiB of a field of /proc/self/status. VmHWM, the high-water mark, is of this process alone; `ru_maxrss` is inherited."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{field}:")) / 1024


def _one_core() -> None:
    import cv2
    import pyarrow as pa
    import torch

    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)


def main(function: str, arguments: dict[str, Any]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries and stages print is no answer
    _one_core()
    work: Callable[..., dict[str, Any]] = {"read": read, "write": write, "stage": stage}[function]
    for line in sys.stdin:
        result = work(**arguments, **json.loads(line))
        print(json.dumps(result | {"peak_mib": _status("VmHWM")}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

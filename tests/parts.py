"""Work for tests of mapping: functions of a module, as `mapping.over` needs them, that leave a note of each time they are called."""

import os
import signal
import time
import uuid
from pathlib import Path


def note(log: Path, name: str) -> int:
    """Leave a note that work on `name` began; how many times it did, this time among them."""
    log.mkdir(parents=True, exist_ok=True)
    (log / f"{name}.{uuid.uuid4().hex}").write_text(str(os.getpid()))
    return begun(log, name)


def begun(log: Path, name: str) -> int:
    """How many times work on `name` began."""
    return len(list(log.glob(f"{name}.*")))


def blurred(name: str, log: Path, part: Path) -> dict:
    """A part whose bytes hang on every library that has threads of its own."""
    import cv2
    import numpy as np
    import pyarrow as pa
    import torch

    from maskocr_core.data import lines

    note(log, name)
    pixels = np.random.default_rng(int(name)).random((200, 300), np.float32)
    pixels = cv2.GaussianBlur(pixels, (0, 0), 3)
    product = (torch.from_numpy(pixels) @ torch.from_numpy(pixels).T @ torch.from_numpy(pixels)).numpy()
    np.save(part / "product.npy", product @ pixels.T)
    lines.write(
        pa.table({"number": [int(name)], "sum": [float(product.sum())]}), part / "train" / f"part-{name}.parquet"
    )
    return {"number": int(name), "sum": float(product.sum())}


def threads(part: Path) -> dict:
    """How many threads each library would use here."""
    import cv2
    import numpy  # noqa: F401  brings its BLAS
    import torch
    from threadpoolctl import threadpool_info

    pools = {f"{pool['internal_api']} {pool['filepath']}": pool["num_threads"] for pool in threadpool_info()}
    return pools | {"cv2": cv2.getNumThreads(), "torch": torch.get_num_threads()}


def slow(name: str, log: Path, seconds: float, part: Path) -> dict:
    """A part that takes its time."""
    note(log, name)
    time.sleep(seconds)
    (part / "name").write_text(name)
    return {"name": name}


def deadly(name: str, log: Path, lives: int, part: Path) -> dict:
    """A part that costs its worker the life the first `lives` times, with half of its files written."""
    (part / "half").write_text(name)
    if name == "deadly" and note(log, name) <= lives:
        time.sleep(0.5)  # so that others are in the middle of theirs
        os.kill(os.getpid(), signal.SIGKILL)
    if name != "deadly":
        slow(name, log, 1.0, part)
    return {"name": name}


def refusing(name: str, log: Path, part: Path) -> dict:
    """A part that refuses what it was given."""
    note(log, name)
    if name == "bad":
        raise ValueError("row 7 of bad.parquet holds no image: take it out")
    return {"name": name}


def packed_slowly(unit, data, prefix, part: Path) -> dict:
    """`packing.pack`, with a note in MASKOCR_NOTES of the Ray node that it ran on, and time to kill that."""
    import ray

    from maskocr_core.data import packing

    note(Path(os.environ["MASKOCR_NOTES"]), f"{prefix}{unit.name}.{ray.get_runtime_context().get_node_id()}")
    time.sleep(0.5)
    return packing.pack(unit, data, prefix, part)


def tombstones_of(part: Path) -> dict:
    """Where a worker looks for what is forgotten."""
    from maskocr_core.data import tombstones

    return {"location": tombstones.location(), "process": os.getpid()}

"""What validation costs beside reading: `python benchmarks/quality.py`.

First, per line: the pixel statistics and the fingerprint beside the decoding of the same sample lines, in turn, ROUNDS times.
Then, for the whole: everything that `validate` does after the lines were measured (quarantine, uniqueness, leaks, near
duplicates, Great Expectations with its Data Docs) on synthetic measurements of 100,000 and of 1,000,000 lines, one of ten
labelled, each time in a process of its own, in turn, ROUNDS times; its wall seconds, imports included, and its peak memory.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import results

ROUNDS = 5
SIZES = (100_000, 1_000_000)
SHARD = 4096
HELD_OUT = 0.02  # share of the lines that are val or test
SAMPLE = Path(__file__).parents[1] / "sample" / "target"


def per_line() -> dict[str, float]:
    """Microseconds of the processor for one line, by step."""
    import cv2
    import pyarrow.parquet as pq

    from maskocr_core.data import images
    from maskocr_core.data.qa import near_duplicates, quality

    cv2.setNumThreads(1)
    encoded = pq.read_table(SAMPLE / "train.parquet", columns=["image"])["image"].to_pylist()
    pixels = [images.decode(image) for image in encoded]
    steps = {
        "decode": (images.decode, encoded),
        "measure": (quality.measure, pixels),
        "fingerprint": (near_duplicates.fingerprint, pixels),
    }
    found = {}
    for name, (step, given) in steps.items():
        began = time.process_time()
        for one in given:
            step(one)
        found[name] = (time.process_time() - began) / len(given) * 1e6
    return found


def synthesise(folder: Path, lines: int) -> None:
    """Parts as `audit.measure` leaves them, for so many lines, and `results.json`."""
    import numpy as np
    import pyarrow as pa

    from maskocr_core.data.qa import audit

    every = {}
    for number in range(-(-lines // SHARD)):
        random = np.random.default_rng(number)
        place = number / (lines / SHARD)
        split = (
            "val" if place < HELD_OUT / 2 else "test" if place < HELD_OUT else "train" if place < 0.1 else "unlabeled"
        )
        size = min(SHARD, lines - number * SHARD)
        labelled = split != "unlabeled"
        table = pa.table(
            {
                "line_id": [random.bytes(16).hex() for _ in range(size)],
                "page_id": [f"page-{number}-{line // 30}" for line in range(size)],
                "document_id": [f"document-{number}-{line // 600}" for line in range(size)],
                "source": [f"source-{number % 20}"] * size,
                "split": [split] * size,
                "height": np.full(size, 48, np.int32),
                "width": random.integers(200, 1500, size, dtype=np.int32),
                **{
                    name: random.normal(middle, middle / 8, size).astype(np.float32)
                    for name, middle in (("ink", 0.15), ("contrast", 0.5), ("background", 0.8), ("sharpness", 0.8))
                },
                "along_width": random.normal(0.6, 0.4, size).astype(np.float32),
                "light_on_dark": np.zeros(size, bool),
                "characters": pa.array([40] * size if labelled else [None] * size, pa.int32()),
                "pixels_per_character": pa.array([20.0] * size if labelled else [None] * size, pa.float32()),
                "scripts": pa.array(["Latn"] * size if labelled else [None] * size, pa.string()),
                "kinds": pa.array(
                    [["blank"] if line % 200 == 0 else [] for line in range(size)], pa.list_(pa.string())
                ),
                "reasons": ["The image is blank." if line % 200 == 0 else "" for line in range(size)],
                "fingerprint": pa.array([random.bytes(32) for _ in range(size)], pa.binary(32)),
                "text_digest": random.integers(0, 1 << 40, size, dtype=np.uint64),
            }
        ).cast(audit.MEASURED)
        part = folder / f"part-{number:05d}"
        every[part.name] = audit.leave(table, f"{split}/{part.name}.parquet", part) | {
            "alphabet": {},
            "mixed": {},
            "mixed_words": 0,
        }
    (folder / "results.json").write_text(json.dumps(every))


def check(folder: Path) -> dict[str, float]:
    """All of validate but the measuring of lines; called in a process of its own."""
    from maskocr_core import artifacts, config
    from maskocr_core.data.qa import audit, leaks
    from maskocr_core.services import expectations

    data = config.load("smoke")
    with tempfile.TemporaryDirectory() as out:
        artifact = artifacts.finish(Path(out) / "lines", kind="lines", config={}, metrics={})
        findings = audit.Findings(json.loads((folder / "results.json").read_text()), folder)
        audit.write_quarantine(findings, Path(out) / "quarantine.parquet")
        found = leaks.find(artifact, findings)
        report = expectations.check(leaks.beside(findings, found, Path(out) / "ids"), Path(out) / "data_docs")
        assert not leaks.faults(found, data.data) and report["success"], report
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_mib": used.ru_maxrss / 1024}


def whole(folders: dict[int, Path]) -> dict[str, float]:
    """Seconds, of the clock and of the processor, and MiB of `check` at each size."""
    found = {}
    for size, folder in folders.items():
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, __file__, "check", str(folder)], capture_output=True, text=True, check=True
        )
        found[f"seconds_{size}"] = time.perf_counter() - began
        found |= {f"{name}_{size}": value for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
    return found


def figure(values: list[float], unit: str, goal: float | None, digits: int) -> dict:
    low, middle, high = (round(value, digits) for value in (min(values), statistics.median(values), max(values)))
    return {"value": middle, "unit": unit, "goal": goal, "better": "lower", "spread": [low, high]}


def main() -> Path:
    per_line()
    steps = [per_line() for _ in range(ROUNDS)]
    root = Path(tempfile.mkdtemp())
    try:
        folders = {size: root / str(size) for size in SIZES}
        for size, folder in folders.items():
            synthesise(folder, size)
        wholes = [whole(folders) for _ in range(ROUNDS)]
    finally:
        shutil.rmtree(root)
    small, large = SIZES
    figures = {f"{name}_per_line": figure([row[name] for row in steps], "µs", None, 1) for name in steps[0]}
    figures["measuring_over_decoding"] = figure(
        [(row["measure"] + row["fingerprint"]) / row["decode"] for row in steps], "×", None, 2
    )
    figures["seconds_per_million_lines"] = figure([row[f"seconds_{large}"] for row in wholes], "s", 60, 1)
    figures["cpu_seconds_per_million_lines"] = figure([row[f"cpu_seconds_{large}"] for row in wholes], "s", None, 1)
    figures["peak_memory_of_a_million_lines"] = figure([row[f"peak_mib_{large}"] for row in wholes], "MiB", None, 0)
    figures["peak_memory_of_ten_times_the_lines"] = figure(
        [row[f"peak_mib_{large}"] / row[f"peak_mib_{small}"] for row in wholes], "×", 1.2, 3
    )
    return results.save("quality", command="python benchmarks/quality.py", figures=figures, runs=[*steps, *wholes])


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        print(json.dumps(check(Path(sys.argv[2]))))
    else:
        print(main())

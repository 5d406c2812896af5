"""Ingest, reading and memory beside the obvious alternatives on the same lines: `python benchmarks/data.py`.

Everything runs on one core, one thread, in processes of their own that take turns; ratios are of the same round. The peers
are not among our requirements; one that is not installed is left out, and said to be. To have them, beside `.venv`:

    python3.11 -m venv work/peers
    echo "$PWD/.venv/lib/python3.11/site-packages" > work/peers/lib/python3.11/site-packages/maskocr.pth
    work/peers/bin/pip install webdataset lmdb datasets
    work/peers/bin/python benchmarks/data.py
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import data_corpus, data_figures, results
from benchmarks.data_contenders import CONTENDERS, LIMIT, OURS, select_all

REPOSITORY = Path(__file__).parents[1]
# Section: height in px, and what decodes for the peers. 48 px is the height of the packs, 40 that of the base recipe.
READING = {"48": (48, "pillow"), "48_own_decoder": (48, "maskocr"), "40": (40, "pillow")}
STAGES = ("ingest", "validate", "fit")
LIBRARIES = ("pillow", "opencv-python-headless", "webdataset", "lmdb", "datasets")
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


class Racer:
    """A process that runs one contender each time it is told to."""

    def __init__(self, function: str, **arguments: Any):
        self.what = f"{function} {arguments.get('contender') or arguments.get('name')}"
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.data_worker", function, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | ONE_THREAD | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"},
        )

    def run(self, number: int, **special: Any) -> dict[str, Any]:
        """One round. Raises RuntimeError with the last words of a process that died."""
        self.process.stdin.write(json.dumps({"number": number} | special) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.errors.seek(0)
            raise RuntimeError(f"{self.what} failed:\n{self.errors.read()[-2000:]}")
        return json.loads(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def race(racers: dict[str, tuple[Racer, dict[str, Any]]], rounds: int) -> list[dict[str, Any]]:
    """Rounds in which every contender runs once, each round in another order; {label: answer} a round."""
    labels, run = list(racers), []
    for number in range(1, rounds + 1):
        turn = number % len(labels)
        order = labels[turn:] + labels[:turn]
        came = {label: racers[label][0].run(number, **racers[label][1]) for label in order}
        run.append({label: came[label] for label in labels})
    return run


def installed() -> dict[str, Any]:
    """The contenders whose package is there; the others are named."""
    found = {}
    for name, contender in CONTENDERS.items():
        if contender.package and not importlib.util.find_spec(contender.package):
            print(f"{contender.title}: left out, {contender.package} is not installed (see --help)", flush=True)
        else:
            found[name] = contender
    return found


def prepare(rows: list[dict], count: int, home: Path, kept: list[str]) -> dict[str, Any]:
    """Raw lines in `home/raw`, our artifacts in `home/ours`, the unlabelled lines in every other contender's form; counts."""
    counts = data_corpus.write_parquet(data_corpus.lines(rows, count), home / "raw")
    (home / LIMIT).mkdir()
    for path in (home / "raw").glob("unlabeled-*.parquet"):
        os.link(path, home / LIMIT / path.name)
    _once("stage", name="ingest", inputs={"data_uri": str(home / "raw")}, folder=str(home / OURS))
    select_all(home / OURS)
    for name in kept:
        if name != LIMIT and CONTENDERS[name].write:
            _once("write", contender=name, raw=str(home / LIMIT), folder=str(home / name))
    return counts | {"read": count}


def read_races(home: Path, kept: list[str], rounds: int) -> tuple[dict[str, list], dict[str, dict]]:
    """Rounds of every section, and what each reader was seen to do in its first epoch, memory included."""
    racers = {
        name: Racer("read", contender=name, folder=str(home / (LIMIT if name == "streamed" else name))) for name in kept
    }
    height, decoder = READING["48"]
    seen = {name: racer.run(0, height=height, decoder=decoder) for name, racer in racers.items()}
    _demand_the_same_work(seen)
    run = {}
    for section, (height, decoder) in READING.items():
        turns = {name: (racer, {"height": height, "decoder": decoder}) for name, racer in racers.items()}
        if decoder == "pillow":
            turns[f"{LIMIT}_opencv"] = (racers[LIMIT], {"height": height, "decoder": "opencv"})
        run[section] = race(turns, rounds)
    for racer in racers.values():
        racer.close()
    return run, seen


def ingest_race(rows: list[dict], count: int, home: Path, kept: list[str], rounds: int) -> list[dict]:
    """Rounds of raw Parquet files, and of image files with texts, into our shards and every peer's form."""
    data_corpus.write_pairs(data_corpus.lines(rows, count), home / "pairs")
    scratch = home / "written"
    racers = {
        OURS: Racer("stage", name="ingest", inputs={"data_uri": str(home / "raw")}, folder=str(scratch / OURS)),
        "pairs": Racer("stage", name="ingest", inputs={"data_uri": str(home / "pairs")}, folder=str(scratch / "pairs")),
    }
    for name in kept:
        if CONTENDERS[name].write:
            racers[name] = Racer("write", contender=name, raw=str(home / "raw"), folder=str(scratch / name))
    for racer in racers.values():
        racer.run(0)
    run = race({name: (racer, {}) for name, racer in racers.items()}, rounds)
    for racer in racers.values():
        racer.close()
    return run


def grow(rows: list[dict], counts: list[int], home: Path, stages: list[str]) -> list[dict[str, Any]]:
    """Each stage, and an epoch of reading, in a fresh process at each size: {"what", "lines", "seconds", "peak_mib", …} each."""
    run = []
    for count in counts:
        here = home / f"{count}"
        whole = data_corpus.write_parquet(data_corpus.lines(rows, count), here / "raw")["lines"]
        inputs = {
            "ingest": {"data_uri": str(here / "raw")},
            "validate": {"lines": str(here / OURS / "lines")},
            "fit": {"lines": str(here / OURS / "lines"), "validation": str(here / "validate" / "validation")},
        }
        for name in ["ingest", *(name for name in STAGES[1:] if name in stages)]:
            folder = here / (OURS if name == "ingest" else name)
            answer = _once("stage", name=name, inputs=inputs[name], folder=str(folder))
            run.append({"what": name, "lines": whole, "files": len(list((here / "raw").iterdir()))} | answer)
            print(f"{name} of {whole:,} lines: {answer['seconds']:.1f} s, {answer['peak_mib']:.0f} MiB", flush=True)
        select_all(here / OURS)
        began = time.perf_counter()
        answer = _once("read", contender=OURS, folder=str(here / OURS), height=48, decoder="pillow")
        run.append({"what": "read", "lines": count, "seconds": time.perf_counter() - began} | answer)
        print(f"reading of {count:,} lines: {answer['peak_mib']:.0f} MiB", flush=True)
        shutil.rmtree(here)
    return run


def _once(function: str, **arguments: Any) -> dict[str, Any]:
    special = {name: arguments.pop(name) for name in ("height", "decoder") if name in arguments}
    racer = Racer(function, **arguments)
    answer = racer.run(0, **special)
    racer.close()
    return answer


def _demand_the_same_work(seen: dict[str, dict[str, Any]]) -> None:
    """Raises RuntimeError if a reader's lines hold another amount of ink: it would not be the same work."""
    wanted = {name: answer for name, answer in seen.items() if name != LIMIT}
    for name, answer in wanted.items():
        if abs(answer["ink"] / wanted[OURS]["ink"] - 1) > 0.01 or answer["lines"] < seen[LIMIT]["lines"]:
            raise RuntimeError(
                f"{name} read {answer['lines']} lines with {answer['ink']:.0f} of ink: not the same work"
            )


def main(words: list[str]) -> Path:
    """Run all races and write the result."""
    arguments = parsed(words)
    results.demand_quiet(arguments.name, "data")
    kept = list(installed())
    rows = data_corpus.real(arguments.data)
    home = Path(tempfile.mkdtemp(prefix="benchmark-", dir=arguments.work))
    try:
        counts = prepare(rows, arguments.lines, home / "base", kept)
        reading, seen = read_races(home / "base", kept, arguments.rounds)
        ingest = ingest_race(rows, arguments.lines, home / "base", kept, arguments.rounds)
        sizes = [arguments.lines * factor for factor in sorted({1, max(1, arguments.times // 3), arguments.times})]
        grown = grow(rows, sizes, home, arguments.stages)
    finally:
        shutil.rmtree(home)
    runs = {
        "counts": counts,
        "libraries": dict.fromkeys(LIBRARIES, "not installed") | results.versions(LIBRARIES),
        "reading": reading,
        "seen": seen,
        "ingest": ingest,
    }
    path = results.save(
        arguments.name,
        command=" ".join(["python", "benchmarks/data.py", *words]),
        figures=data_figures.all_of(counts, reading, seen, ingest, grown),
        runs=[runs | {"grown": grown}],
        data={f"{arguments.data.parent.name}/{arguments.data.name}": results.digest(arguments.data)},
    )
    print(data_figures.table(results.load(arguments.name)))
    return path


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "sample/target", help="a pack of Parquet files")
    parser.add_argument("--lines", type=int, default=3072, help="unlabelled lines to read (default: 3072)")
    parser.add_argument("--times", type=int, default=10, help="how much larger the largest set is (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each race (default: 5)")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES), help="stages that are grown")
    parser.add_argument("--name", default="data", help="of the result (default: data)")
    parser.add_argument(
        "--work", type=Path, default=None, help="where files are kept meanwhile (default: the system's)"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    print(main(sys.argv[1:]))

"""Speed of pre-training on a GPU: `python benchmarks/gpu.py [--data FOLDER] [--rounds N] [RECIPE …]`

Our own step as `loop.fit` makes it, on lines decoded in memory, by some recipes: as it ships (bfloat16, compiled blocks),
without compiling, in float32 without compiling, and with attention by a padding mask, which the flash kernel does not
take: by PyTorch's memory-efficient kernel, and by cuDNN's. Beside them the operations a second over those of a large
bfloat16 matrix product on the same card, and the peak of memory beside what `maskocr plan` expects. The first steps, in which
kernels are compiled and planned, are timed apart.

Writes `results/gpu.json`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks import results
from benchmarks.train import REPOSITORY
from benchmarks.train_contenders import Ours
from benchmarks.train_corpus import Corpus, codebook, prepare
from benchmarks.train_profile import Operations
from maskocr_core import config
from maskocr_core.data import batches
from maskocr_core.model import attention
from maskocr_core.model.encoder import Block
from maskocr_core.planning import assumptions, plan
from maskocr_core.training import device

RECIPES = ("laptop", "paper-3m", "paper-19m", "paper-86m")
FIRST = 3  # steps in which kernels are compiled and planned
STEPS = 6  # of a round
PEAK_SIZE = 8192
TITLES = {
    "shipped": "as it ships: bfloat16, compiled blocks",
    "eager": "bfloat16, not compiled",
    "float32": "float32, not compiled",
    "masked": "as it ships, but attention with a padding mask, by the memory-efficient kernel",
    "cudnn": "as it ships, but attention with a padding mask, by cuDNN's kernel",
}
OTHERS = tuple(TITLES)[1:]


def peak(times: int = 10) -> float:
    """Operations a second of a product of two `PEAK_SIZE` squared bfloat16 matrices of random numbers: the median of some."""
    a, b = (torch.randn(PEAK_SIZE, PEAK_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    spent = []
    for number in range(times + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.mm(a, b)
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            spent.append(begin.elapsed_time(end) / 1e3)
    return 2 * PEAK_SIZE**3 / statistics.median(spent)


@contextmanager
def varied(variant: str) -> Iterator[None]:
    """What a variant changes in how a step is made."""
    masked = (attention, "flash_runs", lambda where: False)
    eager = (Block, "compile", lambda block, **how: None)
    changes = {
        "shipped": (),
        "eager": (eager,),
        "float32": (eager, (device, "precision", lambda where: nullcontext())),
        "masked": (masked,),
        "cudnn": (masked, (torch.backends.cuda, "enable_cudnn_sdp", lambda enabled: None)),
    }
    torch.compiler.reset()  # or what was compiled with another change would be used
    torch.backends.cuda.enable_cudnn_sdp(True)  # as it is before training
    with ExitStack() as stack:
        for owner, name, replacement in changes[variant]:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


class Watch:
    """When each round began, and until then how long batches were waited for, how many lines they had, and the operations."""

    def __init__(self, counted: Operations | None = None):
        self.counted = counted
        self.marks: list[tuple[float, float, int, float]] = []
        self._waited, self._lines = 0.0, 0

    def mark(self) -> None:
        torch.cuda.synchronize()
        operations = self.counted.total() if self.counted else 0.0
        self.marks.append((time.perf_counter(), self._waited, self._lines, operations))

    def watching(self, stream: Iterator[batches.Batch]) -> Iterator[batches.Batch]:
        self.mark()
        for number in count():
            if number >= FIRST and (number - FIRST) % STEPS == 0:
                self.mark()
            before = time.perf_counter()
            batch = next(stream)
            self._waited += time.perf_counter() - before
            self._lines += len(batch.line_ids)
            yield batch

    def rounds(self) -> list[dict[str, float]]:
        """Those after the first steps."""
        return [
            {
                "lines": end[2] - begin[2],
                "seconds": end[0] - begin[0],
                "data_wait": (end[1] - begin[1]) / (end[0] - begin[0]),
                "operations": end[3] - begin[3],
            }
            for begin, end in zip(self.marks[1:], self.marks[2:])
        ]


def measured(recipe: str, corpus: Corpus, rounds: int) -> dict[str, Any]:
    """Rounds of all variants of one recipe, the same steps in each round."""
    settings = config.load(recipe)
    source, book = corpus.decoded(settings), codebook(settings)
    run: dict[str, Any] = {"recipe": recipe, "variants": {}}
    for variant in TITLES:
        ours = Ours(settings, source, book, feeding=device.feeding())
        watch = Watch(Operations(settings, ours.objective.model) if variant == "eager" else None)
        torch.cuda.reset_peak_memory_stats()
        with varied(variant):
            # cuDNN plans for each shape of a share, all along: one round says enough.
            ours.steps(0, FIRST + (1 if variant == "cudnn" else rounds) * STEPS, watch.watching)
            watch.mark()
        told = watch.rounds()
        run["variants"][variant] = {
            "rounds": told,
            "first_seconds": watch.marks[1][0] - watch.marks[0][0],
            "memory": torch.cuda.max_memory_allocated(),
        }
        speeds = ", ".join(f"{row['lines'] / row['seconds']:,.0f}" for row in told)
        print(f"{recipe}, {variant}: {speeds} lines/s, data wait {told[-1]['data_wait']:.2f}", flush=True)
    expected = plan.plan(settings, assumptions.assume(mean_width=float(source.widths.mean())))
    run |= {"parameters": ours.parameters, "expected_memory": expected.memory_bytes}
    return run | {"mean_width": float(source.widths.mean())}


def figures(runs: list[dict[str, Any]], peaks: list[float]) -> dict[str, dict[str, Any]]:
    """Speed of each variant, what each part of shipping brings, share of the peak, memory."""
    found = {"peak": results.figure([value / 1e12 for value in peaks], "TFLOP/s, bfloat16", "higher")}
    top = statistics.median(peaks)
    for run in runs:
        name = run["recipe"].replace("-", "_")
        speed = {
            variant: [row["lines"] / row["seconds"] for row in told["rounds"]]
            for variant, told in run["variants"].items()
        }
        for variant, values in speed.items():
            found[f"{name}_{variant}"] = results.figure(values, "lines/s", "higher")
        for other in OTHERS:
            ratios = [own / theirs for own, theirs in zip(speed["shipped"], speed[other])]
            found[f"{name}_over_{other}"] = results.figure(ratios, "×", "higher")
        counted = run["variants"]["eager"]["rounds"]
        shares = [
            other["operations"] / row["seconds"] / top
            for row, other in zip(run["variants"]["shipped"]["rounds"], counted)
        ]
        found[f"{name}_of_peak"] = results.figure(shares, "of the peak", "higher")
        waits = [row["data_wait"] for row in run["variants"]["shipped"]["rounds"]]
        found[f"{name}_data_wait"] = results.figure(waits, "of the time", "lower")
        found[f"{name}_compiling"] = results.figure([run["variants"]["shipped"]["first_seconds"]], "s", "lower")
        memory = run["variants"]["shipped"]["memory"]
        found[f"{name}_memory"] = results.figure([memory / 1e9], "GB", "lower")
        found[f"{name}_memory_over_plan"] = results.figure([memory / run["expected_memory"]], "×", "lower")
    return found


def table(result: dict[str, Any]) -> str:
    """Two rows of tables: speeds and what brings them, then what a step takes of the card."""
    told, runs = result["figures"], result["runs"]
    run = runs[0]

    def shown(name: str, form: str) -> str:
        return results.shown(told[name], form)

    recipes = " | ".join(f"`{run['recipe']}`" for run in runs)
    lines = [
        f"| pre-training on one {run['card']}, lines/s | {recipes} |",
        f"|---|{'---|' * len(runs)}",
    ]
    names = [run["recipe"].replace("-", "_") for run in runs]
    for variant, title in TITLES.items():
        cells = [shown(f"{name}_{variant}", ",.0f") for name in names]
        if variant != "shipped":
            cells = [f"{cell} ({told[f'{name}_over_{variant}']['value']:.2f} ×)" for cell, name in zip(cells, names)]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    for title, name_of, form in (
        ("operations a second over the peak", "of_peak", ".3f"),
        ("share of the time in which batches are waited for", "data_wait", ".2f"),
        (f"the first {FIRST} steps, seconds", "compiling", ".0f"),
        ("peak of memory, GB", "memory", ".1f"),
        ("… over that of `maskocr plan`", "memory_over_plan", ".2f"),
    ):
        lines.append(f"| {title} | {' | '.join(shown(f'{name}_{name_of}', form) for name in names)} |")
    data = ", ".join(f"{name} (`{digest[:12]}`)" for name, digest in result["data"].items())
    parameters = ", ".join(f"`{run['recipe']}` {run['parameters'] / 1e6:.1f} M" for run in runs)
    return "\n".join(lines) + (
        f"\n\n`{result['command']}`, torch {run['torch']}: median and [least, most] of "
        f"{len(run['variants']['shipped']['rounds'])} rounds of {STEPS} steps; in brackets what ships over it, of the same steps; "
        f"a bfloat16 product of {PEAK_SIZE} × {PEAK_SIZE} matrices makes {shown('peak', '.0f')} TFLOP/s; parameters with what "
        f"predicts labels: {parameters}; lines of {run['mean_width']:.0f} px in the mean, decoded already; {data}."
    )


def main(words: list[str]) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), help=f"by default {', '.join(RECIPES)}")
    parser.add_argument("--data", type=Path, default=REPOSITORY / "sample/target", help="a pack of Parquet files")
    parser.add_argument("--lines", type=int, default=1280, help="unlabelled lines in an epoch (default: 1280)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each variant (default: 3)")
    arguments = parser.parse_args(words)
    if not torch.cuda.is_available():
        parser.error("this machine has no GPU that PyTorch sees")
    home = Path(tempfile.mkdtemp(prefix="benchmark-"))
    card = {"card": torch.cuda.get_device_name(), "torch": torch.__version__}
    peaks, runs = [peak()], []
    try:
        corpus = prepare(arguments.data, arguments.lines, home)
        for recipe in arguments.recipes:  # each is kept as soon as it is measured
            runs.append(measured(recipe, corpus, arguments.rounds) | card)
            peaks.append(peak())
            path = results.save(
                "gpu",
                command=" ".join(["python", "benchmarks/gpu.py", *words]),
                figures=figures(runs, peaks),
                runs=runs,
                data={f"{arguments.data.parent.name}/{arguments.data.name}": results.digest(arguments.data)},
            )
    finally:
        shutil.rmtree(home)
    print(table(results.load("gpu")))
    return path


if __name__ == "__main__":
    print(main(sys.argv[1:]))

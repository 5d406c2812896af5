"""Speed of pre-training on a GPU: `python benchmarks/gpu.py [--data FOLDER] [--rounds N] [RECIPE …]`

Our own step as `loop.fit` makes it, on lines decoded in memory, by some recipes: as it ships (bfloat16, compiled blocks),
without compiling, in float32 without compiling, and once without a padding mask in attention, which alone lets PyTorch take
its flash kernel: that trains something else, and is here to say what the mask costs. Beside them the operations a second
over those of a large bfloat16 matrix product on the same card, and the peak of memory beside what `maskocr plan` expects.

Writes `results/gpu.json`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import results
from benchmarks.train import REPOSITORY, Corpus, codebook, digest, prepare
from benchmarks.train_contenders import Ours
from benchmarks.train_profile import Operations
from maskocr_core import config
from maskocr_core.planning import assumptions, plan
from maskocr_core.training import device

RECIPES = ("laptop", "paper-3m", "paper-19m", "paper-86m")
STEPS = 12  # of a round
PEAK_SIZE = 8192
TITLES = {
    "shipped": "as it ships: bfloat16, compiled blocks",
    "eager": "bfloat16, not compiled",
    "float32": "float32, not compiled",
    "flash": "as it ships, but no padding mask in attention (trains something else)",
}


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


def _unmasked(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention that does not know of its mask."""
    return lambda query, key, value, attn_mask=None, **options: function(query, key, value, **options)


@contextmanager
def varied(variant: str) -> Iterator[None]:
    """What a variant changes in how a step is made."""
    attention = functional.scaled_dot_product_attention
    eager = (device, "prepared", lambda objective, where: objective.to(where))
    changes = {
        "shipped": (),
        "eager": (eager,),
        "float32": (eager, (device, "precision", lambda where: nullcontext())),
        "flash": ((functional, "scaled_dot_product_attention", _unmasked(attention)),),
    }
    torch.compiler.reset()  # or what was compiled with another change would be used
    with ExitStack() as stack:
        for owner, name, replacement in changes[variant]:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def measured(recipe: str, corpus: Corpus, rounds: int) -> dict[str, Any]:
    """Rounds of all variants of one recipe, the same steps in each round."""
    settings = config.load(recipe)
    source, book = corpus.decoded(settings), codebook(settings)
    run: dict[str, Any] = {"recipe": recipe, "variants": {}}
    for variant in TITLES:
        ours = Ours(settings, source, book, decoders=device.decoders())
        with varied(variant):
            if variant == "eager":
                counted = Operations(settings, ours.objective.model)
                ours.steps(0, STEPS)
                counted.stop()
                run |= {"operations": counted.total(), "parameters": ours.parameters}
            ours.steps(0, STEPS)  # what is compiled, is compiled now
            torch.cuda.reset_peak_memory_stats()
            told = [ours.steps(number, STEPS) for number in range(rounds)]
        run["variants"][variant] = {"rounds": told, "memory": torch.cuda.max_memory_allocated()}
        speeds = ", ".join(f"{row['lines'] / row['seconds']:,.0f}" for row in told)
        print(f"{recipe}, {variant}: {speeds} lines/s", flush=True)
    expected = plan.plan(settings, assumptions.assume(mean_width=float(source.widths.mean())))
    return run | {"expected_memory": expected.memory_bytes, "mean_width": float(source.widths.mean())}


def figures(runs: list[dict[str, Any]], peaks: list[float]) -> dict[str, dict[str, Any]]:
    """Speed of each variant, what each part of shipping brings, share of the peak, memory."""
    found = {"peak": _figure([value / 1e12 for value in peaks], "TFLOP/s, bfloat16", "higher")}
    top = statistics.median(peaks)
    for run in runs:
        name = run["recipe"].replace("-", "_")
        speed = {
            variant: [row["lines"] / row["seconds"] for row in told["rounds"]]
            for variant, told in run["variants"].items()
        }
        for variant, values in speed.items():
            found[f"{name}_{variant}"] = _figure(values, "lines/s", "higher")
        for other in ("eager", "float32", "flash"):
            ratios = [own / theirs for own, theirs in zip(speed["shipped"], speed[other])]
            found[f"{name}_over_{other}"] = _figure(ratios, "×", "higher")
        shares = [run["operations"] / row["seconds"] / top for row in run["variants"]["shipped"]["rounds"][:1]]
        found[f"{name}_of_peak"] = _figure(shares, "of the peak", "higher")
        memory = run["variants"]["shipped"]["memory"]
        found[f"{name}_memory"] = _figure([memory / 1e9], "GB", "lower")
        found[f"{name}_memory_over_plan"] = _figure([memory / run["expected_memory"]], "×", "lower")
    return found


def _figure(values: list[float], unit: str, better: str) -> dict[str, Any]:
    spread = [min(values), max(values)] if len(values) > 1 else None
    return {"value": statistics.median(values), "unit": unit, "goal": None, "better": better, "spread": spread}


def table(result: dict[str, Any]) -> str:
    """A row a recipe."""
    told = result["figures"]
    lines = [
        "| pre-training, one H100 | parameters | lines/s as it ships | over not compiled | over float32 | over attention without a mask | of the peak | memory | over that of `maskocr plan` |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def shown(name: str, form: str) -> str:
        figure = told[name]
        spread = figure["spread"]
        return f"{figure['value']:{form}}" + (f" [{spread[0]:{form}}, {spread[1]:{form}}]" if spread else "")

    for run in result["runs"]:
        name = run["recipe"].replace("-", "_")
        cells = [
            f"`{run['recipe']}`",
            f"{run['parameters'] / 1e6:.1f} M",
            shown(f"{name}_shipped", ",.0f"),
            *(shown(f"{name}_over_{other}", ".2f") + " ×" for other in ("eager", "float32", "flash")),
            shown(f"{name}_of_peak", ".2f"),
            f"{shown(f'{name}_memory', '.1f')} GB",
            f"{shown(f'{name}_memory_over_plan', '.2f')} ×",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    data = ", ".join(f"{name} (`{digest[:12]}`)" for name, digest in result["data"].items())
    run = result["runs"][0]
    return "\n".join(lines) + (
        f"\n\n`{result['command']}` on {run['card']}, torch {run['torch']}: median and [least, most] of "
        f"{len(run['variants']['shipped']['rounds'])} rounds of {STEPS} steps, ratios of the same steps; a bfloat16 product of "
        f"{PEAK_SIZE} × {PEAK_SIZE} matrices makes {shown('peak', '.0f')} TFLOP/s; lines of {run['mean_width']:.0f} px in "
        f"the mean, decoded already; {data}."
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
    try:
        corpus = prepare(arguments.data, arguments.lines, home)
        before = peak()
        runs = [measured(recipe, corpus, arguments.rounds) for recipe in arguments.recipes]
        peaks = [before, peak()]
    finally:
        shutil.rmtree(home)
    card = {"card": torch.cuda.get_device_name(), "torch": torch.__version__}
    path = results.save(
        "gpu",
        command=" ".join(["python", "benchmarks/gpu.py", *words]),
        figures=figures(runs, peaks),
        runs=[run | card for run in runs],
        data={f"{arguments.data.parent.name}/{arguments.data.name}": digest(arguments.data)},
    )
    print(table(results.load("gpu")))
    return path


if __name__ == "__main__":
    print(main(sys.argv[1:]))

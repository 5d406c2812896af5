"""Speed of pre-training beside other ways to do it, on the same lines: `python benchmarks/train.py`.

Part (a) is our own step: where its time goes, its operations a second over those of a large matrix product, and how much
of its batches is padding, which is the same on every machine; (b) are contenders that take turns on one core with one thread;
(c) are two workers against one, and beside them two trainings that are none of each other's, which show how far the machine
itself goes; (d) are whole trainings whose labels are made at every meeting of a line, or once and stored. Ratios are of the
same round.
Let nothing else run meanwhile. Peers that are not given are left out, and said to be; docs/speed_of_training.md says how
they are had. With all of them:

    python benchmarks/train.py --pero work/pero-pretraining --ketos work/kraken/bin/ketos
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks import results, train_figures
from benchmarks.data import race
from benchmarks.train_contenders import Authors, Ketos, Obvious, Ours, Peer
from benchmarks.train_corpus import Corpus, codebook, prepare
from benchmarks.train_labels import FEATURES, labels_race
from benchmarks.train_profile import STEPS, Profile
from benchmarks.train_workers import workers_race
from maskocr_core import config
from maskocr_core.artifacts import Artifact
from maskocr_core.data import batches
from maskocr_core.training import shares

REPOSITORY = Path(__file__).parents[1]
PROFILED = ("pilot", "small", "base")  # 128 × 4, 192 × 6 and 512 × 6
PADDED = (*PROFILED, "laptop", "small pretrain.fill=tokens")
LIBRARIES = ("torch", "numpy", "einops")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def profiles(corpus: Corpus, names: list[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Rounds of some steps of our training with every part timed, for each recipe."""
    run = {}
    for name in names:
        settings = config.load(name)
        profile = Profile(Ours(settings, corpus.decoded(settings), codebook(settings)))
        profile.run(0)
        run[name] = [profile.run(number) for number in range(1, rounds + 1)]
        print(f"profile of {name}: {run[name][-1]['lines'] / run[name][-1]['seconds']:.1f} lines/s", flush=True)
    return run


def padding(corpus: Corpus, name: str) -> float:
    """Share of the steps of an epoch, as training cuts them into shares, that are padding; the same on every machine.

    name: of a recipe, with overrides behind it.
    """
    recipe, *changes = name.split()
    settings = config.load(recipe, changes)
    data, selection = Artifact(corpus.lines), Artifact(corpus.selection)
    source = batches.Stream(data, selection, "unlabeled", settings.data)
    training = settings.pretrain
    steps = -(-len(source) // training.batch)
    drawn = batches.training(
        source, batch=training.batch, seed=training.seed, fill=training.fill, shares=training.shares
    )
    valid = [share.valid for batch in islice(drawn, steps) for share in shares.split(batch, training.shares)]
    return 1 - sum(int(one.sum()) for one in valid) / sum(one.numel() for one in valid)


def contenders(arguments: argparse.Namespace, corpus: Corpus, home: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Everyone who races, by name, and why who is left out is."""
    skip, noise, linear, two = (
        config.load(arguments.recipe, [word])
        for word in ("mask.hide=skip", "mask.hide=noise", "model.stem=linear", "pretrain.shares=2")
    )
    source, book = corpus.decoded(skip), codebook(skip)
    found = {
        "skip": Ours(skip, source, book),
        "linear": Ours(linear, source, book),
        "two": Ours(two, source, book),
        "noise": Ours(noise, source, book),
        "obvious": Peer(Obvious(noise), noise, source, book),
        "bucketed": Peer(Obvious(noise), noise, source, book, bucketed=True),
    }
    missing = {}
    if not arguments.pero:
        missing["authors"] = "no --pero, a checkout of github.com/DCGM/pero-pretraining"
    elif not importlib.util.find_spec("einops"):
        missing["authors"] = "einops, which it imports, is not installed"
    else:
        found["authors"] = Peer(Authors(noise, arguments.pero), noise, source, book)
    if arguments.ketos:
        found["ketos"] = Ketos(arguments.ketos, corpus.images[: arguments.ketos_lines], home / "ketos")
    else:
        missing["ketos"] = "no --ketos, the program of an environment with kraken"
    for name, reason in missing.items():
        print(f"{train_figures.TITLES[name]}: left out, {reason}", flush=True)
    return found, missing


@contextmanager
def one_core() -> Iterator[None]:
    """This process, and what it starts, on one core."""
    all_of_them = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(all_of_them)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_of_them)


def measured(arguments: argparse.Namespace, corpus: Corpus, home: Path) -> dict[str, Any]:
    """Every part that was asked for: {"profile", "padding", "race", "labels", "workers", "parameters", "left_out"}."""
    run: dict[str, Any] = {"profile": {}, "padding": {}, "parameters": {}, "left_out": {}}
    run |= {"race": [], "labels": [], "workers": []}
    with one_core():
        if "profile" in arguments.parts:
            run["profile"] = profiles(corpus, arguments.profiled, arguments.rounds)
        if "padding" in arguments.parts:
            run["padding"] = {name: padding(corpus, name) for name in arguments.padded}
        if "race" in arguments.parts:
            racers, run["left_out"] = contenders(arguments, corpus, home)
            for name, racer in racers.items():
                if name != "ketos":  # which starts anew each time
                    racer.run(0)
            run["race"] = race({name: (racer, {}) for name, racer in racers.items()}, arguments.rounds)
            run["parameters"] = {name: racer.parameters for name, racer in racers.items()}
        if "labels" in arguments.parts:
            settings = config.load(arguments.recipe)
            asked = arguments.labelled, arguments.meetings, arguments.rounds
            run["labels"] = labels_race(settings, corpus, arguments.lines, *asked, home)
            run["meetings"] = arguments.meetings
    if "workers" in arguments.parts:
        if len(os.sched_getaffinity(0)) < 2:
            print("two workers: left out, there is one core", flush=True)
        else:
            settings = config.load(arguments.recipe)
            run["workers"] = workers_race(settings, corpus, arguments.worker_steps, arguments.rounds, home)
    return run


def main(words: list[str]) -> Path:
    """Measure and write the result."""
    arguments = parsed(words)
    results.demand_quiet(arguments.name, "train")
    torch.set_num_threads(1)
    os.environ.update({name: "1" for name in ONE_THREAD} | {"CUDA_VISIBLE_DEVICES": ""})
    home = Path(tempfile.mkdtemp(prefix="benchmark-", dir=arguments.work))
    try:
        corpus = prepare(arguments.data, arguments.lines, home)
        run = measured(arguments, corpus, home)
        widths = corpus.decoded(config.load(arguments.recipe)).widths
    finally:
        shutil.rmtree(home)
    run |= {"recipe": arguments.recipe, "lines": arguments.lines, "mean_width": float(widths.mean())}
    path = results.save(
        arguments.name,
        command=shlex.join(["python", "benchmarks/train.py", *words]),
        figures=train_figures.all_of(run),
        runs=[run | {"libraries": results.versions(LIBRARIES)}],
        data={f"{arguments.data.parent.name}/{arguments.data.name}": results.digest(arguments.data)},
    )
    print(train_figures.table(results.load(arguments.name)))
    return path


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": int}
    parser.add_argument("--data", type=Path, default=REPOSITORY / "sample/target", help="a pack of Parquet files")
    parser.add_argument("--lines", **number, default=1280, help="unlabelled lines in an epoch (default: 1280)")
    parser.add_argument("--rounds", **number, default=5, help="rounds of each race (default: 5)")
    parser.add_argument("--recipe", default="small", help="of the races (default: small)")
    parser.add_argument("--profiled", nargs="*", default=list(PROFILED), help="recipes whose step is taken apart")
    parser.add_argument("--pero", type=Path, help="a checkout of github.com/DCGM/pero-pretraining")
    parser.add_argument("--ketos", type=Path, help="the program `ketos` of an environment with kraken")
    parser.add_argument("--ketos-lines", **number, default=128, help="lines that it is given (default: 128)")
    parser.add_argument("--worker-steps", **number, default=60, help="steps of each worker run (default: 60)")
    parser.add_argument("--padded", nargs="*", default=list(PADDED), help="recipes whose padding is counted")
    parser.add_argument("--labelled", nargs="*", choices=FEATURES, default=list(FEATURES), help="whose labels race")
    parser.add_argument("--meetings", **number, default=2, help="of each line, where labels race (default: 2)")
    parts = ("profile", "padding", "race", "labels", "workers")
    parser.add_argument("--parts", nargs="*", choices=parts, default=list(parts), help="what is measured")
    parser.add_argument("--name", default="train", help="of the result (default: train)")
    parser.add_argument(
        "--work", type=Path, default=None, help="where files are kept meanwhile (default: the system's)"
    )
    arguments = parser.parse_args(words)
    batch = config.load(arguments.recipe).pretrain.batch
    if arguments.lines % batch or arguments.lines < STEPS * batch:
        parser.error(
            f"--lines {arguments.lines} is no multiple of the batch of {batch} lines, or fewer than {STEPS} of them"
        )
    return arguments


if __name__ == "__main__":
    print(main(sys.argv[1:]))

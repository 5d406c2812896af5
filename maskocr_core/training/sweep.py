"""The comparison of starts: which runs there are, and which of them stand for their start. One rule for every start."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, reduce
from itertools import product
from operator import or_
from pathlib import Path

from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config
from maskocr_core.services.post import LOG
from maskocr_core.services.workers import Carried, marked, place_of
from maskocr_core.training import checkpoint, finetuning
from maskocr_core.training.distributed import each
from maskocr_core.training.finetuning import MARKS, Run
from maskocr_core.training.kept_runs import KeptRun
from maskocr_core.training.saw import Saw

# By start, what it was made of before fine-tuning.
PARTS = {"scratch": (), "transfer": ("transfer",), "pretrained": ("encoder",), "both": ("transfer", "encoder")}
TARGET, TRANSFER = ("train", "val"), ("transfer-train", "transfer-val")


def possible_starts(asked: tuple[str, ...], has_transfer_lines: bool, has_model: bool) -> list[str]:
    """The starts that the data allow; those left out are said, with the reason."""
    lacking = set() if has_transfer_lines else {"both"} if has_model else {"transfer", "both"}
    why = (
        "transfer_uri is a trained model, and 'both' trains on transfer lines"
        if has_model
        else "there is no transfer_uri"
    )
    for start in asked:
        if start in lacking:
            print(f"finetune: start {start!r} is left out: {why}", flush=True)
    return [start for start in asked if start not in lacking]


def within(config: Config, labelled: int) -> Config:
    """The configuration with the budgets that differ: of those that no line is left for, one, which takes all there are."""
    budgets = sorted(config.sweep.budgets)
    beyond = [budget for budget in budgets if budget > labelled]
    kept = [budget for budget in budgets if budget <= labelled]
    for budget in beyond:
        what = (
            "all are taken" if budget == beyond[0] and labelled not in kept else "left out, as they would be the same"
        )
        print(f"finetune: {budget:,} labelled lines were asked for, {labelled:,} are there: {what}", flush=True)
    if beyond and labelled not in kept:
        kept.append(beyond[0])
    return config.model_copy(update={"sweep": config.sweep.model_copy(update={"budgets": tuple(kept)})})


def sizes(encoder: Path) -> list[str]:
    """The sizes of `Run.size`: that of `model`, and those that were pre-trained beside it."""
    return ["", *checkpoint.sizes_in(Artifact(encoder))]


def transfer_runs(starts: list[str], config: Config, encoder: Path) -> list[Run]:
    """Training on the transfer lines, in every size, from scratch for `transfer` and pre-trained for `both`."""
    return [
        transfer_run(start, config, encoder if start == "both" else None, size)
        for start, size in product(starts, sizes(encoder))
        if start in ("transfer", "both")
    ]


def transfer_run(start: str, config: Config, encoder: Path | None = None, size: str = "") -> Run:
    """Training on the transfer lines for one start, from an encoder or from scratch."""
    settings = config.sweep
    return Run(
        f"{start} base",
        TRANSFER,
        0,
        settings.transfer_learning_rate,
        settings.seeds[0],
        settings.transfer_steps,
        encoder=str(encoder) if encoder else None,
        size=size,
    )


def runs(starts: list[str], config: Config, encoder: Path, recognizers: dict[tuple[str, str], Path]) -> list[Run]:
    """The whole grid: starts × sizes × budgets × learning rates × seeds.

    recognizers: what a start and size goes on from; a start that has one for some sizes is made in these alone.
    """
    known = {start for start, _ in recognizers}
    return [
        Run(
            start,
            TARGET,
            budget,
            rate,
            seed,
            config.sweep.steps,
            encoder=str(encoder) if start == "pretrained" else None,
            recognizer=str(recognizers[start, size]) if start in known else None,
            size=size,
        )
        for start, budget, size, rate, seed in product(
            starts, config.sweep.budgets, sizes(encoder), config.sweep.learning_rates, config.sweep.seeds
        )
        if start not in known or (start, size) in recognizers
    ]


def demand_starts(starts: list[str], config: Config, encoder: Path, recognizer: Path | None) -> None:
    """Raises ValueError for an encoder, or a given recogniser, that a run could not start from: here, not hours into a sweep."""
    if {"pretrained", "both"} & set(starts):
        for size in sizes(encoder):
            checkpoint.demand_encoder(Artifact(encoder), config.model.sized(size), config.data)
    if recognizer:
        finetuning.demand_recognizer(checkpoint.facts_of_recognizer(recognizer), recognizer, config)


def carry_out(grid: list[Run], config: Config, lines: Path, selection: Path, folders: list[Path]) -> list[dict]:
    """Results of all runs, each in its folder: those made before are taken from there, killed ones go on.

    folders: of one parent, each named by the key of its run. On a given cluster the nodes see that parent and the inputs,
    or all of them a MASKOCR_STORE, from where what was made comes back.
    """
    if not grid:
        return []
    names = [
        f"finetune {run.name}"
        + (f" {run.size}" if run.size else "")
        + (f" ({run.budget} labels, lr {run.learning_rate:g}, seed {run.seed})" if len(grid) > 4 else "")
        for run in grid
    ]
    for name, folder in zip(names, folders):
        if (folder / "result.json").is_file():
            print(f"{name}: made before, reused", flush=True)
    inputs = Carried.of(lines), Carried.of(selection)
    packed = cache(Carried.of)  # many runs start from the same
    with marked(folders[0].parent) as mark:
        results = each(
            _anywhere,
            [(run, _carried(run, packed), config, *inputs, folder, mark) for run, folder in zip(grid, folders)],
            jobs=config.sweep.jobs,
            what=names,
            logs=[folder / LOG for folder in folders],
            steps=[run.steps for run in grid],
            registry=config.registry,
            office=mark.name,
        )
    for folder in folders:
        kept = KeptRun(folder)
        kept.bring()
        kept.drop_checkpoints()
    return results


def _carried(run: Run, packed: Callable[[Path], Carried]) -> dict[str, Carried]:
    """What a run starts from, by the field of `Run` that names it."""
    places = {name: getattr(run, name) for name in ("encoder", "recognizer")}
    return {name: packed(Path(place)) for name, place in places.items() if place}


def _anywhere(
    run: Run, start: dict[str, Carried], config: Config, lines: Carried, selection: Carried, folder: Path, mark: Path
) -> dict:
    """`finetuning.train` in a process that may be on a machine which sees nothing of the caller's."""
    with place_of(folder, mark) as (here, _, room):
        run = replace(run, **{name: str(carried.here(room)) for name, carried in start.items()})
        return finetuning.train(run, config, lines.here(room), selection.here(room), here)


def choose(grid: list[Run], results: list[dict]) -> list[Run]:
    """For each start, budget and seed the run with the size and learning rate that are best on validation over all seeds."""
    chosen = []
    for start, budget in dict.fromkeys((run.name, run.budget) for run in grid):
        tried: dict[tuple[str, float], float] = {}
        for run, result in zip(grid, results):
            if (run.name, run.budget) == (start, budget):
                choice = run.size, run.learning_rate
                tried[choice] = tried.get(choice, 0.0) + result["validation_cer"]["all"]
        best = (start, budget, *min(tried, key=lambda choice: tried[choice]))
        chosen += [run for run in grid if (run.name, run.budget, run.size, run.learning_rate) == best]
    return chosen


def of_chosen(bases: list[Run], best: list[Run], grid: list[Run]) -> list[Run]:
    """Of the runs on transfer lines those that the runs which stand for their start went on from."""
    standing = {(run.name, run.size) for run in best if has_all_labels(run, grid)}
    return [base for base in bases if (base.name.removesuffix(" base"), base.size) in standing]


def has_all_labels(run: Run, grid: list[Run]) -> bool:
    """Whether a run has the largest budget of its start: such runs stand for it."""
    return run.budget == max(other.budget for other in grid if other.name == run.name)


def folder_of(run: Run, grid: list[Run]) -> str:
    """Where a chosen run's recognisers are kept: `<start>-<seed>`, and `<start>-<seed>-<budget>` for smaller budgets."""
    return f"{run.name}-{run.seed}" + ("" if has_all_labels(run, grid) else f"-{run.budget}")


def seen(start: str, by_part: dict[str, Saw]) -> Saw:
    """What a start was trained on. by_part: what the `target` lines, the `transfer` part and the pre-trained `encoder` hold."""
    return seen_before(start, by_part) | by_part["target"]


def seen_before(start: str, by_part: dict[str, Saw]) -> Saw:
    """What a start had been trained on when fine-tuning began."""
    return reduce(or_, (by_part[part] for part in PARTS[start]), Saw())


def collect(folder: Path, destination: Path, marks: Iterable[str] = MARKS) -> None:
    """Copy a run's recognisers at ¼, ½ and all of its steps, or at some of these."""
    for mark in marks:
        shutil.copytree(folder / mark, destination / mark, dirs_exist_ok=True)


def summary(
    grid: list[Run],
    results: list[dict],
    best: list[Run],
    transfer: list[dict],
    encoder: Artifact,
    config: Config,
) -> dict:
    """What `runs.json` holds: every run, which were chosen, and what transfer training and pre-training cost, apart.

    `kept`: the folder of a run that is the best of its start, budget and seed. `chosen`: it stands for its start, as one
    of the largest budget.
    """
    return {
        "runs": [
            result
            | {
                "kept": folder_of(run, grid) if run in best else None,
                "chosen": run in best and has_all_labels(run, grid),
            }
            for run, result in zip(grid, results)
        ],
        "transfer": transfer,
        **{
            f"pretrain_{minutes}": {
                # An encoder of an earlier version does not say what it took of GPUs.
                config.model.sized(size).size: encoder.metrics.get(f"{minutes}_{size}" if size else minutes, 0.0)
                for size in sizes(encoder.folder)
            }
            for minutes in ("cpu_minutes", "gpu_minutes")
        },
    }

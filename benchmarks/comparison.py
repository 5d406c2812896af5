"""The comparison on a whole pack, through the pipeline: `python benchmarks/comparison.py [--data FOLDER] [--work FOLDER] [PACK …]`

Four starts, several budgets of labels and several seeds, by `pipelines/pretrain_finetune.yaml` under kfp.local: ingest to
registration, with MLflow on SQLite in the work folder. The steps that pre-training predicts are described by a recogniser:
the one that `transfer` comes to with the smallest budget, which the sweep reuses. Runs of `method.py` in the same work
folder are reused too. A stop loses nothing: the same command goes on.

Settings were chosen on validation lines, most of them by `ablation.py` and `method.py`; figures are of the test lines.
Writes the packs that were asked for into `results/comparison.json`, beside those that are there, each with the plots of its
report as `docs/comparison_PACK.png` and, where its confidence is usable, `docs/confidence_PACK.png`; each says its commit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import method, results
from benchmarks.pilot import FIT, KEPT
from benchmarks.roads import Road
from maskocr_core import artifacts, config
from maskocr_core.judging.comparison import TITLES

ROOT = Path(__file__).parents[1]
PIPELINE = ROOT / "pipelines" / "pretrain_finetune.yaml"
PICTURES = {"report.png": "comparison", "confidence.png": "confidence"}
ALONG = ("verdict", "candidate", "documents", "lines", "confidence", "efficiency", "curves", "returns", "calibration")


@dataclass(frozen=True)
class Grid:
    """How much of the sweep is run on a pack: a recipe, its overrides, and other learning rates of the sweep than the recipe's."""

    recipe: str
    overrides: tuple[str, ...]
    learning_rates: tuple[float, ...] = ()

    @property
    def changes(self) -> tuple[str, ...]:
        """All that is other than the recipe."""
        rates = (f"sweep.learning_rates={list(self.learning_rates)}",) if self.learning_rates else ()
        return self.overrides + rates


GRIDS = {
    "fraktur_print": Grid(
        "pilot",
        (
            "codebook.features=encoder",
            "pretrain.steps=2000",
            "sweep.budgets=[100, 300, 1000]",
            "sweep.seeds=[0, 1, 2]",
            "sweep.steps=750",
            "sweep.transfer_steps=750",
        ),
    ),
    # The rate that `method.py` found best for three of the starts, and next to best for the fourth.
    "fr_hand": Grid(
        "laptop",
        (
            "codebook.features=encoder",
            "pretrain.steps=5000",
            "sweep.budgets=[300, 1000]",
            "sweep.seeds=[0, 1]",
        ),
        learning_rates=(0.002,),
    ),
}


def travel(name: str, data: Path, home: Path) -> dict[str, Any]:
    """One pack through the pipeline; what came out, as a row of the result."""
    pack, grid = method.PACKS[name], GRIDS[name]
    road, settings = Road(home), config.load(grid.recipe, grid.changes)
    lines, transfer = method.laid_out(pack, data, home).absolute(), (data / pack.transfer).absolute()
    road.accept(settings, lines, transfer)
    # By the recipe's own learning rate, as `method.py` makes it: so that what that pre-trained is reused.
    describing = road.recogniser(config.load(grid.recipe, grid.overrides), min(settings.sweep.budgets))
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{home / 'mlflow.db'}"
    os.environ["MASKOCR_RUN"] = f"comparison-{name}"
    from maskocr_pipelines import local

    arguments = {
        "data_uri": str(lines),
        "transfer_uri": str(transfer),
        "encoder_uri": str(describing),
        "prices_uri": str(ROOT / "sample" / "prices.json"),
        "recipe": grid.recipe,
        "overrides": list(grid.changes),
    }
    local.run(PIPELINE, arguments, home / "pipelines")
    evaluation = max(home.glob("pipelines/*/evaluate/evaluation_out"), key=lambda path: path.stat().st_mtime)
    for picture, title in PICTURES.items():
        kept = ROOT / "docs" / f"{title}_{name}.png"
        kept.unlink(missing_ok=True)
        if (evaluation / picture).is_file():
            shutil.copyfile(evaluation / picture, kept)
    summary = json.loads((evaluation / "summary.json").read_text())
    return {
        "pack": name,
        "commit": artifacts.code_commit(),
        "recipe": grid.recipe,
        "changes": list(grid.changes),
        "seeds": list(settings.sweep.seeds),
        "data": summary["data_version"],
        "starts": [{key: row[key] for key in KEPT} for row in summary["starts"]],
        "fit": [{key: row[key] for key in FIT} for row in summary["fit"]],
        **{key: summary[key] for key in ALONG},
    }


def figures(packs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The test CER of each pack, budget and start, with its interval over documents."""
    return {
        f"cer_{pack['pack']}_{row['budget']}_{row['start']}": {
            "value": row["cer"]["value"],
            "unit": "CER on the test lines, mean over seeds",
            "goal": None,
            "better": "lower",
            "spread": [row["cer"]["low"], row["cer"]["high"]],
        }
        for pack in packs
        for row in pack["efficiency"]
    }


def table(result: dict[str, Any]) -> str:
    """A row a pack and start: CER by budget, the verdict at the largest one, labels saved, what it cost."""
    budgets = sorted({row["budget"] for pack in result["runs"] for row in pack["efficiency"]})
    lines = [
        f"| lines | start | {' | '.join(f'test CER with {budget:,} labels' for budget in budgets)} | against scratch | CPU minutes: start + a run of fine-tuning |",
        "|---" * (len(budgets) + 4) + "|",
    ]
    for pack in result["runs"]:
        for row in pack["starts"]:
            by_budget = {one["budget"]: one for one in pack["efficiency"] if one["start"] == row["start"]}
            minutes = row["cpu_minutes"]
            cells = [
                pack["pack"],
                TITLES[row["start"]],
                *(_read(by_budget[budget]) if budget in by_budget else "" for budget in budgets),
                row["verdict"],
                f"{minutes['pretrain'] + minutes['transfer']:.0f} + {minutes['finetune']:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + "\n\n".join(_said(result["command"], pack) for pack in result["runs"])


def _read(row: dict[str, Any]) -> str:
    cer = row["cer"]
    seeds = f"; seeds {100 * min(row['by_seed']):.1f} to {100 * max(row['by_seed']):.1f}"
    return f"{100 * cer['value']:.1f} % [{100 * cer['low']:.1f}, {100 * cer['high']:.1f}]{seeds}"


def operating(result: dict[str, Any]) -> str:
    """How many lines need no person, on the test lines of each pack, and what the confidence is worth there."""
    return "\n\n".join(_operated(result["command"], pack) for pack in result["runs"])


def _operated(command: str, pack: dict[str, Any]) -> str:
    found = pack["calibration"]
    head = f"**{pack['pack']}**, the candidate ({TITLES[pack['candidate']]}), {pack['lines']:,} test lines of {pack['documents']} documents"
    foot = f"`{command} {pack['pack']}`, data `{pack['data'][:12]}`, commit {results.short(pack['commit'])}."
    if not found["usable"]:
        return f"{head}: not usable: {found['reason']}. {foot}"
    ece, auroc = found["ece"], found["auroc"]
    said = [f"- {row['sentence']}" for row in found["table"]]
    worth = (
        f"ECE {100 * ece['value']:.1f} points [{100 * ece['low']:.1f}, {100 * ece['high']:.1f}], by chance "
        f"{100 * found['chance']:.1f}; AUROC {auroc['value']:.2f} [{auroc['low']:.2f}, {auroc['high']:.2f}]."
    )
    return "\n".join([f"{head}:", "", *said, "", f"{worth} {foot}"])


def _said(command: str, pack: dict[str, Any]) -> str:
    verdict = pack["verdict"]
    savings = [row["saving"] for row in pack["curves"] if row["saving"]]
    saved = [
        f"{TITLES[saving['start']]} {saving['saved']:,.0f} of {saving['scratch_labels']:,.0f}"
        for saving in savings
        if saving["saved"] is not None
    ]
    paid = [f"{TITLES[row['start']]} {row['verdict']}" for row in pack["returns"]]
    told = next((row["cpu_minutes"] for row in pack["starts"] if row["start"] == "transfer"), None)
    described = ""
    if told and "codebook.features=encoder" in pack["changes"]:
        minutes = told["transfer"] + told["finetune"]
        described = (
            f" The recogniser that describes the steps of pre-training is what transfer comes to with the smallest budget: "
            f"about {minutes:.0f} CPU minutes, as a run of transfer takes, that are not counted to pre-training again."
        )
    return (
        f"**{pack['pack']}**, `{command} {pack['pack']}`: recipe `{pack['recipe']}` with {', '.join(pack['changes'])}; {len(pack['seeds'])} "
        f"seeds; {pack['lines']:,} test lines of {pack['documents']} documents, {100 * pack['confidence']:g} % intervals clustered by "
        f"document; data `{pack['data'][:12]}`, commit {results.short(pack['commit'])}. Verdict of the gate on the candidate, "
        f"{TITLES[pack['candidate']]}: {verdict['verdict']}. {verdict['reason']}{described}"
        + (
            f" Labels saved at the CER of scratch with all of them, by the fitted curves: {', '.join(saved)}."
            if saved
            else ""
        )
        + (f" By the example prices of `sample/prices.json`: {', '.join(paid)}." if paid else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packs", nargs="*", default=list(GRIDS), help=f"of {', '.join(GRIDS)}; all by default")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="where the packs lie")
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "method", help="where the stages work")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done = {run["pack"]: run for run in results.earlier("comparison")["runs"]}
    for name in arguments.packs:
        done[name] = travel(name, arguments.data.absolute(), arguments.work.absolute() / name)
        packs = [done[other] for other in GRIDS if other in done]
        path = results.save(
            "comparison",
            command="python benchmarks/comparison.py",
            figures=figures(packs),
            seeds=sorted({seed for pack in packs for seed in pack["seeds"]}),
            data={pack["pack"]: pack["data"] for pack in packs},
            runs=packs,
        )
        print(path)


if __name__ == "__main__":
    main()

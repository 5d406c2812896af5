"""What each choice of the method is worth on the sample: `python benchmarks/ablation.py [--jobs N] [--work FOLDER] [ARM …]`

Every arm is the recipe `pilot` with one thing changed: an encoder pre-trained by it on the sample's unlabelled lines, then
fine-tuned on its 400 labelled ones with two seeds. Lines, cap, learning rates and validations are the same for all. Every
figure is of the validation lines: the test lines are not read. All of it are the stages of maskocr in a work folder, so
that a stop loses nothing and nothing is made twice. Some nine minutes an arm on one core.

Writes the arms that were asked for into `results/ablation.json`, beside those that are there; each says its commit. An arm that
was made when the recipe was another one leaves the table.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import results
from benchmarks.roads import Road
from maskocr_core import artifacts, config
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1)
MARKS = ("quarter", "half", "all")


@dataclass(frozen=True)
class Arm:
    """One change to the recipe.

    start: what is fine-tuned. described_by: the arm whose encoder or recogniser labels the steps. paced_by: the arm whose
    CPU minutes a step tell how many steps take as many CPU minutes as the recipe's do.
    """

    title: str
    changes: tuple[str, ...] = ()
    start: str = "pretrained"
    described_by: str = ""
    paced_by: str = ""


def fixed(probability: float) -> tuple[str, ...]:
    return (f"mask.start={probability}", f"mask.end={probability}")


WIDE = ("model.stem=convolutional",)
RAW = ("data.ink=raw",)
WINDOWS = ("codebook.features=pixels",)
ENCODER = ("codebook.features=encoder",)
ARMS = {
    "recipe": Arm("the recipe `pilot`"),
    "scratch": Arm("no pre-training", start="scratch"),
    "transfer": Arm("no pre-training, but the 1,000 labelled transfer lines", start="transfer"),
    "fixed_35": Arm("fixed probability, 0.35: the mean of the rising one", fixed(0.35)),
    "fixed_60": Arm("fixed probability, 0.6: its end", fixed(0.6)),
    "random": Arm("a probability for each line, drawn from 0.1 to 0.6", ("mask.ratio=random",)),
    "masked_only": Arm("loss on masked steps alone", ("mask.visible_weight=0",)),
    "visible_tenth": Arm("visible steps weigh 0.1", ("mask.visible_weight=0.1",)),
    "fixed_masked_only": Arm("both: fixed 0.35, masked steps alone", (*fixed(0.35), "mask.visible_weight=0")),
    "span_1": Arm("each step hidden on its own", ("mask.span=1",)),
    "span_4": Arm("spans of 4 steps", ("mask.span=4",)),
    "more_hidden": Arm("spans of 3, probability 0.3 to 0.7", ("mask.start=0.3", "mask.end=0.7", "mask.span=3")),
    "clusters_64": Arm("64 clusters", ("codebook.clusters=64",)),
    "clusters_2048": Arm("2,048 clusters", ("codebook.clusters=2048",)),
    "windows": Arm("labels from pixels", WINDOWS),
    "random_network": Arm("labels from a random network", ("codebook.features=random",)),
    "second_round": Arm("labels from the recipe's own encoder", ENCODER, described_by="recipe"),
    "recogniser": Arm(
        "labels from the encoder of the recogniser of the arm `transfer`", ENCODER, described_by="transfer"
    ),
    "recogniser_fixed": Arm(
        "labels from the encoder of that recogniser, fixed probability, 0.35",
        (*ENCODER, *fixed(0.35)),
        described_by="transfer",
    ),
    "windows_fixed": Arm("labels from pixels, fixed probability, 0.35", (*WINDOWS, *fixed(0.35))),
    "recipe_again": Arm("the recipe, pre-trained with another seed", ("pretrain.seed=1",)),
    "fixed_35_again": Arm("fixed probability, 0.35, pre-trained with another seed", (*fixed(0.35), "pretrain.seed=1")),
    "windows_again": Arm("labels from pixels, pre-trained with another seed", (*WINDOWS, "pretrain.seed=1")),
    "pixels": Arm("regression of pixels, as masked auto-encoders do", ("mask.predict=pixels",)),
    "noise": Arm("noise over hidden steps, which are encoded too", ("mask.hide=noise",)),
    "token": Arm("a token after the stem for hidden steps, which are encoded too", ("mask.hide=token",)),
    "noise_as_long": Arm(
        "noise over hidden steps, in the CPU minutes of the recipe", ("mask.hide=noise",), paced_by="noise"
    ),
    "token_as_long": Arm(
        "a token after the stem, in the CPU minutes of the recipe", ("mask.hide=token",), paced_by="token"
    ),
    "linear_as_long": Arm(
        "linear patch for a stem, in the CPU minutes of the recipe", ("model.stem=linear",), paced_by="linear"
    ),
    "longer": Arm("twice the steps of pre-training", ("pretrain.steps=1200",)),
    "layer_decay": Arm("fine-tuned with layers that learn slower by 0.7 each", ("sweep.layer_decay=0.7",)),
    "frozen": Arm("fine-tuned with the encoder frozen for a fifth of the steps", ("sweep.frozen=0.2",)),
    "sinusoidal": Arm("sinusoidal positions, added, as the authors have them", ("model.places=sinusoidal",)),
    "sinusoidal_scratch": Arm("sinusoidal positions, no pre-training", ("model.places=sinusoidal",), start="scratch"),
    "linear": Arm("linear patch for a stem", ("model.stem=linear",)),
    "linear_again": Arm(
        "linear patch for a stem, pre-trained with another seed", ("model.stem=linear", "pretrain.seed=1")
    ),
    "linear_scratch": Arm("linear patch for a stem, no pre-training", ("model.stem=linear",), start="scratch"),
    "raw_ink": Arm("gray as it is in the image, not levelled to the line's paper and ink", RAW),
    "raw_ink_scratch": Arm("that gray, no pre-training", RAW, start="scratch"),
    "convolutional": Arm("twice the channels in the stem's first convolution, a third more in its second", WIDE),
    "convolutional_again": Arm("that stem, pre-trained with another seed", (*WIDE, "pretrain.seed=1")),
    "convolutional_scratch": Arm("that stem, no pre-training", WIDE, start="scratch"),
    "convolutional_as_long": Arm("that stem, in the CPU minutes of the recipe", WIDE, paced_by="convolutional"),
}


def settings(arm: Arm) -> Config:
    return config.load(
        "pilot",
        [
            *arm.changes,
            f'sweep.starts=["{arm.start}"]',
            f"sweep.seeds={list(SEEDS)}",
            "sweep.jobs=0",
            "pretrain.workers=0",
        ],
    )


def make(name: str, work: Path) -> dict[str, Any]:
    """Everything of one arm, as a row."""
    arm, road = ARMS[name], Road(work)
    encoder = encoder_of(name if arm.start == "pretrained" else "recipe", road)
    out, made = road.finetune(settings(arm), f"{name}-recognizers", encoder)
    runs = made["runs"]
    row = {
        "arm": name,
        "title": arm.title,
        "changes": list(arm.changes),
        "configuration": configuration(arm),
        "commit": artifacts.code_commit(),
        "cer": {mark: [run["validation_cer"][mark] for run in runs] for mark in MARKS},
        "finetune_minutes": sum(run["cpu_seconds"] for run in runs) / len(runs) / 60,
    }
    if arm.start == "pretrained":
        row |= {"pretrain": Artifact(encoder).metrics, "codebook": Artifact(codebook_of(name, road)).metrics}
    return row


def configuration(arm: Arm) -> str:
    """Digest of all that an arm sets, the recipe's own included: rows of two recipes are no table."""
    return settings(arm).digest(("data", "model", "codebook", "mask", "pretrain", "sweep"))


def still_comparable(before: dict[str, Any], data: str) -> list[dict[str, Any]]:
    """The rows of an earlier result that are of these lines, and of what their arms are today."""
    rows = before["runs"] if before["data"].get("lines") == data else []
    known = [row for row in rows if row["arm"] in ARMS]
    return [row for row in known if row.get("configuration") == configuration(ARMS[row["arm"]])]


def encoder_of(name: str, road: Road) -> Path:
    arm = ARMS[name]
    # Two arms of the same pre-training, which differ in fine-tuning alone, share its stage, if not the name of its output.
    if arm.paced_by:
        arm = replace(arm, changes=(*arm.changes, f"pretrain.steps={steps_of(arm, road)}"))
    return road.pretrain(settings(arm), f"{name}-encoder", codebook_of(name, road))


def steps_of(arm: Arm, road: Road) -> int:
    """Steps of pre-training that take as many CPU minutes as the recipe's do."""
    own, recipe = (Artifact(encoder_of(other, road)).metrics for other in (arm.paced_by, "recipe"))
    return round(recipe["cpu_minutes"] * own["steps"] / own["cpu_minutes"])


def codebook_of(name: str, road: Road) -> Path:
    arm = ARMS[name]
    encoder = None
    if arm.described_by:
        source = ARMS[arm.described_by]
        encoder = encoder_of("recipe", road)
        if source.start != "pretrained":
            out, _ = road.finetune(settings(source), f"{arm.described_by}-recognizers", encoder)
            encoder = out / f"{source.start}-{SEEDS[0]}" / "all"
    return road.quantize(settings(arm), f"{name}-codebook", encoder)


def figures(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The CER of every arm at all of its steps, with the spread over seeds of fine-tuning."""
    return {
        f"cer_{row['arm']}": {
            "value": sum(row["cer"]["all"]) / len(SEEDS),
            "unit": "CER on the validation lines, mean over seeds",
            "goal": None,
            "better": "lower",
            "spread": [min(row["cer"]["all"]), max(row["cer"]["all"])],
        }
        for row in rows
    }


def table(result: dict[str, Any]) -> str:
    """A row an arm: what it reads, what it guesses, what it costs."""
    lines = [
        "| pre-training | validation CER after ¼ of the steps | after ½ | after all | hidden labels guessed | perplexity of labels | CPU minutes of pre-training |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["runs"]:
        cells = [row["title"], *(results.percent(row["cer"][mark]) for mark in MARKS)]
        if "pretrain" in row:
            guessed = row["pretrain"].get("masked_accuracy")
            cells += [
                f"{100 * guessed:.0f} %" if guessed is not None else "",
                f"{row['codebook']['perplexity']:.0f}",
                f"{row['pretrain']['cpu_minutes']:.1f}",
            ]
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    commits = ", ".join(results.short(commit) for commit in dict.fromkeys(row["commit"] for row in result["runs"]))
    lines.append("")
    lines.append(
        f"`{result['command']}`, one core each: mean and [least, most] of {len(result['seeds'])} seeds of fine-tuning, one seed of "
        f"pre-training; sample/target (`{result['data']['lines'][:12]}`); commit {commits}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arms", nargs="*", default=list(ARMS), help=f"of {', '.join(ARMS)}; all by default")
    parser.add_argument("--jobs", type=int, default=2, help="arms at a time, one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "ablation", help="where the stages work")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    road = Road(arguments.work.absolute())
    road.accept(settings(ARMS["recipe"]), ROOT / "sample/target", ROOT / "sample/transfer")
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(make, arguments.arms, [arguments.work.absolute()] * len(arguments.arms)))
    for row in rows:
        print(row["title"], results.percent(row["cer"]["all"]))
    version = Artifact(road.home / "lines").version
    made = {row["arm"]: row for row in [*still_comparable(results.earlier("ablation"), version), *rows]}
    kept = [made[name] for name in ARMS if name in made]
    path = results.save(
        "ablation",
        command="python benchmarks/ablation.py",
        figures=figures(kept),
        seeds=list(SEEDS),
        data={"lines": version},
        runs=kept,
    )
    print(path)


if __name__ == "__main__":
    main()

"""Does masked pre-training help on real handwriting? `python benchmarks/method.py [--data FOLDER] [--work FOLDER] [PACK …]`

For each pack of lines: ingest (with the labelled lines of a related pack), validate, fit, quantize, pre-train, then
fine-tune scratch, transfer, pre-trained and both, by one rule for all: the same cap of steps, the same validations, the
best checkpoint on validation. Two learning rates are tried for each start on the first seed at the smaller budget, and the
better one on validation is kept for its other runs. On the printed pack the autoregressive decoder is held against CTC. All of
it are the stages of maskocr in a work folder of its own, so that a stop loses nothing and nothing is made twice; hours on two
cores. Every figure is of the validation lines: the test lines are not read.

Writes the packs that were asked for into `results/method.json`, beside those that are there; each says its commit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import results
from benchmarks.roads import Road
from maskocr_core import artifacts, config
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config
from maskocr_core.data.batches import Lines
from maskocr_core.judging import comparison
from maskocr_core.judging.comparison import TITLES
from maskocr_core.training import reading

ROOT = Path(__file__).parents[1]
STARTS = ("scratch", "transfer", "pretrained", "both")
RATES, SEEDS = (1e-3, 2e-3), (0, 1)


@dataclass(frozen=True)
class Pack:
    """A folder of lines, the folder of labelled lines to transfer from, and the budgets of labels."""

    name: str
    transfer: str
    budgets: tuple[int, ...]
    starts: tuple[str, ...] = STARTS
    decoders: tuple[str, ...] = ("ctc",)


PACKS = {
    pack.name: pack
    for pack in (
        Pack("fr_hand", "modern_hand_fr", (300, 1000)),
        Pack("medieval_hand", "early_print_fr", (1000,)),
        Pack("fraktur_print", "early_print_fr", (1000,), ("scratch", "pretrained"), ("ctc", "autoregressive")),
    )
}


def settings(*overrides: str) -> Config:
    """The recipe `laptop` for handwriting, with overrides."""
    return config.load("laptop", overrides)


class Comparison:
    """The four starts on one pack."""

    def __init__(self, pack: Pack, data: Path, work: Path):
        self.pack, self.road = pack, Road(work / pack.name)
        base = settings()
        self.road.accept(base, data / pack.name, data / pack.transfer)
        self.codebook = self.road.quantize(base, "codebook")
        self.encoder = self.road.pretrain(base, "encoder", self.codebook)

    def finetune(self, name: str, *overrides: str) -> tuple[Path, dict[str, Any]]:
        return self.road.finetune(settings(*overrides), name, self.encoder)

    def rates(self, decoder: str) -> dict[str, float]:
        """The learning rate of each start that is best on validation, tried on the first seed at the smallest budget."""
        _, made = self.finetune(
            f"tried-{decoder}",
            f"sweep.starts={json.dumps(self.pack.starts)}",
            f"sweep.decoder={decoder}",
            f"sweep.budgets=[{min(self.pack.budgets)}]",
            f"sweep.seeds=[{SEEDS[0]}]",
            f"sweep.learning_rates={list(RATES)}",
        )
        return {run["name"]: run["learning_rate"] for run in made["runs"] if run["chosen"]}

    def rows(self) -> list[dict[str, Any]]:
        """For each decoder and budget a row a start, held against scratch over the documents of validation."""
        rows = []
        for decoder, budget in product(self.pack.decoders, self.pack.budgets):
            read, of_start = [], {}
            for start, rate in self.rates(decoder).items():
                out, made = self.finetune(
                    f"{start}-{budget}-{decoder}",
                    f'sweep.starts=["{start}"]',
                    f"sweep.decoder={decoder}",
                    f"sweep.budgets=[{budget}]",
                    f"sweep.seeds={list(SEEDS)}",
                    f"sweep.learning_rates=[{rate}]",
                )
                of_start[start] = made
                read += reading.read_starts(out, made["runs"], self.validation())
            rows += [{"budget": budget, "decoder": decoder} | row for row in self.compared(read, of_start)]
        return rows

    def compared(self, read: list[comparison.Readings], made: dict[str, dict]) -> list[dict[str, Any]]:
        source, gate = self.validation(), settings().gate
        against = comparison.Test(source.texts, source.documents, gate.confidence, gate.min_documents)
        rows, _ = comparison.compare(against, read, "scratch", None)
        scratch = next(row for row in read if row.start == "scratch")
        for row, readings in zip(rows, read):
            runs = [run for run in made[row["start"]]["runs"] if run["chosen"]]
            row["learning_rate"] = runs[0]["learning_rate"]
            row["by_seed"] = {
                mark: [run["validation_cer"][mark] for run in runs] for mark in ("quarter", "half", "all")
            }
            row["curves"] = [run["curve"] for run in runs]
            row["cpu_minutes"] = sum(run["cpu_seconds"] for run in runs) / len(runs) / 60
            if readings is not scratch:
                row["difference"] = asdict(against.difference(readings.by_mark["all"], scratch.by_mark["all"]))
                row["lower_than_scratch"] = 1 - row["cer"]["all"]["value"] / rows[0]["cer"]["all"]["value"]
        return rows

    def validation(self) -> Lines:
        return self.road.validation(settings())

    def pretraining(self) -> dict[str, Any]:
        """What pre-training came to along its way, and what it cost."""
        return {
            "metrics": Artifact(self.encoder).metrics,
            "along": self.road.along(self.encoder),
            "codebook": Artifact(self.codebook).metrics,
        }


def figures(packs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """How much lower than scratch each start is, with the spread over seeds; the goals of pre-training alone."""
    goals = {("fr_hand", 300): 0.25, ("fr_hand", 1000): 0.20, ("medieval_hand", 1000): 0.20}
    found = {}
    for name, pack in packs.items():
        scratch = {(row["budget"], row["decoder"]): row for row in pack["rows"] if row["start"] == "scratch"}
        for row in pack["rows"]:
            base = scratch[row["budget"], row["decoder"]]["by_seed"]["all"]
            key = f"{name}_{row['budget']}_{row['start']}" + ("" if row["decoder"] == "ctc" else f"_{row['decoder']}")
            found[f"cer_{key}"] = {
                "value": row["cer"]["all"]["value"],
                "unit": "CER on the validation lines, mean over seeds",
                "goal": None,
                "better": "lower",
                "spread": [min(row["by_seed"]["all"]), max(row["by_seed"]["all"])],
            }
            if row["start"] != "scratch":
                shares = [1 - own / other for own, other in zip(row["by_seed"]["all"], base)]
                found[f"lower_than_scratch_{key}"] = {
                    "value": row["lower_than_scratch"],
                    "unit": "share of the CER of scratch",
                    "goal": goals.get((name, row["budget"])) if row["start"] == "pretrained" else None,
                    "better": "higher",
                    "spread": [min(shares), max(shares)],
                }
    return found


def table(result: dict[str, Any]) -> str:
    """A row a pack, budget, decoder and start: CER on validation along fine-tuning, and against scratch."""
    lines = [
        "| lines | labels | start | validation CER after ¼ of the steps | after ½ | after all | lower than scratch | goal | CPU minutes of fine-tuning |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        for row in run["rows"]:
            key = f"lower_than_scratch_{run['pack']}_{row['budget']}_{row['start']}"
            lower = result["figures"].get(key if row["decoder"] == "ctc" else f"{key}_{row['decoder']}")
            cells = [
                run["pack"],
                f"{row['budget']:,}",
                TITLES[row["start"]] + ("" if row["decoder"] == "ctc" else f", {row['decoder']}"),
                *(results.percent(row["by_seed"][mark]) for mark in ("quarter", "half", "all")),
                _share(lower) if lower else "",
                f"{100 * lower['goal']:.0f} %" if lower and lower["goal"] else "",
                f"{row['cpu_minutes']:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    said = [
        f"{run['pack']}: {run['lines']:,} validation lines of {run['documents']} documents, data `{run['data'][:12]}`, pre-training "
        f"{run['pretraining']['metrics']['cpu_minutes']:.0f} CPU minutes, commit `{run['commit'][:7]}`"
        for run in result["runs"]
    ]
    return (
        "\n".join(lines)
        + f"\n\n`{result['command']}`: mean and [least, most] of {len(result['seeds'])} seeds. {'; '.join(said)}."
    )


def _share(figure: dict[str, Any]) -> str:
    return f"{100 * figure['value']:.0f} % [{100 * figure['spread'][0]:.0f}, {100 * figure['spread'][1]:.0f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packs", nargs="*", default=list(PACKS), help=f"of {', '.join(PACKS)}; all by default")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="where the packs lie")
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "method", help="where the stages work")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stored = results.FOLDER / "method.json"
    done = {run["pack"]: run for run in results.load("method")["runs"]} if stored.is_file() else {}
    for name in arguments.packs:
        compared = Comparison(PACKS[name], arguments.data.absolute(), arguments.work.absolute())
        rows = compared.rows()
        source = compared.validation()
        done[name] = {
            "pack": name,
            "commit": artifacts.code_commit(),
            "rows": rows,
            "pretraining": compared.pretraining(),
            "lines": len(source),
            "documents": len(set(source.documents)),
            "data": source.artifact.version,
        }
    path = results.save(
        "method",
        command="python benchmarks/method.py",
        figures=figures(done),
        seeds=list(SEEDS),
        data={name: pack["data"] for name, pack in done.items()},
        runs=list(done.values()),
    )
    print(path)


if __name__ == "__main__":
    main()

"""Does masked pre-training help on real handwriting? `python benchmarks/method.py [--data FOLDER] [--jobs N] [PACK …]`

For each pack of lines: ingest (with the labelled lines of a related pack), validate, fit, quantize, pre-train, then
fine-tune scratch, transfer, pre-trained and both, by one rule for all: the same cap of steps, the same validations, the
best checkpoint on validation. Two learning rates are tried for each start on the first seed at the smaller budget, and the
better one on validation is kept for its other runs. On the printed pack the autoregressive decoder is held against CTC; it
brings no unlabelled lines, so that its labelled ones beyond the budget are taken without their texts. With
`--set codebook.features=encoder` a recogniser makes the labels of pre-training: for each budget the one that `transfer` comes to
with it at the first learning rate, so that no start knows of more labels than transfer does; with `--rounds 2` the one that
`both` comes to after that makes labels anew, and the starts that are pre-trained are made once more;
`--last-round pretrain.steps=15000` makes the last of them longer, and `--fine-tuning sweep.frozen=0.2` freezes encoders at
first in fine-tuning. All of it are the stages of maskocr in a work folder of its own, some at a time, so that a stop loses
nothing and nothing is made twice; hours on two cores. Every figure is of the validation lines: the test lines are not read.

Writes the packs that were asked for into `results/method.json`, beside those that are there; each says its commit. A pack that
was pre-trained otherwise, in rounds or settings, is another row.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import method_figures, results
from benchmarks.roads import Road
from maskocr_core import artifacts, config
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config
from maskocr_core.data.batches import Lines
from maskocr_core.judging import comparison
from maskocr_core.judging.comparison import Readings
from maskocr_core.training import device, reading

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


def laid_out(pack: Pack, data: Path, home: Path) -> Path:
    """The folder of a pack. One without unlabelled lines is laid out anew in `home`: those past its largest budget lose their texts."""
    if any("unlabeled" in path.name for path in (data / pack.name).glob("*.parquet")):
        return data / pack.name
    folder = home / "laid-out"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((data / pack.name).glob("*.parquet")):
        table = pq.read_table(path)
        if path.stem == "train":
            past = pc.greater_equal(table["order"], max(pack.budgets))
            table = _replaced(table, "split", pc.if_else(past, "unlabeled", table["split"]))
            table = _replaced(table, "text", pc.if_else(past, pa.scalar(None, pa.string()), table["text"]))
        pq.write_table(table, folder / path.name)
    return folder


def _replaced(table: pa.Table, name: str, values: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


@dataclass(frozen=True)
class Call:
    """One call of the stage `finetune`: a start with a budget and a decoder, by some learning rates and seeds."""

    start: str
    budget: int
    decoder: str
    rates: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def tries(self) -> bool:
        """Whether it is there to choose a learning rate."""
        return len(self.rates) > 1

    @property
    def name(self) -> str:
        return f"{'tried-' if self.tries else ''}{self.start}-{self.budget}-{self.decoder}"

    def overrides(self) -> list[str]:
        return [
            f'sweep.starts=["{self.start}"]',
            f"sweep.decoder={self.decoder}",
            f"sweep.budgets=[{self.budget}]",
            f"sweep.seeds={list(self.seeds)}",
            f"sweep.learning_rates={list(self.rates)}",
            "sweep.jobs=0",
        ]


def carry_out(call: Call, overrides: list[str], home: Path, encoder: Path) -> tuple[dict[str, Any], list[Readings]]:
    """What `runs.json` says of a call, and what its recognisers read of the validation lines; one thread, in a process of its own."""
    road, config = Road(home), settings(*overrides, *call.overrides())
    out, made = road.finetune(config, call.name, encoder)
    return made, [] if call.tries else reading.read_starts(out, made["runs"], road.validation(config))


class Comparison:
    """The four starts on one pack."""

    def __init__(
        self,
        pack: Pack,
        data: Path,
        work: Path,
        jobs: int,
        overrides: list[str],
        rounds: int = 1,
        last: Sequence[str] = (),
        tuning: Sequence[str] = (),
    ):
        self.pack, self.jobs, self.overrides, self.rounds, self.last = pack, jobs, overrides, rounds, last
        self.tuning = tuning
        self.road = Road(work / pack.name)
        # The rate is of the recogniser that makes labels: sweeps are given theirs.
        base = settings(f"sweep.learning_rates=[{RATES[0]}]", *overrides, "sweep.jobs=0")
        self.road.accept(base, laid_out(pack, data, self.road.home), data / pack.transfer)
        self.pretrained = {budget: self._pretrained(base, budget) for budget in pack.budgets}

    def _pretrained(self, base: Config, budget: int) -> tuple[Path, Path]:
        """Codebook and encoder for a budget; they hang on it where a recogniser makes the labels of pre-training.

        The paper's recogniser knows another domain alone. One that has seen the labels of this one is what a user has next,
        and describes its steps far better.
        """
        if base.codebook.features != "encoder":
            codebook = self.road.quantize(base, "codebook")
            return codebook, self.road.pretrain(base, "encoder", codebook)
        encoder = None
        for number in range(1, self.rounds + 1):
            name = f"{budget}" + (f"-round-{number}" if number > 1 else "")
            codebook = self.road.quantize(base, f"codebook-{name}", self.road.recogniser(base, budget, encoder))
            asked = settings(*self.overrides, *self.last, "sweep.jobs=0") if number == self.rounds else base
            encoder = self.road.pretrain(asked, f"encoder-{name}", codebook)
        return codebook, encoder

    def carried_out(self, calls: list[Call]) -> list[tuple[dict[str, Any], list[Readings]]]:
        """The calls, `jobs` of them at a time."""
        with ProcessPoolExecutor(self.jobs, mp_context=get_context("spawn")) as pool:
            waiting = [
                pool.submit(
                    carry_out, call, [*self.overrides, *self.tuning], self.road.home, self.pretrained[call.budget][1]
                )
                for call in calls
            ]
            return [one.result() for one in waiting]

    def tries(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """By start and decoder the runs that tried each learning rate, on the first seed at the smallest budget."""
        pairs = list(product(self.pack.starts, self.pack.decoders))
        smallest = min(self.pack.budgets)
        calls = [Call(start, smallest, decoder, RATES, SEEDS[:1]) for start, decoder in pairs]
        return {pair: made["runs"] for pair, (made, _) in zip(pairs, self.carried_out(calls))}

    def rows(self) -> list[dict[str, Any]]:
        """For each decoder and budget a row a start, held against scratch over the documents of validation.

        `tried`: what each learning rate came to, of which the better one on validation made the row.
        """
        tries, rows = self.tries(), []
        rates = {pair: next(run["learning_rate"] for run in runs if run["chosen"]) for pair, runs in tries.items()}
        calls = [
            Call(start, budget, decoder, (rates[start, decoder],), SEEDS)
            for decoder, budget, start in product(self.pack.decoders, self.pack.budgets, self.pack.starts)
        ]
        made = dict(zip(calls, self.carried_out(calls)))
        for decoder, budget in product(self.pack.decoders, self.pack.budgets):
            own = [call for call in calls if (call.decoder, call.budget) == (decoder, budget)]
            of_start = {call.start: made[call][0] for call in own}
            read = [readings for call in own for readings in made[call][1]]
            for row in self.compared(read, of_start):
                tried = [
                    {name: run[name] for name in ("learning_rate", "seed", "budget", "validation_cer")}
                    for run in tries[row["start"], decoder]
                ]
                rows.append({"budget": budget, "decoder": decoder, "tried": tried} | row)
        return rows

    def compared(self, read: list[comparison.Readings], made: dict[str, dict]) -> list[dict[str, Any]]:
        source, gate = self.validation(), settings().gate
        against = comparison.Test(source.texts, source.documents, gate.confidence, gate.min_documents)
        references = {row.start: row for row in read if row.start in ("scratch", "transfer")}
        rows, _ = comparison.compare(against, read, references["scratch"], None)
        for row, readings in zip(rows, read):
            runs = [run for run in made[row["start"]]["runs"] if run["chosen"]]
            row["learning_rate"] = runs[0]["learning_rate"]
            row["by_seed"] = {
                mark: [run["validation_cer"][mark] for run in runs] for mark in ("quarter", "half", "all")
            }
            row["curves"] = [run["curve"] for run in runs]
            row["cpu_minutes"] = sum(run["cpu_seconds"] for run in runs) / len(runs) / 60
            row["differences"] = {
                name: asdict(against.difference(readings.by_mark["all"], reference.by_mark["all"]))
                for name, reference in references.items()
                if reference is not readings
            }
        return rows

    def validation(self) -> Lines:
        return self.road.validation(settings())

    def pretraining(self) -> list[dict[str, Any]]:
        """What each pre-training came to along its way, what it cost, and the budgets that it served."""
        return [
            {
                "budgets": [budget for budget, made in self.pretrained.items() if made == (codebook, encoder)],
                "metrics": Artifact(encoder).metrics,
                "along": self.road.along(encoder),
                "codebook": Artifact(codebook).metrics,
            }
            for codebook, encoder in dict.fromkeys(self.pretrained.values())
        ]


def command(pack: str, arguments: argparse.Namespace) -> str:
    """What makes the rows of one pack again, wherever its lines and the work may lie."""
    words = ["python benchmarks/method.py", pack]
    for name in ("budgets", "starts"):
        if given := getattr(arguments, name):
            words += [f"--{name}", *map(str, given)]
    if arguments.rounds > 1:
        words += ["--rounds", str(arguments.rounds)]
    for name, changes in (
        ("set", arguments.set),
        ("last-round", arguments.last_round),
        ("fine-tuning", arguments.fine_tuning),
    ):
        words += [word for change in changes for word in (f"--{name}", shlex.quote(change))]
    return " ".join(words)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packs", nargs="*", default=list(PACKS), help=f"of {', '.join(PACKS)}; all by default")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="where the packs lie")
    parser.add_argument("--work", type=Path, default=ROOT / "work" / "method", help="where the stages work")
    parser.add_argument("--budgets", type=int, nargs="+", help="of labels; those of the pack by default")
    parser.add_argument("--starts", choices=STARTS, nargs="+", help="scratch among them; those of the pack by default")
    parser.add_argument("--rounds", type=int, default=1, help="of pre-training, where a recogniser makes its labels")
    parser.add_argument("--jobs", type=int, default=2, help="fine-tunings at a time, one thread each (default: 2)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="other than the recipe"
    )
    parser.add_argument(
        "--last-round",
        action="append",
        default=[],
        metavar="pretrain.FIELD=VALUE",
        help="other than the recipe in the last of the rounds alone",
    )
    parser.add_argument(
        "--fine-tuning",
        action="append",
        default=[],
        metavar="sweep.FIELD=VALUE",
        help="other than the recipe in fine-tuning alone, what makes labels left as it is",
    )
    arguments = parser.parse_args()
    if arguments.last_round and arguments.rounds < 2:
        parser.error("--last-round is for --rounds of 2 or more: --set changes the only one")
    return arguments


def main() -> None:
    arguments = parsed()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    done = {(run["pack"], *method_figures.told_apart(run)): run for run in results.earlier("method")["runs"]}
    for name in arguments.packs:
        whole = PACKS[name]
        pack = replace(
            whole,
            budgets=tuple(arguments.budgets or whole.budgets),
            starts=tuple(arguments.starts or whole.starts),
        )
        places = arguments.data.absolute(), arguments.work.absolute()
        compared = Comparison(
            pack, *places, arguments.jobs, arguments.set, arguments.rounds, arguments.last_round, arguments.fine_tuning
        )
        rows = compared.rows()
        source = compared.validation()
        made = {
            "pack": name,
            "command": command(name, arguments),
            "rounds": arguments.rounds,
            "commit": artifacts.code_commit(),
            "changes": arguments.set,
            "last_round": arguments.last_round,
            "fine_tuning": arguments.fine_tuning,
            "fine_tuned_on": device.name(),
            "rows": rows,
            "pretraining": compared.pretraining(),
            "lines": len(source),
            "documents": len(set(source.documents)),
            "data": source.artifact.version,
        }
        done[name, *method_figures.told_apart(made)] = made
    path = results.save(
        "method",
        command="python benchmarks/method.py",
        figures=method_figures.figures(list(done.values())),
        seeds=list(SEEDS),
        data={pack["pack"]: pack["data"] for pack in done.values()},
        runs=list(done.values()),
    )
    print(path)


if __name__ == "__main__":
    main()

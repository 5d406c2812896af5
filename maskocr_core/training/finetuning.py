"""One run of fine-tuning (or of training on transfer lines): a start, a budget of labels, a learning rate, a seed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config, Model, Training
from maskocr_core.data import batches, lines
from maskocr_core.judging import metrics
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import Vocabulary
from maskocr_core.training import checkpoint, objectives
from maskocr_core.training.log import TrainingLog
from maskocr_core.training.loop import fit

MARKS = {"quarter": 0.25, "half": 0.5, "all": 1.0}


@dataclass(frozen=True)
class Run:
    """What distinguishes one run of a sweep from another.

    name: how it is called in logs. splits: where its training and validation lines are. budget: labelled lines, 0 for
    all. encoder: folder of a pre-trained encoder, or None. recognizer: folder of a recogniser to go on from, or None.
    """

    name: str
    splits: tuple[str, str]
    budget: int
    learning_rate: float
    seed: int
    steps: int
    encoder: str | None = None
    recognizer: str | None = None

    def key(self, config: Config, data: Artifact, selection: Artifact, code: str) -> str:
        """Digest of all that decides the result, contents instead of paths: an equal run is never made twice."""
        facts = asdict(self) | {
            "encoder": Artifact(Path(self.encoder)).version if self.encoder else None,
            "recognizer": artifacts.sha256(Path(self.recognizer) / "recognizer.json") if self.recognizer else None,
            "config": config.digest(("data", "model")),
            "batch": config.sweep.batch,
            "validations": config.sweep.validations,
            "lines": data.version,
            "selection": selection.version,
            "code": code,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def train(run: Run, config: Config, data: Path, selection: Path, folder: Path) -> dict:
    """Carry out one run in `folder`, resuming what is there; returns and writes `result.json` when it is finished.

    Validates evenly over the steps on all validation lines and keeps, at ¼, ½ and all of the steps, the best recogniser
    so far, in `folder/<mark>/`. The result has the validation curve, CER at the marks, the CPU seconds and how many
    characters were new to the recogniser it started from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two sweeps may share a run; the second finds it finished
        finished = folder / "result.json"
        if not finished.is_file():
            artifacts.write_json(finished, _train(run, config, data, selection, folder))
        return json.loads(finished.read_text())


def _train(run: Run, config: Config, data: Path, selection: Path, folder: Path) -> dict:
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    artifact, chosen = Artifact(data), Artifact(selection)
    training_table = subset(lines.selected(artifact, chosen, run.splits[0]), run.budget)
    source = batches.Lines(artifact, training_table, config.data)
    validation = batches.Lines(artifact, lines.selected(artifact, chosen, run.splits[1]), config.data)
    recognizer, model, new_characters = _start(run, config, Vocabulary.of(source.texts, config.data.direction))
    settings = Training(
        steps=run.steps,
        batch=config.sweep.batch,
        learning_rate=run.learning_rate,
        seed=run.seed,
        checkpoint_every=max(1, run.steps // config.sweep.validations),
    )
    curve = Curve(folder, run, recognizer, model, validation)
    log = TrainingLog(folder / "log.jsonl")

    def stream(first: int):
        return batches.training(source, batch=settings.batch, seed=run.seed, first_step=first, augment=True)

    figures = fit(
        objectives.Recognition(recognizer),
        stream,
        settings,
        checkpoint.Checkpoints(folder / "checkpoints"),
        log=lambda step, row: log.add(step, row | curve.last()),
        after=curve.validate,
    )
    return {
        **{name: getattr(run, name) for name in ("name", "budget", "learning_rate", "seed", "steps")},
        "lines": len(source),
        "new_characters": new_characters,
        "curve": curve.points,
        "validation_cer": curve.at_marks(),
        **{name: figures[name] for name in ("cpu_seconds", "resumed_at", "loss")},
    }


class Curve:
    """Validation along a run: the points, and the best recogniser so far at each mark. Kept on disk beside the run."""

    def __init__(self, folder: Path, run: Run, recognizer: Recognizer, model: Model, validation: batches.Lines):
        self.folder, self.run, self.recognizer, self.model, self.validation = folder, run, recognizer, model, validation
        path = folder / "curve.json"
        self.points: list[list[float]] = json.loads(path.read_text()) if path.is_file() else []

    def validate(self, step: int) -> None:
        """Measure validation CER after `step` steps; on a resume the points from there on are measured again."""
        self.points = [point for point in self.points if point[0] < step]
        before = min((cer for _, cer in self.points), default=math.inf)
        texts, _ = read(self.recognizer, self.validation)
        errors = metrics.line_errors(self.validation.texts, texts)
        cer = round(metrics.cer(errors.edits, errors.characters), 5)
        self.points.append([step, cer])
        if cer < before:
            geometry = self.validation.data
            for mark, share in MARKS.items():
                if step <= math.ceil(share * self.run.steps):
                    checkpoint.save_recognizer(
                        self.recognizer, self.model, geometry.height, geometry.max_width, self.folder / mark
                    )
        artifacts.write_json(self.folder / "curve.json", self.points)

    def last(self) -> dict[str, float]:
        return {"validation_cer": self.points[-1][1]} if self.points else {}

    def at_marks(self) -> dict[str, float]:
        """Lowest CER up to each mark."""
        return {
            mark: min(cer for step, cer in self.points if step <= math.ceil(share * self.run.steps))
            for mark, share in MARKS.items()
        }


def read(recognizer: Recognizer, source: batches.Lines, say=lambda done: None) -> tuple[list[str], list[float]]:
    """Texts and confidences of all lines, in the order of `source`."""
    recognizer.eval()
    texts, confidences = [""] * len(source), [0.0] * len(source)
    done = 0
    for places, batch in source.in_order(32):
        for place, text, confidence in zip(places, *recognizer.read(batch.ink, batch.valid)):
            texts[place], confidences[place] = text, confidence
        done += len(places)
        say(done)
    return texts, confidences


def subset(table: pa.Table, budget: int) -> pa.Table:
    """The first `budget` lines in the nested order that the data bring, else by a hash of document, then line.

    Smaller budgets are subsets of larger ones; 0 is all of them, as is a budget beyond what is there.
    """
    if not budget or budget >= table.num_rows:
        return table
    if table["order"].null_count:
        keys = [
            hashlib.sha256(document.encode()).hexdigest() + line
            for document, line in zip(table["document_id"].to_pylist(), table["line_id"].to_pylist())
        ]
        order = np.argsort(np.array(keys))
    else:
        order = pc.sort_indices(table, [("order", "ascending"), ("line_id", "ascending")])
    return table.take(order[:budget]).sort_by("line_id")


def _start(run: Run, config: Config, vocabulary: Vocabulary) -> tuple[Recognizer, Model, int]:
    """The recogniser that a run starts from, its sizes (a given one keeps its own), and how many characters are new to it."""
    if run.recognizer:
        recognizer, facts = checkpoint.load_recognizer(Path(run.recognizer))
        if facts["height"] != config.data.height:
            raise ValueError(
                f"{run.recognizer} reads lines {facts['height']} px high, these are {config.data.height} px: "
                f"set data.height={facts['height']}, or give another recognizer"
            )
        checkpoint.demand_direction(facts, config.data.direction, f"{run.recognizer} reads", "give another recognizer")
        wider, new_characters = recognizer.widened(vocabulary)
        return wider, Model(**facts["model"]), new_characters
    if run.encoder:
        encoder = checkpoint.load_encoder(
            Artifact(Path(run.encoder)), config.model, config.data.height, config.data.direction
        )
    else:
        encoder = checkpoint.new_encoder(config.model, config.data.height)
    return Recognizer(encoder, vocabulary, config.data.direction), config.model, len(vocabulary) - 1

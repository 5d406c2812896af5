"""One run of fine-tuning (or of training on transfer lines): a start, a budget of labels, a learning rate, a seed."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.config import Config, Model, Training
from maskocr_core.data import admitted, batches, budgets
from maskocr_core.judging import metrics
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import Vocabulary
from maskocr_core.services import disk
from maskocr_core.services.post import LOG
from maskocr_core.training import checkpoint, device
from maskocr_core.training.checkpoints import Checkpoints
from maskocr_core.training.kept_runs import CHECKPOINTS, CURVE, RESULT, KeptRun
from maskocr_core.training.log import TrainingLog
from maskocr_core.training.loop import fit
from maskocr_core.training.recognition import Recognition

MARKS = {"quarter": 0.25, "half": 0.5, "all": 1.0}


@dataclass(frozen=True)
class Run:
    """What distinguishes one run of a sweep from another.

    name: how it is called in logs. splits: where its training and validation lines are. budget: labelled lines, 0 for
    all. encoder: folder of a pre-trained encoder, or None. recognizer: folder of a recogniser to go on from, or None.
    size: as `pretrain.sizes` has them, or empty for that of `model`; a given recogniser keeps its own.
    """

    name: str
    splits: tuple[str, str]
    budget: int
    learning_rate: float
    seed: int
    steps: int
    encoder: str | None = None
    recognizer: str | None = None
    size: str = ""

    def gentleness(self, config: Config) -> dict[str, float]:
        """How a trained encoder is spared at first, as `Recognition` takes it; one that starts at random is not."""
        if self.encoder or self.recognizer:
            return {"layer_decay": config.sweep.layer_decay, "frozen": config.sweep.frozen}
        return {}

    def remedies(self, config: Config) -> dict[str, float]:
        """What is done against forgetting, for a run that goes on from a trained recogniser."""
        return {"replay": config.sweep.replay, "average": config.sweep.average} if self.recognizer else {}

    def key(self, config: Config, lines: str, selection: str, code: str) -> str:
        """Digest of all that decides the result, contents instead of paths: an equal run is never made twice.

        lines, selection: their data versions, that of lines as `data.lines.version` tells it: what was forgotten is no part of it.
        """
        facts = asdict(self) | {
            "encoder": Artifact(Path(self.encoder)).version if self.encoder else None,
            "recognizer": artifacts.sha256(Path(self.recognizer) / "recognizer.json") if self.recognizer else None,
            "config": config.digest(("data", "model")),
            "batch": config.sweep.batch,
            "validations": config.sweep.validations,
            "decoder": config.sweep.decoder,
            "gentleness": self.gentleness(config),
            "remedies": self.remedies(config),
            "lines": lines,
            "selection": selection,
            "code": code,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def train(run: Run, config: Config, data: Path, selection: Path, folder: Path) -> dict:
    """Carry out one run in `folder`, resuming what is there; returns and writes `result.json` when it is finished.

    Validates evenly over the steps on all validation lines and keeps, at ¼, ½ and all of the steps, the best recogniser
    so far, in `folder/<mark>/`. The result has the validation curve, CER at the marks, the seconds of processors and GPUs and
    how many characters were new to the recogniser it started from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = KeptRun(folder)
    with disk.locked(folder / ".lock"):  # two sweeps may share a run; the second finds it finished
        kept.bring()
        finished = folder / RESULT
        if not finished.is_file():
            artifacts.write_json(finished, _train(run, config, data, selection, kept))
        if not kept.is_kept():  # nor was it if the process was killed here before
            # All of it once more: an attempt that did not know of this one may have put something of its own there.
            kept.keep(*MARKS, CURVE, LOG, RESULT)
        return json.loads(finished.read_text())


def _train(run: Run, config: Config, data: Path, selection: Path, kept: KeptRun) -> dict:
    folder = kept.folder
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    artifact, chosen = Artifact(data), Artifact(selection)
    training_table = budgets.nested(
        admitted.selected(artifact, chosen, run.splits[0]), run.budget, config.data.split_unit
    )
    source = batches.Lines(artifact, training_table, config.data)
    drawn = batches.Lines(artifact, _with_old(training_table, run, config, artifact, chosen), config.data)
    validation = batches.Lines(artifact, admitted.selected(artifact, chosen, run.splits[1]), config.data)
    recognizer, model, new_characters = _start(run, config, Vocabulary.of(source.texts, config.data.direction))
    settings = Training(
        steps=run.steps,
        batch=config.sweep.batch,
        learning_rate=run.learning_rate,
        seed=run.seed,
        checkpoint_every=max(1, run.steps // config.sweep.validations),
        shares=1,
    )
    # A head that is new says nothing yet which would be worth remembering.
    part = "encoder." if new_characters == len(recognizer.vocabulary.characters) else ""
    curve = Curve(kept, run, recognizer, model, validation, run.remedies(config).get("average", 0.0), part)
    log = TrainingLog(folder / LOG)

    def stream(first: int, bookmark: batches.Bookmark):
        return batches.training(
            drawn,
            batch=settings.batch,
            seed=run.seed,
            first_step=first,
            bookmark=bookmark,
            augment=True,
            **device.feeding(),
        )

    figures = fit(
        Recognition(recognizer, **run.gentleness(config)),
        stream,
        settings,
        Checkpoints(folder / CHECKPOINTS, kept.checkpoints, (log.path,)),
        log=lambda step, row: log.add(step, row | curve.last()),
        after=curve.validate,
    )
    return {
        **{name: getattr(run, name) for name in ("name", "budget", "learning_rate", "seed", "steps")},
        "lines": len(source),
        "decoder": recognizer.decoder,
        "size": model.size,
        "encoder_parameters": sum(weight.numel() for weight in recognizer.encoder.parameters()),
        "new_characters": new_characters,
        "curve": curve.points,
        "validation_cer": curve.at_marks(),
        **{name: figures[name] for name in ("cpu_seconds", "gpu_seconds", "resumed_at", "loss")},
    }


def _with_old(table: pa.Table, run: Run, config: Config, artifact: Artifact, selection: Artifact) -> pa.Table:
    """The lines of fine-tuning with those among them that are replayed: in the mean `sweep.replay` of what is drawn.

    Replay: Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", 1995.
    """
    share = run.remedies(config).get("replay", 0.0)
    old = admitted.selected(artifact, selection, "transfer-train") if share else table.slice(0, 0)
    if not old.num_rows:
        return table
    weight = min(1.0, share / (1 - share) * table.num_rows / old.num_rows)
    weights = pa.array(np.full(old.num_rows, weight, np.float32))
    old = old.set_column(old.schema.get_field_index("weight"), table.schema.field("weight"), weights)
    return pa.concat_tables([table, old])


class Curve:
    """Validation along a run: the points, and the best recogniser so far at each mark. Kept on disk beside the run.

    average: share of the weights that the recogniser has now, before training, in those that are validated and kept
    (Wortsman et al., "Robust fine-tuning of zero-shot models", arXiv 2109.01903). part: how the names of the weights begin
    of which that is so.
    """

    def __init__(
        self,
        kept: KeptRun,
        run: Run,
        recognizer: Recognizer,
        model: Model,
        validation: batches.Lines,
        average: float = 0.0,
        part: str = "",
    ):
        self.kept, self.run, self.recognizer, self.model, self.validation = kept, run, recognizer, model, validation
        self.folder = kept.folder
        self.average = average
        weights = recognizer.state_dict() if average else {}
        self.before = {
            name: value.clone()
            for name, value in weights.items()
            if name.startswith(part) and value.is_floating_point()
        }
        path = self.folder / CURVE
        self.points: list[list[float]] = json.loads(path.read_text()) if path.is_file() else []

    def validate(self, step: int) -> dict[str, float]:
        """Measure validation CER after `step` steps; on a resume the points from there on are measured again."""
        self.points = [point for point in self.points if point[0] < step]
        before = min((cer for _, cer in self.points), default=math.inf)
        recognizer = self._averaged()
        texts, _ = read(recognizer, self.validation)
        errors = metrics.line_errors(self.validation.texts, texts)
        cer = round(metrics.cer(errors.edits, errors.characters), 5)
        self.points.append([step, cer])
        if cer < before:
            for mark, share in MARKS.items():
                if step <= math.ceil(share * self.run.steps):
                    checkpoint.save_recognizer(recognizer, self.model, self.validation.data, self.folder / mark)
                    self.kept.keep(mark)
        artifacts.write_json(self.folder / CURVE, self.points)
        self.kept.keep(CURVE)
        return self.last()

    def _averaged(self) -> Recognizer:
        if not self.average:
            return self.recognizer
        recognizer = copy.deepcopy(self.recognizer)
        weights = recognizer.state_dict()
        for name, value in self.before.items():
            weights[name].lerp_(value.to(weights[name]), self.average)
        return recognizer

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
    where = next(recognizer.parameters()).device
    texts, confidences = [""] * len(source), [0.0] * len(source)
    done = 0
    for places, batch in source.in_order(32):
        batch = device.moved(batch, where)
        for place, text, confidence in zip(places, *recognizer.read(batch.ink, batch.valid)):
            texts[place], confidences[place] = text, confidence
        done += len(places)
        say(done)
    return texts, confidences


def demand_recognizer(facts: dict[str, Any], folder: Path | str, config: Config) -> None:
    """Raises ValueError unless the recogniser in a folder read lines prepared as these are."""
    checkpoint.demand_such_lines(facts, config.data, f"{folder} reads", "give another recognizer")


def _start(run: Run, config: Config, vocabulary: Vocabulary) -> tuple[Recognizer, Model, int]:
    """The recogniser that a run starts from, its sizes (a given one keeps its own), and how many characters are new to it.

    A given recogniser with another decoder than `sweep.decoder` gives its encoder; a new head begins at random upon it.
    """
    data, decoder = config.data, config.sweep.decoder
    if not run.recognizer:
        model = config.model.sized(run.size)
        if run.encoder:
            encoder = checkpoint.load_encoder(Artifact(Path(run.encoder)), model, data)
        else:
            encoder = checkpoint.new_encoder(model, data.height)
        return Recognizer(encoder, vocabulary, data.direction, decoder), model, len(vocabulary.characters)
    given, facts = checkpoint.load_recognizer(Path(run.recognizer))
    demand_recognizer(facts, run.recognizer, config)
    model = Model(**facts["model"])
    if given.decoder != decoder:
        print(f"{run.recognizer} has the decoder {given.decoder!r}: its encoder is taken, the head is new", flush=True)
        return Recognizer(given.encoder, vocabulary, data.direction, decoder), model, len(vocabulary.characters)
    wider, new_characters = given.widened(vocabulary)
    return wider, model, new_characters

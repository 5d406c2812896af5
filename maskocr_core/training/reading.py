"""Reading lines with the recognisers of a sweep, and what the comparison shows of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.data.batches import Lines
from maskocr_core.judging import metrics
from maskocr_core.judging.comparison import Readings
from maskocr_core.training import calibrating, checkpoint
from maskocr_core.training.finetuning import MARKS

PREDICTIONS = pa.schema(
    [
        ("line_id", pa.string()),
        ("document_id", pa.string()),
        ("start", pa.string()),
        ("repetition", pa.int32()),
        ("reference", pa.string()),
        ("read", pa.string()),
        ("edits", pa.int32()),
        ("characters", pa.int32()),
        ("confidence", pa.float32()),  # as the recogniser gives it, not calibrated
    ]
)


def read_with(folder: Path, source: Lines, what: str) -> tuple[list[str], list[float]]:
    """Texts and raw confidences of all lines as the recogniser in `folder` reads them, prepared as its own training lines were."""
    return calibrating.readings(*checkpoint.load_recognizer(folder), source, f"evaluate {what}")


def read_starts(recognizers: Path, runs: list[dict], source: Lines, marks: Iterable[str] = MARKS) -> list[Readings]:
    """What each start reads at ¼, ½ and all of its steps, or at some of these, for every seed of its largest budget."""
    return _read([run for run in runs if run["chosen"]], recognizers, source, marks)


def read_smaller_budgets(recognizers: Path, runs: list[dict], source: Lines) -> list[Readings]:
    """What each start that was fine-tuned on fewer lines reads at the end, for every seed."""
    return _read([run for run in runs if run["kept"] and not run["chosen"]], recognizers, source, ("all",))


def _read(runs: list[dict], recognizers: Path, source: Lines, marks: Iterable[str]) -> list[Readings]:
    found = []
    for start, lines in dict.fromkeys((run["name"], run["lines"]) for run in runs):
        own = [run for run in runs if (run["name"], run["lines"]) == (start, lines)]
        read = {
            mark: [read_with(recognizers / run["kept"] / mark, source, f"{start} {lines:,}, {mark}") for run in own]
            for mark in marks
        }
        texts = {mark: [texts for texts, _ in of_mark] for mark, of_mark in read.items()}
        found.append(Readings(start, texts, lines, tuple(confidences for _, confidences in read["all"])))
    return found


@dataclass(frozen=True)
class Candidate:
    """The one recogniser that may be registered: its start, seed and folder, and its place among the seeds of that start."""

    start: str
    seed: int
    folder: str
    repetition: int

    def of(self, readings: Readings) -> Readings:
        """What it alone read, of the readings of its start."""
        texts = {mark: [of_seeds[self.repetition]] for mark, of_seeds in readings.by_mark.items()}
        return replace(readings, by_mark=texts, confidences=readings.confidences[self.repetition :][:1])


def candidate(runs: list[dict]) -> Candidate:
    """Of the start that is best on validation in the mean over seeds the recogniser that is best there: the test lines choose
    nothing."""
    by_start: dict[str, list[dict]] = {}
    for run in runs:
        if run["chosen"]:
            by_start.setdefault(run["name"], []).append(run)
    rate = lambda run: run["validation_cer"]["all"]  # noqa: E731
    mine = min(by_start.values(), key=lambda own: sum(map(rate, own)) / len(own))
    best = min(mine, key=rate)
    return Candidate(best["name"], best["seed"], best["kept"], mine.index(best))


def with_costs(row: dict[str, Any], runs: dict[str, Any]) -> dict[str, Any]:
    """A row of the comparison with its budget, learning rate, validation curve, and minutes; pre-training and transfer apart."""
    mine = [run for run in runs["runs"] if run["chosen"] and run["name"] == row["start"]]
    return row | {
        "budget": mine[0]["lines"],
        "size": mine[0]["size"],
        "learning_rate": mine[0]["learning_rate"],
        "curve": mine[0]["curve"],
        "steps": mine[0]["steps"],
        "validation_cer": sum(run["validation_cer"]["all"] for run in mine) / len(mine),
        "new_characters": mine[0]["new_characters"],
        "cpu_minutes": _minutes("cpu", mine, runs),
        "gpu_minutes": _minutes("gpu", mine, runs),
    }


def _minutes(of: str, mine: list[dict[str, Any]], runs: dict[str, Any]) -> dict[str, float]:
    """Minutes of processors or GPUs of runs of one start and size: of fine-tuning in the mean, and of what came before, once.

    Recognisers of an earlier version say nothing of GPUs.
    """
    start, size = mine[0]["name"], mine[0]["size"]
    bases = [run for run in runs["transfer"] if (run["name"], run["size"]) == (f"{start} base", size)]
    return {
        "finetune": sum(run.get(f"{of}_seconds", 0.0) for run in mine) / len(mine) / 60,
        "pretrain": runs.get(f"pretrain_{of}_minutes", {}).get(size, 0.0) if start in ("pretrained", "both") else 0.0,
        "transfer": sum(run.get(f"{of}_seconds", 0.0) for run in bases) / 60,
    }


def sizes(runs: dict[str, Any]) -> list[dict[str, Any]]:
    """Where encoders of several sizes were compared: each start in each size at the largest budget and its best learning rate.

    Rows of {start, size, encoder_parameters, learning_rate, validation_cer: {value, low, high} (mean, least and most of
    the seeds), cpu_minutes: {finetune, pretrain, transfer}, kept: whether it stands for its start}; nothing for one size.
    """
    if len({run["size"] for run in runs["runs"]}) < 2:
        return []
    rows = []
    for start, size in dict.fromkeys((run["name"], run["size"]) for run in runs["runs"]):
        of_start = [run for run in runs["runs"] if run["name"] == start]
        most = max(run["budget"] for run in of_start)
        by_rate: dict[float, list[dict[str, Any]]] = {}
        for run in of_start:
            if (run["size"], run["budget"]) == (size, most):
                by_rate.setdefault(run["learning_rate"], []).append(run)
        mine = min(by_rate.values(), key=lambda tried: sum(run["validation_cer"]["all"] for run in tried))
        rates = [run["validation_cer"]["all"] for run in mine]
        rows.append(
            {name: mine[0][name] for name in ("size", "encoder_parameters", "learning_rate")}
            | {
                "start": start,
                "validation_cer": {"value": sum(rates) / len(rates), "low": min(rates), "high": max(rates)},
                "cpu_minutes": _minutes("cpu", mine, runs),
                "kept": any(run["chosen"] for run in mine),
            }
        )
    return rows


def examples(source: Lines, readings: list[Readings], candidate: Readings) -> list[dict[str, Any]]:
    """Four lines, with their image and what every start read (its first seed; of the candidate's start the candidate).

    They are a typical one, a hard one, and the two worst for the candidate: they stand at a half and nine tenths of the
    lines in the order of the candidate's CER, and at its end.
    """
    readings = [candidate if reading.start == candidate.start else reading for reading in readings]
    errors = metrics.line_errors(source.texts, candidate.by_mark["all"][0])
    rates = errors.edits / errors.characters.clip(min=1)
    order = sorted(range(len(source)), key=lambda place: (rates[place], source.line_ids[place]))
    wanted = [round(0.5 * (len(order) - 1)), round(0.9 * (len(order) - 1)), len(order) - 2, len(order) - 1]
    places = [order[place] for place in dict.fromkeys(max(0, place) for place in wanted)]
    return [
        {
            "reference": source.texts[place],
            "start_name": reading.start,
            "read": reading.by_mark["all"][0][place],
            "line_id": source.line_ids[place],
            "image_png": _png(source, place),
        }
        for place in places
        for reading in readings
    ]


PICTURES = "pretraining"  # folder of the pictures of pre-training beside the recognisers


def keep_pictures(encoder: Artifact, recognizers: Path) -> None:
    """Keep the encoder's pictures of the labels, of the first look and of the last beside the recognisers that came of it."""
    names = sorted(name for name in encoder.names() if name.startswith("pictures/"))
    looks = [name for name in names if Path(name).name.startswith("step-")]
    kept = [name for name in names if name not in looks[1:-1]]
    for name in kept:
        artifacts.write_bytes(recognizers / PICTURES / Path(name).name, encoder.read_bytes(name))
    if kept:
        shown = encoder.read_json("shown.json")
        here = {f"{PICTURES}/{Path(name).name}": shown[name] for name in kept if name in shown}
        artifacts.write_json(recognizers / "shown.json", here)


def pictures(recognizers: Artifact) -> list[dict[str, str]]:
    """Title and PNG, as base64, of each picture that `keep_pictures` kept."""
    found = []
    for name in sorted(name for name in recognizers.names() if name.startswith(f"{PICTURES}/")):
        step = Path(name).stem.removeprefix("step-").lstrip("0")
        title = (
            "The mean ink of the labels that come most often."
            if step == "codebook"
            else f"After {int(step):,} steps: lines as they are, as the model sees them, and with the labels that it predicts."
        )
        found.append({"title": title, "png": base64.b64encode(recognizers.read_bytes(name)).decode()})
    return found


def pictured(recognizers: Artifact) -> set[str]:
    """Ids of the lines that the kept pictures show."""
    shown = recognizers.read_json("shown.json") if "shown.json" in recognizers.names() else {}
    return {line for lines in shown.values() for line in lines}


def notes(lines: Artifact, runs: dict[str, Any]) -> list[str]:
    """What a reader of the numbers must know."""
    refused = int(lines.metrics["refused"])
    said = [
        f"The start was chosen on validation lines; the test lines decided nothing. Every start had the same {runs['runs'][0]['steps']:,} steps."
    ]
    if len({run["seed"] for run in runs["runs"]}) < 3:
        said.append("Fewer than three seeds: differences between starts include the luck of one run.")
    said.append(
        "Pre-training and transfer training were run once, whatever the number of seeds: their luck is in no interval. "
        "The intervals of several starts are each at the stated confidence, not all together."
    )
    given = sorted({model for model in runs.get("origins", {}).values() if model})
    if given:
        said.append(
            f"Models from outside are taken as they are, and what they cost is in no figure: {', '.join(given)}."
        )
    if refused:
        said.append(f"{refused:,} items were refused at ingest; refused.parquet lists them.")
    return said


def predictions(source: Lines, readings: list[Readings]) -> pa.Table:
    """All readings at the last mark as a narrow table keyed by line id."""
    columns = [
        (reading.start, repetition, texts, confidences)
        for reading in readings
        for repetition, (texts, confidences) in enumerate(zip(reading.by_mark["all"], reading.confidences))
    ]
    rows = []
    for start, repetition, texts, confidences in columns:
        errors = metrics.line_errors(source.texts, texts)
        for place, text in enumerate(texts):
            rows.append(
                {
                    "line_id": source.line_ids[place],
                    "document_id": source.documents[place],
                    "start": start,
                    "repetition": repetition,
                    "reference": source.texts[place],
                    "read": text,
                    "edits": int(errors.edits[place]),
                    "characters": int(errors.characters[place]),
                    "confidence": confidences[place],
                }
            )
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def _png(source: Lines, place: int) -> str:
    from PIL import Image

    pixels = source.pixels(place)
    if source.data.direction == "rtl":
        pixels = pixels[:, ::-1]  # a person sees the line as it stands on the page
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()

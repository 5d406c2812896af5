"""Reading lines with the recognisers of a sweep, and what the comparison shows of it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import pyarrow as pa

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.data.batches import Lines
from maskocr_core.judging import metrics
from maskocr_core.judging.comparison import Readings
from maskocr_core.progress import Progress
from maskocr_core.training import checkpoint, finetuning

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
    ]
)


def read_with(folder: Path, source: Lines, what: str) -> list[str]:
    """Texts of all lines as the recogniser in `folder` reads them, prepared as its own training lines were."""
    recognizer, facts = checkpoint.load_recognizer(folder)
    geometry = source.data.model_copy(update={name: facts[name] for name in checkpoint.PREPARED})
    if geometry != source.data:
        source = source.with_geometry(geometry)
    progress = Progress(f"evaluate {what}", total=len(source))
    return finetuning.read(recognizer, source, progress.update)[0]


def read_starts(recognizers: Path, runs: list[dict], source: Lines) -> list[Readings]:
    """What each start reads at ¼, ½ and all of its steps, for every seed."""
    chosen = [run for run in runs if run["chosen"]]
    starts = list(dict.fromkeys(run["name"] for run in chosen))
    return [
        Readings(
            start,
            {
                mark: [
                    read_with(recognizers / f"{start}-{run['seed']}" / mark, source, f"{start}, {mark}")
                    for run in chosen
                    if run["name"] == start
                ]
                for mark in finetuning.MARKS
            },
        )
        for start in starts
    ]


def candidate(runs: list[dict]) -> str:
    """The start that is best on validation (mean over seeds): the test lines choose nothing."""
    by_start: dict[str, list[float]] = {}
    for run in runs:
        if run["chosen"]:
            by_start.setdefault(run["name"], []).append(run["validation_cer"]["all"])
    return min(by_start, key=lambda start: sum(by_start[start]) / len(by_start[start]))


def with_costs(row: dict[str, Any], runs: dict[str, Any]) -> dict[str, Any]:
    """A row of the comparison with its budget, learning rate, validation curve and CPU minutes; pre-training and transfer apart."""
    mine = [run for run in runs["runs"] if run["chosen"] and run["name"] == row["start"]]
    base = next((run for run in runs["transfer"] if run["name"] == f"{row['start']} base"), None)
    minutes = {
        "finetune": sum(run["cpu_seconds"] for run in mine) / len(mine) / 60,
        "pretrain": runs["pretrain_cpu_minutes"] if row["start"] in ("pretrained", "both") else 0.0,
        "transfer": base["cpu_seconds"] / 60 if base else 0.0,
    }
    return row | {
        "budget": mine[0]["lines"],
        "learning_rate": mine[0]["learning_rate"],
        "curve": mine[0]["curve"],
        "steps": mine[0]["steps"],
        "validation_cer": sum(run["validation_cer"]["all"] for run in mine) / len(mine),
        "new_characters": mine[0]["new_characters"],
        "cpu_minutes": minutes,
    }


def examples(source: Lines, readings: list[Readings], candidate: str) -> list[dict[str, Any]]:
    """Three lines, with their image and what every start read: easy, typical and hard for the candidate.

    They stand at a tenth, a half and nine tenths of the lines in the order of the candidate's CER.
    """
    texts = next(reading for reading in readings if reading.start == candidate).by_mark["all"][0]
    errors = metrics.line_errors(source.texts, texts)
    rates = errors.edits / errors.characters.clip(min=1)
    order = sorted(range(len(source)), key=lambda place: (rates[place], source.line_ids[place]))
    places = [order[round(share * (len(order) - 1))] for share in (0.1, 0.5, 0.9)]
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
    if refused:
        said.append(f"{refused:,} items were refused at ingest; refused.parquet lists them.")
    return said


def predictions(source: Lines, readings: list[Readings], champion: list[str] | None) -> pa.Table:
    """All readings at the last mark as a narrow table keyed by line id; the champion's under start `champion`."""
    columns = [
        (reading.start, repetition, texts)
        for reading in readings
        for repetition, texts in enumerate(reading.by_mark["all"])
    ]
    if champion is not None:
        columns.append(("champion", 0, champion))
    rows = []
    for start, repetition, texts in columns:
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

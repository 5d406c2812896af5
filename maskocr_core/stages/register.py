"""register: recogniser + scores → a model version in MLflow that reads what was evaluated."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from maskocr_core.config import Config
from maskocr_core.stages import scratch, stage

if TYPE_CHECKING:
    import pandas as pd

    from maskocr_core.training.reading import Candidate

CHECKED_LINES = 64  # evenly over the test lines; of many thousands one could differ by nothing but how a batch rounds


@stage(reads=("data", "registry"), reuse=False)
def register(
    config: Config, *, lines: Path, recognizers: Path, evaluation: Path, registration_out: Path
) -> dict[str, float]:
    """Log the comparison and register the candidate; alias `challenger` unless the verdict is hold. A person promotes.

    The verdict also goes to the ledger, and who decides is told of a new challenger. A model that is registered with this
    very evaluation, by a run that died afterwards, is not registered again.

    lines: shards as ingest writes them.
    recognizers: the best recognizers of each start, as finetune writes them.
    evaluation: summary, predictions and report, as evaluate writes them.
    registration_out: `registration.json`: model, version, verdict and the MLflow runs.
    """
    import pandas as pd

    from maskocr_core import artifacts, promotion
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import lines as schema
    from maskocr_core.judging import model_card
    from maskocr_core.services import compared, notify, registered, tracking
    from maskocr_core.training import papers, reading

    tracking.check()
    promotion.notice(config.registry)  # first, since no version is to be made that the ledger cannot take
    content = Artifact(evaluation).read_bytes("summary.json")
    summary, digest = json.loads(content), hashlib.sha256(content).hexdigest()
    verdict = summary["verdict"]
    runs = Artifact(recognizers).read_json("runs.json")["runs"]
    chosen = reading.candidate(runs)
    fetched = scratch(registration_out)
    ids = compared.log(
        config.registry, summary, Artifact(evaluation).local(fetched / "evaluation"), {"recipe": config.recipe}, runs
    )
    same = {"verdict_digest": digest, "recognizers_version": Artifact(recognizers).version}
    version = registered.version_with(config.registry, same)
    if version and promotion.is_recorded(config.registry, version, digest):
        print(f"register: version {version} is this model with this verdict: nothing is registered twice", flush=True)
        alias = "challenger" if registered.version_of(config.registry, "challenger") == version else None
    else:
        home = Artifact(recognizers).local(fetched / "recognizers") / chosen.folder
        wanted = _evaluated(evaluation, chosen)
        # One without a verdict is what a run left that died before it wrote that down.
        version = version or registered.log_model(
            config.registry,
            ids[chosen.start],
            {"recognizer": home / "all", "saw": home / "saw.json"}
            | papers.write(
                config, Artifact(lines), Artifact(recognizers), Artifact(evaluation), chosen, fetched / "papers"
            ),
            pd.DataFrame({"image": [_nobodys_line()]}),
            pd.DataFrame({"image": schema.images_of(Artifact(lines), "test", wanted["line_id"].tolist())}),
            lambda output: _demand_same(wanted, output),
            same,
        )
        alias = None if verdict["verdict"] == "hold" else "challenger"
        registered.describe_version(config.registry, version, _tags(summary), model_card.shown(summary), alias)
        promotion.record_verdict(
            config.registry, version, verdict["verdict"], digest, verdict["reason"], alias, summary["champion"]
        )
    artifacts.write_json(
        registration_out / "registration.json",
        {
            "model": config.registry.model,
            "version": version,
            "alias": alias,
            "verdict": verdict["verdict"],
            "start": chosen.start,
            "seed": chosen.seed,
            "tracking_uri": tracking.uri(),
            "parent_run": tracking.run_id(config.registry),
            "runs": ids,
        },
    )
    print(
        f"register: {config.registry.model} version {version} ({chosen.start}, seed {chosen.seed}), verdict {verdict['verdict']}"
        + (f", alias {alias}" if alias else ""),
        flush=True,
    )
    if alias:
        notify.new_challenger(config.registry.model, version, verdict["verdict"], verdict["reason"])
    return {"version": float(version)}


def _evaluated(evaluation: Path, chosen: Candidate) -> pd.DataFrame:
    """What the candidate was found to read of some test lines, evenly over all: `line_id` and `read`, a row a line."""
    from maskocr_core.artifacts import Artifact
    from maskocr_core.data import lines as schema

    predictions = schema.read_table(Artifact(evaluation), "predictions.parquet").to_pandas()
    mine = (predictions["start"] == chosen.start) & (predictions["repetition"] == chosen.repetition)
    return predictions[mine].iloc[:: -(-mine.sum() // CHECKED_LINES)]


def _nobodys_line() -> bytes:
    """The example that MLflow shows with a model: a bar on white, since a real line would have to be forgotten some day."""
    import io

    import numpy as np
    from PIL import Image

    pixels = np.full((40, 320), 255, np.uint8)
    pixels[16:24, 40:280] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _demand_same(wanted: pd.DataFrame, output: pd.DataFrame) -> None:
    """Raises ValueError unless the logged model reads exactly what was evaluated."""
    differing = [line for line, read, now in zip(wanted["line_id"], wanted["read"], output["text"]) if read != now]
    if differing:
        raise ValueError(
            f"the logged model reads {len(differing)} of {len(wanted)} lines differently from evaluation "
            f"(first: {differing[0]}); no version was made"
        )


def _tags(summary: dict) -> dict[str, str]:
    """What people find and compare model versions by."""
    return {
        "verdict": summary["verdict"]["verdict"],
        "start": summary["candidate"],
        "seed": str(summary["candidate_seed"]),
        "data_version": summary["data_version"],
        "judged_against": summary["champion"] or "",
        "test_cer": f"{summary['candidate_cer']['value']:.4f}",
    }

"""The comparison of a pipeline run in MLflow: its report, a summary run for each start, and the runs of the sweep below these.

A person compares four runs, not two hundred, and looks below one where he wants. Source:
https://mlflow.org/docs/latest/ml/tracking/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskocr_core import artifacts
from maskocr_core.config import Registry
from maskocr_core.services.tracking import answering, connection, experiment_id, now, run_id


@answering()
def log(
    registry: Registry,
    summary: dict[str, Any],
    evaluation: Path,
    facts: dict[str, str],
    sweep: list[dict[str, Any]] = (),
) -> dict[str, str]:
    """Report and verdict on the pipeline's run, one summary run a start below it, and every run of the sweep below its start.

    Returns run ids by start. sweep: the runs of fine-tuning, as `runs.json` has them.

    evaluation: folder with report.html, report.png, confidence.png where there is one, summary.json, shown.json and
    predictions.parquet. facts: more tags of the run.
    """
    client, parent = connection(), run_id(registry)
    for name in ("report.html", "report.png", "confidence.png", "summary.json", "predictions.parquet", "shown.json"):
        if (evaluation / name).is_file():  # confidence is not always usable
            client.log_artifact(parent, str(evaluation / name))
    verdict = summary["verdict"]
    note = f"**{verdict['verdict']}**: {verdict['reason']}"
    tags = {"verdict": verdict["verdict"], "candidate": summary["candidate"], "data_version": summary["data_version"]}
    tags["test_version"] = summary["test_version"]
    for name, value in (tags | facts | {"mlflow.note.content": note}).items():
        client.set_tag(parent, name, value)
    ids, digest = {}, artifacts.sha256(evaluation / "summary.json")
    for row in summary["starts"]:
        run, is_new = _start_run(registry, parent, row, summary["data_version"], digest)
        ids[row["start"]] = run
        if not is_new:
            continue
        for name in ("start", "budget", "size", "learning_rate", "seeds", "steps"):
            client.log_param(run, name, row[name])
        for name, value in _figures(row).items():
            client.log_metric(run, name, value)
        for step, cer in row["curve"]:
            client.log_metric(run, "curve_validation_cer", cer, step=int(step))
        for name in ("report.html", "report.png", "shown.json"):
            client.log_artifact(run, str(evaluation / name))
        for own in sweep:
            if own["name"] == row["start"]:
                _log_run(registry, run, own)
        client.set_terminated(run)
    client.set_terminated(parent)
    return ids


def _start_run(
    registry: Registry, parent: str, row: dict[str, Any], data_version: str, digest: str
) -> tuple[str, bool]:
    """The summary run of a start below `parent`, and whether it is new: one that says the same and is whole is kept.

    Any other of an earlier attempt goes, so that a person sees four rows. digest: of the summary.
    """
    client, experiment = connection(), experiment_id(registry.experiment)
    mine = f"tags.`mlflow.parentRunId` = '{parent}' and tags.start = '{row['start']}'"
    for earlier in client.search_runs([experiment], mine):
        if earlier.data.tags.get("summary_digest") == digest and earlier.info.status == "FINISHED":
            return earlier.info.run_id, False
        for below in client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{earlier.info.run_id}'"):
            client.delete_run(below.info.run_id)
        client.delete_run(earlier.info.run_id)
    tags = {
        "mlflow.parentRunId": parent,
        "maskocr.kind": "start",
        "start": row["start"],
        "verdict": row["verdict"],
        "data_version": data_version,
        "summary_digest": digest,
        "mlflow.note.content": row["reason"],
    }
    return client.create_run(experiment, run_name=row["start"], tags=tags).info.run_id, True


def _log_run(registry: Registry, parent: str, run: dict[str, Any]) -> None:
    """One run of fine-tuning below the summary run of its start: a person compares starts first, and looks in where he wants."""
    from mlflow.entities import Metric, Param

    client, when = connection(), now()
    name = f"{run['name']}, {run['size']}, {run['lines']:,} labels, {run['learning_rate']:g}, seed {run['seed']}"
    tags = {"mlflow.parentRunId": parent, "maskocr.kind": "run", "start": run["name"]}
    made = client.create_run(experiment_id(registry.experiment), run_name=name, tags=tags).info.run_id
    metrics = [Metric("curve_validation_cer", cer, when, int(step)) for step, cer in run["curve"]]
    metrics += [Metric(f"validation_cer_{mark}", cer, when, 0) for mark, cer in run["validation_cer"].items()]
    metrics.append(Metric("cpu_minutes", run["cpu_seconds"] / 60, when, 0))
    params = [
        Param(key, str(run[key])) for key in ("lines", "size", "learning_rate", "seed", "steps", "decoder", "chosen")
    ]
    client.log_batch(made, metrics=metrics, params=params)
    client.set_terminated(made)


def uses_of(registry: Registry, test_version: str) -> int:
    """How many pipeline runs were judged on these test lines: each may have moved somebody's choice."""
    found = f"tags.test_version = '{test_version}' and tags.`maskocr.kind` = 'pipeline'"
    with answering():
        return len(connection().search_runs([experiment_id(registry.experiment)], found, max_results=1000))


def _figures(row: dict[str, Any]) -> dict[str, float]:
    """Few final metrics of a start, in percent where they are rates, so that a table of four rows can be read."""
    cer = row["cer"]
    figures = {
        "cer": cer["all"]["value"],
        "cer_low": cer["all"]["low"],
        "cer_high": cer["all"]["high"],
        "cer_quarter": cer["quarter"]["value"],
        "cer_half": cer["half"]["value"],
        "wer": row["wer"]["value"],
        "exact_lines": row["exact"],
        "validation_cer": row["validation_cer"],
    }
    minutes = {f"{what}_{name}": value for what in ("cpu_minutes", "gpu_minutes") for name, value in row[what].items()}
    if not any(row["gpu_minutes"].values()):
        minutes = {name: value for name, value in minutes.items() if name.startswith("cpu")}
    return {name: value for name, value in figures.items() if value == value} | minutes

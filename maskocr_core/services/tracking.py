"""MLflow, the one module that knows it: runs that a person compares, and models that load and read.

Tags and aliases in MLflow can be changed by anybody with access; what must not change lies in artifacts with digests.
Sources: https://mlflow.org/docs/latest/ml/model-registry/, https://mlflow.org/docs/latest/ml/model/models-from-code/
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from maskocr_core import artifacts
from maskocr_core.config import Registry
from maskocr_core.services import storage

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_ABSENT = (
    "RESOURCE_DOES_NOT_EXIST",
    "INVALID_PARAMETER_VALUE",
)  # what MLflow says of a name or alias that is not there


def uri() -> str:
    """MLFLOW_TRACKING_URI, or SQLite in `work/mlflow.db` here."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('work/mlflow.db').absolute()}"


def embedded() -> Path | None:
    """The folder that holds database and artifacts where tracking is SQLite, else None."""
    return Path(uri().removeprefix("sqlite:///")).parent if uri().startswith("sqlite:///") else None


def _client() -> Any:
    import logging

    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(uri())
    if folder := embedded():
        folder.mkdir(parents=True, exist_ok=True)
        _make_tables(uri())
    return mlflow.MlflowClient()


@lru_cache
def _make_tables(uri: str) -> None:
    """Let one process at a time make the tables of an embedded database.

    MLflow asks whether all tables are there before it waits for who makes them, and so meets them in the middle of a migration.
    """
    from mlflow import MlflowClient

    with storage.locked(Path(f"{uri.removeprefix('sqlite:///')}.lock")):
        MlflowClient(uri).search_experiments(max_results=1)


def artifact_store(uri: str) -> Any:
    """What lists, reads, writes and deletes the files of a run or model, wherever they lie (an MLflow ArtifactRepository)."""
    _client()
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri)


def check() -> str:
    """Say where tracking goes; raises ValueError with the mend if it does not answer."""
    with _answering():
        _client().search_experiments(max_results=1)
    return uri()


@contextmanager
def _answering() -> Iterator[None]:
    """Make one sentence with the mend, a ValueError, of what MLflow raises where it is away or refuses."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(
            f"MLflow at {uri()} does not answer ({reason}); start it, or set MLFLOW_TRACKING_URI"
        ) from None


@contextmanager
def _or_absent() -> Iterator[None]:
    """`_answering`, but what is not there is passed over: the block ends early."""
    from mlflow.exceptions import MlflowException

    with _answering():
        try:
            yield
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise


def run_id(registry: Registry) -> str:
    """The MLflow run of this pipeline run: MLFLOW_RUN_ID, or the one tagged with MASKOCR_RUN, made if there is none."""
    given = os.environ.get("MLFLOW_RUN_ID")
    return given or _parent(uri(), registry.experiment, os.environ.get("MASKOCR_RUN") or _by_hand())


@lru_cache
def _by_hand() -> str:
    """Name of the run of a stage that was started alone: one for each process."""
    import time

    return f"by hand {time.strftime('%Y%m%d-%H%M%S')}"


@lru_cache
def _parent(uri: str, experiment: str, name: str) -> str:
    if found := _runs_of(name, _experiment(experiment)):
        return found[0].info.run_id
    return (
        _client()
        .create_run(_experiment(experiment), run_name=name, tags={"maskocr.run": name, "maskocr.kind": "pipeline"})
        .info.run_id
    )


def _runs_of(name: str, experiment: str) -> Any:
    """The run of a pipeline run, of which there is one at most."""
    asked = f"tags.`maskocr.run` = '{name}' and tags.`maskocr.kind` = 'pipeline'"
    return _client().search_runs([experiment], asked, max_results=1)


def _experiment(name: str) -> str:
    """Id of the experiment; its artifacts lie beside the database when tracking is SQLite."""
    client = _client()
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    folder = embedded()
    return client.create_experiment(name, artifact_location=(folder / "mlartifacts").as_uri() if folder else None)


def record_stage(registry: Registry, stage: str, metrics: dict[str, float], versions: dict[str, str]) -> None:
    """Put a stage's final numbers and the data versions of its outputs on the pipeline's run.

    Raises ValueError with the mend if MLflow does not answer.
    """
    client = _client()
    with _answering():
        run = run_id(registry)
        for name, value in metrics.items():
            client.log_metric(run, f"{stage}.{name}", value)
        for output, version in versions.items():
            client.set_tag(run, f"version.{output.removesuffix('_out')}", version)


def finish(registry: Registry) -> None:
    """Say that the pipeline's run has come to its end, where no comparison ends it. Raises ValueError if MLflow is away."""
    with _answering():
        _client().set_terminated(run_id(registry))


def end(registry: Registry, good: bool, reason: str) -> str:
    """Say how the pipeline's run ended, if it has one that is still open; where to look at it below MLflow's address, or "".

    Raises ValueError if MLflow is away.
    """
    client, name = _client(), os.environ.get("MASKOCR_RUN", "")
    with _answering():
        experiment = client.get_experiment_by_name(registry.experiment)
        found = _runs_of(name, experiment.experiment_id) if name and experiment else []
        if not found:
            return ""
        run = found[0].info
        if run.status == "RUNNING":
            if reason:
                client.set_tag(run.run_id, "maskocr.ended", reason)
            client.set_terminated(run.run_id, "FINISHED" if good else "FAILED")
    return f"experiments/{run.experiment_id}/runs/{run.run_id}"


def log_progress(registry: Registry, what: str, row: dict[str, float]) -> None:
    """Put one row of a training log on the pipeline's run, by step."""
    from mlflow.entities import Metric

    now = _now()
    figures = [
        Metric(re.sub(r"[^\w\-./]", "_", f"{what}/{name}"), value, now, int(row["step"]))
        for name, value in row.items()
        if name != "step"
    ]
    _client().log_batch(run_id(registry), metrics=figures)


def log_comparison(
    registry: Registry,
    summary: dict[str, Any],
    evaluation: Path,
    facts: dict[str, str],
    sweep: list[dict[str, Any]] = (),
) -> dict[str, str]:
    """Report and verdict on the pipeline's run, one summary run a start below it, and every run of the sweep below its start.

    Returns run ids by start. sweep: the runs of fine-tuning, as `runs.json` has them.

    evaluation: folder with report.html, report.png, summary.json, shown.json and predictions.parquet. facts: more tags of the run.
    """
    client, parent = _client(), run_id(registry)
    for name in ("report.html", "report.png", "summary.json", "predictions.parquet", "shown.json"):
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


def _log_run(registry: Registry, parent: str, run: dict[str, Any]) -> None:
    """One run of fine-tuning below the summary run of its start: a person compares starts first, and looks in where he wants."""
    from mlflow.entities import Metric, Param

    client, now = _client(), _now()
    name = f"{run['name']}, {run['size']}, {run['lines']:,} labels, {run['learning_rate']:g}, seed {run['seed']}"
    tags = {"mlflow.parentRunId": parent, "maskocr.kind": "run", "start": run["name"]}
    made = client.create_run(_experiment(registry.experiment), run_name=name, tags=tags).info.run_id
    metrics = [Metric("curve_validation_cer", cer, now, int(step)) for step, cer in run["curve"]]
    metrics += [Metric(f"validation_cer_{mark}", cer, now, 0) for mark, cer in run["validation_cer"].items()]
    metrics.append(Metric("cpu_minutes", run["cpu_seconds"] / 60, now, 0))
    params = [
        Param(key, str(run[key])) for key in ("lines", "size", "learning_rate", "seed", "steps", "decoder", "chosen")
    ]
    client.log_batch(made, metrics=metrics, params=params)
    client.set_terminated(made)


def uses_of(registry: Registry, test_version: str) -> int:
    """How many pipeline runs were judged on these test lines: each may have moved somebody's choice."""
    found = f"tags.test_version = '{test_version}' and tags.`maskocr.kind` = 'pipeline'"
    with _answering():
        return len(_client().search_runs([_experiment(registry.experiment)], found, max_results=1000))


def _start_run(
    registry: Registry, parent: str, row: dict[str, Any], data_version: str, digest: str
) -> tuple[str, bool]:
    """The summary run of a start below `parent`, and whether it is new: one that says the same and is whole is kept.

    Any other of an earlier attempt goes, so that a person sees four rows. digest: of the summary.
    """
    client, experiment = _client(), _experiment(registry.experiment)
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


def outcome_of(registry: Registry, run: str, claim: int) -> str | None:
    """The version that the pipeline's run of that name registered after it had taken this claim, or None.

    A run tells of a stage when that is finished, of `fresh` with the number of its claim. Raises ValueError if MLflow is away.
    """
    client = _client()
    with _answering():
        experiment = client.get_experiment_by_name(registry.experiment)
        for found in _runs_of(run, experiment.experiment_id) if experiment else []:
            claims, versions = (
                client.get_metric_history(found.info.run_id, name) for name in ("fresh.claim", "register.version")
            )
            taken = [told.timestamp for told in claims if told.value == claim]
            came = [told for told in versions if taken and told.timestamp >= max(taken)]
            if came:
                return str(int(came[-1].value))
    return None


def version_with(registry: Registry, tags: dict[str, str]) -> str | None:
    """The latest version of the registered model that has all these tags, or None."""
    with _or_absent():
        found = _client().search_model_versions(f"name = '{registry.model}'", order_by=["version_number DESC"])
        return next((str(one.version) for one in found if tags.items() <= one.tags.items()), None)
    return None


def log_model(
    registry: Registry,
    run: str,
    recognizer: Path,
    saw: Path,
    sample: Any,
    examples: Any,
    check: Any,
    tags: dict[str, str],
) -> str:
    """Log a recogniser as a pyfunc model on `run`, load it back, `check` it, and only then register it with `tags`; the version.

    saw: file that says which documents it was trained on. sample, examples: DataFrames with a column `image` of encoded
    images; the one of `sample` is kept with the model for people to see, so it may be nobody's line. check: called with the model's output for them, raises
    if the model does not reproduce what was evaluated; then no version is made.
    """
    from importlib.metadata import version

    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    client = _client()
    signature = ModelSignature(
        Schema([ColSpec("binary", "image")]), Schema([ColSpec("string", "text"), ColSpec("double", "confidence")])
    )
    with mlflow.start_run(run_id=run):
        logged = mlflow.pyfunc.log_model(
            name="recognizer",
            python_model=str(Path(__file__).parents[1] / "served_model.py"),
            artifacts={"recognizer": str(recognizer), "saw": str(saw)},
            signature=signature,
            input_example=sample,
            pip_requirements=[f"maskocr=={version('maskocr')}"],
        )
    check(mlflow.pyfunc.load_model(logged.model_uri).predict(examples))
    try:
        client.create_registered_model(registry.model)
    except mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return str(
        client.create_model_version(
            registry.model, logged.model_uri, run_id=run, tags=tags, model_id=logged.model_id
        ).version
    )


def describe_version(
    registry: Registry, version: str, tags: dict[str, str], description: str, alias: str | None
) -> None:
    """Tags, text and alias of a model version."""
    client = _client()
    for name, value in tags.items():
        client.set_model_version_tag(registry.model, version, name, value)
    client.update_model_version(registry.model, version, description)
    if alias:
        client.set_registered_model_alias(registry.model, alias, version)


def version_of(registry: Registry, alias: str) -> str | None:
    """The version that an alias of the registered model points to, or None."""
    with _or_absent():
        return str(_client().get_model_version_by_alias(registry.model, alias).version)
    return None


def version_tags(registry: Registry, version: str) -> dict[str, str] | None:
    """Tags of a version of the registered model; None if there is no such version, or it was deleted."""
    with _or_absent():
        return dict(_client().get_model_version(registry.model, version).tags)
    return None


def model_tags(registry: Registry) -> dict[str, str]:
    """Tags of the registered model as a whole; none where there is no such model."""
    with _or_absent():
        return dict(_client().get_registered_model(registry.model).tags)
    return {}


def tag_model(registry: Registry, name: str, value: str) -> None:
    """Tag the registered model as a whole; where there is none (any more), there is nothing to tag."""
    with _or_absent():
        _client().set_registered_model_tag(registry.model, name, value)


def move_alias(registry: Registry, alias: str, version: str) -> None:
    """Let an alias of the registered model point to a version, whatever it pointed to: MLflow compares nothing."""
    _client().set_registered_model_alias(registry.model, alias, version)


def resolved(model_uri: str) -> str:
    """`models:/name/version` for `models:/name@alias`. Raises ValueError if nothing has that alias."""
    name, at, alias = model_uri.removeprefix("models:/").partition("@")
    version = version_of(Registry(model=name), alias) if at else None
    if at and not version:
        raise ValueError(f"{model_uri}: MLflow at {uri()} has no model {name!r} with the alias {alias!r}")
    return f"models:/{name}/{version}" if at else model_uri


def recognizer_folder(model_uri: str) -> Path:
    """The recogniser inside a registered model (`models:/name@alias` or `models:/name/version`), as a local folder.

    Raises ValueError if there is no such model, or it is none of ours.
    """
    import mlflow

    _client()
    try:
        folder = Path(mlflow.artifacts.download_artifacts(model_uri))
    except mlflow.exceptions.MlflowException as error:
        raise ValueError(
            f"{model_uri} cannot be had from MLflow at {uri()}: {str(error).splitlines()[0][:200]}"
        ) from None
    found = list(folder.glob("artifacts/*/recognizer.json"))
    if not found:
        raise ValueError(f"{model_uri} was not registered by maskocr: it holds no recognizer.json")
    return found[0].parent


def serve_with(reader: Callable[[Path], Any]) -> None:
    """Called by `served_model.py` when MLflow loads a registered recogniser: images in, texts and confidences out.

    reader: makes something with `read(list of encoded images) -> list of (text, confidence)` from a recogniser's folder.
    """
    import mlflow.pyfunc
    import pandas as pd

    class Reading:
        def load_context(self, context):
            self.reader = reader(Path(context.artifacts["recognizer"]))

        def predict(self, context, model_input, params=None):
            read = self.reader.read([bytes(image) for image in model_input["image"]])
            return pd.DataFrame(read, columns=["text", "confidence"])

    # MLflow looks for type hints on a `predict` of the class itself and advises them; the logged signature says more.
    mlflow.models.set_model(type("ServedRecognizer", (Reading, mlflow.pyfunc.PythonModel), {})())


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
    return {name: value for name, value in figures.items() if value == value} | {
        f"cpu_minutes_{name}": value for name, value in row["cpu_minutes"].items()
    }


def _now() -> int:
    import time

    return int(time.time() * 1000)

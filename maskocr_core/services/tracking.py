"""The run of a pipeline in MLflow. With `compared`, which has its comparison, and `registered`, which has the models, the
one place that knows MLflow.

Tags in MLflow can be changed by anybody with access; what must not change lies in artifacts with digests.
Source: https://mlflow.org/docs/latest/ml/tracking/
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from maskocr_core.config import Registry
from maskocr_core.services import disk

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
AT_ONCE = 1000  # metrics that MLflow takes in a request
CLAIM = "maskocr.claim"  # tag: id of the claim that a run holds


def uri() -> str:
    """MLFLOW_TRACKING_URI, or SQLite in `work/mlflow.db` here."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('work/mlflow.db').absolute()}"


def embedded() -> Path | None:
    """The folder that holds database and artifacts where tracking is SQLite, else None."""
    return Path(uri().removeprefix("sqlite:///")).parent if uri().startswith("sqlite:///") else None


def connection() -> Any:
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

    with disk.locked(Path(f"{uri.removeprefix('sqlite:///')}.lock")):
        MlflowClient(uri).search_experiments(max_results=1)


def artifact_store(uri: str) -> Any:
    """What lists, reads, writes and deletes the files of a run or model, wherever they lie (an MLflow ArtifactRepository)."""
    connection()
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(uri)


def check() -> str:
    """Say where tracking goes; raises ValueError with the mend if it does not answer."""
    with answering():
        connection().search_experiments(max_results=1)
    return uri()


@contextmanager
def answering() -> Iterator[None]:
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
def or_absent() -> Iterator[None]:
    """`answering`, but what is not there is passed over: the block ends early."""
    from mlflow.exceptions import MlflowException

    with answering():
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
    if found := _runs_of(name, experiment_id(experiment)):
        return found[0].info.run_id
    return (
        connection()
        .create_run(experiment_id(experiment), run_name=name, tags={"maskocr.run": name, "maskocr.kind": "pipeline"})
        .info.run_id
    )


def _runs_of(name: str, experiment: str) -> Any:
    """The run of a pipeline run, of which there is one at most."""
    if "'" in name:
        raise ValueError(f"MASKOCR_RUN={name}: MLflow cannot look for a name with a quote in it; give another")
    asked = f"tags.`maskocr.run` = '{name}' and tags.`maskocr.kind` = 'pipeline'"
    return connection().search_runs([experiment], asked, max_results=1)


def experiment_id(name: str) -> str:
    """Id of the experiment; its artifacts lie beside the database when tracking is SQLite."""
    client = connection()
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    folder = embedded()
    return client.create_experiment(name, artifact_location=(folder / "mlartifacts").as_uri() if folder else None)


def record_stage(registry: Registry, stage: str, metrics: dict[str, float], versions: dict[str, str]) -> None:
    """Put a stage's final numbers and the data versions of its outputs on the pipeline's run.

    Raises ValueError with the mend if MLflow does not answer.
    """
    client = connection()
    with answering():
        run = run_id(registry)
        for name, value in metrics.items():
            client.log_metric(run, f"{stage}.{name}", value)
        for output, version in versions.items():
            client.set_tag(run, f"version.{output.removesuffix('_out')}", version)


def finish(registry: Registry) -> None:
    """Say that the pipeline's run has come to its end, where no comparison ends it. Raises ValueError if MLflow is away."""
    with answering():
        connection().set_terminated(run_id(registry))


def end(registry: Registry, good: bool, reason: str) -> str:
    """Say how the pipeline's run ended, if it has one that is still open; where to look at it below MLflow's address, or "".

    Raises ValueError if MLflow is away.
    """
    client, name = connection(), os.environ.get("MASKOCR_RUN", "")
    with answering():
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


def log_progress(registry: Registry, what: str, rows: list[dict[str, float]]) -> None:
    """Put rows of a training log on the pipeline's run, by step. Raises what MLflow raises if it is away."""
    from mlflow.entities import Metric

    when = now()
    figures = [
        Metric(_named(f"{what}/{name}"), value, when, int(row["step"]))
        for row in rows
        for name, value in row.items()
        if name != "step"
    ]
    run = run_id(registry)
    for first in range(0, len(figures), AT_ONCE):
        connection().log_batch(run, metrics=figures[first : first + AT_ONCE])


def log_pictures(registry: Registry, what: str, pictures: Path, kept: set[str]) -> None:
    """Put the pictures that the folder's `shown.json` lists on the pipeline's run, below `what`, but those in `kept`, which grows by them.

    The list of the lines that they show goes first: what has to be forgotten is found by it. Raises what MLflow raises if it
    is away.
    """
    listed = pictures / "shown.json"
    new = sorted(set(json.loads(listed.read_bytes())) - kept) if listed.is_file() else []
    if not new:
        return
    store = artifact_store(f"runs:/{run_id(registry)}")
    store.log_artifact(str(listed), _named(what))
    for name in new:
        store.log_artifact(str(pictures / name), _named(what))
        kept.add(name)


def _named(name: str) -> str:
    """A name that MLflow takes for a metric or a folder."""
    return re.sub(r"[^\w\-./]", "_", name)


def tell_claim(registry: Registry, claim: str) -> None:
    """Say on the pipeline's run which claim it holds now, by its id. Raises ValueError if MLflow is away."""
    with answering():
        connection().set_tag(run_id(registry), CLAIM, claim)


def outcome_of(registry: Registry, run: str, claim: str) -> str | None:
    """The version that the pipeline's run of that name registered after it had taken this claim, by its id, or None.

    A run tells of a stage when that is finished. Raises ValueError if MLflow is away.
    """
    client = connection()
    with answering():
        experiment = client.get_experiment_by_name(registry.experiment)
        found = _runs_of(run, experiment.experiment_id) if experiment else []
        if not found or found[0].data.tags.get(CLAIM) != claim:
            return None
        taken, came = (
            client.get_metric_history(found[0].info.run_id, name) for name in ("fresh.claim", "register.version")
        )
    # Where a clock leaves it open, the objects are rather processed again than lost.
    later = [told for told in came if taken and told.timestamp > max(one.timestamp for one in taken)]
    return str(int(later[-1].value)) if later else None


def serve_with(reader: Callable[[Path], Any]) -> None:
    """Called by `served_model.py` when MLflow loads a registered recogniser: images in, texts and confidences out.

    Models keep the `served_model.py` of their day and find it here by this name for good.

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


def now() -> int:
    """Milliseconds, as MLflow counts time."""
    import time

    return int(time.time() * 1000)

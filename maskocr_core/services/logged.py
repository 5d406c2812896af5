"""What MLflow keeps of our runs and models, file by file, so that what has to be forgotten can be found and taken out."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from maskocr_core.services import registered, tracking

SAW = "artifacts/saw.json"  # in a model's folder: digests of the documents that it was trained on
_ALL = 3  # also what was deleted in the UI and is still kept


class Place(NamedTuple):
    """A run or a model that has files. run: the run itself, or the one that logged the model."""

    kind: str
    name: str
    uri: str
    run: str


def is_there() -> bool:
    """Whether there is any tracking: an embedded database that nobody made is not to be made by looking."""
    return tracking.embedded() is None or Path(tracking.uri().removeprefix("sqlite:///")).is_file()


def places() -> Iterator[Place]:
    """The runs that maskocr made, and the models that they logged, registered or not."""
    client = tracking.connection()
    experiments = [experiment.experiment_id for experiment in client.search_experiments(view_type=_ALL)]
    ours = "tags.`maskocr.kind` LIKE '%'"
    runs = list(_pages(lambda token: client.search_runs(experiments, ours, run_view_type=_ALL, page_token=token)))
    for run in runs:
        yield Place("run", run.info.run_id, run.info.artifact_uri, run.info.run_id)
    made = {run.info.run_id for run in runs}
    for experiment in sorted({run.info.experiment_id for run in runs}):
        for model in _pages(partial(_logged_models, client, experiment)):
            if model.source_run_id in made:
                yield Place("model", model.model_id, model.artifact_location, model.source_run_id)


def parent(run: str) -> str | None:
    """Where the run of the pipeline that a start's run belongs to has its files; None for a pipeline's own."""
    client = tracking.connection()
    above = client.get_run(run).data.tags.get("mlflow.parentRunId")
    return client.get_run(above).info.artifact_uri if above else None


def files(uri: str, folder: str | None = None) -> Iterator[str]:
    """Paths of the files of a place."""
    for file in tracking.artifact_store(uri).list_artifacts(folder):
        if file.is_dir:
            yield from files(uri, file.path)
        else:
            yield file.path


def read(uri: str, path: str) -> bytes:
    """The content of one file."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(tracking.artifact_store(uri).download_artifacts(path, folder)).read_bytes()


def replace(uri: str, path: str, content: bytes | None) -> None:
    """Put other content in the place of a file, or take it away (None)."""
    store, place = tracking.artifact_store(uri), PurePosixPath(path)
    store.delete_artifacts(path)
    if content is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / place.name).write_bytes(content)
            above = place.parent.as_posix()
            store.log_artifact(str(Path(folder) / place.name), None if above == "." else above)


def tags(run: str) -> dict[str, str]:
    """Tags of a run, ours and those that people wrote."""
    return dict(tracking.connection().get_run(run).data.tags)


def set_tag(run: str, name: str, value: str) -> None:
    tracking.connection().set_tag(run, name, value)


def versions() -> Iterator[tuple[str, str, dict[str, Any] | None]]:
    """(model, version, what its saw.json says) of every registered recogniser; versions of other models are left out.

    None: it was registered before models said what they saw.
    """
    client = tracking.connection()
    for version in _pages(lambda token: client.search_model_versions(page_token=token)):
        uri = f"models:/{version.name}/{version.version}"
        held = set(files(uri))
        if SAW in held:
            yield version.name, str(version.version), json.loads(read(uri, SAW))
        elif any(path.endswith("/recognizer.json") for path in held):
            yield version.name, str(version.version), None


def descriptions() -> Iterator[tuple[str, str, str]]:
    """(model, version, description) of every version that the gate judged."""
    client = tracking.connection()
    for version in _pages(lambda token: client.search_model_versions("tags.verdict_digest LIKE '%'", page_token=token)):
        yield version.name, str(version.version), version.description or ""


def describe(model: str, version: str, description: str) -> None:
    """Give a model version another description, cut off where MLflow has no room for it."""
    tracking.connection().update_model_version(model, version, registered.fitting(description))


def tag_version(model: str, version: str, name: str, value: str) -> None:
    """Tag a model version, and leave everything else of it as it is."""
    tracking.connection().set_model_version_tag(model, version, name, value)


def _logged_models(client: Any, experiment: str, token: str | None) -> Any:
    return client.search_logged_models([experiment], page_token=token)


def _pages(ask: Any) -> Iterator[Any]:
    token = None
    while True:
        page = ask(token)
        yield from page
        if not (token := page.token):
            return

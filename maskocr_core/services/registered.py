"""Registered models in MLflow, their versions and aliases: models that load, and read what was evaluated.

Tags and aliases can be changed by anybody with access; what must not change lies in artifacts with digests.
Sources: https://mlflow.org/docs/latest/ml/model-registry/, https://mlflow.org/docs/latest/ml/model/models-from-code/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskocr_core.config import Registry
from maskocr_core.services.tracking import answering, connection, or_absent, uri

DESCRIPTION = 5000  # characters that MLflow's tables hold; PostgreSQL refuses more


def version_with(registry: Registry, tags: dict[str, str]) -> str | None:
    """The latest version of the registered model that has all these tags, or None."""
    with or_absent():
        found = connection().search_model_versions(f"name = '{registry.model}'", order_by=["version_number DESC"])
        return next((str(one.version) for one in found if tags.items() <= one.tags.items()), None)
    return None


@answering()
def log_model(
    registry: Registry,
    run: str,
    files: dict[str, Path],
    sample: Any,
    examples: Any,
    check: Any,
    tags: dict[str, str],
) -> str:
    """Log a recogniser as a pyfunc model on `run`, load it back, `check` it, and only then register it with `tags`; the version.

    files: what the model consists of, by name: the folder of the `recognizer`, and files that go with it. sample, examples: DataFrames with a column `image` of encoded
    images; the one of `sample` is kept with the model for people to see, so it may be nobody's line. check: called with the model's output for them, raises
    if the model does not reproduce what was evaluated; then no version is made.
    """
    from importlib.metadata import version

    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    client = connection()
    signature = ModelSignature(
        Schema([ColSpec("binary", "image")]), Schema([ColSpec("string", "text"), ColSpec("double", "confidence")])
    )
    with mlflow.start_run(run_id=run):
        logged = mlflow.pyfunc.log_model(
            name="recognizer",
            python_model=str(Path(__file__).parents[1] / "served_model.py"),
            artifacts={name: str(path) for name, path in files.items()},
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


@answering()
def describe_version(
    registry: Registry, version: str, tags: dict[str, str], description: str, alias: str | None
) -> None:
    """Tags, text and alias of a model version. description: Markdown; what MLflow has no room for is left out at its end."""
    client = connection()
    for name, value in tags.items():
        client.set_model_version_tag(registry.model, version, name, value)
    client.update_model_version(registry.model, version, fitting(description))
    if alias:
        client.set_registered_model_alias(registry.model, alias, version)


def fitting(description: str) -> str:
    """The description, cut off where MLflow has no room for all of it, at the end of a line if there is one."""
    if len(description) <= DESCRIPTION:
        return description
    ending = "\n\n… the rest is in the report."
    kept = description[: DESCRIPTION - len(ending)]
    return (kept.rpartition("\n")[0] or kept) + ending


def version_of(registry: Registry, alias: str) -> str | None:
    """The version that an alias of the registered model points to, or None."""
    with or_absent():
        return str(connection().get_model_version_by_alias(registry.model, alias).version)
    return None


def version_tags(registry: Registry, version: str) -> dict[str, str] | None:
    """Tags of a version of the registered model; None if there is no such version, or it was deleted."""
    with or_absent():
        return dict(connection().get_model_version(registry.model, version).tags)
    return None


def model_tags(registry: Registry) -> dict[str, str]:
    """Tags of the registered model as a whole; none where there is no such model."""
    with or_absent():
        return dict(connection().get_registered_model(registry.model).tags)
    return {}


def tag_model(registry: Registry, name: str, value: str) -> None:
    """Tag the registered model as a whole; where there is none (any more), there is nothing to tag."""
    with or_absent():
        connection().set_registered_model_tag(registry.model, name, value)


def model_description(registry: Registry) -> str:
    """What the page of the registered model says; nothing where there is no such model."""
    with or_absent():
        return connection().get_registered_model(registry.model).description or ""
    return ""


def describe_model(registry: Registry, description: str) -> None:
    """Write Markdown of at most `DESCRIPTION` characters on the page of the registered model, if there is one."""
    with or_absent():
        connection().update_registered_model(registry.model, description)


@answering()
def move_alias(registry: Registry, alias: str, version: str) -> None:
    """Let an alias of the registered model point to a version, whatever it pointed to: MLflow compares nothing."""
    connection().set_registered_model_alias(registry.model, alias, version)


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

    connection()
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

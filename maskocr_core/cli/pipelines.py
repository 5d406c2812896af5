"""Whole runs: on this machine, on a cluster, and under data versions."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from maskocr_core import stages
from maskocr_core.cli.app import Overrides, Recipe, app


@app.command(rich_help_panel="Pipelines")
def run(
    pipeline: Annotated[Path, typer.Argument(help="Compiled pipeline, such as pipelines/pretrain_finetune.yaml.")],
    parameters: Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE…", help="Pipeline parameters.")] = None,
    root: Annotated[Path, typer.Option(help="Folder for what the pipeline's tasks write.")] = Path("work/pipelines"),
) -> None:
    """Run a compiled pipeline on this machine (kfp.local, no cluster). Finished stages are reused, a killed one goes on."""
    from maskocr_pipelines import client, local

    arguments = client.parse(pipeline, parameters or [])
    _name_run(pipeline)
    local.run(pipeline, arguments, root)


@app.command(rich_help_panel="Pipelines")
def submit(
    pipeline: Annotated[Path, typer.Argument(help="Compiled pipeline, such as pipelines/pretrain_finetune.yaml.")],
    parameters: Annotated[list[str] | None, typer.Argument(metavar="NAME=VALUE…", help="Pipeline parameters.")] = None,
    endpoint: Annotated[str, typer.Option(envvar="KFP_ENDPOINT", help="URL of the Kubeflow Pipelines API.")] = "",
    experiment: Annotated[str, typer.Option(help="KFP experiment.")] = "maskocr",
    run_name: Annotated[
        str | None, typer.Option(help="Name of the run; default: the pipeline's with the time.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="KFP_TOKEN", help="Bearer token, where the endpoint asks for one.", show_envvar=True),
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Namespace, where KFP is multi-user.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the end and fail when the run fails.")] = True,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most; default: no limit.")] = None,
) -> None:
    """Send a compiled pipeline to a Kubeflow Pipelines endpoint, show its tasks, and exit non-zero when the run fails."""
    from maskocr_pipelines import client

    if not endpoint:
        raise ValueError("no endpoint: give --endpoint URL or set KFP_ENDPOINT")
    arguments = client.parse(pipeline, parameters or [])
    run_id = client.submit(
        pipeline,
        arguments,
        endpoint=endpoint,
        experiment=experiment,
        run_name=run_name,
        token=token,
        namespace=namespace,
        wait=wait,
        timeout_seconds=timeout,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(run_id)


@app.command(rich_help_panel="Pipelines")
def pilot(
    data: Annotated[str, typer.Option(help="Your lines, as `ingest` takes them.")] = "sample/target",
    transfer: Annotated[
        str, typer.Option(help="Labelled lines of a related domain, or a trained recognizer.")
    ] = "sample/transfer",
    protected: Annotated[
        str, typer.Option(help="Labelled lines that a new model must go on reading, separated by commas.")
    ] = "",
    prices: Annotated[
        str, typer.Option(help="Prices of labels and computing (JSON, docs/cost.md), for a verdict on the investment.")
    ] = "",
    costs: Annotated[
        str, typer.Option(help="What errors cost, by character class and field (JSON, docs/cost.md).")
    ] = "",
    recipe: Recipe = "pilot",
    set: Overrides = [],  # noqa: B006  typer reads the default, nobody changes it
    work: Annotated[Path, typer.Option(help="Folder for everything the pilot writes.")] = Path("work"),
) -> None:
    """The whole road on this machine: the pipeline under kfp.local, data versioned by DVC, MLflow on SQLite, then the table."""
    from maskocr_core import pilot as road

    given = {"data_uri": data, "transfer_uri": transfer, "protected_uris": protected}
    road.travel(given | {"prices_uri": prices, "costs_uri": costs}, recipe, set, work)


@app.command(rich_help_panel="Pipelines")
def track(
    folder: Annotated[Path, typer.Argument(help="Repository to make or to bring up to date.")],
    data: Annotated[str, typer.Option(help="Your lines, as `ingest` takes them.")],
    transfer: Annotated[str, typer.Option(help="Labelled lines of a related domain, or a trained recognizer.")] = "",
    protected: Annotated[
        str, typer.Option(help="Labelled lines that a new model must go on reading, separated by commas.")
    ] = "",
    remote: Annotated[
        str, typer.Option(help="Where `dvc push` puts the data: s3://bucket/prefix, or a folder counted from FOLDER.")
    ] = "../dvc-remote",
    recipe: Recipe = "pilot",
    set: Overrides = [],  # noqa: B006
) -> None:
    """Lay a git and DVC repository for the data stages; then `dvc repro`, `dvc push` and `dvc pull` work in it."""
    from maskocr_core import config
    from maskocr_core.services import versions

    versions.track(
        folder,
        data_uri=data,
        transfer_uri=transfer,
        protected_uris=protected,
        recipe=recipe,
        overrides=set,
        remote=remote,
        code=stages.code_versions(),
        config=stages.config_version(config.load(recipe, set)),
    )
    print(f"{folder}: now, with .venv/bin on the PATH, `cd {folder} && dvc repro && dvc push`")


def _name_run(pipeline: Path) -> None:
    """Give this run a name that its stages find in the environment, so that MLflow has one parent for all of them."""
    import time
    import uuid

    moment = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"  # two may begin in the same second
    os.environ.setdefault("MASKOCR_RUN", f"{pipeline.stem}-{moment}")

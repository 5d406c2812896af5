"""The command line. Stage commands take their flags from the stages' signatures; nothing heavy is imported for `--help`."""

from __future__ import annotations

import errno
import inspect
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from maskocr_core import stages

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=True,
    help="""
From piles of unlabelled text-line images and few labels to a text recogniser for your documents.

Run everything here with `maskocr run pipelines/pretrain_finetune.yaml data_uri=FOLDER`, or one stage at a time:
`ingest` → `validate` → `fit` → `quantize` → `pretrain` → `finetune` → `evaluate` → `register`.
""",
)

Recipe = Annotated[str, typer.Option(help="Named configuration: pilot, smoke, small or base.")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change one knob of the recipe; may be given again."),
]


def main() -> None:
    """Entry point: a mistake of the user ends in one sentence and exit code 2, not in a traceback."""
    try:
        app()
    except ValueError as error:
        _fail(str(error), 2)
    except RuntimeError as error:
        _fail(str(error), 1)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(
                f"the disk is full ({error.filename or 'while writing'}): free space and run again; finished work is kept",
                1,
            )
        if error.errno == errno.EADDRINUSE:
            _fail(f"the port is in use ({error}): choose another", 1)
        _fail(f"{error} (a file is damaged or cannot be reached)", 1)
    except Exception as error:
        if not type(error).__module__.startswith("mlflow"):
            raise
        _fail(f"MLflow refuses or does not answer: {error}", 1)


def _fail(message: str, code: int) -> None:
    print(f"maskocr: {message}", file=sys.stderr)
    sys.exit(code)


def flag(parameter: str) -> str:
    """The flag of a stage's parameter: `lines_out` is `--lines-out`."""
    return "--" + parameter.replace("_", "-")


def _stage_command(name: str) -> Callable[..., None]:
    stage = stages.get(name)
    parameters = [p for p in inspect.signature(stage).parameters.values() if p.name != "config"]
    types = inspect.get_annotations(inspect.unwrap(stage), eval_str=True)
    summary, helps = _documentation(stage)

    def command(recipe: str, set: list[str], **arguments: Any) -> None:
        from maskocr_core import config

        for key, value in stage(config.load(recipe, set), **arguments).items():
            print(f"{name}.{key} {value:g}")

    signature = [
        inspect.Parameter("recipe", inspect.Parameter.KEYWORD_ONLY, annotation=Recipe, default="pilot"),
        inspect.Parameter("set", inspect.Parameter.KEYWORD_ONLY, annotation=Overrides, default=[]),
    ]
    for parameter in parameters:
        option = typer.Option(flag(parameter.name), help=helps[parameter.name])
        signature.append(parameter.replace(annotation=Annotated[types[parameter.name], option]))
    command.__signature__ = inspect.Signature(signature)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    command.__doc__ = summary
    return command


def _documentation(stage: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """Summary and one line a parameter, from a docstring whose parameter lines read `name: what it is`."""
    head, _, rest = inspect.getdoc(stage).partition("\n\n")
    return head, dict(re.findall(r"^(\w+): (.+)$", rest, re.MULTILINE))


def _with_dry_run(command: Callable[..., None]) -> Callable[..., None]:
    """The command of ingest with a flag to tell what it would do, for which no output is needed."""

    def ingest(dry_run: bool, lines_out: Path | None, **arguments: Any) -> None:
        if not dry_run:
            if lines_out is None:
                raise typer.BadParameter("give a folder for the shards, or --dry-run", param_hint="--lines-out")
            return command(lines_out=lines_out, **arguments)
        from maskocr_core import config
        from maskocr_core.stages.ingest import outline

        for line in outline(config.load(arguments.pop("recipe"), arguments.pop("set")), **arguments):
            print(line)

    option = typer.Option("--dry-run", help="Tell what would be done from a sample of the lines, and write nothing.")
    parameters = inspect.signature(command).parameters | {
        "dry_run": inspect.Parameter(
            "dry_run", inspect.Parameter.KEYWORD_ONLY, annotation=Annotated[bool, option], default=False
        )
    }
    parameters["lines_out"] = parameters["lines_out"].replace(default=None)
    ingest.__signature__ = inspect.Signature(list(parameters.values()))
    ingest.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    ingest.__doc__ = command.__doc__
    return ingest


for _name in stages.NAMES:
    _command = _stage_command(_name)
    app.command(_name, rich_help_panel="Stages, in order")(_with_dry_run(_command) if _name == "ingest" else _command)


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
    recipe: Recipe = "pilot",
    set: Overrides = [],  # noqa: B006  typer reads the default, nobody changes it
    work: Annotated[Path, typer.Option(help="Folder for everything the pilot writes.")] = Path("work"),
) -> None:
    """The whole road on this machine: the pipeline under kfp.local, data versioned by DVC, MLflow on SQLite, then the table."""
    from maskocr_core import pilot as road

    road.travel(data, transfer, recipe, set, work)


@app.command(rich_help_panel="Pipelines")
def track(
    folder: Annotated[Path, typer.Argument(help="Repository to make or to bring up to date.")],
    data: Annotated[str, typer.Option(help="Your lines, as `ingest` takes them.")],
    transfer: Annotated[str, typer.Option(help="Labelled lines of a related domain, or a trained recognizer.")] = "",
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
        recipe=recipe,
        overrides=set,
        remote=remote,
        code=stages.code_versions(),
        config=stages.config_version(config.load(recipe, set)),
    )
    print(f"{folder}: now, with .venv/bin on the PATH, `cd {folder} && dvc repro && dvc push`")


@app.command(rich_help_panel="Data")
def forget(
    document: Annotated[str | None, typer.Option(help="Document to forget, of --source where one is given.")] = None,
    source: Annotated[str | None, typer.Option(help="Source to forget; with --document, the one it is of.")] = None,
    expired: Annotated[bool, typer.Option("--expired", help="Forget lines whose `retain_until` has passed.")] = False,
    listed: Annotated[
        bool, typer.Option("--listed", help="Erase what is listed already: in another clone, on another machine.")
    ] = False,
    today: Annotated[
        str | None, typer.Option(metavar="DATE", help="The day that --expired counts from; default: today, UTC.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; it is kept in clear, so name nobody.")] = "",
    work: Annotated[
        list[Path] | None, typer.Option(help="Folder to search beside MASKOCR_WORK; default: work. May be given again.")
    ] = None,
    repository: Annotated[
        list[Path] | None, typer.Option(help="DVC repository outside those folders. May be given again.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be touched, and change nothing.")] = False,
    even_if_unknown: Annotated[
        bool, typer.Option("--even-if-unknown", help="Keep it out of data to come, though no line of it is here.")
    ] = False,
) -> None:
    """Forget a document, a source or expired lines: hidden from every reader at once, then erased wherever they lie."""
    from maskocr_core.erasure import forget as erasure
    from maskocr_core.erasure.places import Places

    folder = stages.work_folder()
    asked = erasure.Asked(reason, document, source, erasure.day(today) if expired else None, listed)
    places = Places.of([folder, *(work or [Path("work")])], repository or [])
    if (
        not erasure.forget(
            asked,
            places,
            folder,
            dry_run=dry_run,
            even_if_unknown=even_if_unknown,
            say=lambda line: print(line, flush=True),
        )
        and not dry_run
    ):
        raise typer.Exit(1)


@app.command(rich_help_panel="Models")
def read(
    images: Annotated[list[Path], typer.Argument(help="Line images, or folders of them.")],
    model: Annotated[
        Path | None, typer.Option(help="Folder of a recognizer; default: the champion in MLflow, else the challenger.")
    ] = None,
    recipe: Recipe = "pilot",
    set: Overrides = [],  # noqa: B006
) -> None:
    """Print the text of line images, and on standard error which model read them."""
    from maskocr_core import config, reader

    if not reader.read_images(images, model, config.load(recipe, set).registry):
        raise typer.Exit(1)


@app.command("ui", rich_help_panel="Models")
def ui_command(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000) -> None:
    """Open the MLflow UI of this machine's runs: compare the starts, see the report, decide on the challenger."""
    from maskocr_core.services import ui

    ui.serve(port)


@app.command(rich_help_panel="This machine")
def doctor(
    recipe: Recipe = "pilot",
    endpoint: Annotated[str, typer.Option(envvar="KFP_ENDPOINT", help="KFP endpoint to check; empty: none.")] = "",
    data: Annotated[str, typer.Option(help="data_uri of the run to come, to check; empty: none.")] = "",
) -> None:
    """Check what a run will need (disk, memory, MLflow, Ray, store, endpoint, GPU) and say the mend of what is missing."""
    from maskocr_core import doctor as checks

    if not checks.report(recipe, endpoint, data):
        raise typer.Exit(1)


def _name_run(pipeline: Path) -> None:
    """Give this run a name that its stages find in the environment, so that MLflow has one parent for all of them."""
    import time

    os.environ.setdefault("MASKOCR_RUN", f"{pipeline.stem}-{time.strftime('%Y%m%d-%H%M%S')}")


if __name__ == "__main__":
    main()

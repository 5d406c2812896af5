"""What keeps a place going: recurring runs, and the disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskocr_core.cli.app import app

if TYPE_CHECKING:
    from maskocr_core.cleaning.store import Stored
    from maskocr_core.cleaning.work import Entry
    from maskocr_pipelines.recurring import Endpoint
    from maskocr_pipelines.schedules_file import Plan, Row

schedule = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""
Recurring runs as a file says them: `apply` makes it so, `show` tells what is, `pause` and `delete` take one by name.

The file, such as infra/schedules.yaml, has a five-field cron line, a time zone, a compiled pipeline and its parameters
for each. Kubeflow Pipelines knows no zones, so `apply` converts the line into its controller's zone, or refuses with
the choices. With `--local` the same file runs on this machine, without a cluster. More in docs/operate.md.
""",
)
app.add_typer(schedule, name="schedule", rich_help_panel="Operation")

File = Annotated[Path, typer.Option("--file", help="The file with the schedules.")]
Url = Annotated[str, typer.Option("--endpoint", envvar="KFP_ENDPOINT", help="URL of the Kubeflow Pipelines API.")]
Token = Annotated[
    str | None,
    typer.Option(envvar="KFP_TOKEN", help="Bearer token, where the endpoint asks for one.", show_envvar=True),
]
Namespace = Annotated[str | None, typer.Option(help="Namespace, where KFP is multi-user.")]
Name = Annotated[str, typer.Argument(help="Name of the schedule, as the file and `show` have it.")]
Root = Annotated[Path, typer.Option(help="Folder for what the pipelines' tasks write, as in `maskocr run`.")]
Local = Annotated[bool, typer.Option("--local", help="On this machine instead of an endpoint.")]
FILE, ROOT = Path("infra/schedules.yaml"), Path("work/pipelines")


@schedule.command()
def apply(
    file: File = FILE,
    endpoint: Url = "",
    local: Local = False,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Make anew also what is as wanted: after an update of KFP's own images.")
    ] = False,
    token: Token = None,
    namespace: Namespace = None,
    root: Root = ROOT,
) -> None:
    """Make the recurring runs of an endpoint those of the file; applied twice, it changes nothing the second time.

    The whole file is checked first: fields, cron lines, zones, and parameters against the compiled pipelines. A
    pipeline is uploaded as a version that is named by the sha256 of its YAML, so that a new image, whose tag the YAML
    has, gives a new version. One run of a schedule goes at a time; of the times that were missed, one is made up
    for at most. What was paused by hand runs again: `enabled: false` in the file keeps it paused.

    With --local this command runs the schedules itself, one run at a time, until Ctrl-C.

    Example: `maskocr schedule apply --file infra/schedules.yaml --endpoint http://localhost:8888`
    """
    from maskocr_pipelines import here, recurring, schedules_file

    if local:
        _refuse(bool(refresh or token or namespace), "--refresh, --token and --namespace are about an endpoint")
        here.run_here(schedules_file.read(file, local=True), root, lambda plan: _start(plan, root), say=_say)
        return
    plans = schedules_file.read(file)
    with _opened(endpoint, token, namespace) as there:
        recurring.apply(plans, there, refresh=refresh, say=_say)


@schedule.command()
def show(
    file: File = FILE,
    endpoint: Url = "",
    local: Local = False,
    token: Token = None,
    namespace: Namespace = None,
    root: Root = ROOT,
) -> None:
    """Print each schedule's state, version and next three runs, in its own zone and in the controller's.

    Also those that `apply` once made and the file has no more. With --local: whether a process runs the file here, and
    the next runs beside UTC.

    Example: `maskocr schedule show --endpoint http://localhost:8888`
    """
    import zoneinfo
    from datetime import UTC, datetime

    from maskocr_pipelines import here, recurring, schedules_file

    plans, now = schedules_file.read(file, local=local), datetime.now(UTC)
    if local:
        at_work = here.busy(root)
        utc = zoneinfo.ZoneInfo("UTC")
        rows = [
            schedules_file.Row(
                plan.name,
                (at_work or "no process runs it") if plan.schedule.enabled else "paused",
                plan.digest[:12],
                schedules_file.upcoming(plan, now, utc),
            )
            for plan in plans
        ]
    else:
        with _opened(endpoint, token, namespace) as there:
            rows = recurring.show(plans, there, now)
    for plan in plans:
        if plan.warning:
            _say(f"warning: {plan.warning}")
    _print_schedules(rows)


@schedule.command()
def pause(name: Name, endpoint: Url = "", token: Token = None, namespace: Namespace = None) -> None:
    """Stop a schedule of the endpoint from starting runs, until the next `apply`; a run at work goes on.

    To keep it paused, write `enabled: false` in the file. A schedule on this machine stops with its process.

    Example: `maskocr schedule pause retrain --endpoint http://localhost:8888`
    """
    from maskocr_pipelines import recurring

    with _opened(endpoint, token, namespace) as there:
        recurring.pause(name, there)
    _say(f"{name}: paused; `maskocr schedule apply` lets it run again unless the file says `enabled: false`")


@schedule.command()
def delete(name: Name, endpoint: Url = "", token: Token = None, namespace: Namespace = None) -> None:
    """Remove a schedule from the endpoint; its runs and the uploaded pipeline stay.

    Take it out of the file as well, or the next `apply` makes it again.

    Example: `maskocr schedule delete retrain --endpoint http://localhost:8888`
    """
    from maskocr_pipelines import recurring

    with _opened(endpoint, token, namespace) as there:
        recurring.delete(name, there)
    _say(f"{name}: deleted; take it out of the file as well")


@app.command(rich_help_panel="Operation")
def gc(
    older_than: Annotated[float, typer.Option(metavar="DAYS", help="Keep what was used within so many days.")] = 30,
    keep_last: Annotated[int, typer.Option(help="Keep so many of the newest pipeline folders at any age.")] = 3,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is listed; without it nothing changes.")
    ] = False,
    root: Annotated[Path, typer.Option(help="Folder that `maskocr run` wrote into.")] = ROOT,
    manifests: Annotated[
        list[str],
        typer.Option(metavar="PLACE", help="Folder or s3:// prefix where more manifests lie; once for each."),
    ] = [],  # noqa: B006 (typer reads it)
) -> None:
    """List what finished, superseded and orphaned work costs in disk and store, and with --delete remove it.

    Looked at are MASKOCR_WORK (default work/stages) and the pipeline folders. What may go: outputs of stages that are
    published nowhere any more, unfinished work, runs of fine-tuning and pipeline folders, each unused for --older-than
    days; and, at any age, checkpoints of what is finished. Never touched: work that a live process holds, and what a
    link leads to. A stage whose work went makes it again when it is asked for.

    Of MASKOCR_STORE, what was not written for --older-than days (at least 1) may go: checkpoints, and shards and
    weights that no manifest names. Manifests are looked for here, in MLflow, and at every PLACE of --manifests, such as the
    pipeline root of Kubeflow and the repository of `maskocr track`; without one, no shard and no weights go. Whatever a
    registered model was made of stays, so MLFLOW_TRACKING_URI must say where models are registered.

    The cache of DVC is left to `dvc gc --all-commits` in the data's repository.

    Example: `maskocr gc --older-than 14`, look, then `maskocr gc --older-than 14 --delete`
    """
    import os

    from maskocr_core import artifacts
    from maskocr_core.cleaning import store, work

    folders, uri = (artifacts.work_folder(), root.absolute()), os.environ.get("MASKOCR_STORE", "")
    _refuse(bool(manifests and not uri), "--manifests is about the store: set MASKOCR_STORE, or leave it out")
    here = work.look(*folders, days=older_than, keep_last=keep_last)
    there = store.look(uri, folders, manifests, days=older_than) if uri else []
    named = [(entry, "\n".join(map(_short, entry.paths))) for entry in here]
    _print_entries([*named, *((entry, entry.uri) for entry in there)])
    if delete:
        freed = work.delete(here, _say) + store.delete(there, _say)
        _say(f"{_size(freed)} given back")
    elif going := [entry for entry in (*here, *there) if not entry.kept]:
        _say(f"nothing was deleted; --delete gives back {_size(sum(entry.frees for entry in going))}")
    else:
        _say("nothing to delete")


def _start(plan: Plan, root: Path) -> None:
    """One run, as `maskocr run` makes it, in a process of its own: its memory and its name in MLflow end with it."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "maskocr_core.cli", "run", str(plan.pipeline), *plan.assignments]
    if code := subprocess.run([*command, "--root", str(root)], check=False).returncode:
        raise RuntimeError(f"exit code {code}, its message stands above")


@contextmanager
def _opened(url: str, token: str | None, namespace: str | None) -> Iterator[Endpoint]:
    from maskocr_pipelines import recurring

    _refuse(not url, "no endpoint: give --endpoint URL or set KFP_ENDPOINT, or --local for this machine")
    with recurring.opened(url, token, namespace) as there:
        yield there


def _refuse(wrong: bool, sentence: str) -> None:
    if wrong:
        raise ValueError(sentence)


def _say(line: str) -> None:
    print(line, flush=True)


def _print_schedules(rows: list[Row]) -> None:
    from maskocr_core.escaping import spelled_out

    written = [
        (
            spelled_out(row.name),
            row.state,
            row.version,
            "\n".join(f"{own:%a %Y-%m-%d %H:%M %Z} = {other:%a %H:%M %Z}" for own, other in row.next),
        )
        for row in rows
    ]
    _print_table(("schedule", "state", "version", "next runs"), written)


def _print_entries(entries: list[tuple[Entry | Stored, str]]) -> None:
    rows = [
        ("keep" if entry.kept else "delete", entry.what, where, f"{entry.days:.0f}", _size(entry.frees), entry.why)
        for entry, where in entries
    ]
    _print_table(("", "what", "where", "days", "frees", "why"), rows)


def _short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _size(size: int) -> str:
    from rich.filesize import decimal

    return decimal(size)


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header)
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False, markup=False).print(table)

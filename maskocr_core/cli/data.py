"""What is done to data that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskocr_core import stages
from maskocr_core.cli.app import app


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
    pipeline_root: Annotated[
        list[str] | None,
        typer.Option(help="s3://bucket/prefix where Kubeflow keeps the artifacts of its runs. May be given again."),
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
    places = Places.of([folder, *(work or [Path("work")])], repository or [], pipeline_root or [])
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

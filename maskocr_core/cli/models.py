"""What is done with models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maskocr_core.cli.app import Overrides, Recipe, app

if TYPE_CHECKING:
    from maskocr_core.auditing import Audit
    from maskocr_core.services.ledger import Entry


@app.command(rich_help_panel="Models")
def read(
    images: Annotated[list[Path], typer.Argument(help="Line images, or folders of them.")],
    model: Annotated[
        Path | None, typer.Option(help="Folder of a recognizer; default: the champion in MLflow, else the challenger.")
    ] = None,
    confidence: Annotated[
        bool, typer.Option(help="Print a third column: how likely the line is read without an error.")
    ] = False,
    recipe: Recipe = "pilot",
    set: Overrides = [],  # noqa: B006
) -> None:
    """Print the text of line images, and on standard error which model read them."""
    from maskocr_core import config, reader

    if not reader.read_images(images, model, config.load(recipe, set).registry, confidence):
        raise typer.Exit(1)


@app.command("ui", rich_help_panel="Models")
def ui_command(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000) -> None:
    """Open the MLflow UI of this machine's runs: compare the starts, see the report, decide on the challenger."""
    from maskocr_core.services import ui

    ui.serve(port)


@app.command(rich_help_panel="Models")
def promote(
    version: Annotated[int | None, typer.Option(help="Version to make champion.")] = None,
    reason: Annotated[str, typer.Option(help="Why, in a sentence that is kept for good: name nobody.")] = "",
    override: Annotated[
        bool, typer.Option("--override", help="Also against the gate's hold, or without a verdict that can be trusted.")
    ] = False,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Give the reason of the latest move that was made in the MLflow UI.")
    ] = False,
    recipe: Recipe = "pilot",
    set: Overrides = [],  # noqa: B006
) -> None:
    """Make a registered version the champion, and write down who did it, when and why.

    The decision becomes an entry of the ledger, then the alias `champion` moves; `maskocr read` and the next evaluation
    take the new champion. Moving the alias in the MLflow UI does the same, and the next command writes it down as a
    move by an unknown person, flagged until `--confirm` gives its reason.

    Refused: no reason; a version that is not there or is champion already; another one promoted meanwhile; and without
    `--override`: the verdict hold, no verdict in the ledger, or tags of the version that say another.

    Example: `maskocr promote --version 4 --reason "reads the parish registers better, seen on 40 pages"`
    """
    from maskocr_core import config, promotion

    if confirm == (version is not None) or (confirm and override):
        raise ValueError("give either --version N (with --override where the gate holds it), or --confirm")
    registry = config.load(recipe, set).registry
    if confirm:
        entry = promotion.confirm(registry, reason)
        print(f"entry {entry.number}: the move of entry {entry.confirms} has its reason now")
    else:
        _tell(promotion.promote(registry, str(version), reason, override))


@app.command(rich_help_panel="Models")
def rollback(
    reason: Annotated[str, typer.Option(help="Why, in a sentence that is kept for good: name nobody.")] = "",
    recipe: Recipe = "pilot",
    set: Overrides = [],  # noqa: B006
) -> None:
    """Make the version champion again that was it before, and write down who did it, when and why.

    Twice in a row goes two champions back; where the alias was taken away, it comes back. The gate is not asked.
    Refused: no reason; no earlier champion; one that was deleted; another one promoted meanwhile.

    Example: `maskocr rollback --reason "drops the last character of long lines"`
    """
    from maskocr_core import config, promotion

    _tell(promotion.roll_back(config.load(recipe, set).registry, reason))


@app.command(rich_help_panel="Models")
def audit(
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON, with digests and every field of the ledger.")
    ] = False,
    recipe: Recipe = "pilot",
    set: Overrides = [],  # noqa: B006
) -> None:
    """List who made which version champion, when and why, with the gate's verdicts, and check that nobody changed that.

    Writes down a move that was made in the MLflow UI. Flags moves without reason, without verdict or against hold
    (until `maskocr promote --confirm` gives the reason), and versions whose tags say another verdict than the ledger.
    Entries of the ledger that were changed, removed or added are named.

    Exit code 1: something is flagged, or the ledger is not whole. Run it by a timer and have its failure mailed.

    Example: `maskocr audit --json | jq '.rows[] | select(.flags != [])'`
    """
    from maskocr_core import auditing, config

    found = auditing.audit(config.load(recipe, set).registry)
    if json:
        _print_json(found)
    else:
        _print_table(found)
    if not found.clean:
        raise typer.Exit(1)


def _tell(entry: Entry) -> None:
    """What a promotion or a roll-back did."""
    before = f" in the place of version {entry.replaces}" if entry.replaces else ""
    verdict = f"verdict {entry.verdict or 'unknown'}" + (", overridden" if entry.override else "")
    print(f"entry {entry.number}: {entry.model} version {entry.version} is champion{before} ({verdict})")


def _print_json(found: Audit) -> None:
    import dataclasses
    import json

    print(json.dumps(dataclasses.asdict(found) | {"clean": found.clean}, indent=1, ensure_ascii=False))


def _print_table(found: Audit) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from maskocr_core.escaping import spelled_out

    table = Table()
    for name in ("#", "when", "what", "version", "verdict", "who", "why", "flagged"):
        table.add_column(name, no_wrap=name in ("#", "when", "version"))  # a date that is cut off is none
    for entry, flags in ((row.entry, row.flags) for row in found.rows):
        cells = (str(entry.number), entry.when, entry.what, entry.change, entry.verdict or "", entry.who, entry.reason)
        table.add_row(*(Text(spelled_out(cell)) for cell in cells), Text("; ".join(flags), "bold"))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print(
        f"{found.model}: champion is version {found.champion or 'none'}; ledger {found.place}", soft_wrap=True
    )
    if found.fault:
        console.print(f"NOT WHOLE: {found.fault}", soft_wrap=True)

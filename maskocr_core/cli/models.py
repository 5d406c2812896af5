"""What is done with models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskocr_core.cli.app import Overrides, Recipe, app


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

"""What is looked at before a run: this machine, and what the run will cost."""

from __future__ import annotations

from typing import Annotated

import typer

from maskocr_core.cli.app import Recipe, app


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

"""`maskocr plan`, with a flag for every assumption."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from maskocr_core.cli.app import Overrides, app
from maskocr_core.cli.stage_commands import flag
from maskocr_core.planning.assumptions import Assumptions, assume, written
from maskocr_core.recipes import PAPER_SIZES

Recipes = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Recipe to plan for; may be given again. Default: the six paper sizes."),
]
Prices = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Prices as one JSON object, named as the flags are, with `_` for `-`; flags win."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")]


def _plan(recipe: list[str] | None, set: list[str], prices: Path | None, as_json: bool, **given: Any) -> None:
    """Compute what pre-training takes: parameters, operations, memory, hours, requests and money, from formulas alone."""
    from maskocr_core import config
    from maskocr_core.planning import plan, table

    assumed = assume(prices, **given)
    plans = [plan.plan(config.load(name, set), assumed) for name in recipe or PAPER_SIZES]
    if as_json:
        import json

        content = {"note": table.CAUTION, "assumptions": assumed.model_dump(), "plans": [p.as_json() for p in plans]}
        print(json.dumps(content, indent=1))
    else:
        table.show(plans, assumed)


def _with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of Assumptions; what is not given is left to prices and defaults."""
    options: dict[str, tuple[Any, Any]] = {
        "recipe": (Recipes, None),
        "set": (Overrides, []),
        "prices": (Prices, None),
        "as_json": (Json, False),
    }
    for name, field in Assumptions.model_fields.items():
        default = "" if field.default is None else f" Default: {written(field.default)}."
        option = typer.Option(flag(name), help=field.description + default)
        options[name] = (Annotated[field.annotation | None, option], None)
    command.__signature__ = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
            for name, (annotation, default) in options.items()
        ]
    )
    command.__annotations__ = {name: annotation for name, (annotation, _) in options.items()}
    return command


app.command("plan", rich_help_panel="Models")(_with_flags(_plan))

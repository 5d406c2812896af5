"""One command a stage, its flags made from the stage's signature and docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from maskocr_core import stages
from maskocr_core.cli.app import Overrides, Recipe, app


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


for _panel, _names in (("Stages, in order", stages.NAMES), ("Stages of training again", stages.BESIDE)):
    for _name in _names:
        _command = _stage_command(_name)
        app.command(_name, rich_help_panel=_panel)(_with_dry_run(_command) if _name == "ingest" else _command)

"""The application that every command registers with, and the options that most of them share."""

from __future__ import annotations

from typing import Annotated

import typer

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

Recipe = Annotated[
    str, typer.Option(help="Named configuration: pilot, smoke, laptop, small, base, or paper-3m to paper-86m.")
]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Change one knob of the recipe; may be given again."),
]

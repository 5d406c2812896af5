"""Which models from outside others came of: they stand beside the codebook and the encoder, and on the model card in the end."""

from __future__ import annotations

from pathlib import Path

from maskocr_core import artifacts
from maskocr_core.artifacts import Artifact
from maskocr_core.services import registered

NAME = "origin.json"


def named(uri: str) -> str | None:
    """What a URI names now: of an alias the version, which the alias may leave; None for no URI."""
    return (registered.resolved(uri) if uri.startswith("models:/") else uri) or None


def write(folder: Path, **models: str | None) -> None:
    """Keep the names of models beside what came of them."""
    artifacts.write_json(folder / NAME, models)


def of(artifact: Artifact) -> dict[str, str | None]:
    """What an artifact says of the models that it came of; nothing where an earlier version made it."""
    return artifact.read_json(NAME) if NAME in artifact.names() else {}

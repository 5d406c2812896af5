"""Codebooks on disk: safetensors and JSON beside them, with the encoder inside where one describes the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch

from maskocr_core import artifacts, config
from maskocr_core.config import Data
from maskocr_core.model import step_features
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.encoder import Encoder
from maskocr_core.training import checkpoint

FORMAT_VERSION = 2
_KINDS = {
    step_features.Pixels: "pixels",
    step_features.Gradients: "gradients",
    step_features.RandomNetwork: "random",
    step_features.Contextual: "encoder",
}


def save(codebook: Codebook, data: Data, folder: Path) -> None:
    """Write `codebook.safetensors` and `codebook.json`, with the encoder inside where one describes the steps."""
    kind, features = _KINDS[type(codebook.features)], codebook.features
    facts: dict[str, Any] = {"kind": kind}
    tensors = {name: getattr(codebook, name) for name in ("mean", "components", "centroids", "portraits")}
    if isinstance(features, step_features.Contextual):
        facts["model"] = features.encoder.shape
        tensors |= {f"encoder.{name}": tensor for name, tensor in features.encoder.state_dict().items()}
    elif kind != "random":
        facts["window"] = features.window
    checkpoint.save_tensors(
        {name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "codebook.safetensors"
    )
    artifacts.write_json(
        folder / "codebook.json",
        {
            "format_version": FORMAT_VERSION,
            **checkpoint.prepared(data),
            "features": facts,
        },
    )


def load(artifact: artifacts.Artifact, data: Data) -> Codebook:
    """The codebook of an artifact. Raises ValueError if it was made of lines of another height, or that were prepared otherwise."""
    facts = _facts(artifact)
    checkpoint.demand_such_lines(facts, data, f"{artifact.folder}: the codebook was made of", "run quantize again")
    tensors = safetensors.torch.load(artifact.read_bytes("codebook.safetensors"))
    weights = {
        name.removeprefix("encoder."): tensors.pop(name) for name in list(tensors) if name.startswith("encoder.")
    }
    made = facts["features"]
    if made["kind"] == "encoder":
        encoder = Encoder(**checkpoint.sized(made["model"]))
        checkpoint.transplant(encoder, weights, str(artifact.folder))
    else:
        encoder = None
    return Codebook(
        facts["height"], step_features.named(made["kind"], facts["height"], made.get("window", 0), encoder), **tensors
    )


def differences(artifact: artifacts.Artifact, asked: config.Codebook) -> str:
    """What of a codebook is another than asked for; empty if nothing is. A network's features have no window."""
    made = _facts(artifact)["features"]
    tensors = safetensors.torch.load(artifact.read_bytes("codebook.safetensors"))
    found = {
        "features": made["kind"],
        "window": made.get("window", asked.window),
        "components": len(tensors["components"]),
        "clusters": len(tensors["centroids"]),
    }
    return checkpoint.differing(found, {name: getattr(asked, name) for name in found}, "there")


def _facts(artifact: artifacts.Artifact) -> dict[str, Any]:
    facts = artifact.read_json("codebook.json")
    if facts.get("format_version") == 1:  # there was one kind of features then
        facts |= {"format_version": FORMAT_VERSION, "features": {"kind": "pixels", "window": facts["window"]}}
    return checkpoint.known(facts, artifact.folder / "codebook.json", FORMAT_VERSION)

"""Weights and training state on disk: safetensors and JSON, nothing that unpickles. Written aside, then renamed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from maskocr_core import artifacts
from maskocr_core.config import Direction, Model
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import Vocabulary

FORMAT_VERSION = 1


class Checkpoints:
    """The last two checkpoints of a run in a folder; a damaged one is detected and the one before is used."""

    KEEP = 2

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, figures: dict[str, Any]) -> None:
        """Keep weights and optimiser state after `step` steps; older checkpoints than the last two go."""
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        name = f"step-{step:08d}"
        digest = save_tensors(tensors, self.folder / f"{name}.safetensors")
        artifacts.write_json(
            self.folder / f"{name}.json",
            {"format_version": FORMAT_VERSION, "step": step, "sha256": digest, "figures": figures},
        )
        for old in sorted(self.folder.glob("step-*.json"))[: -self.KEEP]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
        """Load the newest whole checkpoint; (step, figures), or (0, {}) if there is none."""
        for path in sorted(self.folder.glob("step-*.json"), reverse=True):
            try:
                facts = _known(json.loads(path.read_text()), path)
                tensors = load_tensors(path.with_suffix(".safetensors"), facts["sha256"])
            except (ValueError, KeyError, OSError) as error:
                print(f"checkpoint {path.stem} is damaged and left aside ({error})", flush=True)
                continue
            model.load_state_dict(
                {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
            )
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("optimizer."):
                    _, number, field = name.split(".", 2)
                    state.setdefault(int(number), {})[field] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            return facts["step"], facts["figures"]
        return 0, {}


def save_tensors(tensors: dict[str, Tensor], path: Path) -> str:
    """Write safetensors under a temporary name, rename, and return the sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}, aside)
    except Exception as error:  # safetensors says so in a class of its own
        aside.unlink(missing_ok=True)
        if "No space left" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from None
        raise
    digest = artifacts.sha256(aside)
    aside.rename(path)
    return digest


def load_tensors(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read safetensors; raises ValueError if it is damaged or not what `sha256` says."""
    if sha256 and artifacts.sha256(path) != sha256:
        raise ValueError(f"{path} does not have the digest that was written beside it")
    try:
        return load(path.read_bytes())
    except Exception as error:  # safetensors raises its own class, not public in every version
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def new_encoder(model: Model, height: int) -> Encoder:
    """An encoder with fresh weights (drawn from torch's global generator)."""
    return Encoder(height, model.width, model.depth, model.heads, model.stem, model.dropout)


def save_encoder(encoder: Encoder, model: Model, height: int, folder: Path, direction: Direction = "ltr") -> None:
    """Write `encoder.safetensors` and `encoder.json` (a checkpoint knows its shape, and how its lines were prepared)."""
    save_tensors(encoder.state_dict(), folder / "encoder.safetensors")
    artifacts.write_json(
        folder / "encoder.json",
        {
            "format_version": FORMAT_VERSION,
            "height": height,
            "direction": direction,
            "model": model.model_dump(mode="json"),
        },
    )


def load_encoder(artifact: artifacts.Artifact, model: Model, height: int, direction: Direction = "ltr") -> Encoder:
    """The encoder of an artifact.

    Raises ValueError if it is of another shape than `model` and `height` ask for, or saw lines of another direction.
    """
    facts = _known(artifact.read_json("encoder.json"), artifact.folder / "encoder.json")
    demand_direction(facts, direction, f"{artifact.folder}: the encoder was pre-trained on", "run pretrain again")
    asked = {"height": height, **model.model_dump(mode="json")}
    found = {"height": facts["height"], **facts["model"]}
    differing = [
        f"{name} {found[name]} here, {asked[name]} asked"
        for name in asked
        if found.get(name) != asked[name] and name != "dropout"
    ]
    if differing:
        raise ValueError(
            f"{artifact.folder}: the encoder has another shape ({'; '.join(differing)}): run pretrain again, or set model.* and data.height to match"
        )
    encoder = new_encoder(model, height)
    transplant(encoder, load(artifact.read_bytes("encoder.safetensors")), str(artifact.folder))
    return encoder


def transplant(encoder: Encoder, tensors: dict[str, Tensor], source: str) -> None:
    """Put weights into an encoder, print loaded / missing / unexpected, and fail on a missing one."""
    report = encoder.load_state_dict(tensors, strict=False)
    loaded = len(tensors) - len(report.unexpected_keys)
    print(
        f"encoder from {source}: {loaded} tensors loaded, {len(report.missing_keys)} missing, {len(report.unexpected_keys)} unexpected",
        flush=True,
    )
    if report.missing_keys:
        raise ValueError(
            f"{source} lacks encoder weights {', '.join(report.missing_keys[:4])}: it is not an encoder of this size"
        )


def save_recognizer(recognizer: Recognizer, model: Model, height: int, max_width: int, folder: Path) -> None:
    """Write `recognizer.safetensors` and `recognizer.json` (sizes, geometry, direction, vocabulary)."""
    digest = save_tensors(recognizer.state_dict(), folder / "recognizer.safetensors")
    artifacts.write_json(
        folder / "recognizer.json",
        {
            "format_version": FORMAT_VERSION,
            "sha256": digest,
            "height": height,
            "max_width": max_width,
            "direction": recognizer.direction,
            "model": model.model_dump(mode="json"),
            "characters": recognizer.vocabulary.characters,
        },
    )


def load_recognizer(folder: Path) -> tuple[Recognizer, dict[str, Any]]:
    """The recogniser in a folder, in evaluation mode, and its facts: `height`, `max_width`, `direction`, `model`, `characters`.

    Raises ValueError if the folder holds none, or a changed one.
    """
    if not (folder / "recognizer.json").is_file():
        raise ValueError(
            f"{folder} holds no recognizer.json and recognizer.safetensors: give the folder of a trained recognizer"
        )
    facts = _known(json.loads((folder / "recognizer.json").read_text()), folder / "recognizer.json")
    encoder = new_encoder(Model(**facts["model"]), facts["height"])
    recognizer = Recognizer(encoder, Vocabulary(facts["characters"]), facts["direction"])
    recognizer.load_state_dict(load_tensors(folder / "recognizer.safetensors", facts["sha256"]))
    return recognizer.eval(), facts


def save_codebook(codebook: Codebook, folder: Path, direction: Direction = "ltr") -> None:
    """Write `codebook.safetensors` and `codebook.json`."""
    save_tensors(
        {"mean": codebook.mean, "components": codebook.components, "centroids": codebook.centroids},
        folder / "codebook.safetensors",
    )
    artifacts.write_json(
        folder / "codebook.json",
        {
            "format_version": FORMAT_VERSION,
            "height": codebook.height,
            "window": codebook.window,
            "direction": direction,
        },
    )


def load_codebook(artifact: artifacts.Artifact, direction: Direction = "ltr") -> Codebook:
    """The codebook of an artifact. Raises ValueError if it was made of lines of another direction."""
    facts = _known(artifact.read_json("codebook.json"), artifact.folder / "codebook.json")
    demand_direction(facts, direction, f"{artifact.folder}: the codebook was made of", "run quantize again")
    return Codebook(facts["height"], facts["window"], **load(artifact.read_bytes("codebook.safetensors")))


def demand_direction(facts: dict[str, Any], direction: Direction, what: str, otherwise: str) -> None:
    """Raises ValueError, beginning with `what`, unless the facts of a checkpoint say that its lines ran in `direction`."""
    if facts["direction"] != direction:
        words = {"ltr": "left-to-right", "rtl": "right-to-left"}
        raise ValueError(
            f"{what} {words[facts['direction']]} lines, these are {words[direction]}: "
            f"set data.direction={facts['direction']} if they are not, or {otherwise}"
        )


def _known(facts: dict[str, Any], path: Path) -> dict[str, Any]:
    if facts.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version {facts.get('format_version')!r} is not {FORMAT_VERSION}; install the maskocr that wrote it"
        )
    return {"direction": "ltr"} | facts  # every line was, before checkpoints said it

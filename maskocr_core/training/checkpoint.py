"""Weights and training state on disk: safetensors and JSON, nothing that unpickles. Written aside, then renamed."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file
from torch import Tensor

from maskocr_core import artifacts
from maskocr_core.config import Data, Model
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import Vocabulary
from maskocr_core.services import disk

FORMAT_VERSION = 1
RECOGNIZER_FORMAT = 2


def save_tensors(tensors: dict[str, Tensor], path: Path) -> str:
    """Write safetensors under a temporary name, rename, and return the sha256."""
    with disk.written(path) as aside:
        try:
            save_file({name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}, aside)
        except Exception as error:  # safetensors says so in a class of its own
            if "No space left" in str(error):
                raise OSError(errno.ENOSPC, "No space left on device", str(path)) from None
            raise
        return artifacts.sha256(aside)


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
    return Encoder(height, model.width, model.depth, model.heads, model.stem, model.dropout, model.places)


SIZES = "sizes"  # folder of an encoder's artifact with those of other sizes, each in a folder named by its size


def sizes_in(artifact: artifacts.Artifact) -> list[str]:
    """The other sizes that an encoder's artifact holds, as `pretrain.sizes` has them."""
    return [Path(name).parts[1] for name in artifact.names(f"{SIZES}/", "/encoder.json")]


def save_encoder(encoder: Encoder, model: Model, data: Data, folder: Path) -> None:
    """Write `encoder.safetensors` and `encoder.json` (a checkpoint knows its shape, and how its lines were prepared)."""
    save_tensors(encoder.state_dict(), folder / "encoder.safetensors")
    artifacts.write_json(
        folder / "encoder.json",
        {
            "format_version": FORMAT_VERSION,
            **prepared(data),
            "model": model.model_dump(mode="json"),
        },
    )


def load_encoder(artifact: artifacts.Artifact, model: Model, data: Data) -> Encoder:
    """The encoder of an artifact: the one of the size of `model` where it holds several.

    Raises ValueError as `demand_encoder` does.
    """
    place = demand_encoder(artifact, model, data)
    encoder = new_encoder(model, data.height)
    transplant(encoder, load(artifact.read_bytes(f"{place}encoder.safetensors")), str(artifact.folder))
    return encoder


def demand_encoder(artifact: artifacts.Artifact, model: Model, data: Data) -> str:
    """Where in an artifact its encoder of the size of `model` lies, told without its weights.

    Raises ValueError if it is of another shape than `model` and `data` ask for, or saw lines prepared otherwise.
    """
    place = f"{SIZES}/{model.size}/" if model.size in sizes_in(artifact) else ""
    facts = known(artifact.read_json(f"{place}encoder.json"), artifact.folder / place / "encoder.json")
    demand_prepared(facts, data, f"{artifact.folder}: the encoder was pre-trained on", "run pretrain again")
    if differing := differences({"height": facts["height"], **facts["model"]}, model, data, "here"):
        raise ValueError(
            f"{artifact.folder}: the encoder has another shape ({differing}): run pretrain again, or set model.* and data.height to match"
        )
    return place


def differences(found: dict[str, Any], model: Model, data: Data, where: str) -> str:
    """What of an encoder's shape is another than asked for, `where` it was found; empty if nothing is. Dropout is no shape."""
    asked = {"height": data.height, **model.model_dump(mode="json", exclude={"dropout"})}
    return differing(found, asked, where)


def differing(found: dict[str, Any], asked: dict[str, Any], where: str) -> str:
    """Each fact that is another than asked for, `where` it was found, in words; empty if none is."""
    return "; ".join(
        f"{name} {found.get(name)} {where}, {value} asked" for name, value in asked.items() if found.get(name) != value
    )


def folder_at(uri: str) -> Path:
    """The folder of weights that a URI names: itself, or that of a registered model's recogniser (`models:/…`), fetched."""
    if not uri.startswith("models:/"):
        return Path(uri)
    from maskocr_core.services import registered

    return registered.recognizer_folder(uri)


def encoder_in(folder: Path, uri: str, data: Data) -> Encoder:
    """The encoder, of any size, in the folder of a pre-trained encoder or of a recogniser, `folder_at` the URI that errors name.

    Raises ValueError if there is none, or it saw lines of another height, or prepared otherwise.
    """
    if (folder / "encoder.json").is_file():
        artifact = artifacts.Artifact(folder)
        model = Model(**sized(artifact.read_json("encoder.json")["model"]))
        return load_encoder(artifact, model, data)
    recognizer, facts = load_recognizer(folder)
    demand_such_lines(facts, data, f"{uri} reads", "give another encoder")
    return recognizer.encoder


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


def save_recognizer(recognizer: Recognizer, model: Model, data: Data, folder: Path) -> None:
    """Write `recognizer.safetensors` and `recognizer.json` (sizes, how lines are prepared, decoder, vocabulary)."""
    digest = save_tensors(recognizer.state_dict(), folder / "recognizer.safetensors")
    artifacts.write_json(
        folder / "recognizer.json",
        {
            "format_version": RECOGNIZER_FORMAT,
            "sha256": digest,
            **prepared(data),
            "max_width": data.max_width,
            "decoder": recognizer.decoder,
            "model": model.model_dump(mode="json"),
            "characters": recognizer.vocabulary.characters,
        },
    )


def load_recognizer(folder: Path) -> tuple[Recognizer, dict[str, Any]]:
    """The recogniser in a folder, in evaluation mode, and its facts: `height`, `max_width`, `direction`, `ink`,
    `decoder`, `model`, `characters`.

    Raises ValueError if the folder holds none, or a changed one.
    """
    facts = facts_of_recognizer(folder)
    encoder = new_encoder(Model(**facts["model"]), facts["height"])
    recognizer = Recognizer(encoder, Vocabulary(facts["characters"]), facts["direction"], facts["decoder"])
    recognizer.load_state_dict(load_tensors(folder / "recognizer.safetensors", facts["sha256"]))
    return recognizer.eval(), facts


def facts_of_recognizer(folder: Path) -> dict[str, Any]:
    """What `load_recognizer` says of a recogniser, without its weights. Raises ValueError if the folder holds none."""
    if not (folder / "recognizer.json").is_file():
        raise ValueError(
            f"{folder} holds no recognizer.json and recognizer.safetensors: give the folder of a trained recognizer"
        )
    facts = json.loads((folder / "recognizer.json").read_text())
    if facts.get("format_version") == 1:  # there was one decoder then
        facts |= {"format_version": RECOGNIZER_FORMAT, "decoder": "ctc"}
    return known(facts, folder / "recognizer.json", RECOGNIZER_FORMAT)


def copy_recognizer(source: Path, destination: Path) -> None:
    """Copy a recogniser, and nothing that lies beside it."""
    for name in ("recognizer.json", "recognizer.safetensors"):
        artifacts.write_bytes(destination / name, (source / name).read_bytes())


PREPARED = ("height", "max_width", "direction", "ink")  # what the facts of a recogniser say of its lines


def demand_such_lines(facts: dict[str, Any], data: Data, what: str, otherwise: str) -> None:
    """`demand_prepared`, and ValueError as well unless the lines of a checkpoint were as high as these."""
    if facts["height"] != data.height:
        raise ValueError(
            f"{what} lines {facts['height']} px high, these are {data.height} px: "
            f"set data.height={facts['height']}, or {otherwise}"
        )
    demand_prepared(facts, data, what, otherwise)


def demand_prepared(facts: dict[str, Any], data: Data, what: str, otherwise: str) -> None:
    """Raises ValueError, beginning with `what`, unless a checkpoint's lines ran in the direction, and had the ink, of these."""
    words = {"ltr": "left-to-right", "rtl": "right-to-left", "raw": "raw-ink", "levelled": "levelled-ink"}
    for name in ("direction", "ink"):
        if facts[name] != getattr(data, name):
            raise ValueError(
                f"{what} {words[facts[name]]} lines, these are {words[getattr(data, name)]}: "
                f"set data.{name}={facts[name]} if they are not, or {otherwise}"
            )


def prepared(data: Data) -> dict[str, Any]:
    """What every checkpoint says of how its lines were prepared."""
    return {name: getattr(data, name) for name in ("height", "direction", "ink")}


def known(facts: dict[str, Any], path: Path, version: int = FORMAT_VERSION) -> dict[str, Any]:
    """The facts of a checkpoint, with what earlier ones left unsaid. Raises ValueError, naming the file, if it is of another format."""
    if facts.get("format_version") != version:
        raise ValueError(
            f"{path}: format_version {facts.get('format_version')!r} is not {version}; install the maskocr that wrote it"
        )
    facts = {"direction": "ltr", "ink": "raw"} | facts  # every line was, before checkpoints said it
    return facts | {"model": sized(facts["model"])} if "model" in facts else facts


def sized(model: dict[str, Any]) -> dict[str, Any]:
    """Sizes as a checkpoint has them: before it said how places are known, they were added."""
    return {"places": "sinusoidal"} | model

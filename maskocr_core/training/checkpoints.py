"""Checkpoints of unfinished training, in a folder or below an `s3://` prefix: safetensors, written beside the training.

`index.json` names them; it alone says what counts. It is replaced in one piece (here under a lock, in S3 by a conditional
PUT) and holds the number of the attempt that may write: a file that a kill left half written is never named, and an earlier
attempt that still lives is refused, whatever it has written aside.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from maskocr_core.services import storage

FORMAT_VERSION = 2
INDEX = "index.json"
_FILE = re.compile(r"step-\d+-(?P<attempt>\d+)\.safetensors")
NEWEST = 2  # checkpoints kept beside the best one
# The first of these that a checkpoint has; lower is better. The loss on masked steps rises with their number, so that where it judges
# the best checkpoint may be an early one.
JUDGED_BY = ("validation_cer", "probe_cer", "masked_loss", "loss")


class Checkpoints:
    """The last two checkpoints of a training, and the best one. Restoring takes the newest whole one.

    folder: where they lie on this machine. store: an `s3://` prefix where they lie instead, if not empty, so that any
    machine finds them. beside: small files of this machine, and folders of such, that a machine without them gets back
    with a checkpoint.

    Saving returns once the weights are copied; a thread writes them. What goes wrong there is raised by the next `save`
    or by `finish`.
    """

    def __init__(self, folder: Path, store: str = "", beside: tuple[Path, ...] = ()):
        self.uri = store or str(folder)
        self.beside = beside
        self.attempt = 0
        self._id = uuid.uuid4().hex
        self._good = ""
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def begin(self) -> int:
        """Take the next number of an attempt: earlier ones are refused from now on, and what they left that no index names goes."""
        index = self._replace_index(lambda index: index | {"attempt": index["attempt"] + 1, "id": self._id})
        self.attempt = index["attempt"]
        self._good = index["checkpoints"][-1]["name"] if index["checkpoints"] else ""
        named = {entry["name"] for entry in index["checkpoints"]}
        storage.erase_below(self.uri, which=lambda name: name not in named and self._is_of_an_earlier_one(name))
        return self.attempt

    def _is_of_an_earlier_one(self, name: str) -> bool:
        """Whether an attempt before this one wrote the file. A later one may have begun since, and be at work there."""
        written = _FILE.fullmatch(name)
        return bool(written) and int(written["attempt"]) < self.attempt

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, figures: dict[str, Any]) -> None:
        """Keep weights and optimiser state after `step` steps, once the checkpoint before is written.

        Raises RuntimeError, of this or of the checkpoint before, if the disk is full, S3 refuses, or another attempt has
        begun: the checkpoints that are there stay as they are.
        """
        self.finish()
        if not self.attempt:
            self.begin()
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        # A copy, before the next step changes them.
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        for place in self.beside:
            for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
                if path.is_file() and (content := path.read_bytes()):
                    name = path.relative_to(place.parent).as_posix()
                    tensors[f"file.{name}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self._writing = self._writer.submit(self._write, step, tensors, dict(figures))

    def demand_alone(self, step: int) -> None:
        """Raises RuntimeError if another attempt has begun since this one, which then may write nothing more, or if that cannot be told."""
        if not self.attempt:
            return
        try:
            self._demand_own(self._index(), step)
        except (ValueError, OSError) as error:
            raise RuntimeError(self._not_written(step, error)) from error

    def finish(self) -> None:
        """Return once what was saved is written; raises what went wrong."""
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    @property
    def last_good(self) -> str:
        """Where the newest checkpoint lies, in words."""
        return f"{self.uri}/{self._good}" if self._good else f"the start, as there is none in {self.uri} yet"

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
        """Load the newest whole checkpoint; (step, figures), or (0, {}) if there is none.

        Raises ValueError if its tensors are of other names or shapes than those of `model`, and RuntimeError if whether it is whole
        cannot be told now: going on from an earlier one would end with this one removed.
        """
        for entry in reversed(self._index()["checkpoints"]):
            content, why_not = self._read(entry)
            if content is None:
                print(f"checkpoint {entry['name']} is damaged and left aside ({why_not})", flush=True)
                continue
            tensors = load(content)
            self._demand_same_shapes(entry["name"], tensors, model)
            model.load_state_dict(_part(tensors, "model."))
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _part(tensors, "optimizer.").items():
                number, field = name.split(".", 1)
                state.setdefault(int(number), {})[field] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            places = {place.name: place.parent for place in self.beside}
            for name, content in _part(tensors, "file.").items():
                home = places.get(name.split("/")[0])
                if home and not (path := home / name).exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content.numpy().tobytes())
            self._good = entry["name"]
            return entry["step"], entry["figures"]
        self._good = ""
        return 0, {}

    def _write(self, step: int, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
        # The attempt is in the name: two of them never write the same file.
        name = f"step-{step:08d}-{self.attempt}.safetensors"  # as `_FILE` reads it
        content = save(tensors)
        entry = {"name": name, "step": step, "sha256": hashlib.sha256(content).hexdigest(), "figures": figures}
        before: list[dict[str, Any]] = []

        def with_this_one(index: dict[str, Any]) -> dict[str, Any]:
            self._demand_own(index, step)
            before[:] = index["checkpoints"]
            # Those of later steps were damaged, or this attempt would have gone on from them.
            return index | {"checkpoints": _kept([*(one for one in before if one["step"] < step), entry])}

        try:
            storage.put(f"{self.uri}/{name}", content)
            kept = self._replace_index(with_this_one)["checkpoints"]
        except (RuntimeError, OSError, ValueError) as error:
            with contextlib.suppress(OSError, ValueError):
                storage.erase(f"{self.uri}/{name}")
            raise error if isinstance(error, RuntimeError) else RuntimeError(self._not_written(step, error)) from error
        self._good = name
        for old in before:
            if old["name"] not in {one["name"] for one in kept}:
                with contextlib.suppress(OSError, ValueError):  # the next attempt sweeps it up
                    storage.erase(f"{self.uri}/{old['name']}")

    def _demand_own(self, index: dict[str, Any], step: int) -> None:
        if index["id"] != self._id:
            why = f"attempt {index['attempt']} has begun at {self.uri} since and goes on alone"
            why = why if index["attempt"] else f"those in {self.uri} were removed meanwhile"
            raise RuntimeError(
                f"attempt {self.attempt} at this training is refused its checkpoint of step {step}: {why}"
            )

    def _not_written(self, step: int, error: Exception) -> str:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        return (
            f"{'the disk is full' if full else error}: the checkpoint of step {step} could not be written; "
            f"the last good one is {self.last_good}: {'free space' if full else 'mend it'} and run again"
        )

    def _read(self, entry: dict[str, Any]) -> tuple[bytes | None, str]:
        """What a checkpoint holds, or None and what is wrong with it."""
        uri = f"{self.uri}/{entry['name']}"
        try:
            if not storage.exists(uri):
                return None, "it is gone"
            content = storage.content(uri)
        except (ValueError, OSError) as error:
            raise RuntimeError(
                f"checkpoint {uri} cannot be read now ({error}): run again when it can, or remove it to go on from the one before"
            ) from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            return None, "its digest is not the one in the index"
        return content, ""

    def _demand_same_shapes(self, name: str, tensors: dict[str, Tensor], model: nn.Module) -> None:
        found = {name: tuple(tensor.shape) for name, tensor in _part(tensors, "model.").items()}
        asked = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        differing = sorted(name for name in found.keys() | asked.keys() if found.get(name) != asked.get(name))
        if differing:
            said = [f"{name} {_shape(found.get(name))} there, {_shape(asked.get(name))} asked" for name in differing]
            raise ValueError(
                f"{self.uri}/{name} is of a model of another shape ({'; '.join(said[:2])}{'; …' if len(said) > 2 else ''}): "
                "set model.*, data.height, codebook.* and mask.* as they were, or remove it to begin anew"
            )

    def _index(self) -> dict[str, Any]:
        uri = f"{self.uri}/{INDEX}"
        if not storage.exists(uri):
            return self._parsed(None)
        return self._parsed(storage.content(uri))

    def _replace_index(self, change: Any) -> dict[str, Any]:
        written: dict[str, Any] = {}

        def changed(content: bytes | None) -> bytes:
            written.clear()
            written.update(change(self._parsed(content)))
            return json.dumps(written, indent=1).encode()

        storage.replace(f"{self.uri}/{INDEX}", changed)
        return written

    def _parsed(self, content: bytes | None) -> dict[str, Any]:
        if content is None:
            return {"format_version": FORMAT_VERSION, "attempt": 0, "id": "", "checkpoints": []}
        try:
            index = json.loads(content)
        except ValueError:
            raise ValueError(f"{self.uri}/{INDEX} is damaged: remove {self.uri} to begin anew") from None
        if index.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{self.uri}/{INDEX}: format_version {index.get('format_version')!r} is not {FORMAT_VERSION}; "
                "install the maskocr that wrote it"
            )
        return index


def _kept(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest ones and the best one, by step."""
    judged = [entry for entry in entries if _judgement(entry) is not None]
    best = [min(judged, key=_judgement)] if judged else []
    return [entry for entry in entries if entry in entries[-NEWEST:] or entry in best]


def _judgement(entry: dict[str, Any]) -> float | None:
    return next((entry["figures"][name] for name in JUDGED_BY if name in entry["figures"]), None)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _shape(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else "×".join(map(str, shape)) or "one number"

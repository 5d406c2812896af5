"""Ray workers that train together. A worker that is lost is replaced, and all go on from the last checkpoint.

Sources: https://docs.ray.io/en/latest/train/api/doc/ray.train.torch.TorchTrainer.html (Train v2 has no restore: what was done
so far lies in our own checkpoints), https://docs.ray.io/en/latest/train/user-guides/fault-tolerance.html
"""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskocr_core import artifacts
from maskocr_core.services import cluster, post

MAX_LOST = 20  # times that workers may be lost before the work is to blame
PATIENCE = 5.0  # s in which a worker that hears nothing more from another may learn that this one has told its error
RESIZE_EVERY = 30.0  # s between looks whether a cluster has room for more workers


class PeerLost(RuntimeError):
    """Another worker is gone, in the middle of what all do together."""


@contextmanager
def among_peers() -> Iterator[None]:
    """What all workers do together: an error of it is that another one is gone."""
    try:
        yield
    except RuntimeError as error:  # gloo raises no class of its own; that of NCCL is a RuntimeError
        raise PeerLost(f"another worker is gone ({cluster.last_line(error)})") from error


@dataclass(frozen=True)
class Verdict:
    """What the first worker that failed by itself said, as (type, message): with that, no other attempt would do better.

    It lies in the cluster's own store of small values: an actor for it would be a process of its own, which Ray wakes a hundred
    times a second to look for signals, where all cores are busy.
    """

    key: str

    @classmethod
    @contextmanager
    def awaited(cls) -> Iterator[Verdict]:
        """A new one, which is gone with the block."""
        from ray.experimental import internal_kv

        verdict = cls(f"maskocr-verdict-{uuid.uuid4().hex}")
        try:
            yield verdict
        finally:
            internal_kv._internal_kv_del(verdict.key)

    def say(self, kind: str, message: str) -> None:
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(self.key, json.dumps([kind, message]), overwrite=False)

    def said(self) -> tuple[str, str] | None:
        from ray.experimental import internal_kv

        said = internal_kv._internal_kv_get(self.key)
        return tuple(json.loads(said)) if said else None


@dataclass(frozen=True)
class Carried:
    """The files of a small folder, for workers that share none with the caller; large files of an artifact are in the store.

    Nothing is packed where workers are sure to see the folder, or could not go on without it.
    """

    path: Path
    files: dict[str, bytes]

    @classmethod
    def of(cls, path: Path) -> Carried:
        far = cluster.given() and os.environ.get("MASKOCR_STORE")
        return cls(path.absolute(), packed(path) if far else {})

    def here(self, room: Path) -> Path:
        """The folder itself where it is seen, else a new one below `room` with these files."""
        if self.path.is_dir() or not self.files:
            return self.path
        return unpacked(self.files, Path(tempfile.mkdtemp(dir=room)))


@contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """A file in the folder of unfinished work by which workers see that it is the caller's own."""
    mark = folder / f".seen-{uuid.uuid4().hex}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def data_parallel(
    function: Callable[..., dict[str, float]], arguments: tuple[Any, ...], workers: int, folder: Path
) -> dict[str, float]:
    """Run `function(rank, world, *arguments)` on `workers` Ray workers joined by gloo, or NCCL on GPUs; rank 0's figures.

    folder: of the unfinished work, one of the arguments. On a given cluster the nodes see it, or all of them a
    MASKOCR_STORE: then what rank 0 left in a folder of its own comes back to this one at the end. There may also be fewer
    workers at times, down to one: `world` is always a power of two.

    Raises ValueError or RuntimeError with the worker's own message if one fails by itself, and RuntimeError if workers are
    lost again and again.
    """
    with (
        marked(folder) as mark,
        cluster.connected(cpus=workers) as ray,
        post.opened(ray, mark.name) if cluster.given() else nullcontext(),
        tempfile.TemporaryDirectory(prefix="maskocr-train-") as storage,
        Verdict.awaited() as verdict,
    ):
        attempt = _attempt(function, tuple(map(_carried, arguments)), folder, mark, verdict, Path(storage))
        try:
            came = _trainer(ray, attempt, workers, storage).fit().return_value
        except Exception as error:
            _raise(verdict.said())
            raise RuntimeError(
                f"training workers were lost {MAX_LOST + 1} times ({cluster.last_line(error)}): "
                "run the stage again and it goes on from its checkpoint"
            ) from error
        _raise(verdict.said())
    figures, files = came
    unpacked(files, folder)
    return figures


def _trainer(ray: Any, attempt: Callable[[], Any], workers: int, storage: str) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class Meeting(TorchConfig):
        """Leaves the meeting of the workers to themselves: there may be some too many, and here they meet over a file."""

        backend_cls = Backend

    given = cluster.given()

    class OfTheseCores(FixedScalingPolicy):
        """Asks nobody for nodes: on a cluster of our own there will be no more, and who is asked is a process."""

        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class Trainer(TorchTrainer):
        """Leaves out what has nothing to do here, but a process each: who hands out Ray's datasets, of which there are none, and
        on a cluster of our own who frees places on one that outlives this process, and who finds new nodes."""

        def _initialize_and_run_controller(self, **arguments: Any) -> Any:
            if not given:
                arguments["scaling_policy"] = OfTheseCores(self.scaling_config)
            return super()._initialize_and_run_controller(**arguments)

        def _create_default_callbacks(self) -> list[Any]:
            idle = {"DatasetsCallback"} if given else {"DatasetsCallback", "PlacementGroupCleanerCallback"}
            return [one for one in super()._create_default_callbacks() if type(one).__name__ not in idle]

    if not given:
        workers = _as_gpus_allow(ray, workers)
    # On a cluster of our own all workers are on this machine, and come back on it.
    scaling = ScalingConfig(
        num_workers=(1, workers) if given and workers > 1 else workers,
        use_gpu=cluster.has_gpus(ray),
        **({"elastic_resize_monitor_interval_s": RESIZE_EVERY} if given and workers > 1 else {}),
    )
    run = RunConfig(name="attempt", storage_path=storage, failure_config=FailureConfig(max_failures=MAX_LOST))
    return Trainer(attempt, scaling_config=scaling, torch_config=Meeting(), run_config=run)


def _as_gpus_allow(ray: Any, workers: int) -> int:
    """As many workers as a machine has GPUs for, one each; Ray would wait without end, and without a word, for more."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if not gpus or workers <= gpus:
        return workers
    fewer = 1 << (gpus.bit_length() - 1)
    print(f"{workers} workers were asked for, each wants a GPU, and there are {gpus}: {fewer} will train", flush=True)
    return fewer


def _attempt(
    function: Callable[..., dict[str, float]],
    arguments: tuple[Any, ...],
    folder: Path,
    mark: Path,
    verdict: Verdict,
    storage: Path,
) -> Callable[[], Any]:
    """What each worker runs: (rank 0's figures, its files where the caller does not see them)."""
    told, given = cluster.environment(), cluster.given()

    def run() -> tuple[dict[str, float], dict[str, bytes]]:
        import torch
        from ray import train
        from ray.train.collective import broadcast_from_rank_zero

        os.environ |= told
        torch.set_num_threads(1)
        rank, there_are = train.get_context().get_world_rank(), train.get_context().get_world_size()
        world = 1 << (there_are.bit_length() - 1)
        try:
            meeting = broadcast_from_rank_zero(_meeting(None if given else storage))
            if rank >= world:  # gradients are added up pair by pair: this one waits for its pair
                return {}, {}
            with place_of(folder, mark) as (here, seen, room):
                if world > 1:
                    with among_peers():
                        backend = "nccl" if torch.cuda.is_available() else "gloo"
                        torch.distributed.init_process_group(backend, init_method=meeting, rank=rank, world_size=world)
                figures = function(rank, world, *(_here(argument, folder, here, room) for argument in arguments))
                return figures, {} if seen or rank else packed(here, but="checkpoints")
        except PeerLost:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                if verdict.said():
                    return {}, {}
                time.sleep(0.2)
            raise  # and Ray begins a new attempt
        except Exception as error:
            verdict.say(type(error).__name__, str(error))
            return {}, {}
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()  # so that others do not wait for this one

    return run


def _meeting(storage: Path | None) -> str:
    """Where the workers of an attempt meet: over a new file on one machine, else at a free port of rank 0's node."""
    if storage:  # the store that torch opens for a meeting at a port listens on every interface
        return f"file://{storage}/meeting-{uuid.uuid4().hex}"
    import socket

    from ray.util import get_node_ip_address

    address = get_node_ip_address()
    with socket.socket() as probe:
        probe.bind((address, 0))
        return f"tcp://{address}:{probe.getsockname()[1]}"


@contextmanager
def place_of(folder: Path, mark: Path) -> Iterator[tuple[Path, bool, Path]]:
    """(folder of the unfinished work for this worker, whether it is the caller's own, room for what is unpacked).

    The room is gone with the block, and so is the folder where it is not the caller's own: it lies in the room then, and its
    log and pictures are brought to the caller's meanwhile. Raises
    ValueError if it would, and there is no store either: checkpoints would be lost with this node.
    """
    # Where an error ends the block, a checkpoint may be under way yet.
    with tempfile.TemporaryDirectory(prefix="maskocr-work-", ignore_cleanup_errors=True) as room:
        if mark.is_file():
            yield folder, True, Path(room)
            return
        if not os.environ.get("MASKOCR_STORE"):
            raise ValueError(
                f"workers do not see {folder}: give the nodes a common folder for MASKOCR_WORK, or set MASKOCR_STORE=s3://…"
            )
        own = folder.relative_to(artifacts.work_folder())
        os.environ["MASKOCR_WORK"] = str(Path(room) / "work")
        here = artifacts.work_folder() / own
        here.mkdir(parents=True)
        with post.brought(mark.name, here, folder):
            yield here, False, Path(room)


def _carried(argument: Any) -> Any:
    if isinstance(argument, Path) and (argument / artifacts.MANIFEST).is_file():
        return Carried.of(argument)
    return argument


def _here(argument: Any, folder: Path, here: Path, room: Path) -> Any:
    return argument.here(room) if isinstance(argument, Carried) else here if argument == folder else argument


def packed(folder: Path, but: str = "") -> dict[str, bytes]:
    """Content by name of the files below a folder, those below its sub-folder `but` left out."""
    names = {path: path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for path, name in names.items() if name.parts[0] != but}


def unpacked(files: dict[str, bytes], folder: Path) -> Path:
    """Write what `packed` gave below a folder; returns the folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _raise(said: tuple[str, str] | None) -> None:
    """Raise what a worker said, if one did."""
    if said:
        kind, message = said
        raise ValueError(message) if kind == "ValueError" else RuntimeError(f"a training worker failed: {message}")

"""Workers of a pre-training as processes of their own, without Ray: how many there are is all that differs between runs."""

import os
import signal
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import torch

from maskocr_core import config
from maskocr_core.data import batches
from maskocr_core.training import pretraining


def train(root: Path, folder: Path, world: int, settings: list[str], dies: int = -1) -> list[int]:
    """Exit codes of `world` workers that pre-train together in `folder`; rank r prints to `folder/said-r`.

    dies: the step before which all of them are killed.
    """
    folder.mkdir(exist_ok=True)
    (folder / "meeting").unlink(missing_ok=True)
    fork = get_context("fork").Process  # a new interpreter would spend its life on importing torch
    workers = [
        fork(target=_work, args=(rank, world, root, folder, settings, dies), daemon=True) for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [worker.exitcode for worker in workers]


def _work(rank: int, world: int, root: Path, folder: Path, settings: list[str], dies: int) -> None:
    os.environ |= {"MASKOCR_STEP_LOG": str(folder / "steps"), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    drawn = batches.training

    def until(source, *, first_step=0, **others):
        yield from islice(drawn(source, first_step=first_step, **others), dies - first_step)
        os.kill(os.getpid(), signal.SIGKILL)

    if dies >= 0:
        batches.training = until
    if world > 1:
        meeting = f"file://{folder / 'meeting'}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    inputs = (root / "lines", root / "selection", root / "codebook")
    try:
        pretraining.train(rank, world, config.load("smoke", settings), *inputs, folder)
    except Exception as error:
        (folder / f"said-{rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(2)
    os._exit(0)

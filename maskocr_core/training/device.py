"""Where a model is trained and in which precision: float32 on a CPU; on CUDA bfloat16 where it is safe, and what is fast there.

Sources: https://docs.pytorch.org/docs/stable/amp.html (bfloat16 needs no scaled loss),
https://docs.pytorch.org/tutorials/recipes/regional_compilation.html,
https://github.com/pytorch/pytorch/pull/155958 (cuDNN's attention makes a plan for every new length of line)
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from maskocr_core.data.batches import Batch
from maskocr_core.model.encoder import Block
from maskocr_core.services import cluster

COMPILERS = ("gcc", "clang")  # that Triton, which torch.compile generates for, looks for beside CC


def here() -> torch.device:
    """The GPU that this process sees, else the CPU. Ray shows each worker one of its own."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name() -> str:
    """What `here` is, in words."""
    return torch.cuda.get_device_name() if here().type == "cuda" else f"{os.cpu_count()} CPU cores"


def gpus_held(device: torch.device) -> float:
    """GPUs that this process keeps from others: the share that Ray gave it, else one; none on a CPU."""
    return 0.0 if device.type == "cpu" else cluster.gpus_held()


def moved(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`; the same object where they are there already."""
    if device.type == "cpu":
        return batch
    tensors = {
        field.name: value.to(device, non_blocking=True)
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
    }
    return dataclasses.replace(batch, **tensors)


def feeding() -> dict[str, Any]:
    """How the batches for the training of this process are made, as `batches.training` takes it.

    Threads that decode lines ahead: one beside a CPU, up to four where a GPU is faster, which then copies batches from
    pinned memory. More threads wait for Python's lock, and the one that feeds the GPU with them.
    """
    if here().type == "cpu":
        return {"decoders": 1, "pinned": False}
    return {"decoders": min(4, len(os.sched_getaffinity(0))), "pinned": True}


def precision(device: torch.device) -> AbstractContextManager[Any]:
    """What a forward pass runs in. On a CPU nothing changes: bfloat16 is emulated on most, and resumes are exact to the bit."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def prepared(objective: nn.Module, device: torch.device) -> None:
    """Move an objective to its device; on CUDA its Transformer blocks are compiled, one graph for all of them and any width.

    That takes a C compiler, which the image has not: without one they run as they are, and it is said. Elsewhere nothing is
    compiled: on a CPU it takes a minute, and changes the last bits. Of PyTorch's kernels of attention that of cuDNN is not
    used: it takes some 20 ms of a core to plan for each number and length of lines that it meets first, which was four fifths
    of a step on an H100.
    """
    objective.to(device)
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)
        if not os.environ.get("CC") and not any(map(shutil.which, COMPILERS)):
            print("blocks are not compiled: there is no C compiler here (install gcc, or set CC, for that)", flush=True)
            return
        for module in objective.modules():
            if isinstance(module, Block):
                module.compile(dynamic=True)

"""Where and how precisely a model is trained; without a GPU nothing changes."""

import dataclasses
import shutil
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from maskocr_core.data.batches import Batch
from maskocr_core.model import attention
from maskocr_core.model.encoder import Block
from maskocr_core.training import device, loop

CPU, GPU = torch.device("cpu"), torch.device("cuda")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def batch():
    return Batch(torch.rand(2, 1, 32, 64), torch.ones(2, 8, dtype=torch.bool), ["a", "b"], ["", ""])


@without_gpu
def test_without_a_gpu_training_is_on_the_cpu_in_float32_and_nothing_is_compiled(batch):
    assert device.here() == CPU and isinstance(device.precision(CPU), nullcontext)
    block = Block(32, 2, 0.0)
    device.prepared(block, CPU)
    with device.precision(CPU):
        out = block(torch.rand(2, 8, 32), attention.attend(batch.valid, flash=False))
    assert out.dtype == torch.float32 and block._compiled_call_impl is None
    assert device.moved(batch, CPU) is batch


def test_on_a_gpu_matrices_are_multiplied_in_bfloat16_and_weights_stay_float32():
    context = device.precision(GPU)
    assert isinstance(context, torch.autocast) and context.fast_dtype == torch.bfloat16 and context.device == "cuda"


def test_what_training_takes_is_counted_over_attempts_workers_and_held_gpus(monkeypatch):
    clock = {"monotonic": 100.0, "process_time": 40.0}
    for name in clock:
        monkeypatch.setattr(loop.time, name, lambda name=name: clock[name])
    meter = loop.Meter({"cpu_seconds": 7.0, "gpu_seconds": 5.0, "loss": 1.0}, gpus=0.5, place=loop.Place(0, 2))
    clock |= {"monotonic": 110.0, "process_time": 43.0}
    assert meter.read() == {"cpu_seconds": 7.0 + 2 * 3, "gpu_seconds": 5.0 + 2 * 0.5 * 10}
    assert loop.Meter({}, gpus=0.0, place=loop.Place()).read() == {"cpu_seconds": 0.0, "gpu_seconds": 0.0}
    assert device.gpus_held(CPU) == 0 and device.gpus_held(GPU) == 1


def test_every_tensor_of_a_batch_goes_to_the_device_and_nothing_else_changes(batch):
    moved = device.moved(batch, torch.device("meta"))
    assert moved.ink.device.type == moved.valid.device.type == "meta"
    assert moved.ink.shape == batch.ink.shape and (moved.line_ids, moved.texts) == (batch.line_ids, batch.texts)
    assert {field.name for field in dataclasses.fields(batch)} == {"ink", "valid", "line_ids", "texts", "bookmark"}


def test_on_a_gpu_the_blocks_are_compiled_each_for_itself_for_any_width_and_keep_their_names(monkeypatch):
    model, compiled = nn.ModuleDict({"stem": nn.Linear(3, 3), "block": Block(32, 2, 0.0)}), []
    names = list(model.state_dict())
    monkeypatch.setattr(nn.Module, "to", lambda self, where: compiled.append(where))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: compiled.append((type(self), how)))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "gcc" else None)
    device.prepared(model, GPU)
    assert compiled == [GPU, (Block, {"dynamic": True})] and list(model.state_dict()) == names


def test_without_a_c_compiler_as_in_the_image_the_blocks_run_as_they_are_and_it_is_said(monkeypatch, capsys):
    moved = []
    monkeypatch.setattr(nn.Module, "to", lambda self, where: moved.append(where))
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: pytest.fail("there is nothing to compile with"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    device.prepared(Block(32, 2, 0.0), GPU)
    assert moved == [GPU] and "no C compiler here" in capsys.readouterr().out

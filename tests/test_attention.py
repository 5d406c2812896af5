"""Attention by the flash kernel, whose part a slow reference takes here: what it is given must give what a mask gives."""

import re

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.attention import varlen

from maskocr_core import config
from maskocr_core.model import attention
from maskocr_core.model.encoder import Block
from maskocr_core.training import checkpoint

SETTINGS = config.load("smoke", ["model.width=64"])
LENGTHS = [9, 12, 1, 0, 5]


def one_by_one(query, key, value, bounds_q, bounds_k, most_q, most_k):
    """What `varlen_attn` is documented to do, one sequence after the other."""
    assert bounds_q.dtype == bounds_k.dtype == torch.int32
    assert bounds_q[0] == bounds_k[0] == 0 and bounds_q[-1] == len(query) and bounds_k[-1] == len(key) == len(value)
    # The way back of the kernel reads what lies before a sequence of keys that has no query.
    assert torch.equal(bounds_q, bounds_k) and int(bounds_q.diff().max()) <= most_q == most_k
    parts = []
    for begin, end in zip(bounds_q.tolist(), bounds_q.tolist()[1:]):
        own = (part[begin:end].transpose(0, 1) for part in (query, key, value))
        parts.append(functional.scaled_dot_product_attention(*own).transpose(0, 1))
    return torch.cat(parts)


def encoded():
    """What an encoder says of the valid steps of a batch, and the gradient of its weights."""
    torch.manual_seed(0)
    encoder = checkpoint.new_encoder(SETTINGS.model, SETTINGS.data.height).double()
    valid = torch.arange(12) < torch.tensor(LENGTHS)[:, None]
    ink = torch.rand(len(LENGTHS), 1, SETTINGS.data.height, 96, dtype=torch.float64)
    out = encoder(ink, valid)[valid]
    out.square().sum().backward()
    return out.detach(), torch.cat([one.grad.flatten() for one in encoder.parameters()])


def test_sequences_give_what_a_mask_gives_forward_and_backward(monkeypatch):
    wanted = encoded()
    monkeypatch.setattr(varlen, "varlen_attn", one_by_one)
    monkeypatch.setattr(attention, "flash_runs", lambda device: True)  # as on a GPU whose kernel runs
    for found, expected in zip(encoded(), wanted):
        assert torch.isfinite(found).all() and torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_on_a_cpu_and_without_autocast_there_is_no_flash(monkeypatch):
    monkeypatch.setattr(attention, "_tried", lambda device: True)
    assert not attention.flash_runs(torch.device("cpu"))
    assert not attention.flash_runs(torch.device("cuda"))
    # Autocast itself is refused without a GPU.
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    assert attention.flash_runs(torch.device("cuda")) and not attention.flash_runs(torch.device("cpu"))


@pytest.mark.parametrize(
    "kernel, reason",
    [
        (one_by_one, None),
        (lambda query, *others: one_by_one(query.flip(0), *others), "what it gives is .*% off"),
        (lambda *given: (_ for _ in ()).throw(RuntimeError("no kernel for this card")), "no kernel for this card"),
    ],
    ids=["agrees", "is off", "fails"],
)
def test_a_kernel_that_fails_or_is_off_is_not_used_and_it_is_said(monkeypatch, capsys, kernel, reason):
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    attention._tried.cache_clear()
    state = torch.get_rng_state()
    assert attention._tried(torch.device("cpu")) == (reason is None)
    attention._tried.cache_clear()
    assert torch.equal(torch.get_rng_state(), state)
    said = capsys.readouterr().out
    assert not said if reason is None else re.search(rf"the flash kernel does not run on cpu \({reason}\)", said)


def test_the_declared_kernel_takes_what_it_is_given_and_is_compiled_into_one_graph_both_ways():
    """As far as it goes without a GPU: shapes and types, and a graph for any number and length of lines, but no numbers."""
    graphs = []

    def kept(graph, inputs):
        graphs.append(graph.code)
        return graph

    backend = aot_autograd(fw_compiler=kept, bw_compiler=kept)
    block = Block(64, 2, 0.0).to(torch.bfloat16)
    attend = attention.attend(torch.ones(4, 12, dtype=torch.bool), flash=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(4, 12, 64, dtype=torch.bfloat16, requires_grad=True)
        out = block(x, attend)
        out.sum().backward()
    assert out.shape == x.grad.shape == (4, 12, 64) and out.dtype == torch.bfloat16
    block.compile(backend=backend, dynamic=True, fullgraph=True)
    with pytest.raises(NotImplementedError, match="flash_attention_forward"):  # which has no kernel for CPUs
        block(torch.rand(4, 12, 64, dtype=torch.bfloat16, requires_grad=True), attend)
    forward, backward = graphs
    assert "torch_attn._varlen_attn.default" in forward and "torch_attn._varlen_attn_backward.default" in backward

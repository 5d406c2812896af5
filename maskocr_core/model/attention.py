"""Attention of a line's steps to each other, padding left out: by PyTorch's flash kernel where it runs, else with a mask.

The flash kernel takes no mask. It takes sequences that lie one after the other instead, of any lengths
(https://docs.pytorch.org/docs/stable/nn.attention.varlen.html): a batch (B, L) is given to it as it lies in memory, as 2 B of
them, of each line its valid steps and then its padding, which is left to itself. So nothing is copied, and no shape hangs on
the lengths.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Attend(NamedTuple):
    """What steps may look at: mask (B, 1, 1, L) bool; bounds (2 B + 1,) int32 of sequences for the flash kernel, or None."""

    mask: Tensor
    bounds: Tensor | None


def attend(valid_BL: Tensor, flash: bool) -> Attend:
    """To the valid steps of the own line, which come first in it. flash: for that kernel, whose inputs are bfloat16 or float16."""
    # A line without a valid step may look at its padding, which says nothing: attention to nothing is NaN.
    mask_BL = valid_BL | ~valid_BL.any(1, keepdim=True)
    return Attend(mask_BL[:, None, None, :], _bounds(mask_BL) if flash else None)


def _bounds(mask_BL: Tensor) -> Tensor:
    B, L = mask_BL.shape
    begin_B = torch.arange(B, device=mask_BL.device) * L
    bounds = torch.stack((begin_B, begin_B + mask_BL.sum(1)), 1).flatten()
    return functional.pad(bounds, (0, 1), value=B * L).to(torch.int32)


def mixed(query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
    """What each step takes from those that it may look at, (B, L, heads, D / heads) like each argument; with a mask alone,
    queries may be others than these steps, and more or fewer.

    What padding takes from others says nothing, and is not the same in both ways.
    """
    if attend.bounds is not None:
        from torch.nn.attention.varlen import varlen_attn  # most of a second, for nothing on a CPU

        one_after_the_other = (x.flatten(0, 1) for x in (query, key, value))
        L = query.shape[1]
        return varlen_attn(*one_after_the_other, attend.bounds, attend.bounds, L, L).view(query.shape)
    by_head = (x.transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(*by_head, attn_mask=attend.mask).transpose(1, 2)


def flash_runs(device: torch.device) -> bool:
    """Whether inputs on this device under autocast go to the flash kernel: on a GPU on which it was tried with success."""
    return device.type == "cuda" and torch.is_autocast_enabled("cuda") and _tried(device)


@lru_cache
def _tried(device: torch.device) -> bool:
    """Says so, once, where the kernel does not run."""
    try:
        _compare(device)
    except Exception as error:  # whatever it is, there is another kernel
        print(f"attention: the flash kernel does not run on {device} ({error}); the one with a mask does", flush=True)
        return False
    return True


def _compare(device: torch.device) -> None:
    """Raises RuntimeError if outputs and gradients of a few steps by the flash kernel are not those with a mask."""
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        numbers = torch.randn(4, 3, 24, 2, 32, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
        valid_BL = torch.arange(24, device=device) < torch.tensor([24, 10, 1], device=device)[:, None]
        came = []
        for flash in (False, True):
            given = [part.clone().requires_grad_() for part in numbers[:3]]
            out = mixed(*given, attend(valid_BL, flash))[valid_BL]
            gradients = torch.autograd.grad(out, given, numbers[3][valid_BL])
            came.append(torch.cat([out.detach(), *(gradient[valid_BL] for gradient in gradients)]).float())
        off = float((came[0] - came[1]).norm() / came[0].norm())
    if not off < 0.02:  # bfloat16 rounds to 0.4 %
        raise RuntimeError(f"what it gives is {off:.0%} off")

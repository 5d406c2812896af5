"""A step's batch in a fixed number of shares, and the gradient of all of them: the same to the bit for any number of workers.

Share s of S is rows s, s + S, … of the batch, cut to its own width, with a random generator of its own; what a share gives
hangs on nothing but step and number. `batches` orders a batch so that a share has lines of neighbouring widths. The gradient
of a step is the mean over the shares, each weighted by its lines, of the gradient of the share's own loss. Sums of
floating-point numbers depend on their order, so that here it is always the same: a binary tree in which share s meets s + S/2 first. A worker of n adds up the branch of shares r, r + n, …; workers add the
branches pairwise (`exchange`), as `MPI_Allreduce` by recursive doubling does. DistributedDataParallel adds in an order that changes
with the number of workers, after which Adam makes updates of noise where a gradient is nothing but rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskocr_core.config import STEP
from maskocr_core.data.batches import PAD_TO, Batch
from maskocr_core.training.exchange import Workers


@dataclass
class Sums:
    """Over some shares: gradients of loss × lines, one a parameter (None where no loss hangs on it), lines, and what was seen.

    figures: sums of figure × lines. losses: loss and line ids of each share.
    """

    gradients: list[Tensor | None]
    lines: int
    figures: dict[str, Tensor]
    losses: list[tuple[Tensor, list[str]]]

    def add(self, other: Sums) -> Sums:
        """Into this one, in place."""
        for place, (own, others) in enumerate(zip(self.gradients, other.gradients)):
            if own is None:
                self.gradients[place] = others
            elif others is not None:
                own += others
        for name, value in other.figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + value
        self.lines += other.lines
        self.losses += other.losses
        return self


def split(batch: Batch, count: int) -> list[Batch]:
    """Rows s, s + count, … for s = 0 … count − 1, each cut to the width that its own longest line needs; some may be empty."""
    return [_cut(batch, slice(number, None, count)) for number in range(count)]


def _cut(batch: Batch, rows: slice) -> Batch:
    by_line = (field.name for field in dataclasses.fields(batch) if field.name != "bookmark")
    own = {name: getattr(batch, name)[rows] for name in by_line}
    pad = PAD_TO // STEP
    longest = int(own["valid"].any(0).nonzero().max()) + 1 if own["valid"].any() else 0
    steps = min(own["valid"].shape[1], max(pad, longest + -longest % pad))
    own["ink"] = own["ink"][..., : steps * STEP].contiguous()
    own["valid"] = own["valid"][:, :steps].contiguous()
    return dataclasses.replace(batch, **own)


def learning(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn, in the order in which workers have their gradients."""
    return [one for one in model.parameters() if one.requires_grad]


def gradient(
    model: nn.Module,
    loss: Callable[[Batch], tuple[Tensor, dict[str, Tensor]]],
    shares: list[Batch],
    workers: Workers,
    seed: int,
) -> Sums:
    """Leave the gradient of the whole step in `grad` of the parameters that this worker updates; what its own shares gave.

    loss: of one share, with figures to log. shares: those of this worker: number `rank`, `rank` + `world`, …, as many as
    a power of two. seed: of the step; share s draws from seed + s.
    """
    place, parameters = workers.place, learning(model)

    def of_branch(first: int, stride: int) -> Sums:
        if stride == len(shares):
            return of_share(first)
        return of_branch(first, 2 * stride).add(of_branch(first + stride, 2 * stride))

    def of_share(number: int) -> Sums:
        share, lines = shares[number], len(shares[number].line_ids)
        if not lines:
            return Sums([None] * len(parameters), 0, {}, [])
        torch.manual_seed(seed + place.rank + place.world * number)
        model.zero_grad(set_to_none=True)
        value, figures = loss(share)
        (value * lines).backward()
        weighed = {name: figure * lines for name, figure in figures.items()}
        return Sums([one.grad for one in parameters], lines, weighed, [(value.detach(), share.line_ids)])

    sums = of_branch(0, 1)
    gradients, lines = workers.total(sums.gradients, sums.lines)
    for parameter, total in zip(parameters, gradients, strict=True):
        parameter.grad = None if total is None else total.div_(lines)
    return sums

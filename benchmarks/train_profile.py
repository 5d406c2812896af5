"""Where the time of our training step goes, and how many operations a second each part of it makes.

The step is `loop.fit` as it ships; hooks on the model's own modules take the time of its parts, forward and backward, in
place: with the caches as cold and the batches as wide as they are. Operations are those of `planning.model_costs`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import optimizer as optimizers

from benchmarks.train_contenders import Ours
from maskocr_core.config import Config
from maskocr_core.data import batches
from maskocr_core.model.codebook import Codebook
from maskocr_core.planning import model_costs
from maskocr_core.planning.model_costs import Line

STEPS = 8  # of a round, over which the masking probability rises as in a whole training
PEAK_SIZE = 2048
COUNTED = ("stem", "blocks", "asking", "head", "labels")  # parts whose operations there are formulas for
PARTS = ("data", *COUNTED, "loss", "optimiser")


def peak(size: int = PEAK_SIZE, times: int = 3) -> float:
    """Operations a second of a float32 matrix product of `size` × `size`: the fastest of some."""
    a, b, c = (torch.rand(size, size) for _ in range(3))
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        torch.mm(a, b, out=c)
        spent.append(time.perf_counter() - began)
    return 2 * size**3 / min(spent)


class Profile:
    """Some steps of a contender with all its parts timed, between two measurements of the peak."""

    def __init__(self, ours: Ours):
        self.ours = ours

    def run(self, number: int) -> dict[str, Any]:
        before, watch = peak(), Stopwatch(self.ours)
        with watch.watching():
            answer = self.ours.steps(number, STEPS, watch.drawn)
        parts = {
            part: {"seconds": watch.seconds[part], "operations": watch.operations.get(part, 0.0)}
            for part in PARTS
            if part in watch.seconds
        }
        rest = answer["seconds"] - sum(watch.seconds[part] for part in parts)
        return answer | {"peak": max(before, peak()), "parts": parts | {"rest": {"seconds": rest, "operations": 0.0}}}


class Operations:
    """Operations of each part of the steps that a masked model makes, by the formulas of `planning.model_costs`."""

    def __init__(self, config: Config, model: nn.Module):
        self.config = config
        self.of_part: Counter[str] = Counter()
        self._steps = {"blocks": 0, "asking": 0}  # of the lines that a part was given last
        self._hooks = [model.register_forward_hook(self._count)]
        for part, module in {"blocks": model.encoder.blocks[0], "asking": getattr(model, "asking", None)}.items():
            if module:
                self._hooks.append(module.register_forward_pre_hook(partial(self._given, part)))

    def total(self) -> float:
        return sum(self.of_part.values())

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _given(self, part: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._steps[part] = inputs[0].shape[1]

    def _count(self, _: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], __: Any) -> None:
        valid_BL = inputs[1]
        lines, padded = valid_BL.shape
        line = Line(int(valid_BL.sum()) / lines, padded, self._steps["blocks"], self._steps["asking"])
        forward, backward = model_costs.forward(self.config, line), model_costs.backward(self.config, line)
        for part in forward:
            self.of_part[part] += lines * (forward[part] + backward[part])
        self.of_part["labels"] += lines * model_costs.labelling(self.config, line)


class Stopwatch:
    """Seconds and operations of each part of the steps that are made while it watches."""

    def __init__(self, ours: Ours):
        self.config, self.model = ours.config, ours.objective.model
        self.seconds: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self._began: dict[str, float] = {}

    def begin(self, part: str) -> None:
        self._began[part] = time.perf_counter()

    def end(self, part: str) -> None:
        if part in self._began:
            self.seconds[part] += time.perf_counter() - self._began.pop(part)

    def timed(self, part: str, function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            self.begin(part)
            result = function(*arguments, **options)
            self.end(part)
            return result

        return call

    def drawn(self, stream: Iterator[batches.Batch]) -> Iterator[batches.Batch]:
        while True:
            self.begin("data")
            batch = next(stream)
            self.end("data")
            yield batch

    @contextmanager
    def watching(self) -> Iterator[None]:
        encoder, counted = self.model.encoder, Operations(self.config, self.model)
        self.operations = counted.of_part
        spans = [("stem", encoder.stem, encoder.stem), ("blocks", encoder.blocks[0], encoder.norm_out)]
        for name, part in {"asking": "asking", "head": "head", "visible_head": "head"}.items():
            if module := getattr(self.model, name, None):
                spans.append((part, module, module))
        hooks = [
            optimizers.register_optimizer_step_pre_hook(lambda *_: self.begin("optimiser")),
            optimizers.register_optimizer_step_post_hook(lambda *_: self.end("optimiser")),
        ]
        for part, first, last in spans:
            hooks.append(first.register_forward_pre_hook(partial(self._enter, part)))
            hooks.append(last.register_forward_hook(partial(self._leave, part)))
        replaced = [
            (Codebook, "labels", self.timed("labels", Codebook.labels)),
            (functional, "cross_entropy", self.timed("loss", functional.cross_entropy)),
            (nn.utils, "clip_grad_norm_", self.timed("optimiser", nn.utils.clip_grad_norm_)),
            (Tensor, "backward", self._backward(Tensor.backward)),
        ]
        with ExitStack() as stack:
            stack.callback(counted.stop)
            for hook in hooks:
                stack.callback(hook.remove)
            for owner, name, function in replaced:
                stack.enter_context(mock.patch.object(owner, name, function))
            yield

    def _enter(self, part: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """The way forward begins at what a part is given; the way back ends where its gradient is known."""
        for given in inputs:
            if isinstance(given, Tensor) and given.requires_grad:
                given.register_hook(lambda _: self.end(part))
        self.begin(part)

    def _leave(self, part: str, _: nn.Module, __: Any, output: Tensor) -> None:
        self.end(part)

        def back(_: Tensor) -> None:
            self.end("loss")
            self.begin(part)

        output.register_hook(back)

    def _backward(self, function: Callable) -> Callable:
        def backward(*arguments: Any, **options: Any) -> None:
            self.begin("loss")  # until the first head is reached
            function(*arguments, **options)
            self.end("stem")  # nobody asks for the gradient of the ink: the stem is what the way back ends with

        return backward

"""Who takes training steps on the same lines in `train.py`: ours as it ships, the obvious way, the authors' class, kraken.

All have the lines decoded in memory. `run(number)` trains on each line once, at a masking probability that rises as in a
whole training, and says how long it took.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from maskocr_core.config import Config
from maskocr_core.data import batches
from maskocr_core.model import masking
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.encoder import positions
from maskocr_core.model.stem import stem_of
from maskocr_core.training import checkpoint, loop
from maskocr_core.training.checkpoints import Checkpoints
from maskocr_core.training.objectives import MaskedPrediction

KETOS_BATCH = 4
KETOS = "-d cpu --threads 1 --workers 0"
PRETRAIN = f"-f path -B {KETOS_BATCH} -N 1 -q fixed --min-epochs 1 --warmup 100 -r 1e-4"
# The default network of kraken 7.1.1, made for lines of 48 px where that is for 120.
NETWORK = (
    "[1,48,0,1 Cr3,13,32 Do0.1,2 Mp2,2 Cr3,13,32 Do0.1,2 Mp2,2 Cr3,9,64 Do0.1,2 Mp2,2 Cr3,9,64 Do0.1,2 S1(1x0)1,3 "
    "Lbx200 Do0.1,2 Lbx200 Do0.1,2 Lbx200 Do]"
)

Answer = dict[str, float]


@contextmanager
def timed() -> Iterator[Answer]:
    """What the block took, wall and processor time."""
    answer: Answer = {}
    began, cpu = time.perf_counter(), time.process_time()
    yield answer
    answer |= {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}


class Forgetful(Checkpoints):
    """Keeps nothing: how fast a disk is, is another question."""

    def begin(self) -> int:
        return 0

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
        return 0, {}

    def save(self, *_: Any) -> None:
        pass


class Ours:
    """`loop.fit` on the batches of `batches.training`: masks, labels, losses, gradients, optimiser, all that it does."""

    def __init__(self, config: Config, source: batches.Lines, book: Codebook, feeding: dict[str, Any] | None = None):
        torch.manual_seed(0)
        self.config, self.source, self.feeding = config, source, feeding or {}
        encoder = checkpoint.new_encoder(config.model, config.data.height)
        self.objective = MaskedPrediction(encoder, book, config.mask)
        self.parameters = sum(parameter.numel() for parameter in self.objective.parameters())

    def run(self, number: int) -> Answer:
        return self.steps(number, len(self.source) // self.config.pretrain.batch)

    def steps(self, number: int, count: int, watched: Callable[[Iterator], Iterator] = iter) -> Answer:
        """`count` steps; watched: what the batches are drawn through."""
        training = self.config.pretrain.model_copy(
            update={"steps": count, "checkpoint_every": count, "workers": 0, "seed": number}
        )

        drawn: list[int] = []

        def counted(stream: Iterator[batches.Batch]) -> Iterator[batches.Batch]:
            for batch in stream:
                drawn.append(len(batch.line_ids))
                yield batch

        def stream(first: int, _: batches.Bookmark) -> Iterator[batches.Batch]:
            made = batches.training(
                self.source,
                batch=training.batch,
                seed=number,
                first_step=first,
                fill=training.fill,
                shares=training.shares,
                **self.feeding,
            )
            return watched(counted(made))

        with timed() as answer:
            loop.fit(self.objective, stream, training, Forgetful(Path()))
        return answer | {"lines": sum(drawn[:count])}


class Peer:
    """A bare loop: random order, batches as wide as their widest line, labels made beforehand, one pass over all of a batch.

    module: `(ink, valid (B, L), labels (B, L), mask (B, L)) -> loss`. bucketed: it gets our batches instead.
    """

    def __init__(
        self, module: nn.Module, config: Config, source: batches.Lines, book: Codebook, bucketed: bool = False
    ):
        self.module, self.config, self.source, self.bucketed = module, config, source, bucketed
        self.labels = _labels(source, book)
        self.parameters = sum(parameter.numel() for parameter in module.parameters())
        training = config.pretrain
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
        )

    def run(self, number: int) -> Answer:
        size, mask = self.config.pretrain.batch, self.config.mask
        count = len(self.source) // size
        self.module.train()
        with timed() as answer:
            for step, batch in zip(range(count), self._batches(number, size)):
                probability = masking.probability(step / count, mask.start, mask.end)
                labels = pad_sequence([self.labels[name] for name in batch.line_ids], True, -1)
                labels = functional.pad(labels, (0, batch.valid.shape[1] - labels.shape[1]), value=-1)
                hidden = (torch.rand(batch.valid.shape) < probability) & batch.valid
                loss = self.module(batch.ink, batch.valid, labels, hidden)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        return answer | {"lines": count * size}

    def _batches(self, number: int, size: int) -> Iterator[batches.Batch]:
        if self.bucketed:
            yield from batches.training(self.source, batch=size, seed=number)
        order = np.random.default_rng(number).permutation(len(self.source))
        for begin in range(0, len(order), size):
            yield self.source.collate(order[begin : begin + size])


class Obvious(nn.Module):
    """The same model as one would write it: noise over hidden pixels, `nn.TransformerEncoder` over all steps, one linear head."""

    def __init__(self, config: Config):
        super().__init__()
        torch.manual_seed(0)
        width, self.weight = config.model.width, config.mask.visible_weight
        self.stem, self.norm_in = stem_of(config.model.stem, config.data.height, width), nn.LayerNorm(width)
        layer = nn.TransformerEncoderLayer(
            width, config.model.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, config.model.depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, config.codebook.clusters)

    def forward(self, ink: Tensor, valid_BL: Tensor, labels_BL: Tensor, mask_BL: Tensor) -> Tensor:
        x_BLD = self.norm_in(self.stem(masking.hide(ink, mask_BL)))
        x_BLD = self.encoder(x_BLD + positions(x_BLD, self.training), src_key_padding_mask=~valid_BL)
        said_BLK, seen_BL = self.head(x_BLD), valid_BL & ~mask_BL
        return functional.cross_entropy(said_BLK[mask_BL], labels_BL[mask_BL]) + self.weight * functional.cross_entropy(
            said_BLK[seen_BL], labels_BL[seen_BL]
        )


class Authors(nn.Module):
    """The authors' `MaskedTransformerEncoder` over their linear-patch backbone and head, imported from a checkout of theirs."""

    def __init__(self, config: Config, checkout: Path):
        super().__init__()
        torch.manual_seed(0)
        if str(checkout) not in sys.path:
            sys.path.insert(0, str(checkout))
        theirs = importlib.import_module("pero_pretraining.masked_pretraining.model")
        model = config.model
        with _no_cuda():
            backbone = theirs.VisionTransformerEncoder(
                height=config.data.height,
                patch_size=(config.data.height, 8),
                in_channels=1,
                model_dim=model.width,
                num_heads=model.heads,
                num_blocks=model.depth,
                feedforward_dim=4 * model.width,
            )
        loss = theirs.MaskedCrossEntropyLoss(unmasked_weight=config.mask.visible_weight)
        head = theirs.LinearHead(model.width, config.codebook.clusters)
        self.model = theirs.MaskedTransformerEncoder(backbone, head, loss)

    def forward(self, ink: Tensor, valid_BL: Tensor, labels_BL: Tensor, mask_BL: Tensor) -> Tensor:
        return self.model(ink, labels_BL, mask_BL.long().numpy())["loss"]


@contextmanager
def _no_cuda() -> Iterator[None]:
    """Their constructor moves the noise to "cuda", come what may; here it stays where it is."""
    move = Tensor.to

    def to(self: Tensor, *where: Any, **options: Any) -> Tensor:
        return self if where[:1] == ("cuda",) else move(self, *where, **options)

    with mock.patch.object(Tensor, "to", to):
        yield


class Ketos:
    """`ketos pretrain` with its default network at 48 px, one epoch over all lines less one over a quarter: its start is no training."""

    def __init__(self, program: Path, images: list[bytes], folder: Path):
        self.program, self.folder, self.parameters = program.absolute(), folder, 0.0
        folder.mkdir(parents=True)
        self.lines = []
        for number, image in enumerate(images):
            path = folder / f"{number:05d}.png"
            path.write_bytes(image)
            path.with_suffix(".gt.txt").write_text("x")  # 7.1.1 refuses lines without a text
            self.lines.append(path)

    def run(self, number: int) -> Answer:
        few, all_lines = (self._trained(lines, number) for lines in (self.lines[: len(self.lines) // 4], self.lines))
        return {name: all_lines[name] - few[name] for name in few}

    def _trained(self, lines: list[Path], number: int) -> Answer:
        for name, paths in {"train": lines, "val": lines[:KETOS_BATCH]}.items():
            (self.folder / f"{name}.lst").write_text("".join(f"{path}\n" for path in paths))
        words = [*f"{KETOS} -s {number} pretrain {PRETRAIN} -t train.lst -e val.lst -o out -s".split(), NETWORK]
        began, before = time.perf_counter(), os.times()
        done = subprocess.run([str(self.program), *words], cwd=self.folder, capture_output=True, text=True)
        after, seconds = os.times(), time.perf_counter() - began
        if done.returncode or not (told := re.search(r"Total params: ([\d.]+) M", done.stdout)):
            raise RuntimeError(f"ketos failed ({done.returncode}):\n{(done.stdout + done.stderr)[-2000:]}")
        self.parameters = float(told[1]) * 1e6
        cpu = sum(getattr(after, name) - getattr(before, name) for name in ("children_user", "children_system"))
        return {"lines": float(len(lines)), "seconds": seconds, "cpu_seconds": cpu}


def _labels(source: batches.Lines, book: Codebook) -> dict[str, Tensor]:
    """The labels of each line's steps by its id."""
    return {
        name: line[valid]
        for _, batch in source.in_order(32)
        for name, line, valid in zip(batch.line_ids, book.labels(batch.ink, batch.valid), batch.valid)
    }

"""The fast way from steps to characters: connectionist temporal classification (Graves et al. 2006), one linear layer."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskocr_core.model.vocabulary import SPECIAL


class Ctc(nn.Linear):
    """Encoded steps (B, L, D) to scores (B, L, V); the special class 0 is the blank."""

    def loss(self, steps_BLD: Tensor, valid_BL: Tensor, targets: list[list[int]]) -> Tensor:
        """Mean over the lines of each one's loss in nats, divided by the number of its characters."""
        logs_LBV = self(steps_BLD).log_softmax(-1).transpose(0, 1)
        lengths = torch.tensor([len(target) for target in targets])
        flat = torch.tensor(
            [label for target in targets for label in target], dtype=torch.int64, device=logs_LBV.device
        )
        # zero_infinity: a line with more characters than steps cannot be emitted by CTC at all and teaches nothing
        return functional.ctc_loss(logs_LBV, flat, valid_BL.sum(1), lengths, zero_infinity=True)

    @torch.no_grad()
    def read(self, steps_BLD: Tensor, valid_BL: Tensor) -> tuple[list[list[int]], list[float]]:
        """Classes of each line's characters on the best path, and the mean probability of its steps."""
        best_BL, classes_BL = self(steps_BLD).log_softmax(-1).max(-1)
        lines = [best_path(line[valid].tolist()) for line, valid in zip(classes_BL, valid_BL)]
        return lines, [float(line[valid].exp().mean()) for line, valid in zip(best_BL, valid_BL)]


def best_path(classes: list[int]) -> list[int]:
    """The characters of a path: repeats merged, then blanks dropped."""
    return [label for label, _ in itertools.groupby(classes) if label != SPECIAL]

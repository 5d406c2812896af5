"""What a step of fine-tuning minimises."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskocr_core.data.batches import Batch
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.training import rates


class Recognition(nn.Module):
    """The loss of the recogniser's head: of CTC, or of each character given those before it.

    layer_decay: factor by which each layer of the encoder learns slower than the one above. frozen: share of the steps
    in which the encoder is left as it is: it then gets no gradient at all, which saves most of the time of a step.
    Both are for an encoder that comes trained.
    """

    def __init__(self, recognizer: Recognizer, layer_decay: float = 1.0, frozen: float = 0.0):
        super().__init__()
        self.recognizer, self.layer_decay, self.frozen = recognizer, layer_decay, frozen

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and progress >= self.frozen):
            steps_BLD = self.recognizer.encoder(batch.ink, batch.valid)
        loss = self.recognizer.loss(steps_BLD, batch.valid, batch.texts)
        return loss, {"loss": loss.detach()}

    def rate_of(self, name: str) -> rates.Rate:
        """The part of the learning rate that a parameter gets, as the loop asks for it."""
        depth = len(self.recognizer.encoder.blocks)
        return rates.of_layer(name.removeprefix("recognizer."), depth, self.layer_decay, self.frozen)

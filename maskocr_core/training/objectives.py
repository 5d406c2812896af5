"""What a step of training minimises. An objective is a module whose forward gives the loss and figures to log."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskocr_core.config import Mask
from maskocr_core.data.batches import Batch
from maskocr_core.model import masking
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.recognizer import Recognizer


class MaskedLabels(nn.Module):
    """Predict the codebook's label of every step, hidden or visible (Kišš & Hradiš 2025).

    Loss = mean cross-entropy of masked steps + `visible_weight` × mean cross-entropy of visible ones, padding left out;
    an empty set counts nothing.
    """

    def __init__(self, encoder: Encoder, codebook: Codebook, mask: Mask):
        super().__init__()
        self.encoder, self.codebook, self.mask = encoder, codebook, mask
        self.head = nn.Linear(encoder.norm_out.normalized_shape[0], len(codebook.centroids))

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        labels_BL = self.codebook.labels(batch.ink)
        probability = masking.probability(progress, self.mask.start, self.mask.end)
        mask_BL = masking.sample(batch.valid, probability, self.mask.span)
        logits_NK = self.head(self.encoder(masking.hide(batch.ink, mask_BL), batch.valid)[batch.valid])
        labels_N, mask_N = labels_BL[batch.valid], mask_BL[batch.valid]
        losses_N = functional.cross_entropy(logits_NK, labels_N, reduction="none")
        masked, visible = _mean(losses_N, mask_N), _mean(losses_N, ~mask_N)
        correct = (logits_NK.detach().argmax(-1) == labels_N).float()
        figures = {
            "masked_loss": masked.detach(),
            "visible_loss": visible.detach(),
            "masked_accuracy": _mean(correct, mask_N),
            "masking_probability": torch.tensor(probability),
        }
        return masked + self.mask.visible_weight * visible, figures


class Recognition(nn.Module):
    """Connectionist temporal classification of a line's text (Graves et al. 2006), each line's loss divided by its length."""

    def __init__(self, recognizer: Recognizer):
        super().__init__()
        self.recognizer = recognizer

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        logits_BLV = self.recognizer(batch.ink, batch.valid)
        targets = self.recognizer.targets(batch.texts)
        lengths = torch.tensor([len(target) for target in targets])
        flat = torch.tensor([label for target in targets for label in target])
        # zero_infinity: a line with more characters than steps cannot be emitted by CTC at all and teaches nothing
        loss = functional.ctc_loss(logits_BLV.transpose(0, 1), flat, batch.valid.sum(1), lengths, zero_infinity=True)
        return loss, {"loss": loss.detach()}


def _mean(values_N: Tensor, where_N: Tensor) -> Tensor:
    """Mean over the steps chosen; 0 for none, where a plain mean would be NaN."""
    return (values_N * where_N).sum() / where_N.sum().clamp(min=1)

"""What a step of training minimises. An objective is a module whose forward gives the loss and figures to log."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from maskocr_core.config import STEP, Mask
from maskocr_core.data.batches import Batch
from maskocr_core.model import masked, masking
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.step_features import windows
from maskocr_core.training.stored_labels import LabelledBatch


class MaskedPrediction(nn.Module):
    """Predict every step, hidden or visible, of a partly hidden line: its label (Kišš & Hradiš 2025), or its pixels.

    Loss = mean over masked steps + `visible_weight` × mean over visible ones, padding left out; an empty set counts
    nothing. Of a label the cross-entropy in nats, of pixels the mean square error of each step's pixels normed to mean 0
    and variance 1 (He et al. 2022).
    """

    def __init__(self, encoder: Encoder, codebook: Codebook, mask: Mask):
        super().__init__()
        outputs = len(codebook.centroids) if mask.predict == "labels" else codebook.height * STEP
        self.model, self.mask = masked.masked_model(encoder, mask.hide, outputs), mask
        # In a list it is no part of the weights: what a checkpoint keeps and the optimiser moves is the model alone.
        self._codebook = [codebook]

    @property
    def codebook(self) -> Codebook:
        return self._codebook[0]

    def _apply(self, fn, recurse: bool = True) -> MaskedPrediction:
        self._codebook = [self.codebook.applied(fn)]
        return super()._apply(fn, recurse)

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        mask_BL, probability = self.draw(batch.valid, progress)
        seen_BL = batch.valid & ~mask_BL
        hidden, visible = self.model(batch.ink, batch.valid, mask_BL)
        if self.mask.predict == "pixels":
            target_BLP = _normed(windows(batch.ink, STEP))
            masked, shown = (
                _mean((said - target_BLP[where]).square().mean(-1))
                for said, where in ((hidden, mask_BL), (visible, seen_BL))
            )
            figures = {}
        else:
            labels_BL = self._labels(batch)
            masked, shown = (
                _mean(functional.cross_entropy(said, labels_BL[where], reduction="none"))
                for said, where in ((hidden, mask_BL), (visible, seen_BL))
            )
            figures = {"masked_accuracy": _mean((hidden.detach().argmax(-1) == labels_BL[mask_BL]).float())}
        figures |= {"masked_loss": masked.detach(), "visible_loss": shown.detach(), "masking_probability": probability}
        return masked + self.mask.visible_weight * shown, figures

    def _labels(self, batch: Batch) -> Tensor:
        if isinstance(batch, LabelledBatch):
            return batch.labels[:, : batch.valid.shape[1]]
        return self.codebook.labels(batch.ink, batch.valid)

    def draw(self, valid_BL: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """The masked steps (B, L) of a batch after a share `progress` of the training, and the mean probability of it."""
        start, end = self.mask.start, self.mask.end
        if self.mask.ratio == "random":
            probability = masking.drawn_probabilities(len(valid_BL), start, end, valid_BL.device)
            return masking.sample(valid_BL, probability, self.mask.span), probability.mean()
        now = masking.probability(progress, start, end)
        return masking.sample(valid_BL, now, self.mask.span), torch.tensor(now)


def _mean(values_N: Tensor) -> Tensor:
    """Mean over the steps chosen; 0 for none, where a plain mean would be NaN."""
    return values_N.sum() / max(1, len(values_N))


def _normed(pixels_BLP: Tensor) -> Tensor:
    """Each step's pixels with mean 0 and variance 1, so that faint ink counts as much as strong ink."""
    variance, mean = torch.var_mean(pixels_BLP, dim=-1, keepdim=True)
    return (pixels_BLP - mean) / (variance + 1e-6).sqrt()

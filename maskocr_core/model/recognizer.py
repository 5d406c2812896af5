"""The recogniser: the encoder and a CTC head over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskocr_core.model.encoder import Encoder
from maskocr_core.model.vocabulary import Vocabulary


class Recognizer(nn.Module):
    """Ink (B, 1, H, W) and valid steps (B, L) to log-probabilities (B, L, V) float32."""

    def __init__(self, encoder: Encoder, vocabulary: Vocabulary):
        super().__init__()
        self.encoder, self.vocabulary = encoder, vocabulary
        self.head = nn.Linear(encoder.norm_out.normalized_shape[0], len(vocabulary))

    def forward(self, ink: Tensor, valid_BL: Tensor) -> Tensor:
        return self.head(self.encoder(ink, valid_BL)).log_softmax(-1)

    @torch.no_grad()
    def read(self, ink: Tensor, valid_BL: Tensor) -> tuple[list[str], list[float]]:
        """Best-path text of each line and the mean probability of its steps, in (0, 1] (not calibrated)."""
        best, classes = self(ink, valid_BL).max(-1)
        texts = [self.vocabulary.decode(line[valid].tolist()) for line, valid in zip(classes, valid_BL)]
        confidences = [float(line[valid].exp().mean()) for line, valid in zip(best, valid_BL)]
        return texts, confidences

    def widened(self, vocabulary: Vocabulary) -> tuple[Recognizer, int]:
        """This recogniser over the union of both vocabularies: kept rows of the head are copied, new ones are counted.

        Returns the recogniser and how many characters are new to it.
        """
        union = self.vocabulary.union(vocabulary)
        wider = Recognizer(self.encoder, union)
        with torch.no_grad():
            wider.head.weight[: len(self.vocabulary)] = self.head.weight
            wider.head.bias[: len(self.vocabulary)] = self.head.bias
        return wider, len(union) - len(self.vocabulary)

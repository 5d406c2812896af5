"""The recogniser: the encoder and a CTC head over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskocr_core.config import Direction
from maskocr_core.model import direction as order
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.vocabulary import Vocabulary


class Recognizer(nn.Module):
    """Ink (B, 1, H, W) and valid steps (B, L) to log-probabilities (B, L, V) float32.

    direction: of the lines it reads; the ink of right-to-left ones is mirrored. Texts go in and come out in logical order.
    """

    def __init__(self, encoder: Encoder, vocabulary: Vocabulary, direction: Direction = "ltr"):
        super().__init__()
        self.encoder, self.vocabulary, self.direction = encoder, vocabulary, direction
        self.head = nn.Linear(encoder.norm_out.normalized_shape[0], len(vocabulary))

    def forward(self, ink: Tensor, valid_BL: Tensor) -> Tensor:
        return self.head(self.encoder(ink, valid_BL)).log_softmax(-1)

    def targets(self, texts: list[str]) -> list[list[int]]:
        """Classes of each text's characters, in the order in which they stand in the ink."""
        return [self.vocabulary.encode(order.reading_order(text, self.direction)) for text in texts]

    @torch.no_grad()
    def read(self, ink: Tensor, valid_BL: Tensor) -> tuple[list[str], list[float]]:
        """Best-path text of each line and the mean probability of its steps, in (0, 1] (not calibrated)."""
        best, classes = self(ink, valid_BL).max(-1)
        read = [self.vocabulary.decode(line[valid].tolist()) for line, valid in zip(classes, valid_BL)]
        texts = [order.logical_order(text, self.direction) for text in read]
        confidences = [float(line[valid].exp().mean()) for line, valid in zip(best, valid_BL)]
        return texts, confidences

    def widened(self, vocabulary: Vocabulary) -> tuple[Recognizer, int]:
        """This recogniser over the union of both vocabularies: kept rows of the head are copied, new ones are counted.

        Returns the recogniser and how many characters are new to it.
        """
        union = self.vocabulary.union(vocabulary)
        wider = Recognizer(self.encoder, union, self.direction)
        with torch.no_grad():
            wider.head.weight[: len(self.vocabulary)] = self.head.weight
            wider.head.bias[: len(self.vocabulary)] = self.head.bias
        return wider, len(union) - len(self.vocabulary)

"""The recogniser: the encoder, and a head that makes the characters of a vocabulary of its steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskocr_core.config import Decoding, Direction
from maskocr_core.model import direction as order
from maskocr_core.model.ctc import Ctc
from maskocr_core.model.decoder import Decoder
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.vocabulary import Vocabulary


class Recognizer(nn.Module):
    """Ink (B, 1, H, W) float32 and valid steps (B, L) bool to texts.

    direction: of the lines it reads; the ink of right-to-left ones is mirrored. Texts go in and come out in logical order.
    decoder: `ctc`, one linear layer, or `autoregressive`, a Transformer decoder of half the encoder's depth.
    """

    def __init__(
        self, encoder: Encoder, vocabulary: Vocabulary, direction: Direction = "ltr", decoder: Decoding = "ctc"
    ):
        super().__init__()
        self.encoder, self.vocabulary, self.direction, self.decoder = encoder, vocabulary, direction, decoder
        width, classes = encoder.width, len(vocabulary)
        if decoder == "ctc":
            self.head: Ctc | Decoder = Ctc(width, classes)
        else:
            depth = max(1, encoder.shape["depth"] // 2)
            self.head = Decoder(width, depth, encoder.heads, classes, encoder.shape["dropout"])

    def loss(self, steps_BLD: Tensor, valid_BL: Tensor, texts: list[str]) -> Tensor:
        """Loss of the head in nats, given what the encoder says of the steps."""
        return self.head.loss(steps_BLD, valid_BL, self.targets(texts))

    def targets(self, texts: list[str]) -> list[list[int]]:
        """Classes of each text's characters, in the order in which they stand in the ink."""
        return [self.vocabulary.encode(order.reading_order(text, self.direction)) for text in texts]

    @torch.no_grad()
    def read(self, ink: Tensor, valid_BL: Tensor) -> tuple[list[str], list[float]]:
        """Text of each line, and a confidence in (0, 1] (not calibrated): the mean probability of what the head chose."""
        lines, confidences = self.head.read(self.encoder(ink, valid_BL), valid_BL)
        return [order.logical_order(self.vocabulary.decode(line), self.direction) for line in lines], confidences

    def widened(self, vocabulary: Vocabulary) -> tuple[Recognizer, int]:
        """This recogniser over the union of both vocabularies: what the head knows is copied, new characters are counted.

        Returns the recogniser and how many characters are new to it.
        """
        union = self.vocabulary.union(vocabulary)
        wider = Recognizer(self.encoder, union, self.direction, self.decoder)
        with torch.no_grad():
            # What depends on the vocabulary has a row for each class; all else is as long as before.
            for old, new in zip(self.head.parameters(), wider.head.parameters()):
                new[: len(old)] = old
        return wider, len(union) - len(self.vocabulary)

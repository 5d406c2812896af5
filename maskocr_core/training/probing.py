"""A CTC probe: how well a linear layer alone reads from what a frozen encoder says. It follows pre-training along its way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from maskocr_core.data.batches import Lines
from maskocr_core.judging import metrics
from maskocr_core.model import direction as order
from maskocr_core.model.ctc import best_path
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.vocabulary import Vocabulary

STEPS, BATCH, LEARNING_RATE = 400, 16, 5e-3


def validation_cer(encoder: Encoder, labelled: Lines, validation: Lines) -> float:
    """CER on `validation` of a linear CTC layer trained on `labelled`; the encoder and torch's generator stay as they are."""
    was_training, direction = encoder.training, labelled.data.direction
    encoder.eval()
    vocabulary = Vocabulary.of(labelled.texts, direction)
    targets = [vocabulary.encode(order.reading_order(text, direction)) for text in labelled.texts]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(encoder.width, len(vocabulary))
        said = dict(_described(encoder, labelled))
        _train(head, [said[place] for place in range(len(labelled))], targets)
    read = [""] * len(validation)
    # Line by line: of validation lines there may be many more than fit in memory.
    for place, said_LD in _described(encoder, validation):
        labels = best_path(head(said_LD).argmax(-1).tolist())
        read[place] = order.logical_order(vocabulary.decode(labels), direction)
    encoder.train(was_training)
    errors = metrics.line_errors(validation.texts, read)
    return metrics.cer(errors.edits, errors.characters)


@torch.no_grad()
def _described(encoder: Encoder, source: Lines) -> Iterator[tuple[int, Tensor]]:
    """Each line's place, and what the encoder says of it, (L, D) float32."""
    device = next(encoder.parameters()).device
    for places, batch in source.in_order(32):
        said_BLD = encoder(batch.ink.to(device), batch.valid.to(device)).cpu()
        yield from ((place, line_LD[valid]) for place, line_LD, valid in zip(places, said_BLD, batch.valid))


def _train(head: nn.Linear, said: list[Tensor], targets: list[list[int]]) -> None:
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    random = np.random.default_rng(0)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - step / STEPS)
        chosen = random.choice(len(said), min(BATCH, len(said)), replace=False)
        lengths = torch.tensor([len(said[place]) for place in chosen])
        logits_BLV = head(nn.utils.rnn.pad_sequence([said[place] for place in chosen], batch_first=True))
        loss = nn.functional.ctc_loss(
            logits_BLV.log_softmax(-1).transpose(0, 1),
            torch.tensor([label for place in chosen for label in targets[place]]),
            lengths,
            torch.tensor([len(targets[place]) for place in chosen]),
            zero_infinity=True,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

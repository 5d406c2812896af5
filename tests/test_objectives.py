from itertools import product

import numpy as np
import packed
import pytest
import torch
from torch import nn

from maskocr_core import config
from maskocr_core.config import STEP, Mask, Training
from maskocr_core.data.batches import Batch
from maskocr_core.judging import metrics
from maskocr_core.model import masking
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import Vocabulary
from maskocr_core.training.checkpoint import Checkpoints
from maskocr_core.training.loop import fit
from maskocr_core.training.objectives import MaskedLabels, Recognition

HEIGHT, CLUSTERS = 32, 10


@pytest.fixture
def batch():
    torch.manual_seed(1)
    steps = torch.tensor([20, 13, 4])
    valid = torch.arange(20)[None] < steps[:, None]
    return Batch(
        torch.rand(3, 1, HEIGHT, 20 * STEP) * valid.repeat_interleave(STEP, 1)[:, None, None],
        valid,
        list("abc"),
        [""] * 3,
    )


def masked_labels(start=0.4, end=0.4, span=2, visible_weight=0.5):
    torch.manual_seed(0)
    pixels, features = HEIGHT * 16, 6
    codebook = Codebook(
        HEIGHT, 16, torch.full((pixels,), 0.4), torch.randn(features, pixels), torch.randn(CLUSTERS, features) * 4
    )
    mask = Mask(start=start, end=end, span=span, visible_weight=visible_weight)
    return MaskedLabels(Encoder(HEIGHT, 32, 2, 2, "convolutional", 0.0), codebook, mask).eval()


def test_the_loss_on_masked_and_visible_labels_is_that_of_a_slow_reference(batch):
    objective = masked_labels(start=0.2, end=0.6)
    torch.manual_seed(7)
    loss, figures = objective(batch, 0.5)
    torch.manual_seed(7)
    mask = masking.sample(batch.valid, 0.4, 2)
    labels = objective.codebook.labels(batch.ink)
    logits = objective.head(objective.encoder(masking.hide(batch.ink, mask), batch.valid)).detach().double().numpy()

    losses, right = {True: [], False: []}, []
    for row, step in zip(*np.nonzero(batch.valid.numpy())):
        scores, label, hidden = logits[row, step], int(labels[row, step]), bool(mask[row, step])
        losses[hidden].append(-np.log(np.exp(scores[label]) / np.exp(scores).sum()))
        if hidden:
            right.append(scores.argmax() == label)
    assert len(losses[True]) > 5 and len(losses[False]) > 5 and len(set(labels[batch.valid].tolist())) > 3
    assert figures["masked_loss"].item() == pytest.approx(np.mean(losses[True]), rel=1e-5)
    assert figures["visible_loss"].item() == pytest.approx(np.mean(losses[False]), rel=1e-5)
    assert figures["masked_accuracy"].item() == pytest.approx(np.mean(right))
    assert loss.item() == pytest.approx(np.mean(losses[True]) + 0.5 * np.mean(losses[False]), rel=1e-5)


@pytest.mark.parametrize("probability, empty", [(0.0, "masked_loss"), (1.0, "visible_loss")])
def test_an_empty_set_of_steps_counts_nothing(batch, probability, empty):
    objective = masked_labels(probability, probability, visible_weight=1.0)
    loss, figures = objective(batch, 0.5)
    loss.backward()
    assert torch.isfinite(loss) and figures[empty] == 0
    assert loss.item() == pytest.approx((figures["masked_loss"] + figures["visible_loss"]).item())
    assert all(torch.isfinite(weights.grad).all() for weights in objective.parameters())


def test_without_a_weight_visible_steps_teach_nothing(batch):
    loss, figures = masked_labels(visible_weight=0.0)(batch, 0.5)
    assert loss == figures["masked_loss"] and figures["visible_loss"] > 0
    objective = masked_labels(0.0, 0.0, visible_weight=0.0)
    objective(batch, 0.5)[0].backward()
    assert not any(weights.grad.any() for weights in objective.parameters())


def test_labels_come_from_the_line_itself_and_not_from_the_noise_that_hides_it(batch):
    objective = masked_labels(1.0, 1.0)
    seen = []
    objective.codebook = type(
        "Spy", (), {"labels": lambda self, ink: seen.append(ink) or torch.zeros(ink.shape[0], 20, dtype=torch.int64)}
    )()
    objective(batch, 0.5)
    assert torch.equal(seen[0], batch.ink)


class Fixed(nn.Module):
    """A recogniser that gives the same log-probabilities (B, L, V) whatever it is shown."""

    def __init__(self, log_probabilities, vocabulary):
        super().__init__()
        self.log_probabilities, self.vocabulary = nn.Parameter(log_probabilities), vocabulary

    def targets(self, texts):
        return [self.vocabulary.encode(text) for text in texts]

    def forward(self, ink, valid):
        return self.log_probabilities


def ctc_case(texts, steps):
    torch.manual_seed(3)
    vocabulary = Vocabulary("ab")
    log_probabilities = torch.randn(len(texts), max(steps), 3).log_softmax(-1)
    valid = torch.arange(max(steps))[None] < torch.tensor(steps)[:, None]
    batch = Batch(torch.zeros(len(texts), 1, HEIGHT, max(steps) * STEP), valid, list("xyz")[: len(texts)], texts)
    return Recognition(Fixed(log_probabilities, vocabulary)), batch


def test_the_loss_of_a_text_sums_every_path_that_is_read_as_this_text():
    texts, steps = ["ab", "a", "bb"], [4, 2, 5]
    objective, batch = ctc_case(texts, steps)
    logs, expected = objective.recognizer.log_probabilities.detach().double().numpy(), []
    for row, (text, length) in enumerate(zip(texts, steps)):
        paths = [path for path in product(range(3), repeat=length) if Vocabulary("ab").decode(path) == text]
        probability = sum(np.exp(sum(logs[row, step, label] for step, label in enumerate(path))) for path in paths)
        expected.append(-np.log(probability) / len(text))
    loss, figures = objective(batch, 0.5)
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5) == figures["loss"].item()


def test_the_loss_of_a_text_is_the_one_that_torch_gives():
    objective, batch = ctc_case(["ab", "ba"], [6, 4])
    logs = objective.recognizer.log_probabilities.transpose(0, 1)
    expected = nn.functional.ctc_loss(logs, torch.tensor([[1, 2], [2, 1]]), torch.tensor([6, 4]), torch.tensor([2, 2]))
    assert objective(batch, 0.5)[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_text_too_long_for_its_line_teaches_nothing_and_ruins_nothing():
    objective, batch = ctc_case(["ab", "aaaa"], [4, 2])
    loss, _ = objective(batch, 0.5)
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert not objective.recognizer.log_probabilities.grad[1].any()


def test_four_lines_are_learnt_by_heart(tmp_path):
    settings = config.load("smoke")
    known = packed.short_lines(4, seed=3, alphabet="abcdeg ", length=(4, 8))
    lines = packed.source(packed.pack(tmp_path, {"train": known}), "train", settings.data)
    four = lines.collate(range(4))
    torch.manual_seed(0)
    model = Recognizer(Encoder(32, 64, 2, 4, "convolutional", 0.0), Vocabulary.of(lines.texts))
    training = Training(steps=150, learning_rate=2e-3, checkpoint_every=150)
    fit(Recognition(model), lambda first: iter(lambda: four, None), training, Checkpoints(tmp_path / "checkpoints"))
    texts, _ = model.eval().read(four.ink, four.valid)
    errors = metrics.line_errors(four.texts, texts)
    assert metrics.cer(errors.edits, errors.characters) < 0.05

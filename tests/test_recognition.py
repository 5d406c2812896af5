"""What fine-tuning minimises, with either decoder, and how a trained encoder is spared at first."""

from itertools import count, product

import numpy as np
import packed
import pytest
import torch
from torch import nn

from maskocr_core import config
from maskocr_core.config import Training
from maskocr_core.model.ctc import Ctc, best_path
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import Vocabulary
from maskocr_core.training import loop, rates
from maskocr_core.training.checkpoints import Checkpoints
from maskocr_core.training.loop import fit
from maskocr_core.training.rates import WARMUP, Rate
from maskocr_core.training.recognition import Recognition

decoders = pytest.mark.parametrize("decoder", ["ctc", "autoregressive"])


def ctc_case(targets, steps):
    """A CTC layer, steps (B, L, D) of lines of so many steps, which are valid, and the layer's log-probabilities in float64."""
    torch.manual_seed(3)
    layer = Ctc(8, 3)
    encoded = torch.randn(len(targets), max(steps), 8, requires_grad=True)
    valid = torch.arange(max(steps))[None] < torch.tensor(steps)[:, None]
    scores = encoded.detach().double() @ layer.weight.detach().double().T + layer.bias.detach().double()
    return layer, encoded, valid, scores.log_softmax(-1).numpy()


def test_the_loss_of_ctc_sums_every_path_that_is_read_as_the_text():
    targets, steps = [[1, 2], [1], [2, 2], []], [4, 2, 5, 3]
    layer, encoded, valid, logs = ctc_case(targets, steps)
    expected = []
    for row, (target, length) in enumerate(zip(targets, steps)):
        paths = [path for path in product(range(3), repeat=length) if best_path(path) == target]
        probability = sum(np.exp(sum(logs[row, step, label] for step, label in enumerate(path))) for path in paths)
        expected.append(-np.log(probability) / max(1, len(target)))
    assert layer.loss(encoded, valid, targets).item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_loss_of_ctc_is_the_one_that_torch_gives():
    layer, encoded, valid, logs = ctc_case([[1, 2], [2, 1]], [6, 4])
    expected = nn.functional.ctc_loss(
        torch.tensor(logs).transpose(0, 1), torch.tensor([[1, 2], [2, 1]]), torch.tensor([6, 4]), torch.tensor([2, 2])
    )
    assert layer.loss(encoded, valid, [[1, 2], [2, 1]]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_text_too_long_for_its_line_teaches_ctc_nothing_and_ruins_nothing():
    layer, encoded, valid, _ = ctc_case([[1, 2], [1, 1, 1, 1]], [4, 2])
    loss = layer.loss(encoded, valid, [[1, 2], [1, 1, 1, 1]])
    loss.backward()
    assert torch.isfinite(loss) and loss > 0
    assert encoded.grad[0].any() and not encoded.grad[1].any()


@decoders
def test_a_batch_without_a_single_character_teaches_something_finite(four, decoder):
    blank = type(four)(four.ink, four.valid, four.line_ids, [""] * 4)
    objective = recognition("abc", decoder)
    loss, figures = objective(blank, 0.0)
    loss.backward()
    assert torch.isfinite(loss) and loss > 0 and figures["loss"] == loss
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A batch of four lines of four to eight characters."""
    packs = packed.pack(
        tmp_path_factory.mktemp("four"),
        {"train": packed.short_lines(4, seed=3, alphabet="abcdeg ", length=(4, 8))},
    )
    return packed.source(packs, "train", config.load("smoke").data).collate(range(4))


def recognition(characters, decoder="ctc", **gentleness):
    torch.manual_seed(0)
    encoder = Encoder(32, 64, 2, 4, "convolutional", 0.0)
    return Recognition(Recognizer(encoder, Vocabulary(characters), decoder=decoder), **gentleness)


@decoders
def test_four_lines_are_learnt_by_heart(four, tmp_path, decoder):
    objective = recognition("abcdeg ", decoder)
    training = Training(steps=120, learning_rate=2e-3, checkpoint_every=120)
    fit(objective, lambda *_: (four for _ in count()), training, Checkpoints(tmp_path / "checkpoints"))
    assert objective.recognizer.eval().read(four.ink, four.valid)[0] == four.texts


def rates_of(objective):
    return {name.removeprefix("recognizer."): objective.rate_of(name) for name, _ in objective.named_parameters()}


@decoders
def test_each_layer_learns_slower_than_the_one_above_it_and_the_head_at_the_full_rate(decoder):
    found = {name: rate.factor for name, rate in rates_of(recognition("ab", decoder, layer_decay=0.5)).items()}
    expected = {"head.": 1.0, "encoder.norm_out.": 0.5, "encoder.blocks.1.": 0.5, "encoder.blocks.0.": 0.25}
    for start, factor in (expected | {"encoder.stem.": 0.125, "encoder.norm_in.": 0.125}).items():
        assert {found.pop(name) for name in list(found) if name.startswith(start)} == {factor}
    assert not found


def test_the_optimiser_is_given_the_rates_of_the_layers_and_no_decay_on_norms_and_biases():
    objective = recognition("ab", layer_decay=0.5)
    groups = loop._groups(objective, Training(weight_decay=0.1))
    assert sum(len(group["params"]) for group in groups) == len(list(objective.parameters()))
    assert {(group["weight_decay"], group["rate"].factor) for group in groups} == set(
        product([0.1, 0.0], [1.0, 0.5, 0.25, 0.125])
    )
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}


def test_without_decay_or_freezing_there_is_one_rate():
    assert set(rates_of(recognition("ab")).values()) == {Rate()}
    assert {Rate()(progress) for progress in np.linspace(0, 1, 50)} == {1.0}


def test_a_frozen_layer_stays_at_nothing_and_then_comes_to_its_rate():
    rate = Rate(factor=0.5, frozen=0.4)
    along = [rate(step / 100) for step in range(100)]
    assert set(along[:40]) == {0.0} and along == sorted(along)
    assert along[40 + round(WARMUP * 100) :] == [0.5] * (60 - round(WARMUP * 100))
    assert rate(0.4 + WARMUP / 2) == pytest.approx(0.25)
    assert {Rate(frozen=1.0)(step / 100) for step in range(100)} == {0.0}


def test_the_head_is_never_frozen():
    found = rates_of(recognition("ab", "autoregressive", frozen=0.5))
    assert {name.split(".")[0] for name, rate in found.items() if rate.frozen} == {"encoder"}
    assert {name.split(".")[0] for name, rate in found.items() if not rate.frozen} == {"head"}
    assert rates.of_layer("head.encoder.weight", 2, 0.5, 0.5) == Rate()  # whatever a head calls its parts


@decoders
def test_a_frozen_encoder_gets_no_gradient_and_the_same_loss(four, decoder):
    losses = []
    for progress in (0.49, 0.5):
        objective = recognition("abcdeg ", decoder, frozen=0.5)
        torch.manual_seed(1)
        loss, _ = objective.train()(four, progress)
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None for p in objective.recognizer.head.parameters())
        assert all((p.grad is not None) == (progress >= 0.5) for p in objective.recognizer.encoder.parameters())
    assert losses[0] == losses[1]

import numpy as np
import pytest
import torch

from maskocr_core.config import STEP, Mask
from maskocr_core.data.batches import Batch
from maskocr_core.model import masking
from maskocr_core.model.codebook import Codebook
from maskocr_core.model.encoder import Encoder
from maskocr_core.model.step_features import Pixels
from maskocr_core.training.objectives import MaskedPrediction

HEIGHT, CLUSTERS = 32, 10


@pytest.fixture
def batch():
    torch.manual_seed(1)
    steps = torch.tensor([20, 13, 9, 4])
    valid = torch.arange(20)[None] < steps[:, None]
    return Batch(
        torch.rand(4, 1, HEIGHT, 20 * STEP) * valid.repeat_interleave(STEP, 1)[:, None, None],
        valid,
        list("abcd"),
        [""] * 4,
    )


def masked_labels(start=0.4, end=0.4, visible_weight=0.5, places="rotary", **settings):
    torch.manual_seed(0)
    pixels, features = HEIGHT * 16, 6
    codebook = Codebook(
        HEIGHT,
        Pixels(16),
        torch.full((pixels,), 0.4),
        torch.randn(features, pixels),
        torch.randn(CLUSTERS, features) * 4,
    )
    mask = Mask(**{"start": start, "end": end, "span": 2, "visible_weight": visible_weight, "hide": "noise"} | settings)
    return MaskedPrediction(Encoder(HEIGHT, 32, 2, 2, "convolutional", 0.0, places), codebook, mask).eval()


every_way = pytest.mark.parametrize("hide", ["noise", "token", "skip"])


def alone(objective, batch, mask, row):
    """What the masked model says of each step (L, K) of one line, with nothing but that line and no padding."""
    model, encoder = objective.model, objective.model.encoder
    steps = int(batch.valid[row].sum())
    ink, hidden = batch.ink[row : row + 1, :, :, : steps * STEP], mask[row : row + 1, :steps]
    every = torch.ones(1, steps, dtype=torch.bool)
    if objective.mask.hide == "noise":
        return model.head(encoder(masking.hide(ink, hidden), every))[0]
    stem = encoder.stem(masking.blank(ink, hidden))
    if objective.mask.hide == "token":
        stem[hidden] = model.token
        return model.head(encoder.contextual(encoder.placed(stem), every))[0]
    said = torch.empty(steps, CLUSTERS)
    placed, place = encoder.placed(stem), encoder.added(stem, False).expand(stem.shape)
    seen = ~hidden[0]
    at = seen.nonzero().flatten()[None]
    known = encoder.contextual(placed[:, seen], every[:, seen], place_BL=at)
    said[seen] = model.visible_head(known)[0]
    for step in hidden[0].nonzero().flatten():
        turns = encoder.turn(step[None, None]), encoder.turn(at)
        asked = model.asking(place[:, step : step + 1], known + place[:, seen], every[:, seen], *turns)
        said[step] = model.head(asked)[0, 0]
    return said


@every_way
@pytest.mark.parametrize("places", ["rotary", "sinusoidal"])
@torch.no_grad()
def test_the_loss_on_masked_and_visible_labels_is_that_of_a_slow_reference(batch, hide, places):
    objective = masked_labels(start=0.2, end=0.6, hide=hide, places=places)
    torch.manual_seed(7)
    loss, figures = objective(batch, 0.5)
    torch.manual_seed(7)
    mask = masking.sample(batch.valid, 0.4, 2)
    labels = objective.codebook.labels(batch.ink, batch.valid)
    logits = [alone(objective, batch, mask, row).double().numpy() for row in range(len(batch.valid))]

    losses, right = {True: [], False: []}, []
    for row, step in zip(*np.nonzero(batch.valid.numpy())):
        scores, label, hidden = logits[row][step], int(labels[row, step]), bool(mask[row, step])
        losses[hidden].append(-np.log(np.exp(scores[label]) / np.exp(scores).sum()))
        if hidden:
            right.append(scores.argmax() == label)
    assert len(losses[True]) > 5 and len(losses[False]) > 5 and len(set(labels[batch.valid].tolist())) > 3
    assert figures["masked_loss"].item() == pytest.approx(np.mean(losses[True]), rel=1e-5)
    assert figures["visible_loss"].item() == pytest.approx(np.mean(losses[False]), rel=1e-5)
    assert figures["masked_accuracy"].item() == pytest.approx(np.mean(right))
    assert loss.item() == pytest.approx(np.mean(losses[True]) + 0.5 * np.mean(losses[False]), rel=1e-5)


@every_way
def test_the_loss_on_pixels_is_the_square_error_of_each_steps_normed_pixels(batch, hide):
    objective = masked_labels(predict="pixels", hide=hide, visible_weight=2.0)
    torch.manual_seed(7)
    loss, figures = objective(batch, 0.5)
    torch.manual_seed(7)
    mask = masking.sample(batch.valid, 0.4, 2)
    hidden, visible = objective.model(batch.ink, batch.valid, mask)
    patches = batch.ink[:, 0].unflatten(2, (-1, STEP)).permute(0, 2, 1, 3).flatten(2).double().numpy()

    def error(said, where):
        target = patches[where.numpy()]
        target = (target - target.mean(1, keepdims=True)) / target.std(1, ddof=1, keepdims=True)
        return np.square(said.detach().double().numpy() - target).mean()

    assert figures["masked_loss"].item() == pytest.approx(error(hidden, mask), rel=1e-3)
    assert figures["visible_loss"].item() == pytest.approx(error(visible, batch.valid & ~mask), rel=1e-3)
    assert loss.item() == pytest.approx((figures["masked_loss"] + 2 * figures["visible_loss"]).item())


@every_way
@torch.no_grad()
def test_what_hidden_steps_show_is_unknown_to_the_model(batch, hide):
    objective = masked_labels(hide=hide)
    mask = masking.sample(batch.valid, 0.5, 2)
    other = torch.where(mask.repeat_interleave(STEP, 1)[:, None, None], torch.rand_like(batch.ink), batch.ink)
    assert not torch.equal(other, batch.ink)
    for first, second in zip(objective.model(batch.ink, batch.valid, mask), objective.model(other, batch.valid, mask)):
        assert torch.equal(first, second)


def test_where_each_line_draws_its_own_probability_they_lie_between_the_ends_and_differ():
    objective = masked_labels(0.2, 0.8, ratio="random")
    mask, probability = objective.draw(torch.ones(400, 200, dtype=torch.bool), 0.0)
    shares = mask.float().mean(1)
    assert probability.item() == pytest.approx(0.5, abs=0.03) == mask.float().mean().item()
    assert 0.05 < shares.min() < 0.3 and 0.7 < shares.max() < 0.95
    assert torch.histc(shares, 6, 0.2, 0.8).min() > 40


@every_way
@pytest.mark.parametrize("probability, empty", [(0.0, "masked_loss"), (1.0, "visible_loss")])
def test_an_empty_set_of_steps_counts_nothing(batch, probability, empty, hide):
    objective = masked_labels(probability, probability, visible_weight=1.0, hide=hide)
    loss, figures = objective(batch, 0.5)
    loss.backward()
    assert torch.isfinite(loss) and figures[empty] == 0
    assert loss.item() == pytest.approx((figures["masked_loss"] + figures["visible_loss"]).item())
    assert all(torch.isfinite(weights.grad).all() for weights in objective.parameters())


@every_way
def test_the_masked_labels_of_four_lines_are_learnt_by_heart(batch, hide):
    objective = masked_labels(hide=hide).train()
    optimizer = torch.optim.Adam(objective.parameters(), 3e-3)
    for _ in range(500):
        optimizer.zero_grad()
        loss, figures = objective(batch, 0.5)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        guessed = [float(objective(batch, 0.5)[1]["masked_accuracy"]) for _ in range(10)]
    assert np.mean(guessed) > 0.75  # a tenth by chance


def test_without_a_weight_visible_steps_teach_nothing(batch):
    loss, figures = masked_labels(visible_weight=0.0)(batch, 0.5)
    assert loss == figures["masked_loss"] and figures["visible_loss"] > 0
    objective = masked_labels(0.0, 0.0, visible_weight=0.0)
    objective(batch, 0.5)[0].backward()
    assert not any(weights.grad.any() for weights in objective.parameters())


def test_labels_come_from_the_line_itself_and_not_from_the_noise_that_hides_it(batch):
    objective = masked_labels(1.0, 1.0)
    seen = []

    class Spy:
        def labels(self, ink, valid):
            seen.append(ink)
            return torch.zeros(ink.shape[0], 20, dtype=torch.int64)

    objective._codebook = [Spy()]
    objective(batch, 0.5)
    assert torch.equal(seen[0], batch.ink)

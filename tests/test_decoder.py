"""The autoregressive decoder: what it computes, how it reads, and that it goes through the stages like the other."""

import math
from itertools import product

import numpy as np
import pytest
import torch

from maskocr_core.config import STEP
from maskocr_core.model.decoder import Decoder
from maskocr_core.model.encoder import Encoder, positions
from maskocr_core.model.recognizer import Recognizer
from maskocr_core.model.vocabulary import SPECIAL, Vocabulary

WIDTH, HEADS, CLASSES = 32, 4, 7


def decoder(depth=2, classes=CLASSES, seed=0):
    torch.manual_seed(seed)
    return Decoder(WIDTH, depth, HEADS, classes).eval()


def encoded(*lengths):
    """What an encoder might say of lines of so many steps: (B, L, D), and which are valid (B, L)."""
    torch.manual_seed(1)
    valid = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), max(lengths), WIDTH), valid


class Slow:
    """The decoder in float64, a character and a head at a time, without anything kept or padded."""

    def __init__(self, model):
        self.weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
        self.depth = len(model.blocks)

    def linear(self, name, x):
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def norm(self, name, x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attention(self, query, keys, values):
        mixed, size = [], WIDTH // HEADS
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            weights = np.exp([query[part] @ key[part] / math.sqrt(size) for key in keys])
            mixed.append(sum(weight * value[part] for weight, value in zip(weights / weights.sum(), values)))
        return np.concatenate(mixed)

    def log_probabilities(self, steps, before):
        """(V,) after the characters `before`, the beginning among them, of a line with these steps (L, D)."""
        memory = [step + self.place(number) for number, step in enumerate(steps)]
        sequence = [self.weights["embedding.weight"][label] + self.place(t) for t, label in enumerate(before)]
        for number in range(self.depth):
            name = f"blocks.{number}"
            qkv = [self.linear(f"{name}.qkv", self.norm(f"{name}.norm_self", x)) for x in sequence]
            known = [self.linear(f"{name}.key_value", step) for step in memory]
            for t, x in enumerate(sequence):
                so_far = qkv[: t + 1]
                query, keys, values = (
                    qkv[t][:WIDTH],
                    [each[WIDTH : 2 * WIDTH] for each in so_far],
                    [each[2 * WIDTH :] for each in so_far],
                )
                x = x + self.linear(f"{name}.out_self", self.attention(query, keys, values))
                query = self.linear(f"{name}.query", self.norm(f"{name}.norm_cross", x))
                mixed = self.attention(query, [each[:WIDTH] for each in known], [each[WIDTH:] for each in known])
                x = x + self.linear(f"{name}.out_cross", mixed)
                up = self.linear(f"{name}.up", self.norm(f"{name}.norm_feedforward", x))
                up = np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in up])
                sequence[t] = x + self.linear(f"{name}.down", up)
        scores = self.linear("out", self.norm("norm_out", sequence[-1]))
        return scores - np.log(np.exp(scores).sum())

    @staticmethod
    def place(number):
        rates = [10000 ** (-even / WIDTH) for even in range(0, WIDTH, 2)]
        return np.array([wave(number * rate) for rate in rates for wave in (math.sin, math.cos)])


@torch.no_grad()
def test_the_loss_is_that_of_a_slow_reference():
    model, (steps, valid), targets = decoder(), encoded(9, 4, 6), [[3, 1, 1, 6], [], [2, 5]]
    slow, losses = Slow(model), []
    for line, inside, target in zip(steps.double().numpy(), valid.numpy(), targets):
        for t, wanted in enumerate([*target, SPECIAL]):
            losses.append(-slow.log_probabilities(line[inside], [SPECIAL, *target[:t]])[wanted])
    beside = model.ctc.loss(steps, valid, targets).item()  # of which test_recognition has a slow reference
    assert model.loss(steps, valid, targets).item() == pytest.approx(0.7 * np.mean(losses) + 0.3 * beside, rel=1e-5)


@torch.no_grad()
def test_a_line_without_a_text_teaches_that_it_ends_at_once():
    model, (steps, valid) = decoder(), encoded(5, 5)
    scores = model(steps, valid, torch.full((2, 1), SPECIAL))[:, 0]
    own = -scores.log_softmax(-1)[:, SPECIAL].mean().item()
    beside = model.ctc.loss(steps, valid, [[], []]).item()
    assert model.loss(steps, valid, [[], []]).item() == pytest.approx(0.7 * own + 0.3 * beside)


def plainly(model, steps, valid):
    """Greedy reading of one line that computes everything anew for each character."""
    text, probabilities = [], []
    for _ in range(2 * int(valid.sum())):
        scores = model(steps[None], valid[None], torch.tensor([[SPECIAL, *text]]))[0, -1]
        best = scores.softmax(-1).max(-1)
        probabilities.append(best.values.item())
        if best.indices == SPECIAL:
            break
        text.append(best.indices.item())
    return text, np.mean(probabilities)


def fickle(seed=0, end=0.0):
    """A decoder that looks at the line, so that every line is read otherwise; `end`: how eager it is to end."""
    model = decoder(seed=seed)
    with torch.no_grad():
        for block in model.blocks:
            block.out_cross.weight *= 6
            block.query.weight *= 12
        model.out.bias[SPECIAL] += end
    return model


@pytest.mark.parametrize("end", [-0.5, -0.25, 0.0])
@torch.no_grad()
def test_reading_with_kept_keys_and_values_equals_reading_without(end):
    model, (steps, valid) = fickle(end=end), encoded(12, 3, 20, 7, 1, 15)
    texts, confidences = model.read(steps, valid)
    expected = [plainly(model, line, inside) for line, inside in zip(steps, valid)]
    assert texts == [text for text, _ in expected]
    assert confidences == pytest.approx([probability for _, probability in expected], abs=1e-5)
    assert all(0 < confidence <= 1 for confidence in confidences)


@torch.no_grad()
def test_the_examples_of_reading_end_early_late_and_never():
    """What the test above stands on: among its lines are such that end, such that do not, and no two are alike."""
    steps, valid = encoded(12, 3, 20, 7, 1, 15)
    read = [fickle(end=end).read(steps, valid)[0] for end in (-0.5, -0.25)]
    lengths = {(len(text), 2 * int(inside.sum())) for texts in read for text, inside in zip(texts, valid)}
    assert any(length == limit for length, limit in lengths) and any(0 < length < limit for length, limit in lengths)
    assert [] in read[1] and len({tuple(text) for text in read[0]}) == 6


@torch.no_grad()
def test_the_width_and_the_order_of_a_batch_change_nothing():
    model, (steps, valid) = fickle(end=-0.5), encoded(12, 3, 20, 7, 1, 15)
    together = model.read(steps, valid)
    order = [4, 2, 0, 5, 3, 1]
    shuffled = model.read(steps[order], valid[order])
    noise = steps + 100 * torch.randn(steps.shape) * ~valid[..., None]
    for place, row in enumerate(order):
        alone = model.read(steps[row : row + 1, valid[row]], valid[row : row + 1, valid[row]])
        for read, where in ((shuffled, place), (alone, 0), (model.read(noise, valid), row)):
            assert read[0][where] == together[0][row]
            assert read[1][where] == pytest.approx(together[1][row], abs=1e-5)


@torch.no_grad()
def test_a_text_ends_at_a_quarter_of_the_width_where_nothing_else_ends_it():
    model, (steps, valid) = decoder(), encoded(6, 2, 11)
    model.out.bias[SPECIAL] = -100.0
    assert [len(text) for text in model.read(steps, valid)[0]] == [6 * STEP // 4, 2 * STEP // 4, 11 * STEP // 4]


@torch.no_grad()
def test_an_end_at_once_is_an_empty_text():
    model, (steps, valid) = decoder(), encoded(6, 2)
    model.out.bias[SPECIAL] = 100.0
    assert model.read(steps, valid) == ([[], []], [1.0, 1.0])


@torch.no_grad()
def test_a_character_does_not_see_those_after_it_and_sees_those_before():
    model, (steps, valid), before = decoder(), encoded(6), torch.tensor([[SPECIAL, 3, 1, 4]])
    changed = before.clone()
    changed[0, 2] = 5
    one, other = model(steps, valid, before)[0], model(steps, valid, changed)[0]
    assert torch.equal(one[:2], other[:2])
    assert (one[2:] - other[2:]).abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("width, depth, classes", [(32, 1, 7), (64, 3, 100), (512, 3, 90)])
def test_the_number_of_weights_is_the_one_that_the_sizes_give(width, depth, classes):
    model = Decoder(width, depth, 4, classes)
    block = 16 * width**2 + 19 * width  # eight linear maps of one width, feed-forward of four, biases, three norms
    ends = (3 * classes + 2) * width + 2 * classes  # embedding, scores, those of CTC with biases, the last norm
    assert sum(weights.numel() for weights in model.parameters()) == depth * block + ends


@pytest.mark.parametrize("depth, expected", [(1, 1), (2, 1), (5, 2), (6, 3)])
def test_a_recognizers_decoder_is_as_wide_as_its_encoder_and_half_as_deep(depth, expected):
    head = Recognizer(Encoder(32, 32, depth, 2, "linear", 0.1), Vocabulary("ab"), decoder="autoregressive").head
    assert len(head.blocks) == expected and head.out.in_features == 32
    assert (head.blocks[0].heads, head.blocks[0].dropout) == (2, 0.1)


@torch.no_grad()
def test_widening_keeps_what_is_said_of_the_characters_that_were_there():
    torch.manual_seed(0)
    old = Recognizer(Encoder(32, 32, 2, 2, "linear", 0.0), Vocabulary("abc"), decoder="autoregressive").eval()
    wider, new = old.widened(Vocabulary("cbxyz"))
    wider.eval()
    (steps, valid), before = encoded(6, 4), torch.tensor([list(row) for row in product([SPECIAL, 1, 3], repeat=2)][:2])
    assert new == 3 and wider.decoder == "autoregressive" and wider.encoder is old.encoder
    assert torch.equal(wider.head(steps, valid, before)[..., :4], old.head(steps, valid, before))
    assert wider.head.out.out_features == 7 == len(wider.head.embedding.weight)


def test_positions_of_characters_are_not_shifted_in_training():
    model, (steps, valid) = decoder().train(), encoded(6)
    before = torch.tensor([[SPECIAL, 1, 2]])
    assert torch.equal(model(steps, valid, before), model(steps, valid, before))
    assert torch.equal(positions(steps, False), positions(steps, False))

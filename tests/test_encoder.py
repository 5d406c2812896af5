import pytest
import torch

from maskocr_core.config import STEP
from maskocr_core.model.encoder import MAX_OFFSET, Encoder, positions
from maskocr_core.model.stem import stem_of

HEIGHT, WIDTH = 32, 48
stems = pytest.mark.parametrize("stem", ["linear", "convolutional", "slim"])
ways = pytest.mark.parametrize("places", ["rotary", "sinusoidal"])


def encoder(stem="convolutional", places="rotary", *, depth=2, seed=0):
    torch.manual_seed(seed)
    return Encoder(HEIGHT, WIDTH, depth, 4, stem, 0.0, places).eval()


def padded(lines, steps):
    """A batch of (1, H, W) lines, white to the right of each."""
    ink, valid = torch.zeros(len(lines), 1, HEIGHT, steps * STEP), torch.zeros(len(lines), steps, dtype=torch.bool)
    for row, line in enumerate(lines):
        ink[row, :, :, : line.shape[2]] = line
        valid[row, : -(-line.shape[2] // STEP)] = True
    return ink, valid


def some_lines(*widths):
    torch.manual_seed(1)
    return [torch.rand(1, HEIGHT, width) for width in widths]


@stems
@ways
@torch.no_grad()
def test_a_line_gives_the_same_vectors_alone_and_in_a_wide_batch(stem, places):
    model, lines = encoder(stem, places), some_lines(100, 64, 311, 8)
    together = model(*padded(lines, 64))
    for row, line in enumerate(lines):
        steps = -(-line.shape[2] // STEP)
        alone = model(*padded([line], steps))[0]
        assert torch.allclose(alone, together[row, :steps], atol=1e-5)


@stems
@ways
@torch.no_grad()
def test_the_order_of_a_batch_changes_nothing(stem, places):
    model, lines = encoder(stem, places), some_lines(100, 64, 311, 8)
    order = [2, 0, 3, 1]
    straight, shuffled = model(*padded(lines, 40)), model(*padded([lines[row] for row in order], 40))
    for place, row in enumerate(order):
        steps = -(-lines[row].shape[2] // STEP)
        assert torch.allclose(shuffled[place, :steps], straight[row, :steps], atol=1e-5)


@stems
@ways
@torch.no_grad()
def test_steps_of_the_same_line_see_each_other(stem, places):
    model, (line,) = encoder(stem, places), some_lines(160)
    changed = line.clone()
    changed[:, :, :STEP] = 1 - changed[:, :, :STEP]
    before, after = (model(*padded([each], 20))[0] for each in (line, changed))
    assert (before[-1] - after[-1]).abs().max() > 1e-4


@pytest.mark.parametrize("steps", [1, 2, 8, 64, 256])
def test_every_step_has_a_position_of_its_own(steps):
    table = positions(torch.zeros(1, steps, WIDTH), random_offset=False)[0]
    assert table.shape == (steps, WIDTH)
    apart = torch.cdist(table, table) + 10 * torch.eye(steps)
    assert apart.min() > 0.1


def test_a_random_offset_shifts_a_line_and_stretches_nothing():
    torch.manual_seed(0)
    whole = positions(torch.zeros(1, MAX_OFFSET + 8, WIDTH), random_offset=False)[0]
    starts = set()
    for line in positions(torch.zeros(16, 8, WIDTH), random_offset=True):
        start = int((whole - line[0]).abs().amax(1).argmin())
        assert torch.allclose(whole[start : start + 8], line, atol=1e-4)
        starts.add(start)
    assert len(starts) > 8 and max(starts) > 256


@ways
@torch.no_grad()
def test_the_order_of_steps_matters(places):
    model, (ink, valid) = encoder("linear", places), padded(some_lines(160), 20)
    turned_round = model(ink.unflatten(3, (20, STEP)).flip(3).flatten(3), valid).flip(1)
    assert (model(ink, valid) - turned_round).abs().max() > 1e-2


@torch.no_grad()
def test_a_line_further_right_gives_the_same_where_places_turn():
    """Attention sees distances alone; what is left of the line takes no part."""
    model, (line,) = encoder("linear"), some_lines(160)
    ink, valid = padded([line], 20)
    further = torch.cat((torch.rand(1, 1, HEIGHT, 7 * STEP), ink), 3)
    later = torch.cat((torch.zeros(1, 7, dtype=torch.bool), valid), 1)
    assert torch.allclose(model(ink, valid), model(further, later)[:, 7:], atol=1e-4)


@ways
@torch.no_grad()
def test_steps_taken_out_of_a_line_keep_their_places(places):
    """Those behind a gap see others as far away as they are: as if the gap were masked out of attention."""
    model, (line,) = encoder("linear", places), some_lines(160)
    ink, valid = padded([line], 20)
    kept = torch.tensor([[0, 1, 2, 9, 10, 19]])
    steps = model.placed(model.stem(ink))
    alone = model.contextual(steps[:, kept[0]], torch.ones(1, 6, dtype=torch.bool), place_BL=kept)
    masked = torch.zeros_like(valid).scatter(1, kept, True)
    assert torch.allclose(alone, model.contextual(steps, masked)[:, kept[0]], atol=1e-5)


@torch.no_grad()
def test_positions_are_shifted_in_training_only():
    model, batch = encoder(places="sinusoidal"), padded(some_lines(160), 20)
    assert torch.equal(model(*batch), model(*batch))
    model.train()
    assert not torch.allclose(model(*batch), model(*batch), atol=1e-4)


@pytest.mark.parametrize("stem, left", [("linear", 0), ("convolutional", 7), ("slim", 7)])
def test_a_stem_sees_its_step_and_what_it_says_to_the_left_of_it(stem, left):
    torch.manual_seed(0)
    ink = torch.rand(1, 1, HEIGHT, 10 * STEP, requires_grad=True)
    stem_of(stem, HEIGHT, WIDTH)(ink)[0, 5].abs().sum().backward()
    seen = ink.grad[0, 0].abs().amax(0).nonzero().flatten().tolist()
    assert seen == list(range(5 * STEP - left, 6 * STEP))


@torch.no_grad()
@pytest.mark.parametrize("stem", ["convolutional", "slim"])
def test_white_stays_zero_through_the_convolutions(stem):
    assert not stem_of(stem, HEIGHT, WIDTH).layers(torch.zeros(1, 1, HEIGHT, 80)).any()


@pytest.mark.parametrize("height, width, depth", [(32, 64, 2), (40, 128, 4), (40, 512, 6)])
@stems
def test_the_number_of_weights_is_the_one_that_the_sizes_give(stem, height, width, depth):
    model = Encoder(height, width, depth, 4, stem, 0.0)
    block = 12 * width**2 + 13 * width  # four linear maps with biases, two norms
    stems = {
        "linear": (height * STEP + 1) * width,
        "convolutional": 9 * (32 + 32 * 64 + 64 * 96) + (96 * height // STEP + 1) * width,
        "slim": 9 * (16 + 16 * 48 + 48 * 96) + (96 * height // STEP + 1) * width,
    }
    assert sum(weights.numel() for weights in model.parameters()) == stems[stem] + depth * block + 2 * 2 * width

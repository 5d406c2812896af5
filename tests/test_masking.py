import hashlib
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskocr_core.config import STEP
from maskocr_core.model import masking

probabilities = st.floats(0.0, 1.0)


def valid_steps(*lengths, of=None):
    return torch.arange(of or max(lengths))[None] < torch.tensor(lengths)[:, None]


def test_the_probability_begins_at_the_start_and_ends_at_the_end():
    assert masking.probability(0.0, 0.1, 0.6) == 0.1
    assert masking.probability(1.0, 0.1, 0.6) == pytest.approx(0.6)
    assert masking.probability(0.5, 0.1, 0.6) == pytest.approx(0.35)


@given(probabilities, probabilities, st.lists(st.floats(0.0, 1.0), min_size=2, max_size=10))
def test_the_probability_never_turns_back_on_its_way(start, end, progress):
    low, high = sorted((start, end))
    path = [masking.probability(share, low, high) for share in sorted(progress)]
    assert path == sorted(path)


@given(st.floats(-5.0, 5.0))
def test_the_probability_stays_between_its_ends_whatever_the_progress(progress):
    assert 0.1 <= masking.probability(progress, 0.1, 0.6) <= 0.6 + 1e-12
    assert masking.probability(progress, 0.3, 0.3) == 0.3


@pytest.mark.parametrize("span", [1, 2, 3, 5])
@pytest.mark.parametrize("probability", [0.0, 0.1, 0.35, 0.6, 0.9, 1.0])
def test_the_share_of_masked_steps_is_the_probability_whatever_the_span(probability, span):
    torch.manual_seed(0)
    mask = masking.sample(torch.ones(64, 2000, dtype=torch.bool), probability, span)
    assert mask.float().mean().item() == pytest.approx(probability, abs=0.01)


@pytest.mark.parametrize("span", [1, 2, 3])
def test_masked_steps_come_in_runs_of_at_least_the_span(span):
    torch.manual_seed(0)
    mask = masking.sample(torch.ones(1, 4000, dtype=torch.bool), 0.1, span)[0]
    runs = [len(run) for run in "".join("x" if step else " " for step in mask).split()]
    assert sum(run < span for run in runs) <= 3  # at both ends of the line, and the last one that was drawn
    assert len(runs) > 50


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), probabilities, st.integers(1, 4))
def test_as_many_steps_of_each_line_are_hidden_as_its_share_says(length, probability, span):
    counts = masking.sample(valid_steps(*[length] * 8, of=96), probability, span).sum(1)
    assert counts.min() >= math.floor(probability * length) and counts.max() <= math.ceil(probability * length + 1e-4)


@pytest.mark.parametrize("span", [1, 2, 3])
def test_every_place_of_a_line_is_hidden_as_often(span):
    torch.manual_seed(0)
    often = masking.sample(torch.ones(20000, 12, dtype=torch.bool), 0.4, span).float().mean(0)
    # The last run of a line is cut at its end, so that the very ends of a short line differ a little.
    assert (often - 0.4).abs().max() < 0.05


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), probabilities, st.integers(1, 4))
def test_padding_is_never_masked(lengths, probability, span):
    valid = valid_steps(*lengths, of=48)
    assert not (masking.sample(valid, probability, span) & ~valid).any()


def test_full_probability_masks_every_step_and_none_masks_none():
    valid = valid_steps(9, 3, 17)
    assert torch.equal(masking.sample(valid, 1.0, 2), valid)
    assert not masking.sample(valid, 0.0, 2).any()


@pytest.mark.parametrize("hides", [masking.hide, masking.blank])
@pytest.mark.parametrize("height", [32, 40])
@pytest.mark.parametrize("span", [1, 2])
def test_a_step_is_masked_if_and_only_if_exactly_its_columns_changed(height, span, hides):
    torch.manual_seed(0)
    # No pixel of these lines has a value that the tile has at its place, so that each hidden pixel is a changed one.
    ink = torch.randint(0, 255, (6, 1, height, 30 * STEP)).float() / 255 + 2
    mask = masking.sample(valid_steps(30, 22, 7, 30, 1, 15), 0.4, span)
    changed = (hides(ink, mask) != ink)[:, 0].unflatten(2, (-1, STEP))  # (B, H, L, 8)
    assert torch.equal(changed.any(1).any(-1), mask)
    assert torch.equal(changed.all(1).all(-1), mask)


def test_what_hides_a_step_is_the_same_tile_everywhere():
    hidden = masking.hide(torch.full((3, 1, 40, 5 * STEP), 2.0), torch.ones(3, 5, dtype=torch.bool))
    tiles = hidden.unflatten(3, (5, STEP)).permute(0, 3, 1, 2, 4).reshape(15, 40, STEP)
    assert torch.equal(tiles, masking.noise_tile(40).expand(15, -1, -1))


def test_hiding_leaves_the_lines_themselves_alone():
    ink = torch.rand(2, 1, 32, 4 * STEP)
    before = ink.clone()
    masking.hide(ink, torch.ones(2, 4, dtype=torch.bool))
    assert torch.equal(ink, before)


def test_the_noise_tile_depends_on_no_seed_and_moves_none():
    torch.manual_seed(1)
    first, drawn = masking.noise_tile(40), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(first, masking.noise_tile(40))
    assert first.unique().numel() > 300 and 0 <= first.min() and first.max() < 1


def test_the_noise_tile_is_the_same_in_another_process():
    said = "import hashlib; from maskocr_core.model import masking; print(hashlib.sha256(masking.noise_tile(40).numpy().tobytes()).hexdigest())"
    there = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True).stdout.strip()
    assert there == hashlib.sha256(masking.noise_tile(40).numpy().tobytes()).hexdigest()

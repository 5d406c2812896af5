import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskocr_core.data import images


def line(paper, ink, share=0.2, noise=0, seed=0):
    """Strokes of one gray on paper of another, (32, 200) uint8."""
    random = np.random.default_rng(seed)
    pixels = np.where(random.random((32, 200)) < share, ink, paper) + random.integers(-noise, noise + 1, (32, 200))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def test_raw_ink_is_the_darkness_of_each_pixel():
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.allclose(images.inked(pixels, "raw"), 1 - pixels / 255)


@pytest.mark.parametrize("paper, ink", [(255, 0), (200, 40), (120, 60), (180, 130)])
def test_levelled_paper_is_nothing_and_levelled_ink_is_one_whatever_their_grays(paper, ink):
    levelled = images.inked(line(paper, ink), "levelled")
    assert levelled.dtype == np.float32
    assert set(np.unique(levelled)) == {0.0, 1.0}
    assert np.array_equal(levelled == 1, line(paper, ink) == ink)


@given(st.integers(60, 255), st.integers(40, 60), st.floats(0.02, 0.45), st.integers(0, 3))
def test_levelled_ink_lies_between_nothing_and_one_and_never_grows_with_the_gray(paper, depth, share, noise):
    pixels = line(paper, paper - depth, share, noise)
    levelled = images.inked(pixels, "levelled")
    assert 0 <= levelled.min() and levelled.max() <= 1
    order = np.argsort(pixels, axis=None, kind="stable")
    assert (np.diff(levelled.ravel()[order]) <= 0).all()


def test_a_line_without_contrast_is_not_stretched_to_noise():
    assert images.inked(line(200, 200, noise=3), "levelled").max() < 0.2
    assert not images.inked(np.full((32, 64), 77, np.uint8), "levelled").any()


def test_a_line_scanned_darker_and_flatter_has_the_same_ink():
    pixels = line(230, 30, noise=8)
    scanned = (pixels.astype(np.float32) * 0.6 + 20).round().astype(np.uint8)
    first, second = images.inked(pixels, "levelled"), images.inked(scanned, "levelled")
    assert np.abs(first - second).max() < 0.02


def test_ink_can_be_written_into_a_part_of_a_batch():
    batch = np.full((2, 1, 32, 256), 7.0, np.float32)
    images.inked(line(200, 20), "levelled", batch[1, 0, :, :200])
    assert np.array_equal(batch[1, 0, :, :200], images.inked(line(200, 20), "levelled"))
    assert (batch[0] == 7).all() and (batch[1, 0, :, 200:] == 7).all()


def test_an_augmented_line_is_another_one_as_its_random_numbers_say_and_still_the_line():
    line = np.full((48, 400), 230, np.uint8)
    for first in range(40, 360, 16):
        line[18:30, first : first + 6] = 20
    scales = np.linspace(*images.SCALES, 40)
    made = [images.augment(line, scale, np.random.default_rng(seed)) for seed, scale in enumerate(scales)]
    again = [images.augment(line, scale, np.random.default_rng(seed)) for seed, scale in enumerate(scales)]
    assert all(np.array_equal(one, other) for one, other in zip(made, again))
    assert len({one.tobytes() for one in made}) == 40
    assert [one.shape[1] for one in made] == [round(400 * scale) for scale in scales]
    for one in made:
        assert one.dtype == np.uint8 and one.shape[0] == 48
        dark = one < 128
        rows = np.flatnonzero(dark.any(1))
        # It moves up or down by 1.5 px, and a pen is as much as 1 px thicker.
        assert 18 - 3 <= rows[0] and rows[-1] < 30 + 3
        assert 0.5 < dark.mean() / (line < 128).mean() < 2.5

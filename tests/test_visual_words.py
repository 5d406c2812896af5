import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskocr_core.data.domain_fit import visual_words

COUNTS = st.lists(st.integers(0, 1000), min_size=4, max_size=4).map(np.array)


def test_a_line_has_the_word_of_its_nearest_centre():
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    assert visual_words.of(np.array([[1.0, 1.0], [9.0, -1.0], [-2.0, 30.0]]), centres).tolist() == [0, 1, 2]


def test_the_same_lines_and_seed_give_the_same_words():
    lines = np.random.default_rng(0).normal(size=(400, 6))
    assert np.array_equal(visual_words.fit(lines, 3), visual_words.fit(lines, 3))


@pytest.mark.parametrize("lines, words", [(5, 1), (100, 5), (5000, visual_words.WORDS)])
def test_a_small_target_has_few_words(lines, words):
    assert len(visual_words.fit(np.random.default_rng(0).normal(size=(lines, 3)), 0)) == words


def test_lines_of_an_over_represented_word_are_drawn_less_often():
    ratios = visual_words.ratios(np.array([100, 100, 100]), np.array([900, 100, 100]))
    assert ratios[0] < 0.5 and ratios[1:].tolist() == [1.0, 1.0]


def test_what_is_mixed_as_the_target_is_keeps_its_full_weight():
    assert visual_words.ratios(np.array([10, 20, 30]), np.array([100, 200, 300])).tolist() == [1.0, 1.0, 1.0]


@given(COUNTS, COUNTS)
@settings(max_examples=80, deadline=None)
def test_ratios_are_bounded_and_the_highest_is_one(target, admitted):
    ratios = visual_words.ratios(target, admitted)
    assert (ratios >= visual_words.LEAST).all() and (ratios <= 1).all()
    if target.sum() and admitted.sum():
        assert ratios.max() == 1

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskocr_core.judging import metrics

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
UNCOMBINED = st.characters(exclude_categories=("M", "Cs"))  # a mark could melt into the letter inserted before it


@given(TEXT)
def test_a_text_read_as_itself_has_no_error(text):
    errors = metrics.line_errors([text, "a"], [text, "a"])
    assert metrics.cer(errors.edits, errors.characters) == 0 and metrics.exact(errors.edits) == 1


@given(TEXT, TEXT)
def test_edits_are_the_same_in_both_directions(one, other):
    forth, back = metrics.line_errors([one], [other]), metrics.line_errors([other], [one])
    assert forth.edits == back.edits and forth.word_edits == back.word_edits


@given(st.text(UNCOMBINED, max_size=30), st.text("xyz ", max_size=8), st.integers(0, 30))
def test_inserting_characters_costs_at_most_their_number(text, inserted, at):
    text = metrics.normalise(text)
    errors = metrics.line_errors([text], [text[:at] + inserted + text[at:]])
    assert errors.edits[0] <= len(inserted)


@given(st.text("abc d", max_size=20), st.text("abc d", max_size=20))
def test_edits_never_exceed_the_longer_text(reference, reading):
    edits = metrics.line_errors([reference], [reading]).edits[0]
    assert edits <= max(len(metrics.normalise(reference)), len(metrics.normalise(reading)))


@given(TEXT)
def test_normalising_twice_changes_nothing(text):
    assert metrics.normalise(metrics.normalise(text)) == metrics.normalise(text)


def test_composed_and_decomposed_letters_and_any_white_space_are_the_same_text():
    assert metrics.line_errors(["\u00e9t\u00e9 1780"], [" e\u0301te\u0301\u00a0\t1780\n"]).edits[0] == 0


def test_case_and_punctuation_count():
    assert metrics.line_errors(["Paris, le 3."], ["paris le 3"]).edits[0] == 3


def test_characters_and_words_are_counted_apart():
    errors = metrics.line_errors(["the old mill"], ["the cold mill x"])
    assert (errors.edits[0], errors.characters[0], errors.word_edits[0], errors.words[0]) == (3, 12, 2, 3)


def test_cer_is_all_edits_over_all_characters_and_not_a_mean_of_lines():
    errors = metrics.line_errors(["ab", "abcdefgh"], ["xy", "abcdefgh"])
    assert metrics.cer(errors.edits, errors.characters) == pytest.approx(2 / 10)


def test_text_invented_on_an_empty_line_counts_against_the_whole():
    errors = metrics.line_errors(["", "abcd"], ["xyz", "abcd"])
    assert errors.characters.tolist() == [0, 4]
    assert metrics.cer(errors.edits, errors.characters) == pytest.approx(3 / 4)


def test_an_empty_line_read_as_empty_is_exact():
    assert metrics.exact(metrics.line_errors([""], [" "]).edits) == 1


def test_only_empty_references_have_no_rate():
    errors = metrics.line_errors(["", " "], ["a", ""])
    with pytest.raises(ValueError, match="no error rate: give labelled lines"):
        metrics.cer(errors.edits, errors.characters)


def test_no_lines_have_no_share_of_exact_lines():
    with pytest.raises(ValueError, match="give at least one"):
        metrics.exact(np.array([]))


def test_a_missing_reading_is_refused_and_not_scored_against_its_neighbour():
    with pytest.raises(ValueError, match="2 references but 1 readings"):
        metrics.line_errors(["a", "b"], ["b"])

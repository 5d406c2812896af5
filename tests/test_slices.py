import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskocr_core.judging import metrics, slices

words = st.lists(st.text("abc 1,é", max_size=12), min_size=1, max_size=6)


def facts(count, **grades):
    return slices.Facts(["one", "two"] * (count // 2), [str(n % 4) for n in range(count)], grades)


def test_each_kind_of_slice_divides_the_lines_and_the_worst_comes_first():
    references = ["a" * 10, "b" * 30, "c" * 80, "d" * 10] * 2
    read = ["a" * 10, "x" * 30, "c" * 79, "d" * 9] * 2
    found = slices.slices(references, [read], facts(8))
    for kind in ("source", "length", "document"):
        own = [one for one in found if one.kind == kind]
        assert sum(one.lines for one in own) == 8 and sum(one.characters for one in own) == 2 * 130
        assert [one.value for one in own] == sorted((one.value for one in own), reverse=True)
    medium = next(one for one in found if one.name == "medium")
    assert medium.value == 1 and medium.low is None and medium.documents == 1  # two lines of one document


def test_lines_are_graded_by_thirds_and_unknown_grades_are_in_none():
    contrast = np.array([1.0, 2, 3, 4, 5, np.nan])
    found = slices.slices(["abcdef"] * 6, [["abcdef"] * 6], facts(6, contrast=contrast))
    own = {one.name: one.lines for one in found if one.kind == "contrast"}
    assert sum(own.values()) == 5 and set(own) == set(slices.THIRDS)


def test_edits_are_means_over_recognisers():
    found = slices.slices(["abcd"] * 4, [["abcd"] * 4, ["xbcd"] * 4], facts(4))
    assert {one.value for one in found} == {1 / 8}


@pytest.mark.parametrize(
    ("character", "name"),
    [("7", "digit"), ("Ä", "upper case"), ("ſ", "lower case"), ("ש", "other letter"), (",", "punctuation"), (" ", "space"), ("€", "punctuation")],
)  # fmt: skip
def test_characters_have_classes(character, name):
    assert slices.character_class(character) == name


@given(words, st.data())
def test_classes_and_confusions_count_every_edit_once(references, data):
    readings = [data.draw(st.text("abc 1,x", max_size=12)) for _ in references]
    edits = int(metrics.line_errors(references, readings).edits.sum())
    classes = slices.by_character_class(references, readings)
    wrong = sum(round((row["wrong"] or 0) * row["characters"]) + row["invented"] for row in classes)
    found = slices.confusions(references, readings, most=10_000)
    assert wrong == edits == sum(row["times"] for row in found)
    assert [row["times"] for row in found] == sorted((row["times"] for row in found), reverse=True)


def test_a_confusion_names_a_line_that_shows_it():
    found = slices.confusions(["abc", "axc", "abc"], ["abc", "axc", "adc"])
    assert found == [{"written": "b", "read": "d", "times": 1, "of": 2, "line": 2}]

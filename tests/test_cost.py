import contextlib
import io
import json
import math
import re
import time
from dataclasses import asdict

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st
from test_weights import AMOUNT, PLAIN, weighing

from maskocr_core.judging import cost, metrics, reviews, weights

TEXT = st.text("ab1 2,.€é", max_size=20)


def price(reference, reading, weights):
    return cost.line_costs([reference], [reading], weights)[0]


@given(TEXT, TEXT)
def test_a_line_costs_nothing_if_and_only_if_it_was_read_exactly(reference, reading):
    exact = metrics.normalise(reference) == metrics.normalise(reading)
    assert (price(reference, reading, weighing(AMOUNT | {"fatal": True})) == 0) == exact


@given(TEXT, TEXT)
def test_with_all_weights_1_a_line_costs_its_edits(reference, reading):
    weights = weighing(AMOUNT | {"weight": 1.0}, classes=dict.fromkeys(PLAIN, 1.0))
    assert price(reference, reading, weights) == metrics.line_errors([reference], [reading]).edits[0]


@given(TEXT, TEXT)
def test_doubled_weights_double_every_cost(reference, reading):
    field = AMOUNT | {"fatal": True}
    doubled = weighing(field, classes={name: 2 * value for name, value in PLAIN.items()}, fatal_cost=200.0)
    assert price(reference, reading, doubled) == pytest.approx(2 * price(reference, reading, weighing(field)))


@given(TEXT, TEXT, st.sampled_from(sorted(PLAIN)), st.floats(0, 5))
def test_a_greater_weight_never_makes_a_line_cheaper(reference, reading, name, more):
    heavier = weighing(AMOUNT | {"weight": 4.0 + more}, classes=PLAIN | {name: PLAIN[name] + more})
    assert price(reference, reading, heavier) >= price(reference, reading, weighing(AMOUNT)) - 1e-9


@pytest.mark.parametrize(
    ("reference", "reading", "expected"),
    [
        ("abc", "abd", 1.0),
        ("a٣", "a٤", 3.0),  # a digit of any script
        ("a½", "a", 3.0),
        ("éa\u0323", "éa", 1.0),
        ("a,b", "ab", 0.25),
        ("a b", "ab", 0.5),
        ("a €", "a E", 2.0),
        ("a", "ax", 1.0),  # inserted characters weigh by their own class
        ("a", "a7", 3.0),
        ("", "a,", 1.25),
    ],
)
def test_an_edit_costs_what_its_class_does(reference, reading, expected):
    assert price(reference, reading, weighing()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reading", "expected"),
    [("ab 129 cd", 12.0), ("ab 10 cd", 12.0), ("ab 1208 cd", 12.0), ("xb 120 cd", 1.0), ("ab 120 c", 1.0)],
)
def test_an_edit_costs_more_where_it_touches_a_field_of_the_reference(reading, expected):
    assert price("ab 120 cd", reading, weighing(AMOUNT)) == pytest.approx(expected)


def test_of_fields_that_overlap_the_greatest_weight_counts_alone_and_a_lesser_one_can_make_cheaper():
    small = {"name": "all", "pattern": r".{1,99}", "weight": 0.5, "fatal": False}
    weights = weighing(AMOUNT, small)
    assert (price("ab 1", "ab 2", weights), price("ab 1", "ac 1", weights)) == (12.0, 0.5)


@pytest.mark.parametrize(
    ("reference", "reading", "lost"),
    [
        ("pay 120 now", "pay 129 now", 1),
        ("pay 120 now", "pay 7 now", 1),  # once, however many digits are wrong
        ("pay 120 now", "pay 120 nov", 0),
        ("pay 120 now", "pay 120, now", 0),
        ("pay 12 120 now", "pay 12120 now", 2),  # two numbers became one
        ("pay 120 or 120", "pay 120 or", 1),
        ("pay now", "pay 3 now", 0),
    ],
)
def test_each_place_of_a_fatal_field_that_the_reading_does_not_hold_costs_once(reference, reading, lost):
    field = AMOUNT | {"weight": 1.0}
    harmless, fatal = (price(reference, reading, weighing(field | {"fatal": fatal})) for fatal in (False, True))
    assert fatal - harmless == pytest.approx(100.0 * lost)


def test_a_missing_reading_is_refused():
    with pytest.raises(ValueError, match="2 references but 1 readings"):
        cost.line_costs(["a", "b"], ["a"], weighing())


def test_the_default_weights_are_packaged_and_hold_a_fatal_amount():
    default = weights.load()
    assert default.name == "default" and price("Sum EUR 1,200.50", "Sum EUR 1,700.50", default) == 65.0


@pytest.mark.parametrize("pattern", [".*.*[bc]", "a{0,65}a{0,65}a{0,65}[bc]", "(?:a{1,3}){0,9}[bc]", "a?a?.*.*[bc]"])
def test_no_pattern_that_is_taken_hangs_on_a_long_line(pattern):
    weights = weighing(AMOUNT | {"pattern": pattern})
    began = time.process_time()
    cost.line_costs(["a" * 20_000], ["a" * 19_999], weights)
    assert time.process_time() - began < 10


def test_expected_cost_is_per_line_and_clustered_by_document():
    interval = cost.expected_cost([2.0, 0.0, 4.0, 0.0, 2.0], ["a", "a", "b", "c", "d"])
    residuals = np.array([2, 4, 0, 2]) - 1.6 * np.array([2, 1, 1, 1])
    reach = 3.182446 * math.sqrt(4 / 3 * (residuals @ residuals)) / 5
    assert interval.value == pytest.approx(1.6) and interval.documents == 4
    assert interval.high == pytest.approx(1.6 + reach)


def test_a_difference_in_cost_is_negative_where_the_first_is_cheaper():
    documents = list("aabbccdd")
    difference = cost.cost_difference(np.ones(8), np.array([3.0, 2.0] * 4), documents)
    assert difference.value == -1.5 and difference.high < 0


def test_no_lines_have_no_expected_cost():
    for call in (cost.expected_cost, reviews.cost_by_threshold):
        with pytest.raises(ValueError, match="give at least one"):
            call([], [], *([weighing()] if call is reviews.cost_by_threshold else []))


CONFIDENT = st.lists(
    st.tuples(st.integers(0, 10).map(lambda tenth: tenth / 10), st.integers(0, 20)), min_size=1, max_size=60
)


@given(CONFIDENT, st.integers(0, 20))
def test_no_threshold_is_cheaper_than_the_one_chosen(lines, review):
    confidences, costs = (np.array(column, dtype=float) for column in zip(*lines))
    weights = weighing(review_cost=float(review))
    best = reviews.cost_by_threshold(confidences, costs, weights).best
    for threshold in (*np.linspace(0, 1, 41), None):
        assert np.mean(reviews.reviewed_costs(confidences, costs, threshold, weights)) >= best.cost - 1e-9


@given(CONFIDENT)
def test_each_point_of_the_curve_is_what_reviewing_below_its_threshold_costs(lines):
    confidences, costs = (np.array(column, dtype=float) for column in zip(*lines))
    choice = reviews.cost_by_threshold(confidences, costs, weighing())
    assert choice.best in choice.curve and len(choice.curve) <= reviews.POINTS + 1
    assert (choice.curve[0].reviewed, choice.curve[-1].reviewed) == (0.0, 1.0)
    for point in choice.curve:
        expected = np.mean(reviews.reviewed_costs(confidences, costs, point.threshold, weighing()))
        assert point.cost == pytest.approx(expected) == pytest.approx(point.errors + 5.0 * point.reviewed)
    json.dumps(asdict(choice), allow_nan=False)


def test_lines_are_reviewed_where_that_is_cheaper_than_their_errors():
    choice = reviews.cost_by_threshold([0.1, 0.2, 0.8, 0.9], [20.0, 10.0, 1.0, 0.0], weighing())
    assert (choice.best.threshold, choice.best.reviewed, choice.best.cost) == (0.8, 0.5, 2.75)


@pytest.mark.parametrize("confidences", [[1.5], [-0.1], [math.nan], [0.5, 0.5]])
def test_confidences_that_are_no_probability_of_a_line_are_refused(confidences):
    with pytest.raises(ValueError, match="between 0 and 1|2 confidences but 1 costs"):
        reviews.cost_by_threshold(confidences, [1.0], weighing())


REFERENCES = ["ab 12 cd", "ef 34 gh", "ij 56 kl", "mn 78 op", "qr 90 st"] * 2
DOCUMENTS = list("abcde") * 2
DIGIT_WRONG = [text.translate(str.maketrans("13579", "00000")) for text in REFERENCES]
LETTERS_WRONG = ["xx" + text[2:] for text in REFERENCES]


def test_a_decision_that_hangs_on_one_weight_is_told_with_that_weight():
    found = cost.sensitivity(REFERENCES, [DIGIT_WRONG], [LETTERS_WRONG], DOCUMENTS, weighing())
    flips = {(change.weight, change.factor): change.decision for change in found.changes if change.flips}
    assert found.decision == "dearer" and not found.holds
    assert flips == {("classes.digit", 0.5): "cheaper", ("classes.letter", 2.0): "cheaper"}
    assert "classes.digit × 0.5 (cheaper)" in found.reason


def test_every_weight_is_halved_and_doubled():
    weights = weighing(AMOUNT | {"fatal": True})
    names = {f"classes.{name}" for name in PLAIN} | {"fields.amount", "fatal_cost"}
    found = cost.sensitivity(REFERENCES, [DIGIT_WRONG], [LETTERS_WRONG], DOCUMENTS, weights)
    changes = [(change.weight, change.factor) for change in found.changes]
    assert sorted(changes) == sorted((name, factor) for name in names for factor in (0.5, 2.0))


def test_changes_are_what_files_with_those_weights_would_give():
    found = cost.sensitivity(REFERENCES, [DIGIT_WRONG], [LETTERS_WRONG] * 2, DOCUMENTS, weighing(AMOUNT))
    doubled = weighing(AMOUNT | {"weight": 8.0})
    costs = [cost.line_costs(REFERENCES, texts, doubled) for texts in (DIGIT_WRONG, LETTERS_WRONG)]
    change = next(change for change in found.changes if (change.weight, change.factor) == ("fields.amount", 2.0))
    expected = cost.cost_difference(*costs, DOCUMENTS)
    assert (change.value, change.low, change.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_a_review_is_chosen_on_validation_lines_judged_on_test_lines_and_its_cost_halved_and_doubled():
    weights = weighing()  # a review costs 5
    chosen_on = np.array([0.1, 0.2, 0.9, 0.95]), np.array([20.0, 4.0, 0.0, 0.0])
    judged_on = np.array([0.15, 0.5, 0.8, 0.99]), np.array([8.0, 2.0, 1.0, 0.0])
    as_given, halved, doubled = reviews.review(chosen_on, judged_on, ["a", "b", "c", "d"], weights)
    assert [row.factor for row in (as_given, halved, doubled)] == [1.0, 0.5, 2.0]
    # At 5 the second line's errors (4) are cheaper than its review, at 2.5 they are not.
    assert (as_given.threshold, as_given.share, as_given.cost.value) == (0.2, 0.25, (5 + 2 + 1 + 0) / 4)
    assert (halved.threshold, halved.share, halved.cost.value) == (0.9, 0.75, (3 * 2.5 + 0) / 4)
    assert (doubled.threshold, doubled.share, doubled.cost.value) == (0.2, 0.25, (10 + 2 + 1 + 0) / 4)


def test_too_few_documents_give_changes_without_bounds_that_json_can_hold():
    found = cost.sensitivity(REFERENCES, [DIGIT_WRONG], [LETTERS_WRONG], ["a"] * 10, weighing())
    assert found.decision == "too few documents" and found.holds and found.changes[0].low is None
    json.dumps(asdict(found), allow_nan=False)


def test_the_page_on_costs_shows_what_its_code_prints(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    shown = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", (REPOSITORY / "docs" / "cost.md").read_text(), re.S)
    assert len(shown) == 2
    for code, output in shown:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "docs/cost.md", "exec"), {})
        assert printed.getvalue() == output

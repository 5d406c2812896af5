import math

import numpy as np
import pytest

from maskocr_core.judging import statistics


def lines_with_a_document_effect(rng, documents, lines=20, rate=0.08, spread=0.02):
    """Edits, characters and document ids of lines whose error rate differs by document."""
    document = np.repeat(np.arange(documents), lines)
    characters = rng.integers(20, 60, documents * lines)
    rates = np.clip(rng.normal(rate, spread, documents), 0.001, 1)
    return rng.binomial(characters, rates[document]), characters, document


@pytest.mark.parametrize("documents", [6, 20])
def test_a_95_percent_interval_covers_the_truth_about_95_times_in_100(documents):
    rng = np.random.default_rng(documents)
    covered = 0
    for _ in range(800):
        interval = statistics.ratio_interval(*lines_with_a_document_effect(rng, documents))
        covered += interval.low <= 0.08 <= interval.high
    assert 0.90 <= covered / 800 <= 0.99


def test_a_line_bootstrap_is_not_used_because_more_lines_of_the_same_documents_are_no_more_evidence():
    edits, characters, document = lines_with_a_document_effect(np.random.default_rng(1), 6)
    once = statistics.ratio_interval(edits, characters, document)
    tenfold = statistics.ratio_interval(np.tile(edits, 10), np.tile(characters, 10), np.tile(document, 10))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high))


def test_the_interval_is_the_one_that_the_formula_gives_by_hand():
    interval = statistics.ratio_interval([1, 1, 4, 2, 4], [10, 10, 20, 30, 30], ["a", "a", "b", "c", "d"])
    r = np.array([2, 4, 2, 4]) - 0.12 * np.array([20, 20, 30, 30])
    reach = 3.182446 * math.sqrt(4 / 3 * (r @ r)) / 100
    assert (interval.value, interval.high, interval.documents) == (0.12, pytest.approx(0.12 + reach), 4)
    assert interval.low == pytest.approx(0.12 - reach)


def test_a_higher_confidence_gives_a_wider_interval():
    data = lines_with_a_document_effect(np.random.default_rng(2), 8)
    narrow, wide = (statistics.ratio_interval(*data, confidence=confidence) for confidence in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_an_error_rate_has_no_negative_bound():
    assert statistics.ratio_interval([9, 0, 0, 0], [10, 10, 10, 10], list("abcd")).low == 0


@pytest.mark.parametrize("documents", [1, 3])
def test_too_few_documents_give_a_value_but_no_bounds(documents):
    edits, characters, document = lines_with_a_document_effect(np.random.default_rng(3), documents)
    interval = statistics.ratio_interval(edits, characters, document)
    assert interval.value == pytest.approx(edits.sum() / characters.sum()) and interval.documents == documents
    assert math.isnan(interval.low) and math.isnan(interval.high)
    difference = statistics.paired_difference(edits, edits + 1, characters, document)
    assert all(math.isnan(getattr(difference, name)) for name in ("low", "high", "p", "smallest_p", "detectable"))


def test_pairing_finds_a_difference_far_smaller_than_the_spread_of_documents():
    edits, characters, document = lines_with_a_document_effect(np.random.default_rng(4), 12, spread=0.05)
    better = np.maximum(edits - (np.arange(len(edits)) % 4 == 0), 0)
    difference = statistics.paired_difference(better, edits, characters, document)
    alone = statistics.ratio_interval(edits, characters, document)
    assert difference.high < 0 and difference.high - difference.low < (alone.high - alone.low) / 10


def test_swapping_the_two_readings_mirrors_the_difference():
    rng = np.random.default_rng(5)
    a, characters, document = lines_with_a_document_effect(rng, 7)
    b = rng.binomial(characters, 0.06)
    forth = statistics.paired_difference(a, b, characters, document)
    back = statistics.paired_difference(b, a, characters, document)
    assert (back.value, back.low, back.high) == pytest.approx((-forth.value, -forth.high, -forth.low))
    assert (back.p, back.detectable) == pytest.approx((forth.p, forth.detectable))


@pytest.mark.parametrize("documents", [8, 30])
def test_sign_flip_and_t_agree_where_the_case_is_clear(documents):
    rng = np.random.default_rng(documents)
    a, characters, document = lines_with_a_document_effect(rng, documents)
    b = a + rng.binomial(characters, 0.05)
    clear = statistics.paired_difference(a, b, characters, document)
    assert clear.high < 0 and clear.p <= 0.05 and clear.p == pytest.approx(clear.smallest_p)
    swapped = document % 2 == 0
    none = statistics.paired_difference(np.where(swapped, a, b), np.where(swapped, b, a), characters, document)
    assert none.low < 0 < none.high and none.p > 0.05


def test_four_documents_can_reach_no_sign_flip_p_below_one_in_eight():
    difference = statistics.paired_difference([1, 1, 1, 1], [5, 6, 7, 8], [50] * 4, list("abcd"))
    assert difference.p == difference.smallest_p == 0.125


def test_every_sign_flip_of_fifteen_documents_is_tried():
    difference = statistics.paired_difference([1] * 15, range(2, 17), [50] * 15, list("abcdefghijklmno"))
    assert difference.p == difference.smallest_p == 2**-14


def test_sign_flips_beyond_enumeration_are_drawn_with_a_fixed_seed():
    rng = np.random.default_rng(6)
    a, characters, document = lines_with_a_document_effect(rng, 25)
    b = rng.binomial(characters, 0.08)
    first, second = (statistics.paired_difference(a, b, characters, document) for _ in range(2))
    assert first == second and first.smallest_p == pytest.approx(2 / (2**15 + 1))


def test_equal_readings_differ_by_nothing_with_p_1():
    edits, characters, document = lines_with_a_document_effect(np.random.default_rng(7), 5)
    difference = statistics.paired_difference(edits, edits, characters, document)
    assert (difference.value, difference.low, difference.high, difference.p, difference.detectable) == (0, 0, 0, 1, 0)


def test_a_detectable_difference_is_detected_four_times_in_five():
    rng = np.random.default_rng(8)
    found, expected = 0, []
    characters, document = np.full(10, 1000), np.arange(10)
    for _ in range(300):
        noise = rng.normal(0, 10, 10)
        expected.append(statistics.paired_difference(noise, np.zeros(10), characters, document).detectable)
        shifted = noise - 1000 * np.mean(expected)
        found += statistics.paired_difference(shifted, np.zeros(10), characters, document).high < 0
    assert 0.7 < found / 300 < 0.9


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (([1, 2], [10, 10], ["a"]), r"one entry a line each, but hold \[1, 2\]"),
        (([0] * 4, [0] * 4, list("abcd")), "give labelled test lines"),
        (([1] * 4, [9] * 4, list("abcd"), 95), "not between 0 and 1: give 0.95"),
    ],
)
def test_numbers_that_give_no_rate_are_refused(arguments, mend):
    with pytest.raises(ValueError, match=mend):
        statistics.ratio_interval(*arguments)


def test_a_slice_is_safe_only_where_the_margin_is_excluded_for_all_slices_together():
    random = np.random.default_rng(0)
    documents = np.repeat(np.arange(12), 20)

    def paired(shift, noise=0.4):
        a = random.poisson(2, 240) + shift + random.normal(0, noise, 240)
        return statistics.paired_difference(a, random.poisson(2, 240), np.full(240, 40), documents)

    safe, worse = paired(-1.0), paired(2.0)
    bounds = statistics.below_margin([safe, worse, *(paired(0.0) for _ in range(3))], 0.005)
    assert bounds[0].standing == "holds" and bounds[1].standing == "broken"
    assert bounds[0].upper < 0.005 < bounds[1].upper
    assert all(bound.p >= statistics.below_margin([one], 0.005)[0].p for bound, one in zip(bounds, (safe, worse)))


def test_at_the_margin_itself_a_family_of_slices_is_wrong_at_most_as_often_as_it_claims():
    """Holm over five slices that all lie at the margin: some slice is called safe in about 5 of 100 families."""
    random = np.random.default_rng(1)
    documents = np.repeat(np.arange(10), 10)
    characters = np.full(100, 40)
    wrong = 0
    for _ in range(400):
        differences = []
        for _ in range(5):
            own = np.repeat(random.normal(0.2, 0.5, 10), 10) + random.normal(0, 1, 100)
            differences.append(statistics.paired_difference(own, np.zeros(100), characters, documents))
        wrong += any(bound.standing == "holds" for bound in statistics.below_margin(differences, 0.2 / 40))
    assert wrong / 400 < 0.09

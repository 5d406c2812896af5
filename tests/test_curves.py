import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskocr_core.judging import curves

BUDGETS = (100, 200, 400, 800)


def points(start, a, b, budgets=BUDGETS, reach=0.05, seeds=0.02):
    """Points on a power law, with bounds `reach` and seeds `seeds` away, as shares of the CER."""
    return [
        curves.Point(start, n, (cer * (1 - seeds), cer * (1 + seeds)), cer * (1 - reach), cer * (1 + reach))
        for n in budgets
        for cer in [a * n**-b]
    ]


def pair(better=0.6, **kept):
    """Points of scratch, and of a pre-trained start whose CER is `better` times as high with as many labels."""
    return points("scratch", 1.5, 0.4, **kept) + points("pretrained", 1.5 * better, 0.4, **kept)


@given(st.floats(0.1, 5), st.floats(0.05, 1.5), st.floats(0, 0.2))
def test_a_curve_finds_the_power_law_that_its_points_lie_on(a, b, reach):
    curve = curves.fit(points("scratch", a, b, reach=reach), "scratch")
    assert (curve.a, curve.b) == (pytest.approx(a), pytest.approx(b)) and curve.misfit < 1e-9


@given(st.floats(0.1, 5), st.floats(0.05, 1.5), st.floats(25, 3200))
def test_labels_of_a_cer_and_cer_of_labels_are_inverse(a, b, labels):
    curve = curves.fit(points("scratch", a, b), "scratch")
    found = curves.labels_at(curve, curves.cer_at(curve, labels))
    assert found is None and labels in (25, 3200) or found == pytest.approx(labels)


@given(st.floats(0.1, 5), st.floats(0.05, 1.5), st.floats(1.01, 100))
def test_no_curve_is_read_beyond_four_times_its_budgets(a, b, beyond):
    curve = curves.fit(points("scratch", a, b), "scratch")
    for labels in (100 / 4 / beyond, 800 * 4 * beyond):
        assert curves.cer_at(curve, labels) is None and curves.labels_at(curve, a * labels**-b) is None


def test_a_point_of_a_wide_interval_bends_the_curve_less():
    good, wild = points("scratch", 1.0, 0.5), curves.Point("scratch", 1600, (0.3, 0.3), 0.05, 0.55)
    sure = curves.Point("scratch", 1600, (0.3, 0.3), 0.295, 0.305)
    bent = [abs(curves.fit([*good, point], "scratch").b - 0.5) for point in (wild, sure)]
    assert bent[0] < bent[1] / 10


def test_two_budgets_are_too_few_for_a_curve():
    curve = curves.fit(points("scratch", 1.0, 0.5, budgets=(100, 200)), "scratch")
    assert curve.a is None and "too few budgets for a curve of scratch: 2 of at least 3" in curve.reason
    assert curves.cer_at(curve, 100) is None and curves.labels_at(curve, 0.1) is None


def test_labels_saved_are_those_between_the_curves_at_one_cer():
    given_points = pair(better=0.5)
    saving = curves.labels_saved(*(curves.fit(given_points, start) for start in ("scratch", "pretrained")), 0.12)
    needed = (1.5 / 0.12) ** 2.5
    assert saving.scratch_labels == pytest.approx(needed)
    assert saving.saved == pytest.approx(needed * (1 - 0.5**2.5)) and saving.reason is None


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (0.05, "scratch would need more than 3,200 labels for 5.00% CER, beyond what its points can tell: ask for a"),
        (0.35, "pretrained would need fewer than 25 labels for 35.00% CER, below what its points can tell: ask for"),
    ],
)
def test_a_cer_beyond_the_points_gives_a_sentence_and_no_number(target, said):
    given_points = pair()
    saving = curves.labels_saved(*(curves.fit(given_points, start) for start in ("scratch", "pretrained")), target)
    assert saving.saved is None and said in saving.reason


def test_a_curve_that_does_not_fall_gives_no_labels():
    flat = curves.fit(points("pretrained", 0.1, -0.1), "pretrained")
    saving = curves.labels_saved(curves.fit(points("scratch", 1.5, 0.4), "scratch"), flat, 0.15)
    assert saving.saved is None and "the CER of pretrained does not fall with more labels" in saving.reason


def test_curves_that_cross_within_their_range_are_told():
    scratch, other = curves.fit(points("scratch", 2.0, 0.5), "scratch"), curves.fit(points("both", 0.2, 0.1), "both")
    assert curves.labels_saved(scratch, other, 0.1).crossing == pytest.approx(10**2.5)
    assert curves.labels_saved(scratch, curves.fit(points("both", 1.0, 0.5), "both"), 0.1).crossing is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, (0.1,), None, None), "at least 1 line"),
        ((100, (), None, None), "have no logarithm"),
        ((100, (0.0, 0.0), 0.0, 0.0), "give one of each seed"),
        ((100, (math.nan,), None, None), "have no logarithm"),
        ((100, (0.1,), 0.2, 0.3), "0.1 is not between its bounds 0.2 and 0.3"),
        ((100, (0.1,), None, None, 95), "give 0.95"),
    ],
)
def test_a_point_that_no_run_can_have_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        curves.Point("scratch", *arguments)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: curves.fit(pair(), "both"), "no point is of the start 'both': known are"),
        (lambda: curves.fit(pair() * 2, "scratch"), "scratch has several points with 100 labels: put"),
    ],
)
def test_points_that_give_no_curve_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_draws_spread_as_repeated_measurements_would():
    rng = np.random.default_rng(0)
    error, needed = 0.05, []
    for _ in range(300):
        cers = [1.5 * n**-0.4 * math.exp(rng.normal(0, error)) for n in BUDGETS]
        measured = [curves.Point("scratch", n, (cer, cer), cer, cer) for n, cer in zip(BUDGETS, cers)]
        needed.append(math.log(curves.labels_at(curves.fit(measured, "scratch"), 0.15)))
    drawn = points("scratch", 1.5, 0.4, reach=1.96 * error, seeds=0)
    least, _ = curves.labels_drawn(drawn, curves.fit(drawn, "scratch"), 0.15, np.random.default_rng(1))
    assert np.std(np.log(least)) == pytest.approx(np.std(needed), rel=0.15)

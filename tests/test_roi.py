import json
import math
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_curves import BUDGETS, pair
from test_prices import BUY, priced

from maskocr_core.judging import roi
from maskocr_core.judging.curves import Point

HOURS = {"scratch": roi.Compute(), "pretrained": roi.Compute(gpu_hours=50)}  # 100 EUR


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: roi.break_even(pair(), {"scratch": roi.Compute()}, priced()), "the hours of pretrained are missing"),
        (lambda: roi.break_even(pair(budgets=(100, 200)), HOURS, priced()), "too few budgets .*: run more budgets"),
        (lambda: roi.break_even(pair(), HOURS, priced(), target_cer=0), "give a share above 0"),
    ],
)
def test_points_and_hours_that_cannot_be_judged_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_break_even_is_the_extra_cost_over_the_price_of_a_label():
    even = roi.break_even(pair(), HOURS, priced())
    assert (even.price_of_label, even.extra_cost, even.break_even_labels) == (1.0, 100.0, 100.0)
    assert even.saving.target_cer == pytest.approx(1.5 * 800**-0.4)
    assert even.net == pytest.approx(even.saving.saved - 100)


def test_pre_training_that_several_share_costs_each_its_part_and_fine_tuning_its_own():
    hours = {"scratch": roi.Compute(tuning_cpu_hours=10), "pretrained": roi.Compute(50, 100, 1, 30)}
    even = roi.break_even(pair(), hours, priced(shared_by=4))
    assert even.extra_cost == pytest.approx((50 * 2 + 100 * 0.1) / 4 + 1 * 2 + 30 * 0.1 - 10 * 0.1)


@given(st.floats(0.3, 1.3), st.floats(0, 0.5), st.floats(0, 0.1), st.floats(0.04, 0.5), st.integers(0, 3))
def test_a_probability_is_one_whatever_the_points(better, reach, seeds, target, seed):
    even = roi.break_even(pair(better, reach=reach, seeds=seeds), HOURS, priced(), "pretrained", target, seed)
    assert 0 <= even.probability <= even.probability + even.undecided <= 1 + 1e-9
    json.dumps(asdict(even), allow_nan=False)


def test_a_probability_is_the_same_at_every_call_and_about_the_same_with_another_seed():
    one, again, other = (roi.break_even(pair(0.85), HOURS, priced(), seed=seed).probability for seed in (0, 0, 1))
    assert one == again and 0 < abs(one - other) < 0.05


def test_a_dearer_pre_training_never_pays_with_a_greater_probability():
    chances = [
        roi.break_even(pair(0.8), HOURS | {"pretrained": roi.Compute(gpu_hours=hours)}, priced()).probability
        for hours in (0, 50, 150, 250, 1000)
    ]
    assert chances == sorted(chances, reverse=True) and chances[0] > 0.9 and chances[-1] == 0


def test_a_start_no_better_than_scratch_and_free_pays_in_half_of_the_draws():
    hours = dict.fromkeys(("scratch", "pretrained"), roi.Compute())
    assert roi.break_even(pair(1.0), hours, priced()).probability == pytest.approx(0.5, abs=0.05)


def test_where_curves_cannot_say_the_probability_is_bracketed():
    even = roi.break_even(pair(0.5), HOURS, priced(), target_cer=0.055)  # scratch would need 3,900 labels, unread
    assert even.saving.saved is None and even.net is None
    assert even.probability > 0.9  # even the end of what is read saves enough
    worse = roi.break_even(pair(0.98), HOURS, priced(), target_cer=0.055)
    assert worse.undecided > 0.8


def test_buying_is_compared_with_labelling_up_to_its_cer():
    bought = roi.purchase(pair(), HOURS, priced(buy=BUY, lines_per_month=1000, own_price_per_line=0.01))
    labels = (0.9 / 0.1) ** 2.5
    assert bought.labels == pytest.approx(labels) and bought.own_cost == pytest.approx(labels + 100)
    assert bought.break_even_lines == pytest.approx((labels + 100) / 0.01)
    assert bought.break_even_months == pytest.approx(bought.break_even_lines / 1000)
    assert bought.probability == 0 and bought.undecided == 0 and bought.reason is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"buy": BUY | {"cer": 0.001}}, "pretrained would need more than 3,200 labels"),
        ({"buy": BUY, "own_price_per_line": 0.05}, "a line from service costs no more than reading one oneself"),
        ({"buy": BUY}, "gives no lines_per_month"),
    ],
)
def test_a_purchase_that_cannot_be_compared_in_full_says_why(changed, said):
    assert said in roi.purchase(pair(), HOURS, priced(**changed)).reason


def test_without_an_offer_nothing_is_bought():
    assert roi.purchase(pair(), HOURS, priced()) is None


@pytest.mark.parametrize(
    ("given_points", "hours", "changed", "verdict", "said"),
    [
        (pair(0.6), 50, {}, "go", "saves about 577 labelled lines (576.92 EUR), and computing costs 100.00 EUR more"),
        (pair(0.6), 5000, {}, "no-go", "probability of below 0.01"),
        (pair(1.3), 50, {}, "no-go", "needs about"),
        (pair(0.98), 0, {}, "not yet", "probability of 0."),
        (pair(0.6, budgets=(100, 200)), 50, {}, "not yet", "too few budgets for a curve of scratch"),
        (pair(0.6)[:4] + [Point("pretrained", n, (0.1,), 0.0, 0.2) for n in BUDGETS], 50, {}, "not yet", "2 seeds"),
        (pair(0.6), 50, {"buy": BUY, "lines_per_month": 1e6}, "go", "above 0.99"),
        (pair(0.6), 50, {"buy": BUY, "lines_per_month": 10}, "no-go", "Buying from service costs less over 12 months"),
        (pair(0.6), 50, {"buy": BUY, "lines_per_month": 1430}, "not yet", "Whether it also costs less than buying"),
    ],
)
def test_the_verdict_follows_from_the_probability_and_says_why(given_points, hours, changed, verdict, said):
    found = roi.judge(given_points, HOURS | {"pretrained": roi.Compute(gpu_hours=hours)}, priced(**changed))
    assert (found.verdict, found.start) == (verdict, "pretrained") and said in found.reason
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize(("low", "high"), [(None, None), (math.nan, math.nan)])
def test_points_of_too_few_documents_give_curves_but_no_verdict(low, high):
    bare = [Point(point.start, point.budget, point.cers, low, high) for point in pair()]
    found = roi.judge(bare, HOURS, priced())
    assert found.verdict == "not yet" and found.break_even.saving.saved == pytest.approx(576.9, abs=0.1)
    assert "bounds by documents" in found.reason and found.break_even.probability is None
    json.dumps(asdict(found), allow_nan=False)


def test_scratch_is_not_judged_against_itself():
    with pytest.raises(ValueError, match="scratch is what the others are held against"):
        roi.judge(pair(), HOURS, priced(), start="scratch")

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from maskocr_core.judging.confidence import assessment, by_document, calibration, operating
from maskocr_core.judging.statistics import Interval

TARGETS = operating.TARGETS
few_examples = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 10_000)


def lines(seed, documents=12, each=100, ease=2.0, spread=0.3, order=1.0):
    """Raw confidences, exact and documents of lines of an over-confident recogniser; some documents are harder.

    order: 1 where the confidence says all that can be known of a line, 0 where it says nothing.
    """
    random = np.random.default_rng(seed)
    document = np.repeat(np.arange(documents), each)
    known = random.normal(0, 2.5, documents * each)
    effect = random.normal(0, spread, documents)[document]
    exact = random.random(documents * each) < 1 / (1 + np.exp(-(ease + order * known + effect)))
    return 1 - 0.4 / (1 + np.exp(known)), exact, document


def truth(confidences):
    """Probability that a line of `lines` is exact, without an effect of its document."""
    odds = confidences - 0.6
    return 1 / (1 + np.exp(-2.0) * (1 - confidences) / odds)


def pairs_in_order(probabilities, exact):
    ranks = [
        (right > wrong) + (right == wrong) / 2 for right in probabilities[exact] for wrong in probabilities[~exact]
    ]
    return np.mean(ranks)


@few_examples
@given(seeds, st.integers(4, 12), st.lists(st.floats(-0.5, 1.5), min_size=2))
def test_a_higher_confidence_has_no_lower_probability_and_none_is_certain(seed, documents, confidences):
    fitted = calibration.fit(*lines(seed, documents, each=40))
    assume(fitted.usable)
    probabilities = calibration.apply(fitted, np.sort(confidences))
    assert np.all(np.diff(probabilities) >= 0)
    assert np.all((probabilities > 0) & (probabilities < 1))


@few_examples
@given(seeds)
def test_a_known_map_is_found_again(seed):
    confidences, exact, documents = lines(seed, documents=20, each=200, spread=0.0)
    fitted = calibration.fit(confidences, exact, documents)
    off = np.abs(calibration.apply(fitted, confidences) - truth(confidences))
    assert off.mean() < 0.03 and np.quantile(off, 0.99) < 0.15


def test_lines_that_were_all_exact_above_a_confidence_show_laplaces_rule():
    confidences = np.repeat([0.2, 0.9], 40)
    fitted = calibration.fit(confidences, confidences > 0.5, np.tile(np.arange(8), 10))
    assert calibration.apply(fitted, [0.1, 0.2, 0.9, 1.0]) == pytest.approx([1 / 42, 1 / 42, 41 / 42, 41 / 42])


def test_the_order_of_lines_and_the_names_of_documents_change_nothing():
    confidences, exact, documents = lines(1)
    shuffled = np.random.default_rng(0).permutation(len(exact))
    named = [f"document {number:02d}" for number in documents[shuffled]]
    first = calibration.fit(confidences, exact, documents)
    second = calibration.fit(confidences[shuffled], exact[shuffled], named)
    assert second.y == pytest.approx(first.y) and second.x == pytest.approx(first.x)
    assert list(second.thresholds.values()) == pytest.approx(list(first.thresholds.values()))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lines(2, documents=3), "only 3 documents, fewer than 4: label lines of more documents"),
        (lines(2, ease=-9, each=50), "lines read exactly, fewer than 20: train further, or label more lines"),
        (lines(2, ease=12), "lines read with an error, fewer than 20: label more lines"),
        (lines(2, order=0.0, ease=0.0), r"exact lines do not have the higher confidence \(AUROC 0\.\d\d \[0\.4"),
        (lines(2, order=-1.0, ease=0.0), r"exact lines do not have the higher confidence \(AUROC 0\.1"),
    ],
)
def test_lines_that_say_nothing_of_a_confidence_make_it_unusable_with_the_reason(data, reason):
    fitted = calibration.fit(*data)
    assert not fitted.usable and fitted.x == fitted.y == () and set(fitted.thresholds.values()) == {None}
    with pytest.raises(ValueError, match=reason):
        calibration.apply(fitted, [0.5])
    judged = assessment.assess(*data, fitted.thresholds)
    assert not judged.usable and judged.reason == fitted.reason


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [
        (([0.5, 0.6], [True, False], ["a"]), r"one entry a line each, but hold \[1, 2\]"),
        (([], [], []), "there is no line to calibrate with: give labelled lines"),
        (([math.nan], [True], ["a"]), "a confidence is not a finite number"),
    ],
)
def test_lines_that_cannot_be_calibrated_with_are_refused(arguments, mend):
    with pytest.raises(ValueError, match=mend):
        calibration.fit(*arguments)


def test_a_probability_beyond_0_and_1_is_refused():
    with pytest.raises(ValueError, match="beyond 0 and 1: apply the calibration first"):
        assessment.assess([1.2], [True], ["a"], {})


@few_examples
@given(seeds, st.sampled_from([3, 4, 9]))
def test_a_calibration_comes_back_from_json(seed, documents):
    fitted = calibration.fit(*lines(seed, documents))
    content = json.loads(json.dumps(calibration.to_json(fitted)))
    assert content["format_version"] == 1
    assert calibration.from_json(content, "calibration.json") == fitted


@pytest.mark.parametrize(
    ("change", "mend"),
    [
        ({"format_version": 2}, "no calibration of format_version 1"),
        ({"y": [0.9, 0.2]}, "probabilities y must not fall"),
        ({"x": [0.5, 0.5]}, "confidences x must rise"),
        ({"x": [0.5, math.nan]}, "confidences x must rise"),
        ({"y": [0.5, 1.0]}, "must lie between 0 and 1"),
        ({"thresholds": [{"accepted_error": 0.01, "threshold": 3}]}, "thresholds not beyond them"),
        ({"x": [0.5]}, "as many x as y"),
        ({"usable": False}, "an unusable one none of both and a reason"),
        ({"x": None}, "is no calibration .*: calibrate the recognizer again"),
        ({"thresholds": [{}]}, "is no calibration .*: calibrate the recognizer again"),
    ],
)
def test_a_file_that_holds_no_calibration_is_refused_by_its_name(change, mend):
    fitted = calibration.Calibration((0.5, 0.9), (0.2, 0.8), 100, 5, {0.01: 0.7}, True, "")
    with pytest.raises(ValueError, match=f"^model/calibration.json.*{mend}"):
        calibration.from_json(calibration.to_json(fitted) | change, "model/calibration.json")


@few_examples
@given(seeds)
def test_auroc_and_brier_score_are_those_of_a_slow_reference(seed):
    confidences, exact, documents = lines(seed, documents=5, each=30)
    confidences = confidences.round(2)  # many are equal
    judged = assessment.assess(confidences, exact, documents, {})
    assert judged.auroc.value == pytest.approx(pairs_in_order(confidences, exact))
    assert judged.brier.value == pytest.approx(np.mean((confidences - exact) ** 2))


@few_examples
@given(seeds)
def test_the_calibration_error_is_that_of_a_slow_reference(seed):
    confidences, exact, documents = lines(seed, documents=5, each=60)
    order = np.argsort(confidences)
    gaps = [abs(confidences[ten].mean() - exact[ten].mean()) for ten in np.split(order, 10)]
    judged = assessment.assess(confidences, exact, documents, {})
    assert judged.ece.value == pytest.approx(np.mean(gaps))
    assert [row.lines for row in judged.bins] == [30] * 10


def test_lines_of_equal_probability_share_a_bin_whatever_their_order():
    _, exact, documents = lines(3)
    judged = assessment.assess(np.full(len(exact), 0.8), exact, documents, {})
    assert [row.lines for row in judged.bins] == [len(exact)] and judged.auroc.value == 0.5
    assert judged.ece.value == pytest.approx(abs(0.8 - exact.mean()))


def test_calibration_takes_away_most_of_the_error_and_what_is_left_is_about_chance():
    fitted = calibration.fit(*lines(4, documents=30))
    confidences, exact, documents = lines(5, documents=20)
    raw = assessment.assess(confidences, exact, documents, fitted.thresholds)
    judged = assessment.assess(calibration.apply(fitted, confidences), exact, documents, fitted.thresholds)
    assert judged.usable and judged.ece.value < 2 * judged.chance < raw.ece.value
    assert judged.ece.low < judged.ece.value < judged.ece.high


def test_few_documents_give_values_but_no_bounds_and_no_threshold():
    confidences, exact, documents = lines(7, documents=3)
    judged = assessment.assess(confidences, exact, documents, dict.fromkeys(TARGETS, 0.9))
    for interval in (judged.ece, judged.auroc, judged.brier, judged.exact, judged.bins[0].exact):
        assert math.isfinite(interval.value) and math.isnan(interval.low) and math.isnan(interval.high)
    assert not any(point.holds for point in judged.table)
    assert set(operating.thresholds(confidences, exact, documents).values()) == {None}


@few_examples
@given(seeds, st.floats(-1, 5))
def test_the_share_that_needs_no_person_grows_with_the_error_that_is_allowed(seed, ease):
    confidences, exact, documents = lines(seed, ease=ease)
    chosen = operating.thresholds(confidences, exact, documents)
    assert list(chosen) == list(TARGETS)
    shares = [point.share.value for point in assessment.assess(*lines(seed + 1, ease=ease), chosen).table]
    assert shares == sorted(shares)


def test_a_threshold_keeps_its_error_on_documents_that_did_not_choose_it():
    many, exact_of_many, _ = lines(8, documents=1000)
    broken = reached = 0
    for seed in range(40):
        chosen = operating.thresholds(*lines(seed))
        for target, least in chosen.items():
            if least is not None:
                reached += 1
                broken += np.mean(~exact_of_many[many >= least]) > target
    assert reached > 60 and broken / reached < 0.1


def test_a_target_that_no_threshold_was_shown_to_reach_is_said_to_be_out_of_reach():
    data = lines(9, documents=6, each=50)
    chosen = operating.thresholds(*data)
    assert chosen[0.005] is None
    point = assessment.assess(*data, chosen).table[0]
    assert (point.share.value, point.holds) == (0, False) and math.isnan(point.upper)
    assert operating.sentence(point).startswith("at 0.5 % accepted-line error: not reachable")


def test_an_operating_point_is_said_in_one_sentence():
    point = operating.OperatingPoint(0.01, 0.9, Interval(0.62, 0.58, 0.66, 14), 0.004, 0.009, True)
    said = "at 1 % accepted-line error 62 % [58, 66] need no person (0.4 % of them wrong, at most 0.9 %)"
    assert operating.sentence(point) == said
    missed = dataclasses.replace(point, upper=0.02, holds=False)
    assert operating.sentence(missed).endswith("at most 2.0 %; not shown to hold on these lines)")


def test_no_error_among_independent_lines_is_bounded_as_the_binomial_has_it():
    exactly = 1 - 0.05 ** (1 / 4000)
    bound = by_document.error_bound(np.zeros(4000, bool), np.arange(4000))
    assert exactly < bound < 1.01 * exactly
    few = by_document.error_bound(np.zeros(4000, bool), np.arange(4000) % 5)
    assert few == pytest.approx(1 - 0.05 ** ((stats.t.ppf(0.95, 4) / stats.norm.ppf(0.95)) ** 2 / 4000))


def test_errors_that_lie_in_one_document_widen_the_bound():
    documents = np.repeat(np.arange(10), 50)
    scattered, together = np.arange(500) % 50 == 0, np.arange(500) < 10
    assert by_document.error_bound(together, documents) > 1.5 * by_document.error_bound(scattered, documents)
    assert by_document.error_bound(np.ones(500, bool), documents) == 1


def test_intervals_by_document_cover_the_truth_about_95_times_in_100(monkeypatch):
    monkeypatch.setattr(by_document, "DRAWS", 200)  # as good an error, in a fifth of the time
    confidences, exact, documents = lines(10, documents=2000, spread=0.8)
    least = np.quantile(confidences, 0.6)
    wrong = np.mean(~exact[confidences >= least])
    rank = np.argsort(np.argsort(confidences))
    right = exact.sum()
    auroc = (rank[exact].sum() - right * (right - 1) / 2) / (right * (len(exact) - right))
    covered = np.zeros(3)
    for seed in range(150):
        judged = assessment.assess(*lines(seed, documents=10, each=50, spread=0.8), {0.05: least})
        covered += (
            judged.auroc.low <= auroc <= judged.auroc.high,
            judged.exact.low <= exact.mean() <= judged.exact.high,
            wrong <= judged.table[0].upper,
        )
    assert np.all(covered / 150 > 0.89)


def test_the_curve_parts_no_lines_of_equal_probability_and_ends_with_all():
    probabilities, exact, documents = np.repeat([0.9, 0.5, 0.2], 100), np.arange(300) % 3 == 0, np.arange(300) % 7
    judged = assessment.assess(probabilities, exact, documents, {})
    assert [share for share, _ in judged.curve] == pytest.approx([1 / 3, 2 / 3, 1])
    assert judged.curve[-1][1] == pytest.approx(np.mean(~exact))


def test_the_plot_is_a_png_of_twice_900_pixels_even_from_too_few_documents():
    for documents in (3, 12):
        confidences, exact, ids = lines(11, documents)
        judged = assessment.assess(confidences, exact, ids, operating.thresholds(confidences, exact, ids))
        image = Image.open(io.BytesIO(assessment.plot(judged)))
        assert image.format == "PNG" and image.size == (1800, 800)

import dataclasses
import json
import math
import subprocess
import sys

import pytest

from maskocr_core.judging import gate, statistics
from maskocr_core.judging.statistics import Difference


def difference(value, reach, documents=12):
    return Difference(
        value,
        value - reach,
        value + reach,
        documents,
        confidence=0.95,
        p=0.01,
        smallest_p=0.0005,
        detectable=1.4 * reach,
    )


@pytest.mark.parametrize(
    ("value", "reach", "verdict", "bound"),
    [
        (-0.02, 0.01, "better", -0.01),
        (0.02, 0.01, "worse", 0.01),
        (-0.02, 0.03, "undecided", 0.01),
        (0.02, 0.03, "undecided", -0.01),
        (-0.02, math.nan, "too few documents", None),
    ],
)
def test_a_difference_decides_only_where_its_whole_interval_lies_on_one_side_of_zero(value, reach, verdict, bound):
    comparison = gate.compare("pretrained", "scratch", difference(value, reach))
    assert (comparison.verdict, comparison.value) == (verdict, value)
    assert comparison.bound == (bound if bound is None else pytest.approx(bound))


@pytest.mark.parametrize("value", [-0.02, 0.02])
@pytest.mark.parametrize(("documents", "p", "agrees"), [(5, 0.0625, True), (6, 0.0625, False), (7, 0.047, True)])
def test_from_six_documents_on_the_sign_flip_test_must_agree(value, documents, p, agrees):
    found = dataclasses.replace(difference(value, 0.01, documents), p=p, smallest_p=2 / 2**documents)
    comparison = gate.compare("pretrained", "the champion", found)
    assert comparison.verdict == (("better" if value < 0 else "worse") if agrees else "undecided")
    assert agrees or "the sign-flip test does not agree (p = 0.062)" in comparison.reason
    assert "points are what these lines show four times in five" in comparison.reason
    verdict = gate.decide("pretrained", [], found).verdict
    assert verdict == (("promote" if value < 0 else "hold") if agrees else "undecided")


@pytest.mark.parametrize(("value", "bound_at_zero"), [(-0.02, 0.02), (0.02, 0.02), (0.0, 0.0)])
def test_an_interval_that_touches_zero_is_undecided(value, bound_at_zero):
    assert gate.compare("both", "scratch", difference(value, bound_at_zero)).verdict == "undecided"


def test_a_verdict_says_how_much_between_what_and_on_how_many_documents():
    reason = gate.compare("pretrained", "scratch", difference(-0.02, 0.01)).reason
    assert reason == (
        "The CER of pretrained is 2.00 points below that of scratch (-3.00 to -1.00 at 95% over 12 "
        "documents; sign-flip p = 0.01, no smaller than 0.0005 possible; 1.40 points are what these lines show four times in five)."
    )


def test_undecided_says_what_could_have_been_seen_and_how_many_documents_would_decide():
    reason = gate.compare("pretrained", "scratch", difference(-0.01, 0.02)).reason
    assert "would show a difference of 2.80 CER points or more" in reason and "on about 95 documents" in reason


def test_equal_readings_are_undecided_in_a_sentence():
    assert "equally many errors in every document" in gate.compare("both", "scratch", difference(0.0, 0.0)).reason


def test_too_few_documents_asks_for_documents_and_not_for_lines():
    assert "more documents, not more lines" in gate.compare("both", "scratch", difference(-0.5, math.nan, 3)).reason


def test_without_a_champion_nothing_is_promoted_however_good():
    starts = [gate.baseline("scratch"), gate.compare("pretrained", "scratch", difference(-0.2, 0.01))]
    verdict = gate.decide("pretrained", starts, None)
    assert verdict.verdict == "first" and "by hand" in verdict.reason
    assert [line.verdict for line in verdict.lines] == ["baseline", "better"]


@pytest.mark.parametrize(
    ("value", "reach", "verdict"),
    [
        (-0.02, 0.01, "promote"),
        (0.02, 0.01, "hold"),
        (-0.02, 0.03, "undecided"),
        (-0.02, math.nan, "undecided"),
    ],
)
def test_against_a_champion_the_paired_interval_decides(value, reach, verdict):
    starts = [gate.compare("both", "scratch", difference(-0.2, 0.01))]
    decided = gate.decide("both", starts, difference(value, reach))
    assert decided.verdict == verdict and decided.reason == decided.lines[0].reason
    assert "the champion" in decided.reason and decided.lines[1:] == tuple(starts)


def check(verdict, blocks=True):
    return gate.Comparison("an old domain", verdict, 0.01, 0.02, "because of the old domain", blocks=blocks)


@pytest.mark.parametrize(
    ("value", "checks", "verdict"),
    [
        (-0.02, [check("holds")], "promote"),
        (-0.02, [check("broken")], "hold"),
        (-0.02, [check("undecided")], "undecided"),
        (-0.02, [check("too small")], "undecided"),
        (-0.02, [check("too small", blocks=False), check("undecided", blocks=False)], "promote"),
        (0.02, [check("holds")], "hold"),
    ],
)
def test_a_check_can_hold_a_candidate_back_and_none_can_make_up_for_a_worse_one(value, checks, verdict):
    decided = gate.decide("both", [], difference(value, 0.01), checks)
    assert decided.verdict == verdict
    assert ("because of the old domain" in decided.reason) == (verdict != "promote" and value < 0)


def test_a_candidate_that_breaks_a_check_is_held_where_there_is_no_champion_too():
    assert gate.decide("both", [], None, [check("broken")]).verdict == "hold"
    assert gate.decide("both", [], None, [check("undecided")]).verdict == "first"


def test_a_protected_slice_of_too_few_documents_is_shown_and_blocks_only_if_the_config_says_so():
    few = difference(0.001, math.nan, 2)
    (bound,) = statistics.below_margin([few], 0.005)
    for blocks in (False, True):
        line = gate.protected("old", few, bound, 0.005, blocks)
        assert (line.verdict, line.blocks) == ("too small", blocks) and "2 documents, too few" in line.reason


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [(0.1, 0.2, 0.3, "broken"), (-0.1, 0.1, 0.3, "undecided"), (-0.3, -0.1, 0.1, "holds")],
)
def test_errors_may_not_cost_more(low, value, high, verdict):
    line = gate.cost(value, low, high, "letters")
    assert (line.verdict, line.bound) == (verdict, low) and (verdict == "broken") == (low > line.limit)


def test_confidence_blocks_where_it_is_known_to_be_off_and_is_only_told_where_it_is_unknown():
    for ece, verdict in ((0.05, "holds"), (0.17, "undecided"), (0.25, "broken")):
        line = gate.calibration(True, statistics.Interval(ece, ece - 0.04, ece + 0.04, 9), 0.15, "")
        assert (line.verdict, line.value, line.bound, line.blocks) == (verdict, ece, ece - 0.04, True)
    few = gate.calibration(True, statistics.Interval(0.05, math.nan, math.nan, 3), 0.15, "")
    assert (few.verdict, few.bound, few.blocks) == ("too small", None, True)
    nothing = statistics.Interval(math.nan, math.nan, math.nan, 3)
    unknown = gate.calibration(False, nothing, 0.15, "only 3 documents")
    assert (unknown.verdict, unknown.blocks) == ("undecided", False) and "only 3 documents" in unknown.reason


def test_a_verdict_survives_json_without_a_nan():
    verdict = dataclasses.asdict(gate.decide("both", [gate.baseline("scratch")], difference(-0.02, math.nan)))
    assert json.loads(json.dumps(verdict, allow_nan=False))["lines"][0]["bound"] is None


def test_the_gate_loads_nothing_heavy():
    code = "import maskocr_core.judging.gate, sys; sys.exit(not {'numpy', 'scipy', 'jinja2'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

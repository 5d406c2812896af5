import dataclasses
import json
import math
import subprocess
import sys

import pytest

from maskocr_core.judging import gate
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


@pytest.mark.parametrize(("value", "bound_at_zero"), [(-0.02, 0.02), (0.02, 0.02), (0.0, 0.0)])
def test_an_interval_that_touches_zero_is_undecided(value, bound_at_zero):
    assert gate.compare("both", "scratch", difference(value, bound_at_zero)).verdict == "undecided"


def test_a_verdict_says_how_much_between_what_and_on_how_many_documents():
    reason = gate.compare("pretrained", "scratch", difference(-0.02, 0.01)).reason
    assert reason == (
        "The CER of pretrained is 2.00 points below that of scratch (-3.00 to -1.00 at 95% over 12 "
        "documents; sign-flip p = 0.01, no smaller than 0.0005 possible)."
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


def test_a_verdict_survives_json_without_a_nan():
    verdict = dataclasses.asdict(gate.decide("both", [gate.baseline("scratch")], difference(-0.02, math.nan)))
    assert json.loads(json.dumps(verdict, allow_nan=False))["lines"][0]["bound"] is None


def test_the_gate_loads_nothing_heavy():
    code = "import maskocr_core.judging.gate, sys; sys.exit(not {'numpy', 'scipy', 'jinja2'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

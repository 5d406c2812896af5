"""The gate: from paired differences in CER to a verdict with its reasons. It decides and explains; a person promotes.

A difference decides only where its whole interval lies on one side of zero. Undecided is an answer of its own, with
what the test lines could have shown: "no difference seen" on six documents is no evidence that there is none. Beside the
difference from the champion stand checks, each of which can hold a candidate back and none of which can make up for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from maskocr_core.judging.statistics import Bound, Difference, Interval

AGREES_FROM = 6
"""Documents from which on the exact sign-flip test has to agree with the interval: of five it cannot reach p = 0.05."""
Standing = Literal["better", "worse", "undecided", "baseline", "too few documents", "holds", "broken", "too small"]


@dataclass(frozen=True)
class Comparison:
    """One line of the verdict.

    name: what is judged. value: its CER minus that of what it is held against, as a share; None where it is compared
    with nothing. bound: the end of the interval nearer to zero, which decides; None where there is none. limit: what the
    bound of a check must stay below, 0 where two readings are compared. unit: of the three numbers. blocks: whether the
    verdict hangs on it.
    """

    name: str
    verdict: Standing
    value: float | None
    bound: float | None
    reason: str
    limit: float | None = 0.0
    unit: Literal["CER points", "cost", "ECE", "count"] = "CER points"
    blocks: bool = False


@dataclass(frozen=True)
class Verdict:
    """What follows for the candidate, in a word, in a sentence, and the comparisons behind it."""

    verdict: Literal["first", "promote", "hold", "undecided"]
    reason: str
    lines: tuple[Comparison, ...]


def baseline(name: str) -> Comparison:
    """The start that the others are held against."""
    return Comparison(name, "baseline", None, None, f"The other starts are compared with {name}.")


def compare(name: str, against: str, difference: Difference) -> Comparison:
    """Judge `name` by its paired difference from `against` (negative where `name` reads better)."""
    value, low, high = difference.value, difference.low, difference.high
    if math.isnan(low) or math.isnan(high):
        reason = (
            f"{name} and {against} were compared on {_documents(difference.documents)}, too few for an interval: "
            "label lines of more documents, not more lines of these."
        )
        return Comparison(name, "too few documents", value, None, reason)
    bound = high if value <= 0 else low
    if not (high < 0 or low > 0):
        return Comparison(name, "undecided", value, bound, _undecided(name, against, difference))
    if difference.documents >= AGREES_FROM and difference.p > 1 - difference.confidence:
        reason = (
            f"The interval of {name} minus {against} leaves out no difference, but the sign-flip test does not agree "
            f"(p = {difference.p:.2g}): few documents decide it ({_evidence(difference)}; {_detectable(difference)}). "
            "Label lines of more documents."
        )
        return Comparison(name, "undecided", value, bound, reason)
    standing, word = ("better", "below") if high < 0 else ("worse", "above")
    reason = (
        f"The CER of {name} is {_points(value)} points {word} that of {against} ({_evidence(difference)}; "
        f"{_detectable(difference)})."
    )
    return Comparison(name, standing, value, bound, reason)


def protected(name: str, difference: Difference, bound: Bound, margin: float, small_blocks: bool) -> Comparison:
    """Whether a protected slice (an old domain, say) is kept: candidate minus champion there, below `margin` CER.

    bound: of this slice among all protected ones (`statistics.below_margin`). small_blocks: whether a slice of too few
    documents for an interval leaves the verdict undecided, or is only shown.
    """
    if math.isnan(difference.low):
        reason = f"{name}: {_documents(difference.documents)}, too few to tell; label lines of more."
        return Comparison(name, "too small", difference.value, None, reason, margin, blocks=small_blocks)
    word = {"holds": "is shown to stay within", "broken": "is beyond", "undecided": "is not shown to stay within"}
    reason = (
        f"{name}: the CER is {_points(difference.value)} points {'above' if difference.value > 0 else 'below'} the "
        f"champion's, which {word[bound.standing]} the {_points(margin)} allowed ({_documents(difference.documents)}; "
        f"p = {bound.p:.2g}, adjusted for all protected slices)."
    )
    return Comparison(name, bound.standing, difference.value, bound.upper, reason, margin, blocks=True)


def cost(value: float, low: float, high: float, unit: str) -> Comparison:
    """Whether errors cost more than the champion's: candidate minus champion, expected cost a line, with its interval.

    Its low end decides: above zero they do. A candidate that was dearer on these lines, if by less than the interval, is
    undecided; one that was not holds, without a proof that it is cheaper, which is no demand of the gate.
    """
    if math.isnan(low):
        reason = "The test lines are of too few documents for an interval of the expected cost."
        return Comparison("expected cost", "too small", value, None, reason, unit="cost")
    standing = "broken" if low > 0 else "holds" if value <= 0 else "undecided"
    word = {
        "broken": "Its errors cost more",
        "holds": "On these lines its errors cost no more",
        "undecided": "Its errors may cost more",
    }[standing]
    reason = f"{word} than the champion's: {value:+.3g} {unit} a line ({low:+.3g} to {high:+.3g})."
    return Comparison("expected cost", standing, value, low, reason, unit="cost", blocks=True)


def calibration(usable: bool, ece: Interval, limit: float, reason: str) -> Comparison:
    """Whether the confidence of a read line can be used: the mean distance of probability and truth on the test lines (ECE).

    As with costs the low end decides: above the limit it is broken. One that is above by less than its interval is undecided.
    """
    value, low = (None if math.isnan(number) else number for number in (ece.value, ece.low))
    if not usable or value is None:
        return Comparison("confidence", "undecided", value, None, f"Confidence is not usable: {reason}", limit, "ECE")
    told = f"Confidence is off by {100 * value:.1f} points in the mean"
    if low is None:
        told += ", over too few documents for an interval."
        return Comparison("confidence", "too small", value, None, told, limit, "ECE", blocks=True)
    told += f" ({100 * low:.1f} to {100 * ece.high:.1f}); {100 * limit:g} are allowed."
    standing = "broken" if low > limit else "undecided" if value > limit else "holds"
    return Comparison("confidence", standing, value, low, told, limit, "ECE", blocks=True)


def counted(name: str, found: int, reason_if_none: str, reason_if_any: str) -> Comparison:
    """A check that holds where nothing was found: test documents that the candidate was trained on, sources that do not fit."""
    standing = "broken" if found else "holds"
    return Comparison(name, standing, found, found, reason_if_any if found else reason_if_none, 0, "count", blocks=True)


def unknown(name: str, reason: str) -> Comparison:
    """A check of which nobody can say whether it holds; the verdict hangs on it all the same."""
    return Comparison(name, "undecided", None, None, reason, 0, "count", blocks=True)


def decide(
    candidate: str,
    starts: Sequence[Comparison],
    against_champion: Difference | None,
    checks: Sequence[Comparison] = (),
) -> Verdict:
    """The run's verdict on its candidate.

    starts: how each start compares with the baseline, told but not decisive. against_champion: candidate minus champion
    on the same lines, both read now; None where no champion exists, and then only a person can say that it is good
    enough. checks: what holds a candidate back whatever its CER: one that is broken holds it, one that is undecided
    leaves the verdict undecided.
    """
    broken = [check for check in checks if check.blocks and check.verdict == "broken"]
    unsettled = [check for check in checks if check.blocks and check.verdict in ("undecided", "too small")]
    if against_champion is None:
        lines = (*checks, *starts)
        if broken:
            return Verdict("hold", _reasons(broken), lines)
        reason = (
            f"There is no champion to compare {candidate} with, so no rule can promote it: "
            "look at its error rate and the lines below, and promote it by hand if it reads well enough."
        )
        return Verdict("first", reason, lines)
    comparison = dataclasses.replace(compare(candidate, "the champion", against_champion), blocks=True)
    lines = (comparison, *checks, *starts)
    if comparison.verdict == "worse" or broken:
        return Verdict("hold", _reasons([comparison] * (comparison.verdict == "worse") + broken), lines)
    if comparison.verdict != "better":
        return Verdict("undecided", comparison.reason, lines)
    if unsettled:
        return Verdict("undecided", f"{comparison.reason} But: {_reasons(unsettled)}", lines)
    return Verdict("promote", comparison.reason, lines)


def _reasons(checks: Sequence[Comparison]) -> str:
    return " ".join(check.reason for check in checks)


def _undecided(name: str, against: str, difference: Difference) -> str:
    reason = f"{name} and {against} cannot be told apart ({_evidence(difference)})"
    if not difference.detectable > 0:
        return f"{reason}: they make equally many errors in every document."
    reason += f": these test lines would show a difference of {_points(difference.detectable)} CER points or more"
    if difference.value == 0:
        return f"{reason}."
    # The standard error falls with the square root of the documents, so the wanted number grows with the square.
    needed = math.ceil(difference.documents * (difference.detectable / difference.value) ** 2)
    return f"{reason}; to settle one of {_points(difference.value)}, test on about {_documents(needed)}."


def _evidence(difference: Difference) -> str:
    return (
        f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f} at {100 * difference.confidence:g}% over "
        f"{_documents(difference.documents)}; sign-flip p = {difference.p:.2g}, "
        f"no smaller than {difference.smallest_p:.2g} possible"
    )


def _detectable(difference: Difference) -> str:
    return f"{_points(difference.detectable)} points are what these lines show four times in five"


def _points(share: float) -> str:
    return f"{100 * abs(share):.2f}"


def _documents(count: int) -> str:
    return f"{count:,} document{'' if count == 1 else 's'}"

"""The gate: from paired differences in CER to a verdict with its reasons. It decides and explains; a person promotes.

A difference decides only where its whole interval lies on one side of zero. Undecided is an answer of its own, with
what the test lines could have shown: "no difference seen" on six documents is no evidence that there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from maskocr_core.judging.statistics import Difference

Standing = Literal["better", "worse", "undecided", "baseline", "too few documents"]


@dataclass(frozen=True)
class Comparison:
    """One line of the verdict.

    name: what is judged. value: its CER minus that of what it is held against, as a share; None where it is compared
    with nothing. bound: the end of the interval nearer to zero, which decides; None where there is none.
    """

    name: str
    verdict: Standing
    value: float | None
    bound: float | None
    reason: str


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
    if high < 0 or low > 0:
        standing, word = ("better", "below") if high < 0 else ("worse", "above")
        reason = f"The CER of {name} is {_points(value)} points {word} that of {against} ({_evidence(difference)})."
        return Comparison(name, standing, value, bound, reason)
    return Comparison(name, "undecided", value, bound, _undecided(name, against, difference))


def decide(candidate: str, starts: Sequence[Comparison], against_champion: Difference | None) -> Verdict:
    """The run's verdict on its candidate.

    starts: how each start compares with the baseline, told but not decisive. against_champion: candidate minus champion
    on the same lines, both read now; None where no champion exists, and then only a person can say that it is good
    enough.
    """
    if against_champion is None:
        reason = (
            f"There is no champion to compare {candidate} with, so no rule can promote it: "
            "look at its error rate and the lines below, and promote it by hand if it reads well enough."
        )
        return Verdict("first", reason, tuple(starts))
    comparison = compare(candidate, "the champion", against_champion)
    verdict = {"better": "promote", "worse": "hold"}.get(comparison.verdict, "undecided")
    return Verdict(verdict, comparison.reason, (comparison, *starts))


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


def _points(share: float) -> str:
    return f"{100 * abs(share):.2f}"


def _documents(count: int) -> str:
    return f"{count:,} document{'' if count == 1 else 's'}"

"""Whether pre-training pays: the labels that it saves held against what it costs, from curves to a verdict in money.

Of the curves that `curves` draws anew, those in which it pays are counted. Points are drawn independently although they
share test documents, so a difference between two starts is mostly drawn wider than it is: that errs towards "not yet".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from maskocr_core.judging.curves import (
    MIN_SEEDS,
    REACH,
    Curve,
    Point,
    Saving,
    cer_at,
    fit,
    labels_at,
    labels_drawn,
    labels_saved,
    why_not,
)
from maskocr_core.judging.prices import Prices

GO, NO_GO = 0.8, 0.2
"""Probability from which pre-training is advised, and up to which it is not: four to one, as odds that a purchase of
some GPU hours deserves. Between them more evidence is cheaper than a wrong decision."""


@dataclass(frozen=True)
class Compute:
    """Hours that a start took: once before fine-tuning (pre-training, transfer), and for one fine-tuning."""

    gpu_hours: float = 0.0
    cpu_hours: float = 0.0
    tuning_gpu_hours: float = 0.0
    tuning_cpu_hours: float = 0.0


@dataclass(frozen=True)
class BreakEven:
    """What a start costs more than scratch, and what it saves, in labelled lines and in money.

    break_even_labels: labelled lines that must be saved until the start pays. net: saved money minus extra cost.
    probability: of net > 0, and undecided: share of draws in which the curves, never extrapolated, cannot say, so that
    the probability lies between `probability` and `probability + undecided`. None where the points have no known
    spread.
    """

    currency: str
    price_of_label: float
    extra_cost: float
    break_even_labels: float
    saving: Saving
    saved_money: float | None
    net: float | None
    probability: float | None
    undecided: float | None


@dataclass(frozen=True)
class Purchase:
    """Buying held against labelling as many lines as equal the bought CER, pre-training included.

    labels: how many, and own_cost: what they and the computing cost once. break_even_lines, break_even_months: after
    how many lines read, and months, buying has cost more. probability, undecided: of doing it oneself costing less over
    the months of the price file, as in `BreakEven`. None where unknown; `reason` says why.
    """

    name: str
    cer: float
    labels: float | None
    own_cost: float | None
    break_even_lines: float | None
    break_even_months: float | None
    probability: float | None
    undecided: float | None
    reason: str | None


@dataclass(frozen=True)
class Verdict:
    """go, no-go or not yet, why in one or two sentences, and the numbers behind it."""

    verdict: Literal["go", "no-go", "not yet"]
    reason: str
    start: str
    curves: tuple[Curve, ...]
    break_even: BreakEven | None = None
    purchase: Purchase | None = None
    limits: dict[str, float] = field(default_factory=lambda: {"go": GO, "no_go": NO_GO, "reach": REACH})


def break_even(
    points: Sequence[Point],
    compute: dict[str, Compute],
    prices: Prices,
    start: str = "pretrained",
    target_cer: float | None = None,
    seed: int = 0,
) -> BreakEven:
    """Does the start pay, at a CER, by the labels it saves?

    points: of scratch and of the start. compute: hours of both. target_cer: a share, None for what
    the curve of scratch reaches with its largest budget. Raises ValueError as `fit` does, and where a curve or hours
    are missing.
    """
    if start == "scratch":
        raise ValueError("scratch is what the others are held against: name another start")
    scratch, other = fit(points, "scratch"), fit(points, start)
    for curve in (scratch, other):
        if curve.reason:
            raise ValueError(f"{curve.reason}: run more budgets")
    target = cer_at(scratch, scratch.largest) if target_cer is None else target_cer
    saving = labels_saved(scratch, other, target)
    extra = _hours(compute, start, prices) - _hours(compute, "scratch", prices)
    rng = np.random.default_rng(seed)
    sides = [labels_drawn(points, curve, target, rng) for curve in (scratch, other)]
    shares = (None, None)
    if None not in sides:
        (need_least, need_most), (least, most) = sides
        shares = _pays((need_least - most) * prices.label, (need_most - least) * prices.label, extra)
    money = None if saving.saved is None else saving.saved * prices.label
    net = None if money is None else money - extra
    needed = max(extra, 0.0) / prices.label
    return BreakEven(prices.currency, prices.label, extra, needed, saving, money, net, *shares)


def purchase(
    points: Sequence[Point],
    compute: dict[str, Compute],
    prices: Prices,
    start: str = "pretrained",
    seed: int = 0,
) -> Purchase | None:
    """Buying against a recogniser of one's own that reads as well; None where the price file names nothing to buy.

    Raises ValueError as `break_even` does.
    """
    if prices.buy is None:
        return None
    buy, curve = prices.buy, fit(points, start)
    if curve.reason:
        raise ValueError(f"{curve.reason}: run more budgets")
    labels = labels_at(curve, buy.cer)
    once = None if labels is None else labels * prices.label + _hours(compute, start, prices)
    margin = buy.price_per_line - prices.own_price_per_line
    lines = None if once is None or margin <= 0 else once / margin
    months = None if lines is None or prices.lines_per_month is None else lines / prices.lines_per_month
    side = labels_drawn(points, curve, buy.cer, np.random.default_rng(seed))
    shares, reason = (None, None), None
    if side is not None and prices.lines_per_month is not None:
        spent = margin * prices.lines_per_month * prices.months  # what buying costs beyond reading the lines oneself
        computing = _hours(compute, start, prices)
        shares = _pays(spent - side[1] * prices.label, spent - side[0] * prices.label, computing)
    if labels is None:
        reason = why_not(curve, buy.cer)
    elif margin <= 0:
        reason = f"a line from {buy.name} costs no more than reading one oneself"
    elif prices.lines_per_month is None:
        reason = "the price file gives no lines_per_month, so nothing is said of months"
    return Purchase(buy.name, buy.cer, labels, once, lines, months, *shares, reason)


def judge(
    points: Sequence[Point],
    compute: dict[str, Compute],
    prices: Prices,
    start: str = "pretrained",
    target_cer: float | None = None,
    seed: int = 0,
) -> Verdict:
    """The verdict on a start against scratch, and against buying if that is on offer.

    go: it pays with a probability of at least `GO`; no-go: of at most `NO_GO`, whatever the undecided draws hold, or
    buying costs less with as much certainty; not yet: all else, and wherever curves or spreads are missing.
    Parameters and errors are those of `break_even`.
    """
    curves = (fit(points, "scratch"), fit(points, start))
    lacking = [curve.reason for curve in curves if curve.reason]
    if lacking:
        reason = f"There are {' and '.join(lacking)}. Fine-tune with more numbers of labels."
        return Verdict("not yet", reason, start, curves)
    even = break_even(points, compute, prices, start, target_cer, seed)
    bought = purchase(points, compute, prices, start, seed)
    if even.probability is None:
        reason = f"The noise of the CERs is not known: each needs at least {MIN_SEEDS} seeds and bounds by documents."
        return Verdict("not yet", reason, start, curves, even, bought)
    verdict = _word(even.probability, even.undecided)
    reason = _told(even, start)
    if bought is not None and bought.probability is not None:
        if _word(bought.probability, bought.undecided) == "no-go":
            verdict = "no-go"
            reason += f" Buying from {bought.name} costs less over {prices.months:g} months than equalling its CER."
        elif verdict == "go" and _word(bought.probability, bought.undecided) == "not yet":
            verdict = "not yet"
            reason += f" Whether it also costs less than buying from {bought.name} cannot be told."
    return Verdict(verdict, reason, start, curves, even, bought)


def _pays(least: np.ndarray, most: np.ndarray, cost: float) -> tuple[float, float]:
    """Shares of draws in which a gain, known to lie between two bounds, exceeds the cost surely, and perhaps."""
    surely = float(np.mean(least > cost))
    return surely, float(np.mean((most > cost) & ~(least > cost)))


def _hours(compute: dict[str, Compute], start: str, prices: Prices) -> float:
    """Price of the hours of a start, those before fine-tuning shared."""
    if start not in compute:
        raise ValueError(f"the hours of {start} are missing: give Compute() if it took none")
    hours = compute[start]
    once = hours.gpu_hours * prices.gpu_hour + hours.cpu_hours * prices.cpu_hour
    return once / prices.shared_by + hours.tuning_gpu_hours * prices.gpu_hour + hours.tuning_cpu_hours * prices.cpu_hour


def _word(probability: float, undecided: float) -> Literal["go", "no-go", "not yet"]:
    return "go" if probability >= GO else "no-go" if probability + undecided <= NO_GO else "not yet"


def _told(even: BreakEven, start: str) -> str:
    """The verdict's reason in numbers."""
    chance = _chance(even.probability)
    if even.undecided > 0:
        chance += f" to {_chance(even.probability + even.undecided)}"
    reason = f"At {even.saving.target_cer:.2%} CER, {start} pays with a probability of {chance}: "
    if even.saving.saved is None:
        return f"{reason}{even.saving.reason}."
    saved, extra = even.saving.saved, even.extra_cost
    labels = (
        f"{'saves' if saved >= 0 else 'needs'} about {abs(saved):,.0f}{'' if saved >= 0 else ' more'} labelled lines"
    )
    computing = (
        f"computing costs {abs(extra):,.2f} {even.currency} {'more' if extra >= 0 else 'less'} than from scratch"
    )
    return (
        f"{reason}it {labels} ({abs(even.saved_money):,.2f} {even.currency}), and {computing} "
        f"(break-even at {even.break_even_labels:,.0f} saved lines)."
    )


def _chance(probability: float) -> str:
    """A probability that draws from assumed spreads can claim: never certainty."""
    return "above 0.99" if probability > 0.99 else "below 0.01" if probability < 0.01 else f"{probability:.2f}"

"""Cron lines: what they say, and the same times on another clock."""

import itertools
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kfp_server import SixFields

from maskocr_pipelines.crontab import Cron

NOW = datetime(2027, 1, 1, tzinfo=UTC)
# No daylight saving today; offsets of whole, half and quarter hours on both sides of the date line.
FIXED = ("UTC", "Asia/Tokyo", "Asia/Kolkata", "Asia/Kathmandu", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Etc/GMT+5")


def fields(low, high, some):
    """Words of one cron field; mostly of `some` kind, else stars, numbers, ranges, steps, and lists of these."""
    number = st.integers(low, high)
    span = st.tuples(number, number).map(sorted).map(lambda pair: f"{pair[0]}-{pair[1]}")
    step = st.tuples(st.just("*") | span, st.integers(1, high)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    few = st.lists(number.map(str), min_size=1, max_size=2).map(",".join)
    kinds = {"star": st.just("*"), "number": number.map(str), "few": few}
    anything = st.just("*") | st.lists(number.map(str) | span | step, min_size=1, max_size=3).map(",".join)
    return kinds[some] | kinds[some] | kinds[some] | anything


# Mostly lines with one time a day, on few days: those that cross midnight whole, and can move.
LINES = st.tuples(
    fields(0, 59, "number"), fields(0, 23, "number"), fields(1, 31, "few"), fields(1, 12, "star"), fields(0, 7, "few")
)


@settings(max_examples=300, deadline=None)
@given(LINES, st.booleans(), st.sampled_from(FIXED), st.sampled_from(FIXED))
def test_a_converted_line_comes_at_the_same_moments_as_the_original(words, by_week, own, controller):
    minute, hour, day, month, weekday = words
    line = " ".join((minute, hour, "*" if by_week else day, month, weekday if by_week else "*"))
    own, controller = ZoneInfo(own), ZoneInfo(controller)
    try:
        times = Cron.parse(line)
        offsets = [int(NOW.astimezone(zone).utcoffset().total_seconds()) // 60 for zone in (own, controller)]
        converted = times.shifted(offsets[1] - offsets[0])
    except ValueError:
        assume(False)
    there = itertools.islice(SixFields(converted.six_fields()).times(NOW, controller), 50)
    assert list(there) == times.following(own, NOW, 50)


@pytest.mark.parametrize(
    ("line", "minutes", "six"),
    [
        ("30 2 * * *", 0, "0 30 2 * * *"),
        ("*/20 8-10 * * mon-fri", 0, "0 0,20,40 8-10 * * 1-5"),
        ("30 2 * * mon", -540, "0 30 17 * * 0"),  # Monday in Tokyo is still Sunday in UTC
        ("0 22 * * sat", 300, "0 0 3 * * 0"),
        ("0 2 15 * *", -540, "0 0 17 14 * *"),
        ("0 2 15 jan,jul 7", None, "day of the month and a day of the week"),
        ("0 2 1 * *", -540, "months differ in length"),
        ("0 2 29 * *", -540, "months differ in length"),
        ("0 2 * jan *", -540, "months differ in length"),
        ("0 2,12 * * mon", -540, "another day and some do not"),
        ("0,45 3 * * *", 30, "different hours"),
    ],
)
def test_a_line_moves_with_the_clock_or_is_refused(line, minutes, six):
    try:
        found = Cron.parse(line).shifted(minutes).six_fields()
    except ValueError as refusal:
        found = str(refusal)
    assert found == six or six in found


def test_a_daily_time_keeps_its_hour_on_the_wall_through_the_year_here():
    times = Cron.parse("30 4 * * *").following(ZoneInfo("Europe/Berlin"), NOW, 365)
    assert {(time.hour, time.minute) for time in times} == {(4, 30)}
    assert len({time.utcoffset() for time in times}) == 2

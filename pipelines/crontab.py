"""Cron lines of five fields: what they say, when that comes, and how the clock of another zone says it.

Recurring runs in KFP have six fields and no zone, so a line is converted, exactly or not at all. Sources:
kubeflow/pipelines backend/src/crd/controller/scheduledworkflow/util/cron_schedule.go, robfig/cron parser.go (which
reads the six fields), https://apscheduler.readthedocs.io/en/3.x/. APScheduler is imported inside the functions.
"""

import calendar
import difflib
import re
import zoneinfo
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
MONTHS = tuple(name.lower() for name in calendar.month_abbr[1:])
# Of each field: its name, the lowest and highest number, and names for numbers, counted from the lowest.
FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of week", 0, 7, WEEKDAYS),
)


@dataclass(frozen=True)
class Cron:
    """Times of a cron line; each field as the set of its values. Weekdays count from Sunday, 0."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> "Cron":
        """Raises ValueError for anything but five fields of numbers, names, ranges, steps and lists, and for dates
        that never come.

        Both a day of the month and a day of the week are refused: cron runs on either, and hardly anybody means that.
        """
        words = text.split()
        if len(words) != len(FIELDS):
            six = ": leave out the seconds" if len(words) == 6 else ", such as 30 2 * * mon"
            raise ValueError(f"{text!r} has {len(words)} fields where a cron line has five{six}")
        sets = [_values(word, *field) for word, field in zip(words, FIELDS)]
        sets[4] = frozenset(value % 7 for value in sets[4])
        if words[2] != "*" and words[4] != "*":
            raise ValueError(
                f"{text!r} gives a day of the month and a day of the week, and cron would run on either: "
                "write * for one of them, or make two schedules"
            )
        if min(sets[2]) > max(calendar.monthrange(2024, month)[1] for month in sets[3]):
            raise ValueError(f"{text!r} never comes: no month of it has a day {min(sets[2])}")
        return cls(*sets)

    def six_fields(self) -> str:
        """The line as KFP's controller reads it, seconds first."""
        sets = (self.minutes, self.hours, self.days, self.months, self.weekdays)
        return " ".join(["0", *(_written(values, _whole(field)) for values, field in zip(sets, FIELDS))])

    def shifted(self, minutes: int) -> "Cron":
        """The same times on a clock that is `minutes` ahead. Raises ValueError where no one line says them."""
        moved = {divmod(hour * 60 + minute + minutes, 24 * 60) for hour in self.hours for minute in self.minutes}
        clock = {divmod(rest, 60) for _, rest in moved}
        hours, past = frozenset(h for h, _ in clock), frozenset(m for _, m in clock)
        if len(clock) != len(hours) * len(past):
            raise ValueError("its minutes fall into different hours there: make a schedule of each minute")
        turned = {day for day, _ in moved}
        if turned == {0} or self == Cron(self.minutes, self.hours, *(_whole(field) for field in FIELDS[2:])):
            return Cron(past, hours, self.days, self.months, self.weekdays)
        if len(turned) > 1:
            raise ValueError(
                "there some of its times fall on another day and some do not: make a schedule of each group"
            )
        day = turned.pop()
        if self.days == _whole(FIELDS[2]) and self.months == _whole(FIELDS[3]):
            return Cron(past, hours, self.days, self.months, frozenset((one + day) % 7 for one in self.weekdays))
        days = frozenset(one + day for one in self.days)
        if self.days == _whole(FIELDS[2]) or not 1 <= min(self.days | days) <= max(self.days | days) <= 28:
            raise ValueError(
                "there it falls on another day, and months differ in length: choose an hour that stays on the same "
                "day, or days of the month within 2 to 27"
            )
        return Cron(past, hours, days, self.months, self.weekdays)

    def trigger(self, zone: zoneinfo.ZoneInfo) -> Any:
        """APScheduler's trigger of these times in a zone.

        A time that daylight saving skips comes an hour later that day, one that the clock shows twice comes twice.
        """
        from apscheduler.triggers.cron import CronTrigger

        numbers = [",".join(map(str, sorted(v))) for v in (self.minutes, self.hours, self.days, self.months)]
        weekdays = ",".join(WEEKDAYS[day] for day in sorted(self.weekdays))  # by name: APScheduler counts from Monday
        return CronTrigger(
            second=0,
            **dict(zip(("minute", "hour", "day", "month"), numbers)),
            day_of_week=weekdays,
            timezone=zone,
        )

    def following(self, zone: zoneinfo.ZoneInfo, after: datetime, count: int) -> list[datetime]:
        """The next times after a moment, in `zone`."""
        trigger, found = self.trigger(zone), []
        last, now = None, (after + timedelta(microseconds=1)).astimezone(UTC)
        while len(found) < count and (last := trigger.get_next_fire_time(last, now)) is not None:
            found.append(last)
            now = last.astimezone(UTC)
        return found


def _values(word: str, name: str, low: int, high: int, names: tuple[str, ...]) -> frozenset[int]:
    def number(text: str) -> int:
        return names.index(text.lower()) + low if text.lower() in names else int(text)

    found: set[int] = set()
    for part in word.split(","):
        form = re.fullmatch(r"(?:\*|(\w+)(?:-(\w+))?)(?:/(\d+))?", part)
        try:
            if not form or (form[3] and form[1] and not form[2]):  # "5/15" means different things to different readers
                raise ValueError
            first = number(form[1]) if form[1] else low
            last = number(form[2]) if form[2] else first if form[1] else high
            values = range(first, last + 1, int(form[3] or 1))
            if not (low <= first <= last <= high):
                raise ValueError
        except ValueError:
            named = f" or {names[0]} to {names[-1]}" if names else ""
            raise ValueError(
                f"{part!r} is no {name}: it takes *, numbers from {low} to {high}{named}, ranges such as "
                f"{low + 1}-{low + 3}, steps such as */2, and lists of these"
            ) from None
        found.update(values)
    return frozenset(found)


def _whole(field: tuple[str, int, int, tuple[str, ...]]) -> frozenset[int]:
    name, low, high, _ = field
    return frozenset(range(low, 7 if name == "day of week" else high + 1))


def _written(values: frozenset[int], whole: frozenset[int]) -> str:
    if values == whole:
        return "*"
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and runs[-1][-1] == value - 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs)


def zone(name: str) -> zoneinfo.ZoneInfo:
    """The time zone of that IANA name. Raises ValueError with the nearest one."""
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        nearest = difflib.get_close_matches(name, sorted(zoneinfo.available_timezones()), n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "write an IANA name, such as Europe/Berlin or UTC"
        raise ValueError(f"{name!r} is no time zone: {hint}") from None

"""Plain progress lines: what runs, how far it is, how long it still takes. They read the same in a terminal and a pod's log."""

from __future__ import annotations

import time

EVERY_SECONDS = 5.0


class Progress:
    """Prints at most one line each `EVERY_SECONDS`, and one at the end."""

    def __init__(self, what: str, total: int | None = None):
        self.what, self.total = what, total
        self.began = self.spoke = time.monotonic()
        self.first: tuple[int, float] | None = (
            None  # what was done when first heard of: a resumed run does not begin at 0
        )

    def update(self, done: int, **figures: float | int | str) -> None:
        """Say where the work is, if it was silent long enough."""
        self.first = self.first or (done, time.monotonic())
        if time.monotonic() - self.spoke >= EVERY_SECONDS:
            self.spoke = time.monotonic()
            self._say(done, self._remaining(done), figures)

    def done(self, done: int, **figures: float | int | str) -> None:
        """Say that the work is finished."""
        since = self.first[1] if self.first else self.began
        self._say(done, f"in {_duration(time.monotonic() - since)}", figures)

    def _remaining(self, done: int) -> str:
        if not self.total or not self.first or done <= self.first[0]:
            return ""
        seconds = (time.monotonic() - self.first[1]) / (done - self.first[0]) * (self.total - done)
        return f"{_duration(seconds)} left"

    def _say(self, done: int, time_note: str, figures: dict[str, float | int | str]) -> None:
        where = f"{done:,}/{self.total:,}" if self.total else f"{done:,}"
        notes = [f"{name.replace('_', ' ')} {_figure(value)}" for name, value in figures.items()]
        print(f"{self.what}: {where}  " + ", ".join(filter(None, [*notes, time_note])), flush=True)


def _figure(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

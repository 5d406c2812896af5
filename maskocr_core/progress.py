"""What runs, how far it is, how long it still takes: bars in a terminal, plain lines everywhere else, such as a pod's log."""

from __future__ import annotations

import atexit
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.progress

EVERY_SECONDS = 5.0


class Progress:
    """In a terminal a bar with its figures; elsewhere at most one line each `EVERY_SECONDS`, and one at the end."""

    def __init__(self, what: str, total: int | None = None):
        self.what, self.total = what, total
        self.bar = _BARS.begin(what, total) if sys.stdout.isatty() else None
        self.began = self.spoke = time.monotonic()
        self.first: tuple[int, float] | None = (
            None  # what was done when first heard of: a resumed run does not begin at 0
        )

    def update(self, done: int, **figures: float | int | str) -> None:
        """Say where the work is, if it was silent long enough."""
        if self.bar is not None:
            return _BARS.update(self.bar, done, _notes(figures))
        self.first = self.first or (done, time.monotonic())
        if time.monotonic() - self.spoke >= EVERY_SECONDS:
            self.spoke = time.monotonic()
            self._say(done, self._remaining(done), figures)

    def done(self, done: int, **figures: float | int | str) -> None:
        """Say that the work is finished."""
        if self.bar is not None:
            return _BARS.end(self.bar, done, _notes(figures))
        since = self.first[1] if self.first else self.began
        self._say(done, f"in {_duration(time.monotonic() - since)}", figures)

    def _remaining(self, done: int) -> str:
        if not self.total or not self.first or done <= self.first[0]:
            return ""
        seconds = (time.monotonic() - self.first[1]) / (done - self.first[0]) * (self.total - done)
        return f"{_duration(seconds)} left"

    def _say(self, done: int, time_note: str, figures: dict[str, float | int | str]) -> None:
        where = f"{done:,}/{self.total:,}" if self.total else f"{done:,}"
        print(f"{self.what}: {where}  " + ", ".join(filter(None, [_notes(figures), time_note])), flush=True)


class _Bars:
    """The bars of all work under way, drawn together; they stay on the screen as they are when the last of them ends."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # each log of a training is followed by a thread
        self.display: rich.progress.Progress | None = None
        self.under_way: set[rich.progress.TaskID] = set()

    def begin(self, what: str, total: int | None) -> rich.progress.TaskID:
        from rich import progress

        with self.lock:
            if not self.display:
                self.display = progress.Progress(
                    progress.TextColumn("{task.description}"),
                    progress.BarColumn(bar_width=20),
                    progress.MofNCompleteColumn(),
                    progress.TimeElapsedColumn(),
                    progress.TimeRemainingColumn(),
                    progress.TextColumn("{task.fields[notes]}"),
                    speed_estimate_period=120,  # steps get cheaper as more of a line is hidden
                )
                self.display.start()
            bar = self.display.add_task(what, total=total, notes="")
            self.under_way.add(bar)
            return bar

    def update(self, bar: rich.progress.TaskID, done: int, notes: str) -> None:
        with self.lock:
            if self.display:
                self.display.update(bar, completed=done, notes=notes)

    def end(self, bar: rich.progress.TaskID, done: int, notes: str) -> None:
        self.update(bar, done, notes)
        with self.lock:
            self.under_way.discard(bar)
            if self.display:
                self.display.stop_task(bar)
        if not self.under_way:
            self.close()

    def close(self) -> None:
        """Let go of the terminal: its cursor is hidden while bars are drawn."""
        with self.lock:
            if self.display:
                self.display.stop()
                self.display = None
            self.under_way.clear()


_BARS = _Bars()
atexit.register(_BARS.close)  # of work that an error ended


def _notes(figures: dict[str, float | int | str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_figure(value)}" for name, value in figures.items())


def _figure(value: float | int | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"

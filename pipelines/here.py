"""Schedules on this machine, by APScheduler: one process, one run at a time, until interrupted.

Source: https://apscheduler.readthedocs.io/en/3.x/. APScheduler is imported inside the functions.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

from maskocr_pipelines.schedules_file import Plan

MISFIRE_SECONDS = 3600  # a local run that cannot begin within this time is left out
BEAT_SECONDS = 60.0  # a machine that slept looks at its clock after this time at the latest


def run_here(
    plans: list[Plan],
    root: Path,
    start: Callable[[Plan], None],
    *,
    scheduler: Any = None,
    beat: Callable[[], None] = lambda: time.sleep(BEAT_SECONDS),
    say: Callable[[str], None] = print,
) -> None:
    """Run enabled schedules on this machine until interrupted, one run at a time.

    start: carries out one run of a plan and raises where it fails; the next time comes all the same. A time that comes
    while the run before is at work is left out; times missed while the machine slept become one, if it can begin within
    MISFIRE_SECONDS. scheduler, beat: APScheduler's, and what passes the time between two looks at the clock. Raises
    ValueError if nothing is enabled, RuntimeError naming the process that runs schedules in `root` already.
    """
    enabled = [plan for plan in plans if plan.schedule.enabled]
    if not enabled:
        raise ValueError("no schedule of the file is enabled: write `enabled: true` for one")
    with _alone(root):
        scheduler = scheduler or _one_at_a_time()
        for plan in enabled:
            scheduler.add_job(
                start,
                plan.times.trigger(plan.zone),
                args=[plan],
                id=plan.name,
                max_instances=1,
                coalesce=True,
                misfire_grace_time=MISFIRE_SECONDS,
            )
        _tell_events(scheduler, say)
        scheduler.start()
        try:
            for job in scheduler.get_jobs():
                say(f"{job.id}: next run {job.next_run_time:%a %Y-%m-%d %H:%M %Z}")
            while True:
                beat()
                scheduler.wakeup()
        except KeyboardInterrupt:
            say("stopped; a run that is at work ends by itself")
        finally:
            scheduler.shutdown(wait=False)


def _one_at_a_time() -> Any:
    from apscheduler.executors.pool import ThreadPoolExecutor
    from apscheduler.schedulers.background import BackgroundScheduler

    return BackgroundScheduler(timezone=UTC, executors={"default": ThreadPoolExecutor(max_workers=1)})


def _tell_events(scheduler: Any, say: Callable[[str], None]) -> None:
    from apscheduler import events

    logging.getLogger("apscheduler").setLevel(logging.CRITICAL)  # it would say the same again, with a traceback
    told: dict[int, Callable[[Any], str]] = {
        events.EVENT_JOB_EXECUTED: lambda event: f"{event.job_id}: run succeeded",
        events.EVENT_JOB_ERROR: lambda event: f"{event.job_id}: run failed: {event.exception}",
        events.EVENT_JOB_MISSED: lambda event: (
            f"{event.job_id}: the run of {event.scheduled_run_time:%Y-%m-%d %H:%M %Z} could not begin within "
            f"{MISFIRE_SECONDS // 60} minutes and is left out"
        ),
        events.EVENT_JOB_MAX_INSTANCES: lambda event: (
            f"{event.job_id}: the run before is still at work, this one is left out"
        ),
    }
    for code, sentence in told.items():
        scheduler.add_listener(lambda event, sentence=sentence: say(sentence(event)), code)


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One process runs schedules in a folder; the lock ends with it, however it ends."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".schedule.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{busy(root)} runs schedules in {root} already: stop it first, or give another --root"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield


def busy(root: Path) -> str:
    """The process that runs schedules in a folder, as `process 123`; empty if none does."""
    try:
        with (root / ".schedule.lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return f"process {lock.read().strip() or 'unknown'}"
    except FileNotFoundError:
        pass
    return ""

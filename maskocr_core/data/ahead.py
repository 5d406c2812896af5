"""Making things before they are asked for, in threads: decoding lets go of Python's lock, so that training goes on beside it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def ahead(calls: Iterator[Callable[[], Made]], threads: int) -> Iterator[Made]:
    """What each call returns, in their order, `threads` at a time and up to as many more than that waiting.

    `calls` is drawn in a thread of its own, which ends when the iterator that is returned is closed or forgotten. An error,
    of `calls` or of a call, is raised where its result would have come.
    """
    waiting: queue.Queue[Future[Made] | None] = queue.Queue(maxsize=2 * threads)
    stopped = threading.Event()

    def put(item: Future[Made] | None) -> None:
        while not stopped.is_set():
            try:
                return waiting.put(item, timeout=0.1)
            except queue.Full:
                continue

    def draw() -> None:
        try:
            for call in calls:
                put(pool.submit(call))
                if stopped.is_set():
                    return
        except BaseException as error:
            failed: Future[Made] = Future()
            failed.set_exception(error)
            put(failed)
        else:
            put(None)

    with ThreadPoolExecutor(threads, thread_name_prefix="decoder") as pool:
        drawer = threading.Thread(target=draw, name="drawer", daemon=True)
        drawer.start()
        try:
            while (made := waiting.get()) is not None:
                yield made.result()
        finally:
            stopped.set()
            drawer.join()
            pool.shutdown(cancel_futures=True)

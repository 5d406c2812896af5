"""Something done beside other work: now and then in a thread, and once more when that work ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def now_and_then(action: Callable[[], object], seconds: float, name: str) -> Iterator[None]:
    """Call `action` every so many seconds in a thread of that name while the block runs, and once more after it, however it ends.

    An error of `action` ends the calls, and nothing else.
    """
    ended = threading.Event()

    def follow() -> None:
        stopping = False
        while not stopping:
            stopping = ended.wait(seconds)
            action()

    thread = threading.Thread(target=follow, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

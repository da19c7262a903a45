"""The threads of a worker: each does its work to the end, or it is the end of the worker.

A thread that finds no memory as it starts leaves no other trace; what it was to do would never be done.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

log = logging.getLogger("vfsd.worker")

#: A thread that has not begun in so long never will, seconds.
LIMIT = 10
_lock = threading.Lock()


@contextmanager
def _limited() -> Iterator[None]:
    """Ends the process, by a signal, unless this is over in time. There is one alarm: one thread at once does this."""
    with _lock:
        before = signal.alarm(LIMIT)
        try:
            yield
        finally:
            signal.alarm(before)


def begin(works: Sequence[tuple[str, Callable[[], None]]]) -> list[threading.Thread]:
    """Starts a thread for each piece of work, by name; returns once all of them do it.

    RuntimeError where there are none to be had.
    """
    begun: list[str] = []

    def run(name: str, work: Callable[[], None]) -> None:
        try:
            begun.append(name)
            work()
        except BaseException:
            log.exception("thread %s can't go on", name)
            os._exit(1)

    threads = [threading.Thread(target=run, args=(name, work), name=name, daemon=True) for name, work in works]
    with _limited():
        for thread in threads:
            thread.start()
        while len(begun) < len(threads):
            time.sleep(0.0002)
    return threads

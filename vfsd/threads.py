"""The threads of a worker: each does its work to the end, or it is the end of the worker.

A thread that finds no memory as it starts leaves no other trace; what it was to do would never be done.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence

log = logging.getLogger("vfsd.worker")


def begin(works: Sequence[tuple[str, Callable[[], None]]]) -> list[threading.Thread]:
    """Starts a thread for each piece of work, by name; returns once all of them do it."""
    begun: list[str] = []

    def run(name: str, work: Callable[[], None]) -> None:
        try:
            begun.append(name)
            work()
        except BaseException:
            log.exception("thread %s can't go on", name)
            os._exit(1)

    threads = [threading.Thread(target=run, args=(name, work), name=name, daemon=True) for name, work in works]
    for thread in threads:
        thread.start()
    while len(begun) < len(threads):
        time.sleep(0.0002)
    return threads

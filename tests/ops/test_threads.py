"""Threads that are begun while requests are served."""

import signal
import subprocess
import sys

#: A thread that found no memory before it got anywhere leaves nothing behind.
LOST = """
import threading
from vfsd import threads

threads.LIMIT = 1
threads.begin([("one", lambda: None)])
threading.Thread._bootstrap = lambda self: None
threads.begin([("lost", lambda: None)])
"""


def test_one_that_is_lost_ends_its_process() -> None:
    """Who waits for it holds up a ring, and would for ever. The next worker begins afresh."""
    assert subprocess.run([sys.executable, "-c", LOST], timeout=60).returncode == -signal.SIGALRM

"""The worker as the control process sees it: forked, stopped, found dead, replaced.

Rule 1. At most one worker runs, and what it was forked with does not change in its life.
Rule 2. A worker that parked its rings and one that died leave the same state. Only the log knows the difference.
"""

import logging
import os
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from vfsd._process import ffi, lib

log = logging.getLogger("vfsd.control")

#: The longest wait between two attempts to start one, seconds.
PATIENCE = 5.0
#: How long a worker may take to finish what it serves and park its rings, seconds. The front-end waits meanwhile, and
#: with it a whole guest.
DEADLINE = 30.0


class Supervisor:
    """Owns the worker. `check` is called when its descriptor `interrupt` is readable during a wait, and may raise."""

    def __init__(self, interrupt: int, check: Callable[[], None]) -> None:
        self._interrupt, self._check = interrupt, check
        #: Readable: the worker is to park its rings and leave. All rings of all workers watch it.
        self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: Readable when the worker has ended, -1 when there is none.
        self.pidfd = -1
        self.pid = 0
        #: A worker has ended since the last sweep.
        self.left_strays = False
        self._started = 0.0
        self._progress: Callable[[], int] = int
        self._before = 0
        self._delay = 0.0

    @property
    def running(self) -> bool:
        return self.pidfd >= 0

    @property
    def wait(self) -> float:
        """Seconds until a worker may be started: 0 unless the last ones died idle."""
        return max(0.0, self._started + self._delay - time.monotonic())

    def start(self, work: Callable[[], NoReturn], progress: Callable[[], int]) -> None:
        """Forks a worker that does `work`. `progress` counts the requests that workers have completed."""
        self._started = time.monotonic()
        self._progress, self._before = progress, progress()
        pidfd = ffi.new("int *")
        # A signal that comes before the child has put our handlers away would be taken for one of ours.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        pid = lib.process_fork(lib.PROCESS_SHARE_FILES, pidfd)
        if pid == 0:
            try:
                work()
            finally:
                os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if pid < 0:
            log.error("no worker can be started: %s", os.strerror(-pid))
            self._back_off()
            return
        self.pid, self.pidfd = pid, pidfd[0]
        log.debug("worker %d started", pid)

    def stop(self) -> None:
        """Returns when no worker runs: it has parked its rings, or died, which the records of the rings tell."""
        if not self.running:
            return
        os.eventfd_write(self.stop_fd, 1)
        if not self._ends(DEADLINE):
            log.warning(
                "worker %d has not parked its rings in %g s: it is killed, and they go to another", self.pid, DEADLINE
            )
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self._ends(None)
        self.collect()
        os.eventfd_read(self.stop_fd)

    def collect(self) -> None:
        """The worker has ended: says how, if it was not asked to."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.pidfd)
        self.pidfd = -1
        self.left_strays = True
        if status == 0:
            self._delay = 0.0
            return
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
        self._back_off()
        log.warning("worker %d %s; another one goes on", self.pid, how)

    def kill(self) -> None:
        """At once, and whatever it is doing."""
        if self.running:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if poll.poll(1000):
                os.waitpid(self.pid, 0)

    def _ends(self, timeout: float | None) -> bool:
        """Whether the worker ends within `timeout` seconds. Raises what `check` raises."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.register(self._interrupt, select.POLLIN)
        deadline = time.monotonic() + timeout if timeout is not None else None
        while True:
            left = max(0.0, deadline - time.monotonic()) if deadline is not None else None
            ready = {fd for fd, _ in poll.poll(None if left is None else left * 1000)}
            if self.pidfd in ready or not ready:
                return bool(ready)
            self._check()

    def _back_off(self) -> None:
        """The death of one that got something done costs no time; each of those that did not costs more."""
        if self._progress() > self._before:
            self._delay = 0.0
        else:
            self._delay = min(PATIENCE, max(0.01, 2 * self._delay))

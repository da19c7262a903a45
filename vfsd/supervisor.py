"""The worker as the control process sees it: forked, stopped, found dead, replaced.

Rule 1. At most one worker runs, and what it was forked with does not change in its life. Another one may wait.
Rule 2. A worker that parked its rings and one that died leave the same state, but for what the death says against the
        requests that were in flight (vhost/blame.py).
"""

import logging
import os
import re
import select
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from vfsd.child import ends, fork
from vfsd.spare import Spare
from vhost.blame import OUTSIDE, OWN

log = logging.getLogger("vfsd.control")

#: The longest wait between two attempts to start one, seconds.
PATIENCE = 5.0
#: How long a worker may take to finish what it serves and park its rings, seconds. The front-end waits meanwhile, and
#: with it a whole guest.
DEADLINE = 30.0
#: A worker that dies by its own doing is expected to live longer than this, seconds.
SOON = 1.0
#: How long a worker runs, and the front-end has been silent, until another one is forked in advance, seconds.
EARLY, SILENCE = 0.02, 1.0
#: How many of these may end before they are prepared until a worker ends: only then what they had opened, a dozen
#: descriptors and some memory each, is swept.
VAIN = 8
#: What the kernel does to a process for what that does. SIGKILL comes from outside, unless memory was short.
FAULTS = {
    signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS,
    signal.SIGXCPU, signal.SIGXFSZ,
}  # fmt: skip
#: Exit status of a worker that found the host short of memory or processes at its start: no fault of its own.
SHORT = 3


class Work(NamedTuple):
    """What a worker is for."""

    #: Its life (vfsd/worker.py, run).
    run: Callable[[Any, Callable[[], int], bool], NoReturn]
    #: What it is forked with.
    spec: Any
    #: Descriptors the guest may hold.
    room: int
    #: How many requests workers have completed.
    progress: Callable[[], int]
    #: Told how much a death weighs (vhost/blame.py); whether it was clear whose fault it was.
    blame: Callable[[int], bool]


class Supervisor:
    """Owns the worker. `check` is called when its descriptor `interrupt` is readable during a wait, and may raise.
    `proc_fd` is a proc mount."""

    def __init__(self, interrupt: int, check: Callable[[], None], proc_fd: int) -> None:
        self._interrupt, self._check = interrupt, check
        #: Readable: the worker is to park its rings and leave. All rings of all workers watch it.
        self.stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        #: Readable when the worker has ended, -1 when there is none.
        self.pidfd = -1
        self.pid = 0
        #: A worker has ended since the last sweep.
        self.left_strays = False
        #: The last worker died by its own doing, got nothing done, and nobody knows why.
        self.futile = False
        self._started = 0.0
        self._work: Work | None = None
        self._before = 0
        self._delay = 0.0
        #: Deaths since a worker lived as long as it should.
        self._deaths = 0
        self._shortages = MemoryShortages(proc_fd)
        self._spare = Spare()
        #: When another worker is to be forked in advance.
        self._spare_due = 0.0
        #: How many were in vain since the last sweep.
        self._vain = 0

    @property
    def running(self) -> bool:
        return self.pidfd >= 0

    @property
    def wait(self) -> float:
        """Seconds until a worker may be started: 0 unless the last ones died idle, or soon and by their own doing."""
        return max(0.0, self._started + self._delay - time.monotonic())

    def start(self, work: Work) -> None:
        """Has a worker begin."""
        self._started = time.monotonic()
        self._spare_due = max(self._spare_due, self._started + EARLY)
        self._work, self._before, self.futile = work, work.progress(), False
        try:
            self.pid, self.pidfd = self._spare.take(work.spec, work.room) or fork(
                lambda: work.run(work.spec, lambda: work.room, False)
            )
        except OSError as error:
            self._back_off(PATIENCE)
            log.error("no worker can be started: %s; tried again in %g s", error.strerror, self._delay)
            return
        log.debug("worker %d started", self.pid)

    def until_spare(self) -> float | None:
        """Seconds until `prepare` has something to do; None: nothing."""
        if not self.running or self._spare.there or self._vain >= VAIN:
            return None
        return max(0.0, self._spare_due - time.monotonic())

    def prepare(self) -> None:
        """Forks the next worker in advance, if it is time to."""
        work = self._work
        if self.until_spare() != 0 or not work:
            return
        if self._spare.unheard:
            # The worker was stopped, or has had no processor yet.
            self._spare_due = time.monotonic() + SILENCE
            return
        try:
            self._spare.make(work.spec, lambda room: work.run(work.spec, room, True))
        except OSError as error:
            log.debug("no worker can be forked in advance: %s", error.strerror)
            self._spare_due = time.monotonic() + PATIENCE

    def change(self) -> None:
        """To be called before anything is changed that a worker is forked with."""
        self._vain += self._spare.there and not self._spare.prepared
        self._spare.end()
        self._spare_due = time.monotonic() + SILENCE

    def descriptors(self) -> set[int]:
        """Those that are not there for ever."""
        return self._spare.descriptors()

    def stop(self) -> None:
        """Returns when no worker runs: it has parked its rings, or died, which the records of the rings tell."""
        self.change()
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
        self._vain = 0
        self._spare.end(unless_prepared=True)
        if status == 0:
            self._delay = 0.0
            return
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
        own = (status > 0 and status != SHORT) or -status in FAULTS
        if status == -signal.SIGKILL and self._shortages.any():
            own, how = True, f"{how} since memory was short"
        self._mourn(own)
        when = f" in {self._delay:g} s, after {self._deaths} deaths" if self._delay >= 0.1 else ""
        log.warning("worker %d %s; another one goes on%s", self.pid, how, when)

    def kill(self) -> None:
        """At once, and whatever it is doing."""
        self._spare.end()
        if self.running:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if poll.poll(1000):
                os.waitpid(self.pid, 0)

    def _ends(self, timeout: float | None) -> bool:
        """Whether the worker ends within `timeout` seconds. Raises what `check` raises."""
        return ends(self.pidfd, timeout, self._interrupt, self._check)

    def _mourn(self, own: bool) -> None:
        """What follows from the death of the worker, by its own doing or not."""
        assert self._work
        lived = time.monotonic() - self._started >= SOON
        progress = self._work.progress() > self._before
        known = self._work.blame(OWN if own else OUTSIDE)
        self.futile = own and not progress and not known
        self._deaths = 1 if lived else self._deaths + 1
        if progress and (lived or not own):
            self._delay = 0.0
        else:
            self._back_off(SOON if progress or known else PATIENCE)

    def _back_off(self, limit: float) -> None:
        """Each death of one that got nothing done, or that died by its own doing and soon, costs more time than the
        last, in seconds up to `limit`."""
        self._delay = min(limit, max(0.01, 2 * self._delay))


class MemoryShortages:
    """Tells whether the kernel has killed any process for want of memory since it was last asked."""

    def __init__(self, proc_fd: int) -> None:
        try:
            self._fd = os.open("vmstat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        except OSError:
            # A proc mount that shows processes only.
            self._fd = -1
        self._count = self._read()

    def any(self) -> bool:
        before, self._count = self._count, self._read()
        return self._count > before

    def _read(self) -> int:
        """`oom_kill` of /proc/vmstat (Linux 4.13), for cgroups too; 0 when it is not there."""
        text = os.pread(self._fd, 1 << 16, 0) if self._fd >= 0 else b""
        found = re.search(rb"^oom_kill (\d+)", text, re.MULTILINE)
        return int(found[1]) if found else 0

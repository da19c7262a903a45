"""The beginning of a process that the control process forks, and its end."""

import os
import select
import signal
import time
from collections.abc import Callable
from typing import NoReturn

from vfsd._process import ffi
from vfsd._process import lib as process
from vfsd.launcher import FORWARDED


def fork(work: Callable[[], NoReturn]) -> tuple[int, int]:
    """Forks a process that does `work` and shares our descriptor table. Its pid and a pidfd. Raises OSError."""
    pidfd = ffi.new("int *")
    # A signal that comes before the child has put our handlers away would be taken for one of ours.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = process.process_fork(process.PROCESS_SHARE_FILES, pidfd)
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid, pidfd[0]


def ends(pidfd: int, timeout: float | None, interrupt: int, check: Callable[[], None]) -> bool:
    """Whether a process ends within `timeout` seconds. Calls `check` when `interrupt` is readable meanwhile, and raises
    what that raises."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(interrupt, select.POLLIN)
    deadline = time.monotonic() + timeout if timeout is not None else None
    while True:
        left = max(0.0, deadline - time.monotonic()) if deadline is not None else None
        ready = {fd for fd, _ in poll.poll(None if left is None else left * 1000)}
        if pidfd in ready or not ready:
            return bool(ready)
        check()


def settle(name: bytes, outlives: bool = False) -> None:
    """Signals are for the control process (a terminal sends SIGINT to all of them), and this one ends with it, unless
    it `outlives` the one that forked it. `name` is what ps shows."""
    signal.set_wakeup_fd(-1)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    process.process_set_name(name)
    if not outlives:
        process.process_set_death_signal(signal.SIGKILL)

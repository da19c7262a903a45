"""The beginning of a process that the control process forks."""

import signal

from vfsd._process import lib as process
from vfsd.launcher import FORWARDED


def settle(name: bytes) -> None:
    """Signals are for the control process (a terminal sends SIGINT to all of them), and this one ends with it. `name`
    is what ps shows."""
    signal.set_wakeup_fd(-1)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    process.process_set_name(name)
    process.process_set_death_signal(signal.SIGKILL)

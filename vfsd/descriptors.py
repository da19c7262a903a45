"""The descriptor table that control process and workers share (clone(CLONE_FILES)).

Rule 1. Every descriptor has an owner on record: the process itself since its start, the connection, or the core's
        arenas. What a dead worker leaves besides is nobody's and gets swept.
Rule 2. A sweep happens while no worker runs and no message is being served.
Rule 3. A table full of what a guest holds stops neither a message, nor a sweep, nor the start of a worker.
"""

import contextlib
import fcntl
import os
import resource
from itertools import pairwise

#: Descriptors the table has room for from the start: growing it stalls every thread that shares it by 10 to 20 ms.
ROOM = 65536
#: Numbers below this are never a guest's: what this process needs for its whole life has them. So another process can
#: take the guest's descriptors over under the numbers they are recorded by (vfsd/handover.py).
PLACES = 64
#: Descriptors kept from workers: a front-end's message brings up to 253, a starting worker opens a few.
KEPT = 512
#: What requests under way open for a moment.
TRANSIENT = 32


def reserve() -> None:
    """Grows the table of this process."""
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, min(ROOM, _limit()) - 1))


def fill() -> None:
    """Takes the PLACES that are free: what is opened after this gets other numbers."""
    fd = os.eventfd(0, os.EFD_CLOEXEC)
    while fd < PLACES:
        fd = os.dup(fd)
    os.close(fd)


def blank(fd: int) -> None:
    """Closes an own descriptor, and keeps its place taken."""
    nothing = os.eventfd(0, os.EFD_CLOEXEC)
    os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


def opened(proc_fd: int) -> set[int]:
    """The open descriptors of this process; `proc_fd` is a proc mount. Takes two more for a moment."""
    listing = os.open("self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        names = os.listdir(listing)
    finally:
        os.close(listing)
    return {fd for fd in map(int, names) if _is_open(fd)}


def sweep(owned: set[int]) -> None:
    """Closes every descriptor that is not `owned`. It lists nothing, which would take descriptors."""
    for before, after in pairwise((-1, *sorted(owned), _limit())):
        # Asked for nothing below 0, Python's closerange closes everything.
        if before + 1 < after:
            os.closerange(before + 1, after)


def room(own: int) -> int:
    """How many descriptors a guest may hold, when `own` are the daemon's."""
    return max(1, _limit() - _kept() - own - TRANSIENT)


def leave_room() -> None:
    """Lowers the limit of this process, a worker. The limit is each process's own, the table is not: so whatever a
    guest brings about, there are places that only the control process, and the next worker as it starts, can take."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (_limit() - _kept(), hard))


def _kept() -> int:
    return min(KEPT, _limit() // 4)


def _limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True

"""The descriptor table that control process and workers share (clone(CLONE_FILES)).

Rule 1. Every descriptor has an owner on record: the process itself since its start, the connection, or the core's
        arenas. What a dead worker leaves besides is nobody's and gets swept.
Rule 2. A sweep happens while no worker runs and no message is being served.
"""

import contextlib
import fcntl
import os
import resource

#: Descriptors the table has room for from the start: growing it stalls every thread that shares it by 10 to 20 ms.
ROOM = 65536


def reserve() -> None:
    """Grows the table of this process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, min(ROOM, soft) - 1))


def opened(proc_fd: int) -> set[int]:
    """The open descriptors of this process; `proc_fd` is a proc mount."""
    return {fd for fd in _listed(proc_fd) if _is_open(fd)}


def sweep(proc_fd: int, owned: set[int]) -> int:
    """Closes every descriptor that is not `owned`; returns how many."""
    count = 0
    for fd in _listed(proc_fd) - owned:
        with contextlib.suppress(OSError):
            os.close(fd)
            count += 1
    return count


def _listed(proc_fd: int) -> set[int]:
    """What is open, and what the listing itself needed: a descriptor and the duplicate that os.listdir reads from."""
    listing = os.open("self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        return {int(name) for name in os.listdir(listing)}
    finally:
        os.close(listing)


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True

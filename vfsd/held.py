"""Locks as the host knows them: which an open file has, given up, and taken again.

A lock belongs to an open file (fcntl(2), "Open file description locks"; flock(2)), which no other daemon has. So what a
guest has locked is given up where it leaves and taken where it arrives, and the other way round if it stays.
"""

import fcntl
import os
from struct import Struct
from typing import NamedTuple

from vfsd._fuse import lib

_KINDS = {"READ": fcntl.F_RDLCK, "WRITE": fcntl.F_WRLCK, "UNLCK": fcntl.F_UNLCK}
_FLOCK = {fcntl.F_RDLCK: fcntl.LOCK_SH, fcntl.F_WRLCK: fcntl.LOCK_EX, fcntl.F_UNLCK: fcntl.LOCK_UN}
#: struct flock: l_type, l_whence, l_start, l_len, l_pid.
_STRUCT_FLOCK = Struct("@hhqqi4x")


class Lock(NamedTuple):
    """`kind` is F_RDLCK or F_WRLCK. `end` is the last byte, LOCK_END at the end of the file wherever that is."""

    kind: int
    start: int = 0
    end: int = lib.LOCK_END
    flock: bool = False


def look(proc_fd: int, fd: int) -> list[Lock]:
    """The locks that the open file behind `fd` has (proc_pid_fdinfo(5)); `proc_fd` is a proc mount."""
    info = os.open(f"self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        text = b""
        while part := os.read(info, 65536):
            text += part
    finally:
        os.close(info)
    # lock: 1: OFDLCK ADVISORY WRITE -1 00:1c:4711 0 EOF
    lines = (line.split() for line in text.decode().splitlines() if line.startswith("lock:"))
    return [_lock(words) for words in lines if words[2] in ("OFDLCK", "FLOCK") and words[4] in _KINDS]


def _lock(words: list[str]) -> Lock:
    kind, (start, end) = _KINDS[words[4]], words[-2:]
    if words[2] == "FLOCK":
        return Lock(kind, flock=True)
    return Lock(kind, int(start), lib.LOCK_END if end == "EOF" else int(end))


def set_lock(fd: int, lock: Lock) -> None:
    """Takes it, or with F_UNLCK gives it up, without waiting. Raises OSError: BlockingIOError when another has it."""
    if lock.flock:
        fcntl.flock(fd, _FLOCK[lock.kind] | fcntl.LOCK_NB)
        return
    length = 0 if lock.end >= lib.LOCK_END else lock.end - lock.start + 1
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _STRUCT_FLOCK.pack(lock.kind, os.SEEK_SET, lock.start, length, 0))


class Given:
    """Locks that were given up, kept where the control process finds them whatever becomes of the process that did it:
    in a file of memory. Made once."""

    _RECORD = Struct("=iiQQ?7x")

    def __init__(self) -> None:
        self._file = os.memfd_create("vfsd-locks", os.MFD_CLOEXEC)

    def give(self, locks: list[tuple[int, Lock]]) -> None:
        """Gives up what these descriptors have. First it is written down: what is taken again though it never was given
        up does no harm."""
        os.pwrite(self._file, b"".join(self._RECORD.pack(fd, *lock) for fd, lock in locks), 0)
        for fd, lock in locks:
            set_lock(fd, lock._replace(kind=fcntl.F_UNLCK))

    def take_again(self) -> int:
        """Takes all of them again. Returns how many were lost to others meanwhile."""
        size = os.fstat(self._file).st_size
        lost = 0
        for fd, kind, start, end, flock in self._RECORD.iter_unpack(os.pread(self._file, size, 0)):
            try:
                set_lock(fd, Lock(kind, start, end, flock))
            except OSError:
                lost += 1
        self.forget()
        return lost

    def __bool__(self) -> bool:
        return os.fstat(self._file).st_size > 0

    def forget(self) -> None:
        os.ftruncate(self._file, 0)

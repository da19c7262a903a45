"""GETLK, SETLK, SETLKW: record locks of fcntl(2) and whole-file locks of flock(2), kept by the host for all to see.

The other half is fs/fuse/file.c: fuse_file_lock, fuse_file_flock, fuse_setlk, fuse_getlk. A guest that was not offered
locks (INIT) keeps them to itself. It does so with those on directories in any case: FUSE has no lock operation there.
"""

import errno
from collections.abc import Sequence
from typing import Any, NamedTuple

from vfsd._fuse import ffi, lib
from vfsd.core import Core, check, packed
from vfsd.door import Request, op

#: How many owners of one inode are asked whether they have the lock that is in the way.
OWNERS_ASKED = 64
#: How long a chain of owners that wait for each other is followed (fs/locks.c, MAX_DEADLK_ITERATIONS).
CHAIN_MAX = 10
#: F_RDLCK and F_WRLCK as /proc/PID/fdinfo/FD spells them.
TYPES = {"READ": 0, "WRITE": 1}
UNLOCKED = 2

_LOCK = ffi.typeof("struct fuse_file_lock *")
_OWNER = ffi.typeof("struct lock_owner *")


class Owner(NamedTuple):
    """Whose lock is in the way: one of this guest."""

    owner: int
    #: A process id in the guest.
    pid: int


@op("GETLK", "fuse_lk_in")
def getlk(core: Core, request: Request, arg: Any) -> bytes:
    _require(core, lib.FUSE_POSIX_LOCKS)
    lock = ffi.new(_LOCK)
    check(lib.lock_test(core.pointer, request.nodeid, arg, lock))
    # A process of the host or of another guest means nothing to this one, which shows its own programs 0 for 0.
    if lock.type != UNLOCKED and (owner := _owner_of(core, request.nodeid, lock)):
        lock.pid = owner.pid
    return packed(lock)


@op("SETLK", "fuse_lk_in")
def setlk(core: Core, request: Request, arg: Any) -> bytes:
    if arg.lk_flags & lib.FUSE_LK_FLOCK:
        _require(core, lib.FUSE_FLOCK_LOCKS)
        check(lib.lock_flock(core.pointer, arg))
    else:
        _require(core, lib.FUSE_POSIX_LOCKS)
        check(lib.lock_set(core.pointer, request.nodeid, arg))
    return b""


def waits_for_itself(core: Core, request: Request, arg: Any, waiting: Sequence[tuple[Request, Any]]) -> bool:
    """Whether the owner waits for one who waits for another, and so on, back to itself; `waiting` are the others.

    As natively, only record locks are looked at (fs/locks.c, posix_locks_deadlock), and only one owner in the way of
    each. The host would not find it: to the host these are OFD locks, and nobody waits.
    """
    if not waiting or arg.lk_flags & lib.FUSE_LK_FLOCK:
        return False
    others = {its.owner: (of.nodeid, its) for of, its in waiting if not its.lk_flags & lib.FUSE_LK_FLOCK}
    step = request.nodeid, arg
    for _ in range(CHAIN_MAX):
        owner = _owner_in_the_way(core, *step)
        if owner is None or owner.owner == arg.owner:
            return owner is not None
        if owner.owner not in others:
            return False
        step = others[owner.owner]
    return False


op("SETLKW", "fuse_lk_in", waits=waits_for_itself)(setlk)


def _require(core: Core, flag: int) -> None:
    if not core.session.flags & flag:
        raise OSError(errno.ENOSYS, "the guest agreed to keep these locks to itself")


def _owner_in_the_way(core: Core, nodeid: int, arg: Any) -> Owner | None:
    lock = ffi.new(_LOCK)
    if lib.lock_test(core.pointer, nodeid, arg, lock) < 0 or lock.type == UNLOCKED:
        return None
    return _owner_of(core, nodeid, lock)


def _owner_of(core: Core, nodeid: int, lock: Any) -> Owner | None:
    """Who in this guest has a lock, as far as can be found out: the host itself does not tell (fcntl(2), l_pid -1)."""
    out = ffi.new(_OWNER)
    for index in range(OWNERS_ASKED):
        pinned = lib.lock_owner_get(core.pointer, nodeid, index, out)
        if not pinned:
            break
        try:
            if (lock.type, lock.start, lock.end) in _locks_of(out.fd):
                return Owner(out.owner, out.pid)
        finally:
            lib.lock_owner_put(core.pointer, pinned)
    return None


def _locks_of(fd: int) -> set[tuple[int, int, int]]:
    """(type, first byte, last byte) of the OFD locks of a descriptor (proc(5), /proc/PID/fdinfo; fs/locks.c,
    lock_get_status)."""
    try:
        with open(f"../fdinfo/{fd}") as info:  # the current directory is /proc/self/fd
            lines = [line.split() for line in info if line.startswith("lock:")]
    except OSError:
        return set()
    return {
        (TYPES[type], int(start), lib.LOCK_END if end == "EOF" else int(end))
        for _, _, kind, _, type, _, _, start, end in lines
        if kind == "OFDLCK"
    }

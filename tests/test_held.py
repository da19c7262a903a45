"""What an open file has locked, as the host lists it; given up, and taken again."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd._fuse import lib
from vfsd.held import Given, Lock, look, set_lock


@pytest.fixture
def proc_fd() -> Iterator[int]:
    fd = os.open("/proc", os.O_PATH)
    yield fd
    os.close(fd)


@pytest.fixture
def fds(tmp_path: Path) -> Iterator[list[int]]:
    """Two open files of one file."""
    opened = [os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT) for _ in range(2)]
    yield opened
    for fd in opened:
        os.close(fd)


LOCKS = [Lock(fcntl.F_WRLCK, 0, 0), Lock(fcntl.F_RDLCK, 5, 9), Lock(fcntl.F_WRLCK, 100)]
LOCKS.append(Lock(fcntl.F_RDLCK, flock=True))


def test_they_are_found(proc_fd: int, fds: list[int]) -> None:
    for lock in LOCKS:
        set_lock(fds[0], lock)
    assert sorted(look(proc_fd, fds[0])) == sorted(LOCKS)
    assert look(proc_fd, fds[1]) == []


def test_whoever_took_them(proc_fd: int, fds: list[int]) -> None:
    """A worker that has died since."""
    pid = os.fork()
    if pid == 0:
        try:
            for lock in LOCKS:
                set_lock(fds[0], lock)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert sorted(look(proc_fd, fds[0])) == sorted(LOCKS)


def test_given_and_taken_again(proc_fd: int, fds: list[int]) -> None:
    for lock in LOCKS:
        set_lock(fds[0], lock)
    given = Given()
    assert given.take_again() == 0
    given.give([(fds[0], lock) for lock in LOCKS])
    assert look(proc_fd, fds[0]) == []
    assert given.take_again() == 0
    assert sorted(look(proc_fd, fds[0])) == sorted(LOCKS)
    given.give([(fds[0], lock) for lock in LOCKS])
    set_lock(fds[1], Lock(fcntl.F_WRLCK, 7, 7))
    assert given.take_again() == 1
    assert given.take_again() == 0, "once"
    assert Lock(fcntl.F_RDLCK, 5, 9) not in look(proc_fd, fds[0])
    given.give([(fds[0], LOCKS[0])])
    given.forget()
    assert given.take_again() == 0 and LOCKS[0] not in look(proc_fd, fds[0])


KINDS = st.sampled_from([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])


@given(st.lists(st.tuples(KINDS, st.integers(0, 20), st.integers(0, 20))))
def test_any_locks(proc_fd: int, fds: list[int], steps: list[tuple[int, int, int]]) -> None:
    """What is listed is what is locked: byte by byte, and to the end."""
    set_lock(fds[0], Lock(fcntl.F_UNLCK))
    held = dict.fromkeys(range(40), fcntl.F_UNLCK)
    for kind, start, length in steps:
        end = start + length if length else lib.LOCK_END
        set_lock(fds[0], Lock(kind, start, end))
        held.update(dict.fromkeys(range(start, min(end + 1, 40)), kind))
    listed = dict.fromkeys(range(40), fcntl.F_UNLCK)
    for lock in look(proc_fd, fds[0]):
        listed.update(dict.fromkeys(range(lock.start, min(lock.end + 1, 40)), lock.kind))
    assert listed == held

"""GETLK, SETLK, SETLKW and what frees locks: two guests' programs and the host's, on one file."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EAGAIN
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.fuseclient import ROOT, FuseClient
from tests.ops.mount import Mount, share
from vfsd._fuse import lib
from vfsd.settings import Settings

END = lib.LOCK_END
#: Two lock owners, which are what a guest's kernel makes of processes; no process has such numbers.
ONE, TWO = 0xF00D_0000_0000_0001, 0xF00D_0000_0000_0002

#: A host process: locks as told, says what came of it, and holds on until its input ends.
HOST = """
import fcntl, os, sys
path, call, kind, start, length = sys.argv[1:]
fd = os.open(path, os.O_RDWR)
kind, start, length = int(kind), int(start), int(length)
try:
    if call == "flock":
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    else:
        fcntl.lockf(fd, kind | fcntl.LOCK_NB, length, start)
except BlockingIOError:
    print("refused", flush=True)
else:
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def on_host(path: Path, call: str, kind: int, start: int = 0, length: int = 0) -> Iterator[str]:
    """A process of the host that tries lockf or flock: "locked", until the end of the `with`, or "refused"."""
    command = [sys.executable, "-c", HOST, str(path), call, str(kind), str(start), str(length)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        yield process.stdout.readline().strip()
        process.stdin.close()


def host_gets(path: Path, call: str, kind: int, start: int = 0, length: int = 0) -> bool:
    with on_host(path, call, kind, start, length) as said:
        return said == "locked"


class File(NamedTuple):
    """A file that a guest has open once."""

    client: FuseClient
    nodeid: int
    fh: int
    path: Path

    def lock(self, owner: int, kind: int, start: int = 0, end: int = END, expect: int = 0, **how: bool) -> None:
        self.client.setlk(self.nodeid, self.fh, owner, kind, start, end, expect=expect, **how)

    def test(self, owner: int, kind: int, start: int = 0, end: int = END) -> tuple[int, int, int]:
        """What is in the way: type, first, last."""
        found = self.client.getlk(self.nodeid, self.fh, owner, kind, start, end)
        return found.type, found.start, found.end

    def again(self) -> "File":
        """Another handle of it."""
        return self._replace(fh=self.client.open(self.nodeid, os.O_RDWR).fh)

    def flush(self, owner: int) -> None:
        self.client.flush(self.nodeid, self.fh, owner)


FREE = (F_UNLCK, 0, 0)


@pytest.fixture
def file(mount: Mount) -> File:
    entry, opened = mount.client.create(ROOT, b"f")
    return File(mount.client, entry.nodeid, opened.fh, mount.root / "f")


def test_two_owners_exclude_each_other(file: File) -> None:
    file.lock(ONE, F_WRLCK, 10, 19)
    file.lock(ONE, F_WRLCK, 10, 19)
    file.lock(TWO, F_WRLCK, 19, 30, expect=EAGAIN)
    file.lock(TWO, F_RDLCK, 0, 10, expect=EAGAIN)
    file.lock(TWO, F_WRLCK, 20, 30)
    file.lock(TWO, F_WRLCK, 0, 9)
    assert file.test(ONE, F_WRLCK, 0, END) == (F_WRLCK, 0, 9)
    assert file.test(ONE, F_RDLCK, 11, 25) == (F_WRLCK, 20, 30)
    assert file.test(TWO, F_RDLCK) == (F_WRLCK, 10, 19)
    assert file.test(TWO, F_RDLCK, 20) == FREE
    file.lock(ONE, F_UNLCK, 0, 100)
    file.lock(TWO, F_WRLCK, 0, END)


def test_a_range_is_split_and_joined(file: File) -> None:
    file.lock(ONE, F_WRLCK)
    file.lock(ONE, F_UNLCK, 100, 199)
    assert file.test(TWO, F_WRLCK, 100, 199) == FREE
    assert file.test(TWO, F_WRLCK, 0, 150) == (F_WRLCK, 0, 99)
    assert file.test(TWO, F_WRLCK, 150, END) == (F_WRLCK, 200, END)
    file.lock(ONE, F_WRLCK, 100, 199)
    assert file.test(TWO, F_WRLCK, 5000, 5000) == (F_WRLCK, 0, END)


def test_upgrade_and_downgrade(file: File) -> None:
    file.lock(ONE, F_RDLCK)
    file.lock(TWO, F_RDLCK)
    file.lock(ONE, F_WRLCK, expect=EAGAIN)
    file.lock(TWO, F_UNLCK)
    file.lock(ONE, F_WRLCK)
    file.lock(TWO, F_RDLCK, expect=EAGAIN)
    file.lock(ONE, F_RDLCK)
    file.lock(TWO, F_RDLCK)


def test_ranges_at_the_limits(file: File) -> None:
    file.lock(ONE, F_WRLCK, END, END)
    assert file.test(TWO, F_WRLCK, END, END) == (F_WRLCK, END, END)
    file.lock(TWO, F_WRLCK, 0, END - 1)
    for start, end in ((1, 0), (0, END + 1), (END + 1, END + 2), (2**64 - 1, 2**64 - 1)):
        file.lock(ONE, F_WRLCK, start, end, expect=errno.EINVAL)
        file.client.getlk(file.nodeid, file.fh, ONE, F_WRLCK, start, end, expect=errno.EINVAL)
    file.lock(ONE, 3, expect=errno.EINVAL)
    file.lock(ONE, 3, flock=True, expect=errno.EINVAL)


def test_the_holder_is_told_by_its_id_in_the_guest(mount: Mount, file: File) -> None:
    mount.client.setlk(file.nodeid, file.fh, ONE, F_RDLCK, 0, 9, pid=4711)
    mount.client.setlk(file.nodeid, file.fh, TWO, F_RDLCK, 5, 14, pid=4712)
    assert mount.client.getlk(file.nodeid, file.fh, 3, F_WRLCK, 12, 12).pid == 4712
    assert mount.client.getlk(file.nodeid, file.fh, TWO, F_WRLCK).pid == 4711
    with on_host(file.path, "lockf", fcntl.LOCK_EX, 100, 10):
        assert mount.client.getlk(file.nodeid, file.fh, 3, F_WRLCK, 100, 200).pid == 0


def test_the_host_and_the_guest_exclude_each_other(file: File) -> None:
    file.lock(ONE, F_WRLCK, 0, 9)
    assert not host_gets(file.path, "lockf", fcntl.LOCK_SH, 9, 1)
    with on_host(file.path, "lockf", fcntl.LOCK_EX, 10, 10) as said:
        assert said == "locked"
        file.lock(TWO, F_RDLCK, 19, 19, expect=EAGAIN)
        assert file.test(TWO, F_RDLCK, 15, END) == (F_WRLCK, 10, 19)
        file.lock(TWO, F_RDLCK, 20, END)
    file.lock(TWO, F_RDLCK, 10, 19)
    file.lock(ONE, F_UNLCK)
    file.lock(TWO, F_UNLCK)
    assert host_gets(file.path, "lockf", fcntl.LOCK_EX)


def test_flock(file: File) -> None:
    other = file.again()
    file.lock(ONE, F_WRLCK, flock=True)
    other.lock(TWO, F_RDLCK, flock=True, expect=EAGAIN)
    other.lock(TWO, F_WRLCK, flock=True, wait=True, expect=EAGAIN)  # nothing waits where there is no ring
    assert not host_gets(file.path, "flock", fcntl.LOCK_SH)
    file.lock(ONE, F_RDLCK, flock=True)
    other.lock(TWO, F_RDLCK, flock=True)
    assert host_gets(file.path, "flock", fcntl.LOCK_SH)
    with on_host(file.path, "flock", fcntl.LOCK_SH):
        file.lock(ONE, F_WRLCK, flock=True, expect=EAGAIN)
    other.lock(TWO, F_UNLCK, flock=True)
    file.lock(ONE, F_WRLCK, flock=True)
    # The handle is the owner, as an open file is natively: whoever asks.
    file.lock(TWO, F_UNLCK, flock=True)
    assert host_gets(file.path, "flock", fcntl.LOCK_EX)
    # The two kinds do not see each other.
    file.lock(ONE, F_WRLCK, flock=True)
    other.lock(TWO, F_WRLCK)


def test_release_frees_a_flock(file: File) -> None:
    other = file.again()
    other.lock(ONE, F_WRLCK, flock=True)
    file.lock(TWO, F_WRLCK, flock=True, expect=EAGAIN)
    file.client.release(other.nodeid, other.fh, release_flags=lib.FUSE_RELEASE_FLOCK_UNLOCK)
    file.lock(TWO, F_WRLCK, flock=True)


def test_closing_any_descriptor_frees_all_of_the_owner(mount: Mount, file: File) -> None:
    """close(2): POSIX locks belong to the process and the file, not to one of its descriptors."""
    other = file.again()
    file.lock(ONE, F_WRLCK, 0, 9)
    other.lock(ONE, F_WRLCK, 20, 29)
    other.lock(TWO, F_WRLCK, 40, 49)
    other.flush(3)
    assert mount.core.locks == 2
    other.flush(ONE)
    assert mount.core.locks == 1
    assert host_gets(file.path, "lockf", fcntl.LOCK_EX, 0, 40)
    assert not host_gets(file.path, "lockf", fcntl.LOCK_EX, 40, 1)


def test_locks_of_an_open_file_go_with_it(file: File) -> None:
    """F_OFD_SETLK in the guest: the owner is its open file, and no FLUSH names it."""
    other = file.again()
    other.lock(ONE, F_WRLCK, 0, 9)
    other.flush(TWO)
    file.lock(TWO, F_WRLCK, expect=EAGAIN)
    other.client.release(other.nodeid, other.fh)
    file.lock(TWO, F_WRLCK)


def test_descriptors_come_and_go_with_owners(mount: Mount, file: File) -> None:
    before = mount.descriptors()
    file.lock(ONE, F_UNLCK)
    file.lock(ONE, F_UNLCK, 3, 4)
    assert file.test(TWO, F_WRLCK) == FREE
    assert mount.descriptors() == before, "what locks nothing needs none"
    for owner in range(100):
        file.lock(owner, F_RDLCK, owner, owner + 10)
    assert (mount.core.locks, len(mount.descriptors())) == (100, len(before) + 100)
    for owner in range(0, 100, 2):
        file.lock(owner, F_UNLCK)
    for owner in range(1, 100, 2):
        file.flush(owner)
    assert mount.descriptors() == before


def test_forgotten_unmounted_and_mounted_anew(mount: Mount, file: File) -> None:
    for end in (lambda: mount.client.forget(file.nodeid), mount.client.destroy, mount.client.init):
        entry = mount.client.lookup(ROOT, b"f") if mount.core.session.mounted else None
        if not entry:
            mount.client.init(minor=45, flags=(1 << 64) - 1)
            entry = mount.client.lookup(ROOT, b"f")
        opened = mount.client.open(entry.nodeid, os.O_RDWR)
        mount.client.setlk(entry.nodeid, opened.fh, ONE, F_WRLCK)
        assert not host_gets(file.path, "lockf", fcntl.LOCK_SH)
        if mount.core.inodes == 2:
            mount.client.forget(entry.nodeid)
        end()
        assert mount.core.locks == 0
        assert host_gets(file.path, "lockf", fcntl.LOCK_EX)


def test_requests_served_before(mount: Mount, file: File) -> None:
    """Locks are where they were, and to set or drop them once more changes nothing."""
    again = file._replace(client=mount.replayed)
    file.lock(ONE, F_WRLCK, 0, 9)
    again.lock(ONE, F_WRLCK, 0, 9)
    again.lock(TWO, F_WRLCK, 0, 9, expect=EAGAIN)
    again.lock(TWO, F_WRLCK, 0, 9, wait=True, expect=EAGAIN)
    again.lock(ONE, F_UNLCK)
    again.lock(ONE, F_UNLCK)
    file.lock(ONE, F_WRLCK, flock=True)
    again.lock(ONE, F_WRLCK, flock=True)
    file.lock(ONE, F_WRLCK)
    again.flush(ONE)
    again.flush(ONE)
    file.lock(TWO, F_WRLCK)


@pytest.mark.parametrize(("option", "flock"), [("posix_lock", False), ("flock", True)])
def test_switched_off(tmp_path: Path, option: str, flock: bool) -> None:
    with share(tmp_path, Settings(**{option: False})) as mount:
        flag = lib.FUSE_FLOCK_LOCKS if flock else lib.FUSE_POSIX_LOCKS
        both = lib.FUSE_FLOCK_LOCKS | lib.FUSE_POSIX_LOCKS
        assert mount.core.session.flags & both == both & ~flag
        entry, opened = mount.client.create(ROOT, b"f")
        for asked in (flock, not flock):
            expect = errno.ENOSYS if asked is flock else 0
            mount.client.setlk(entry.nodeid, opened.fh, ONE, F_WRLCK, flock=asked, expect=expect)


def test_what_does_not_exist(mount: Mount, file: File) -> None:
    mount.client.setlk(12345, file.fh, ONE, F_WRLCK, expect=errno.ESTALE)
    for call in (mount.client.setlk, mount.client.getlk):
        call(file.nodeid, 12345, ONE, F_WRLCK, expect=errno.EBADF)
    mount.client.setlk(file.nodeid, 12345, ONE, F_WRLCK, flock=True, expect=errno.EBADF)
    assert mount.core.locks == 0


def test_a_read_only_share(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with share(tmp_path, Settings(readonly=True)) as mount:
        entry = mount.client.lookup(ROOT, b"f")
        fh = mount.client.open(entry.nodeid).fh
        mount.client.setlk(entry.nodeid, fh, ONE, F_RDLCK)
        assert not host_gets(tmp_path / "f", "lockf", fcntl.LOCK_EX)
        mount.client.setlk(entry.nodeid, fh, ONE, F_WRLCK, flock=True)
        # Which the guest's kernel would not send: its open file is for reading only.
        mount.client.setlk(entry.nodeid, fh, TWO, F_WRLCK, 5, 5, expect=errno.ENOLCK)
        mount.client.setlk(entry.nodeid, fh, ONE, F_WRLCK, expect=errno.ENOLCK)


def test_no_more_owners(mount: Mount, file: File) -> None:
    """The table of 64 KiB is full at some time: a lock less, and no harm."""
    held = 0
    try:
        for owner in range(3000):
            mount.client.setlk(file.nodeid, file.fh, owner, F_RDLCK)
            held += 1
    except OSError as error:
        assert error.errno == errno.ENOLCK
    assert 1000 < held == mount.core.locks < 3000
    file.flush(0)
    file.lock(ONE, F_RDLCK)

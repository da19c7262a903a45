"""What the guest may cache: the flags of open replies, and names that are not there."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from errno import EIO, ENOENT
from pathlib import Path

import pytest

from tests.core.served import REAL_ROOT, SECOND, Served
from tests.core.threads import FCNTL, answer, in_thread
from tests.fuseclient import ROOT
from vfsd._fuse import lib

KEEP, DIR = lib.FOPEN_KEEP_CACHE, lib.FOPEN_CACHE_DIR
DIRECT = lib.FOPEN_DIRECT_IO | lib.FOPEN_PARALLEL_DIRECT_WRITES
#: POSIX locks need every FLUSH: with them no open reply depends on the file system that the tests lie on.
LOCKS = lib.FUSE_POSIX_LOCKS
DAY = 86400 * SECOND


@pytest.fixture
def on_disk(tmp_path: Path) -> None:
    """Only on a file system where an inode's times tell of every change."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    if kind.strip() not in ("ext2/ext3", "xfs", "btrfs", "overlayfs", "f2fs", "zfs"):
        pytest.skip(f"{tmp_path} is on {kind.strip()}")


@pytest.mark.parametrize(
    ("cache", "file_flags", "directory_flags"),
    [
        (lib.CORE_CACHE_NEVER, DIRECT, 0),
        (lib.CORE_CACHE_METADATA, DIRECT, KEEP | DIR),
        (lib.CORE_CACHE_AUTO, 0, 0),
        (lib.CORE_CACHE_ALWAYS, KEEP, KEEP | DIR),
    ],
)
def test_cache_modes(serve: Callable[..., Served], cache: int, file_flags: int, directory_flags: int) -> None:
    client = serve(cache=cache, session_flags=LOCKS).client
    entry, opened = client.create(ROOT, b"f")
    assert opened.open_flags == file_flags
    assert client.open(entry.nodeid).open_flags == file_flags
    assert client.opendir(ROOT).open_flags == directory_flags


@pytest.mark.usefixtures("on_disk")
def test_a_file_is_kept_while_nothing_changes(serve: Callable[..., Served]) -> None:
    served = serve(session_flags=LOCKS, settle_ns=1)
    file = served.root / "f"
    file.write_bytes(b"data")
    nodeid = served.client.lookup(ROOT, b"f").nodeid

    def kept() -> bool:
        flags = served.client.open(nodeid).open_flags
        assert flags in (0, KEEP)
        return bool(flags)

    assert not kept(), "the guest has nothing yet that could be checked"
    assert kept()
    assert kept()
    with file.open("ab") as host:
        host.write(b"more")
    assert not kept()
    assert kept()
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - SECOND))
    assert not kept()
    assert kept()
    # The same size and modification time: the change time tells.
    before = file.stat()
    os.utime(file, ns=(0, before.st_mtime_ns))
    while file.stat().st_ctime_ns == before.st_ctime_ns:
        os.utime(file, ns=(0, before.st_mtime_ns))
    assert not kept()
    fh = served.client.open(nodeid, os.O_RDWR).fh
    served.client.write(nodeid, fh, b"longer than it was", 0)
    assert not kept(), "the guest's own writes count too"
    assert not served.client.open(nodeid, os.O_RDWR | os.O_TRUNC).open_flags
    served.restart()
    assert kept(), "a worker's death changes nothing"
    # A nodeid that is used again begins anew.
    served.client.forget(nodeid, 1)
    nodeid = served.client.lookup(ROOT, b"f").nodeid
    assert not kept()


@pytest.mark.usefixtures("on_disk")
def test_what_changed_a_moment_ago_is_not_kept(serve: Callable[..., Served]) -> None:
    served = serve(session_flags=LOCKS)
    file = served.root / "f"
    file.write_bytes(b"data")
    nodeid = served.client.lookup(ROOT, b"f").nodeid
    assert [served.client.open(nodeid).open_flags for _ in range(3)] == [0, 0, 0]
    # Nor is what claims to have changed long ago: only the change time is the kernel's.
    os.utime(file, (0, 0))
    assert [served.client.open(nodeid).open_flags for _ in range(3)] == [0, 0, 0]


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize(
    ("entry_ns", "session_flags", "worth"),
    [(SECOND, 0, True), (SECOND, lib.FUSE_DO_READDIRPLUS, False), (DAY, lib.FUSE_DO_READDIRPLUS, True)],
)
def test_a_listing_is_kept_while_nothing_changes(
    serve: Callable[..., Served], entry_ns: int, session_flags: int, worth: bool
) -> None:
    served = serve(entry_ns=entry_ns, session_flags=session_flags, settle_ns=1)
    flags = [served.client.opendir(ROOT).open_flags for _ in range(3)]
    assert flags == ([DIR, DIR | KEEP, DIR | KEEP] if worth else [0, 0, 0])
    before = served.root.stat().st_mtime_ns
    number = 0
    while served.root.stat().st_mtime_ns == before:
        (served.root / str(number)).touch()
        number += 1
    flags = [served.client.opendir(ROOT).open_flags for _ in range(2)]
    assert flags == ([DIR, DIR | KEEP] if worth else [0, 0])


def test_a_listing_that_may_change_unseen_is_not_kept(serve: Callable[..., Served]) -> None:
    served = serve()
    (served.root / "f").touch()
    assert [served.client.opendir(ROOT).open_flags for _ in range(3)] == [0, 0, 0]


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no tmpfs on /dev/shm")
def test_tmpfs_does_not_tell_of_stores_through_mappings() -> None:
    root = Path(tempfile.mkdtemp(dir="/dev/shm"))
    served = Served(root, settle_ns=1, session_flags=LOCKS)
    try:
        (root / "f").write_bytes(b"data")
        nodeid = served.client.lookup(ROOT, b"f").nodeid
        assert [served.client.open(nodeid).open_flags for _ in range(3)] == [0, 0, 0]
        assert [served.client.opendir(ROOT).open_flags for _ in range(2)] == [DIR, DIR | KEEP]
    finally:
        served.close()
        shutil.rmtree(root)


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("cache", [lib.CORE_CACHE_NEVER, lib.CORE_CACHE_AUTO, lib.CORE_CACHE_ALWAYS])
@pytest.mark.parametrize(
    ("session_flags", "needed"), [(0, False), (lib.FUSE_POSIX_LOCKS, True), (lib.FUSE_WRITEBACK_CACHE, True)]
)
def test_a_close_is_not_told_where_it_means_nothing(
    serve: Callable[..., Served], cache: int, session_flags: int, needed: bool
) -> None:
    client = serve(cache=cache, session_flags=session_flags).client
    entry, opened = client.create(ROOT, b"f")
    assert bool(opened.open_flags & lib.FOPEN_NOFLUSH) is not needed
    assert bool(client.open(entry.nodeid).open_flags & lib.FOPEN_NOFLUSH) is not needed
    assert not client.opendir(ROOT).open_flags & lib.FOPEN_NOFLUSH


def test_a_close_is_told_where_nobody_knows() -> None:
    """procfs, which is none of the file systems known to have nothing to say at a close."""
    served = Served(Path("/proc/self/fdinfo"))
    try:
        assert served.client.opendir(ROOT).open_flags == 0
        core_fd = os.open("/proc/self/fdinfo/0", os.O_RDONLY)
        assert lib.open_reply_flags(served.core, ROOT, core_fd, os.O_RDONLY, False) == 0
        os.close(core_fd)
    finally:
        served.close()


@pytest.mark.skipif(not REAL_ROOT, reason="only root may filter system calls and go on")
def test_a_flush_asks_close_where_it_may_say_something(serve: Callable[..., Served]) -> None:
    """Of a copy of the descriptor, which fcntl(2) makes."""
    told, untold = serve(), Served(Path("/proc/self/fdinfo"))
    entry, opened = told.client.create(ROOT, b"f")
    nodeid = untold.client.lookup(ROOT, b"%d" % untold.root_fd).nodeid
    fh = untold.client.open(nodeid).fh

    def flush() -> None:
        answer(FCNTL, EIO)
        told.client.flush(entry.nodeid, opened.fh)
        untold.client.flush(nodeid, fh, expect=EIO)

    try:
        in_thread(flush)
    finally:
        untold.close()


def test_names_that_are_not_there(serve: Callable[..., Served]) -> None:
    client = serve().client
    client.lookup(ROOT, b"none", expect=ENOENT)

    served = serve(negative_ns=3 * SECOND + 4)
    entry = served.client.lookup(ROOT, b"none")
    assert (entry.nodeid, entry.entry_valid, entry.entry_valid_nsec, entry.attr_valid) == (0, 3, 4, 0)
    assert lib.core_inode_count(served.core) == 1
    (served.root / "f").touch()
    nodeid = served.client.lookup(ROOT, b"f").nodeid
    assert nodeid
    # Other errors stay errors, and only LOOKUP has an answer for "none".
    served.client.lookup(ROOT, b"n" * 300, expect=36)
    served.client.lookup(nodeid, b"x", expect=20)
    served.client.lookup(12345, b"x", expect=116)
    served.client.create(ROOT + (7 << 32), b"x", expect=116)

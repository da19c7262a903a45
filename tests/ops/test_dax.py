"""SETUPMAPPING, REMOVEMAPPING, and what INIT and DESTROY ask of the window, up to the question that is asked."""

import errno
import os
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fuseclient import NO_HANDLE, ROOT, pack, unpack
from tests.ops.mount import ALL_FLAGS, Mount, share
from tests.sandbox.user import AS_ROOT
from vfsd._fuse import ffi, lib
from vfsd.door import OPS, Question, Request
from vfsd.ops.session import EMPTY, negotiated, wanted
from vfsd.settings import Settings

QUESTION = ffi.sizeof("struct window_question")
PAGE = 4096


class Window:
    """Stands for vfsd.asking.Asking, whose `padded` opens the file as it is."""

    def __init__(self) -> None:
        self.padded = self
        self.fails = 0
        self.opened: list[int] = []

    def open(self, fd: int) -> int:
        assert os.get_inheritable(fd) is False
        flags = os.O_RDWR | os.O_CLOEXEC
        if self.fails:
            raise OSError(self.fails, "no")
        self.opened.append(os.open(f"/proc/self/fd/{fd}", flags))
        return self.opened[-1]

    def close(self) -> None:
        for fd in self.opened:
            os.close(fd)


@pytest.fixture
def windowed(tmp_path: Path) -> Iterator[Mount]:
    """A mount whose core has a window."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    settings = Settings(privileged=os.geteuid() == 0, window=ours.fileno(), dax_policy="always")
    with share(tmp_path, settings) as mount:
        window = Window()
        mount.core.window = window  # type: ignore[assignment]
        yield mount
        window.close()
        mount.core.window = None
    ours.close()
    theirs.close()


def run(mount: Mount, opcode: int, nodeid: int, body: bytes) -> tuple[int, bytes]:
    """The op itself: what it answers, or asks."""
    result, reply = OPS[opcode].run(mount.core, Request(nodeid, 2, 0, 0, False, 0), body)
    return result, reply


def setup(mount: Mount, nodeid: int, fh: int = NO_HANDLE, write: bool = True) -> Any:
    """The struct window_question, or an errno."""
    flags = lib.FUSE_SETUPMAPPING_FLAG_READ | (lib.FUSE_SETUPMAPPING_FLAG_WRITE if write else 0)
    body = pack("fuse_setupmapping_in", fh=fh, foffset=2 * PAGE, len=PAGE, moffset=3 * PAGE, flags=flags)
    result, reply = run(mount, lib.FUSE_SETUPMAPPING, nodeid, body)
    if result < 0:
        return -result
    assert isinstance(reply, Question) and reply.reply == b"" and len(reply) == QUESTION
    return unpack("window_question", reply)


def node(mount: Mount, name: str = "f", mode: int = 0o644) -> int:
    (mount.root / name).write_bytes(b"data")
    (mount.root / name).chmod(mode)
    return int(mount.client.lookup(ROOT, name.encode()).nodeid)


def window(mount: Mount) -> Window:
    return mount.core.window  # type: ignore[return-value]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("write", [True, False])
@pytest.mark.parametrize("by", ["nodeid", "handle", "handle to read"])
def test_setup(windowed: Mount, by: str, write: bool) -> None:
    nodeid = node(windowed)
    flags = os.O_RDONLY if by == "handle to read" else os.O_RDWR
    fh = NO_HANDLE if by == "nodeid" else windowed.client.open(nodeid, flags).fh
    before = descriptors()
    question = setup(windowed, nodeid, fh, write)
    assert (question.kind, question.nodeid) == (lib.WINDOW_SETUP, nodeid)
    assert (question.file_offset, question.offset, question.length) == (2 * PAGE, 3 * PAGE, PAGE)
    assert descriptors() == before + 1, "one goes with the question"
    os.pwrite(question.fd, b"DATA", 0)
    assert (windowed.root / "f").read_bytes() == b"DATA", "it can be written through, whatever was asked"


def test_a_deleted_file(windowed: Mount) -> None:
    nodeid = node(windowed)
    fh = windowed.client.open(nodeid).fh
    windowed.client.unlink(ROOT, b"f")
    for how in (NO_HANDLE, fh):
        assert os.pread(setup(windowed, nodeid, how).fd, 4, 0) == b"data"


def test_what_can_not_be_mapped(windowed: Mount) -> None:
    nodeid, before = node(windowed), descriptors()
    assert setup(windowed, nodeid, 12345) == errno.EBADF
    assert setup(windowed, nodeid + 1) == errno.ESTALE
    assert setup(windowed, ROOT) == errno.EISDIR
    window(windowed).fails = errno.ENOTCONN
    assert setup(windowed, nodeid) == errno.ENOTCONN
    assert descriptors() == before


def test_a_directory_by_handle(windowed: Mount) -> None:
    assert setup(windowed, ROOT, windowed.client.opendir(ROOT).fh) == errno.EISDIR


def test_a_program_that_runs_on_the_host(windowed: Mount) -> None:
    shutil.copy("/bin/sleep", windowed.root / "sleep")
    nodeid = windowed.client.lookup(ROOT, b"sleep").nodeid
    with subprocess.Popen([windowed.root / "sleep", "100"]) as program:
        try:
            assert setup(windowed, nodeid, write=False) == errno.ETXTBSY
        finally:
            program.kill()


@pytest.mark.parametrize("by", ["nodeid", "handle"])
@pytest.mark.parametrize(
    ("write", "before", "after"),
    [(True, 0o6755, 0o755), (True, 0o4644, 0o644), (True, 0o2745, 0o2745), (False, 0o6755, 0o6755)],
)
def test_a_mapping_to_write_takes_privileges(windowed: Mount, by: str, write: bool, before: int, after: int) -> None:
    nodeid = node(windowed)
    fh = windowed.client.open(nodeid).fh if by == "handle" else NO_HANDLE
    (windowed.root / "f").chmod(before)
    setup(windowed, nodeid, fh, write)
    assert stat.S_IMODE((windowed.root / "f").stat().st_mode) == after


@pytest.mark.skipif(not AS_ROOT, reason="only root gives capabilities")
@pytest.mark.parametrize("write", [True, False])
def test_a_mapping_to_write_takes_capabilities(windowed: Mount, write: bool) -> None:
    nodeid, name = node(windowed), "security.capability"
    os.setxattr(windowed.root / "f", name, struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0))
    setup(windowed, nodeid, write=write)
    assert (name in os.listxattr(windowed.root / "f")) != write


def test_the_end_of_a_mapped_file_is_told(tmp_path: Path) -> None:
    """Whatever may be mapped: it is noted before anybody can have mapped it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with share(tmp_path, Settings(window=ours.fileno())) as mount:
        mount.core.window = fake = Window()  # type: ignore[assignment]
        nodeid = node(mount)
        setup(mount, nodeid)
        mount.client.forget(nodeid)
        told = unpack("window_question", theirs.recv(100))
        assert (told.token, told.kind, told.nodeid) == (0, lib.WINDOW_FORGET, nodeid)
        fake.close()
        mount.core.window = None
    ours.close()
    theirs.close()


def remove(mount: Mount, count: int, ranges: bytes) -> tuple[int, bytes]:
    return run(mount, lib.FUSE_REMOVEMAPPING, ROOT, pack("fuse_removemapping_in", count=count) + ranges)


@pytest.mark.parametrize("count", [0, 1, 3, 256, 8191])
def test_remove(windowed: Mount, count: int) -> None:
    ranges = b"".join(struct.pack("=QQ", number * PAGE, PAGE) for number in range(count))
    result, question = remove(windowed, count, ranges + b"more than announced")
    assert isinstance(question, Question) and result == len(question)
    head = unpack("window_question", question)
    assert (head.kind, head.fd) == (lib.WINDOW_REMOVE, -1)
    assert question[QUESTION:] == ranges


@pytest.mark.parametrize(("count", "size"), [(1, 0), (1, 15), (2, 16), (2, 31), (1 << 28, 16), (2**32 - 1, 1600)])
def test_fewer_ranges_than_announced(windowed: Mount, count: int, size: int) -> None:
    assert remove(windowed, count, bytes(size)) == (-errno.EINVAL, b"")


def test_arguments_that_are_cut(windowed: Mount) -> None:
    for opcode, size in ((lib.FUSE_SETUPMAPPING, 40), (lib.FUSE_REMOVEMAPPING, 4)):
        for length in (0, size - 1):
            windowed.client.call(opcode, ROOT, bytes(length), expect=errno.EINVAL)


def test_without_window(mount: Mount) -> None:
    nodeid = node(mount)
    (mount.root / "f").chmod(0o6755)
    mount.client.setupmapping(nodeid, 0, PAGE, 0, expect=errno.ENOSYS)
    mount.client.removemapping((0, PAGE), expect=errno.ENOSYS)
    assert stat.S_IMODE((mount.root / "f").stat().st_mode) == 0o6755


def test_a_question_without_a_ring_is_not_asked(windowed: Mount) -> None:
    """There is nobody to answer later."""
    windowed.client.setupmapping(node(windowed), 0, PAGE, 0, expect=errno.ENOSYS)


# The mount.


@pytest.mark.parametrize(
    ("window", "policy", "flags"),
    [
        (-1, "auto", 0),
        (-1, "always", 0),
        (0, "auto", lib.FUSE_MAP_ALIGNMENT | lib.FUSE_HAS_INODE_DAX),
        (0, "always", lib.FUSE_MAP_ALIGNMENT | lib.FUSE_HAS_INODE_DAX),
        (0, "never", lib.FUSE_MAP_ALIGNMENT),
    ],
)
def test_flags(window: int, policy: str, flags: int) -> None:
    both = lib.FUSE_MAP_ALIGNMENT | lib.FUSE_HAS_INODE_DAX
    settings = Settings(window=window, dax_policy=policy)
    assert wanted(settings) & both == flags
    assert negotiated(settings, 0) & both == 0
    assert negotiated(settings, lib.FUSE_MAP_ALIGNMENT) & both == flags & lib.FUSE_MAP_ALIGNMENT


@pytest.mark.parametrize("window", [True, False])
def test_alignment(tmp_path: Path, window: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with share(tmp_path, Settings(window=ours.fileno() if window else -1, dax_policy="auto"), init=False) as mount:
        out = mount.client.init(minor=45, flags=ALL_FLAGS)
        assert out.map_alignment == (12 if window else 0)
        out = mount.client.init(minor=45, flags=0)
        assert out.map_alignment == 0
    ours.close()
    theirs.close()


def test_a_mount_begins_and_ends_with_an_empty_window(windowed: Mount) -> None:
    body = pack("fuse_init_in", major=7, minor=45, flags=lib.FUSE_MAP_ALIGNMENT)
    _, question = OPS[lib.FUSE_INIT].run(windowed.core, Request(0, 2, 0, 0, False, 64), body)
    assert isinstance(question, Question) and question == EMPTY
    assert unpack("fuse_init_out", question.reply).map_alignment == 12
    _, question = OPS[lib.FUSE_DESTROY].run(windowed.core, Request(0, 4, 0, 0, False, 0), b"")
    assert isinstance(question, Question) and (question, question.reply) == (EMPTY, b"")
    head = unpack("window_question", question)
    assert (head.kind, head.fd) == (lib.WINDOW_EMPTY, -1)


def test_an_init_that_is_refused_empties_nothing(windowed: Mount) -> None:
    for major, minor in ((8, 0), (7, 30), (6, 99)):
        body = pack("fuse_init_in", major=major, minor=minor)
        _, reply = OPS[lib.FUSE_INIT].run(windowed.core, Request(0, 2, 0, 0, False, 64), body)
        assert not isinstance(reply, Question)

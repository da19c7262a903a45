"""IOCTL: inode flags, and nothing else."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuseclient import ROOT
from tests.ops.mount import Mount, share
from vfsd._fuse import lib
from vfsd._process import lib as process
from vfsd.capabilities import effective, mask
from vfsd.ops.ioctl import COMPAT, FSGETXATTR, FSSETXATTR, GETFLAGS, PROJINHERIT_FL, SETFLAGS
from vfsd.settings import Settings

NODUMP = 0x40
XFLAG_NODUMP = 0x80
GETFLAGS32, SETFLAGS32 = COMPAT


def host_flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return struct.unpack("=I", fcntl.ioctl(fd, GETFLAGS, bytes(4)))[0]  # type: ignore[no-any-return]
    finally:
        os.close(fd)


@pytest.fixture
def file(mount: Mount) -> tuple[int, int]:
    """nodeid and fh of a file where the host knows inode flags."""
    path = mount.root / "f"
    path.touch()
    try:
        host_flags(path)
    except OSError:
        pytest.skip("no inode flags on this file system")
    nodeid = mount.client.lookup(ROOT, b"f").nodeid
    return nodeid, mount.client.open(nodeid).fh


def flags_of(mount: Mount, nodeid: int, fh: int, command: int = GETFLAGS) -> int:
    return struct.unpack("=I", mount.client.ioctl(nodeid, fh, command, room=4))[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("get", "put"), [(GETFLAGS, SETFLAGS), (GETFLAGS32, SETFLAGS32)])
def test_flags(mount: Mount, file: tuple[int, int], get: int, put: int) -> None:
    path, client = mount.root / "f", mount.client
    before = flags_of(mount, *file, get)
    assert before == host_flags(path)
    assert client.ioctl(*file, put, struct.pack("=I", before | NODUMP)) == b""
    assert host_flags(path) == before | NODUMP == flags_of(mount, *file, get)
    client.ioctl(*file, put, struct.pack("=I", before))
    assert host_flags(path) == before


def test_an_old_guest_has_room_for_a_long(mount: Mount, file: tuple[int, int]) -> None:
    """Linux before 5.13 decodes the number, which says long; an int is what the host's own ioctl writes."""
    assert len(mount.client.ioctl(*file, GETFLAGS, room=8)) == 4
    before = struct.unpack("=I", mount.client.ioctl(*file, GETFLAGS, room=8))[0]
    mount.client.ioctl(*file, SETFLAGS, struct.pack("=Q", before))


def test_extended_flags(mount: Mount, file: tuple[int, int]) -> None:
    client = mount.client
    before = client.ioctl(*file, FSGETXATTR, room=28)
    xflags, *rest = struct.unpack("=IIIII8s", before)
    client.ioctl(*file, FSSETXATTR, struct.pack("=IIIII8s", xflags | XFLAG_NODUMP, *rest))
    assert struct.unpack_from("=I", client.ioctl(*file, FSGETXATTR, room=28))[0] == xflags | XFLAG_NODUMP
    assert host_flags(mount.root / "f") & NODUMP
    client.ioctl(*file, FSSETXATTR, before)


def test_a_directory_has_flags(mount: Mount, file: tuple[int, int]) -> None:
    fh = mount.client.opendir(ROOT).fh
    flags = mount.client.ioctl(ROOT, fh, GETFLAGS, room=4, flags=lib.FUSE_IOCTL_DIR)
    assert struct.unpack("=I", flags)[0] == host_flags(mount.root)


def test_projects_are_the_hosts(mount: Mount, file: tuple[int, int]) -> None:
    client = mount.client
    before = flags_of(mount, *file)
    client.ioctl(*file, SETFLAGS, struct.pack("=I", before | PROJINHERIT_FL), expect=errno.EPERM)
    xflags, extsize, nextents, projid, cow, pad = struct.unpack("=IIIII8s", client.ioctl(*file, FSGETXATTR, room=28))
    for changed in ((xflags, projid + 1), (xflags | 0x200, projid)):
        given = struct.pack("=IIIII8s", changed[0], extsize, nextents, changed[1], cow, pad)
        client.ioctl(*file, FSSETXATTR, given, expect=errno.EPERM)
    assert flags_of(mount, *file) == before


@pytest.fixture
def mutable_only() -> Iterator[None]:
    """As in the sandbox: this thread has no CAP_LINUX_IMMUTABLE."""
    had = effective()
    assert process.process_set_capabilities(had & ~mask("linux_immutable"), had, 0) == 0
    yield
    assert process.process_set_capabilities(had, had, 0) == 0


@pytest.mark.usefixtures("mutable_only")
@pytest.mark.parametrize(("flag", "xflag"), [(0x10, 0x08), (0x20, 0x10)], ids=["immutable", "append only"])
def test_what_takes_a_capability_is_not_supported(mount: Mount, file: tuple[int, int], flag: int, xflag: int) -> None:
    """And not: not permitted. The guest's kernel has permitted it."""
    client = mount.client
    before = flags_of(mount, *file)
    client.ioctl(*file, SETFLAGS, struct.pack("=I", before | flag), expect=errno.EOPNOTSUPP)
    xflags, *rest = struct.unpack("=IIIII8s", client.ioctl(*file, FSGETXATTR, room=28))
    client.ioctl(*file, FSSETXATTR, struct.pack("=IIIII8s", xflags | xflag, *rest), expect=errno.EOPNOTSUPP)
    assert flags_of(mount, *file) == before


@pytest.mark.parametrize("command", [0, 0x5401, 0x80047601, 0xC0185879, 0x40049409, 0xFFFFFFFF])
def test_other_ioctls_are_not_passed_on(mount: Mount, file: tuple[int, int], command: int) -> None:
    """TCGETS, FS_IOC_GETVERSION, FITRIM, FICLONE; and FIONREAD's like would read the argument as a pointer."""
    mount.client.ioctl(*file, command, bytes(64), room=64, expect=errno.ENOTTY)


def test_requests_that_make_no_sense(mount: Mount, file: tuple[int, int]) -> None:
    client, (nodeid, fh) = mount.client, file
    client.ioctl(nodeid, fh, GETFLAGS, room=3, expect=errno.EINVAL)
    client.ioctl(nodeid, fh, SETFLAGS, b"abc", expect=errno.EINVAL)
    client.ioctl(nodeid, fh, FSGETXATTR, room=27, expect=errno.EINVAL)
    client.ioctl(nodeid, fh, FSSETXATTR, bytes(27), expect=errno.EINVAL)
    client.ioctl(nodeid, fh + 1, GETFLAGS, room=4, expect=errno.EBADF)
    client.ioctl(nodeid, fh, GETFLAGS, room=4, flags=lib.FUSE_IOCTL_UNRESTRICTED, expect=errno.ENOTTY)
    for opcode_body in (b"", bytes(8), bytes(31)):
        assert client.call(lib.FUSE_IOCTL, nodeid, opcode_body, room=64, expect=errno.EINVAL) is None


def test_a_read_only_share_shows_flags_and_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    try:
        before = host_flags(tmp_path / "f")
    except OSError:
        pytest.skip("no inode flags on this file system")
    with share(tmp_path, Settings(readonly=True)) as mount:
        nodeid = mount.client.lookup(ROOT, b"f").nodeid
        fh = mount.client.open(nodeid).fh
        assert flags_of(mount, nodeid, fh) == before
        mount.client.ioctl(nodeid, fh, SETFLAGS, struct.pack("=I", before), expect=errno.EROFS)
        mount.client.ioctl(nodeid, fh, FSSETXATTR, bytes(28), expect=errno.EROFS)

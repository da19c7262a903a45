"""POSIX ACLs: what is negotiated for them, umasks, and what setting one does to the mode."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.acl import ACCESS, DEFAULT, acl
from tests.fuseclient import ROOT, FuseClient
from tests.ops.mount import ALL_FLAGS, Mount, share
from vfsd._fuse import lib
from vfsd.settings import Settings

NEEDED = lib.FUSE_POSIX_ACL | lib.FUSE_DONT_MASK | lib.FUSE_SETXATTR_EXT
MODES = (0o777, 0o666, 0o640, 0o2775, 0o000)
UMASKS = (0, 0o022, 0o077, 0o777, 0o7777)
#: A directory's default ACL; "": none.
DEFAULTS = ("", "u::rwx,g::rwx,o::rwx", "u::rwx,g::r-x,o::---", "u::rw-,u:1234:rwx,g::r-x,m::rw-,o::--x")


@pytest.fixture
def acls(tmp_path: Path) -> Iterator[Mount]:
    """A mount on which the guest enforces ACLs."""
    with share(tmp_path, Settings(xattr=True, posix_acl="auto", privileged=os.geteuid() == 0)) as mount:
        assert mount.core.session.flags & NEEDED == NEEDED
        yield mount


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def make(client: FuseClient, parent: int, mode: int, umask: int) -> None:
    client.mkdir(parent, b"dir", mode, umask)
    client.mknod(parent, b"fifo", stat.S_IFIFO | mode, umask=umask)
    client.mknod(parent, b"file", stat.S_IFREG | mode, umask=umask)
    client.create(parent, b"created", mode=mode, umask=umask)
    entry, _ = client.tmpfile(parent, mode=mode, umask=umask)
    client.link(entry.nodeid, parent, b"tmpfile")


def make_natively(parent: Path, mode: int, umask: int) -> None:
    os.umask(umask)
    os.mkdir(parent / "dir", mode)
    os.mkfifo(parent / "fifo", mode)
    os.mknod(parent / "file", mode | stat.S_IFREG)
    os.close(os.open(parent / "created", os.O_RDWR | os.O_CREAT | os.O_EXCL, mode))
    fd, directory = os.open(parent, os.O_RDWR | os.O_TMPFILE, mode), os.open(parent, os.O_PATH)
    os.link(f"/proc/self/fd/{fd}", "tmpfile", dst_dir_fd=directory, follow_symlinks=True)
    os.close(fd)
    os.close(directory)
    os.umask(0)


@pytest.mark.parametrize("default", DEFAULTS)
def test_umasks_and_default_acls(acls: Mount, tmp_path_factory: pytest.TempPathFactory, default: str) -> None:
    """What is made has the mode and the ACLs that the host's own calls give it."""
    native = tmp_path_factory.mktemp("native")
    for number, (mode, umask) in enumerate((mode, umask) for mode in MODES for umask in UMASKS):
        here, there = acls.root / str(number), native / str(number)
        for directory in (here, there):
            directory.mkdir()
            if default:
                os.setxattr(directory, DEFAULT, acl(default))
        make(acls.client, acls.client.lookup(ROOT, here.name.encode()).nodeid, mode, umask)
        make_natively(there, mode, umask)
        for name in ("dir", "fifo", "file", "created", "tmpfile"):
            assert mode_of(here / name) == mode_of(there / name), (name, oct(mode), oct(umask))
            assert attributes(here / name) == attributes(there / name), (name, oct(mode), oct(umask))


def attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in (ACCESS, DEFAULT) if name in os.listxattr(path)}


def test_a_umask_that_the_guest_has_applied(mount: Mount) -> None:
    """Without FUSE_DONT_MASK the mode is what it is."""
    assert not mount.core.session.flags & lib.FUSE_DONT_MASK
    make(mount.client, ROOT, 0o777, 0o077)
    assert {mode_of(path) for path in mount.root.iterdir()} == {0o777}


def test_the_umask_of_a_file_that_is_there(acls: Mount) -> None:
    (acls.root / "f").touch()
    (acls.root / "f").chmod(0o666)
    acls.client.create(ROOT, b"f", flags=os.O_RDWR, mode=0o600, umask=0o077)
    assert mode_of(acls.root / "f") == 0o666
    acls.client.mkdir(99, b"d", 0o777, 0o022, expect=errno.ESTALE)


def test_made_twice(acls: Mount) -> None:
    for client in (acls.client, acls.replayed):
        client.mkdir(ROOT, b"d", 0o777, 0o027)
    assert mode_of(acls.root / "d") == 0o750


def test_acls_are_attributes(acls: Mount) -> None:
    (acls.root / "f").touch(0o640)
    (acls.root / "d").mkdir()
    client = acls.client
    file, directory = (client.lookup(ROOT, name).nodeid for name in (b"f", b"d"))
    value = acl("u::rw-,u:1234:r--,g::r--,m::rw-,o::---")
    client.setxattr(file, ACCESS.encode(), value)
    assert client.getxattr(file, ACCESS.encode()) == os.getxattr(acls.root / "f", ACCESS) == value
    assert client.listxattr(file) == ACCESS.encode() + b"\0"
    assert client.getattr(file).attr.mode & 0o777 == 0o660
    # A new mode changes the mask.
    client.setattr(file, mode=0o640)
    assert client.getxattr(file, ACCESS.encode()) == acl("u::rw-,u:1234:r--,g::r--,m::r--,o::---")
    client.setxattr(directory, DEFAULT.encode(), value)
    assert client.getxattr(directory, DEFAULT.encode()) == value
    client.removexattr(file, ACCESS.encode())
    client.getxattr(file, ACCESS.encode(), expect=errno.ENODATA)
    # One that says no more than the mode is a mode.
    client.setxattr(file, ACCESS.encode(), acl("u::rw-,g::---,o::---"))
    assert client.listxattr(file) == b"" and client.getattr(file).attr.mode & 0o777 == 0o600
    client.setxattr(file, DEFAULT.encode(), value, expect=errno.EACCES)
    client.setxattr(file, ACCESS.encode(), value[:-1], expect=errno.EINVAL)


@pytest.mark.parametrize("name", [ACCESS, DEFAULT])
@pytest.mark.parametrize("kill", [0, lib.FUSE_SETXATTR_ACL_KILL_SGID])
def test_sgid_of_a_file_whose_acl_is_set(acls: Mount, name: str, kill: int) -> None:
    """It goes when the guest says so: its caller is not of the group. Of a default ACL it says so too, in vain."""
    directory = acls.root / "d"
    directory.mkdir()
    directory.chmod(0o2770)
    nodeid = acls.client.lookup(ROOT, b"d").nodeid
    acls.client.setxattr(nodeid, name.encode(), acl("u::rwx,u:1:rwx,g::rwx,m::rwx,o::---"), setxattr_flags=kill)
    assert mode_of(directory) == (0o770 if kill and name == ACCESS else 0o2770)
    os.setxattr(directory, "user.a", b"")
    directory.chmod(0o2770)
    acls.client.setxattr(nodeid, b"user.a", b"x", setxattr_flags=kill)
    assert mode_of(directory) == 0o2770


@pytest.mark.parametrize("lacking", [lib.FUSE_POSIX_ACL, lib.FUSE_DONT_MASK, lib.FUSE_SETXATTR_EXT])
def test_a_guest_that_does_not_offer_them(tmp_path: Path, lacking: int, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "f").touch()
    for mode in ("never", "auto"):
        with share(tmp_path, Settings(xattr=True, posix_acl=mode), init=False) as mount:
            mount.client.init(minor=45, flags=ALL_FLAGS & ~lacking)
            assert not mount.core.session.flags & (lib.FUSE_POSIX_ACL | lib.FUSE_DONT_MASK)
            nodeid = mount.client.lookup(ROOT, b"f").nodeid
            mount.client.getxattr(nodeid, ACCESS.encode(), expect=errno.EOPNOTSUPP)
    with share(tmp_path, Settings(xattr=True, posix_acl="always"), init=False) as mount:
        mount.client.init(minor=45, flags=ALL_FLAGS & ~lacking, expect=errno.EPROTO)
        assert "--posix-acl=always" in caplog.text
        caplog.clear()
        mount.client.lookup(ROOT, b"f", expect=errno.EIO)
        mount.client.init(minor=45, flags=ALL_FLAGS)
        assert mount.core.session.flags & NEEDED == NEEDED

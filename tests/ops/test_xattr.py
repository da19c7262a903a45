"""Extended attributes: what the conformance list can't say."""

import errno
import os
import struct
from pathlib import Path

import pytest

from tests.fuseclient import ROOT, pack
from tests.ops.mount import Mount, share
from vfsd._fuse import lib
from vfsd.settings import Settings
from vfsd.xattrmap import XattrMap


def test_off_is_enosys(tmp_path: Path) -> None:
    """So that the guest's kernel never asks again."""
    (tmp_path / "f").touch()
    with share(tmp_path, Settings()) as mount:
        nodeid = mount.client.lookup(ROOT, b"f").nodeid
        mount.client.getxattr(nodeid, b"user.a", expect=errno.ENOSYS)
        mount.client.listxattr(nodeid, expect=errno.ENOSYS)
        mount.client.setxattr(nodeid, b"user.a", b"x", expect=errno.ENOSYS)
        mount.client.removexattr(nodeid, b"user.a", expect=errno.ENOSYS)


def test_old_guests_send_a_shorter_struct(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with share(tmp_path, Settings(xattr=True), init=False) as mount:
        mount.client.init(minor=31)
        assert not mount.client.setxattr_ext
        mount.client.setxattr(mount.client.lookup(ROOT, b"f").nodeid, b"user.a", b"value")
    assert os.getxattr(tmp_path / "f", "user.a") == b"value"


def test_values_are_as_long_as_they_say(mount: Mount) -> None:
    (mount.root / "f").touch()
    nodeid = mount.client.lookup(ROOT, b"f").nodeid
    for size, body, expect in (
        (3, b"user.a\0valu", 0),
        (5, b"user.a\0valu", errno.EINVAL),
        (0, b"user.b\0", 0),
        (0, b"\0", errno.EINVAL),
        (0, b"", errno.EINVAL),
        (0, b"user.a", errno.EINVAL),
    ):
        arg = pack("fuse_setxattr_in", size=size)
        mount.client.call(lib.FUSE_SETXATTR, nodeid, arg, body, expect=expect)
    assert os.getxattr(mount.root / "f", "user.a") == b"val"
    mount.client.setxattr(nodeid, b"user.a", b"x", flags=0x80000000, expect=errno.EINVAL)


def test_served_twice(mount: Mount) -> None:
    (mount.root / "f").touch()
    client, again = mount.client, mount.replayed
    again.setxattr_ext = client.setxattr_ext
    nodeid = client.lookup(ROOT, b"f").nodeid
    client.setxattr(nodeid, b"user.a", b"value", flags=os.XATTR_CREATE)
    again.setxattr(nodeid, b"user.a", b"value", flags=os.XATTR_CREATE)
    mount.unfinished().setxattr(nodeid, b"user.a", b"value", flags=os.XATTR_CREATE)
    for each in (client, again, mount):
        each = mount.unfinished() if each is mount else each
        each.setxattr(nodeid, b"user.a", b"value", flags=os.XATTR_CREATE, expect=errno.EEXIST)
    client.removexattr(nodeid, b"user.a")
    again.removexattr(nodeid, b"user.a")
    mount.unfinished().removexattr(nodeid, b"user.a")
    client.removexattr(nodeid, b"user.a", expect=errno.ENODATA)
    mount.unfinished().removexattr(nodeid, b"user.a", expect=errno.ENODATA)
    again.setxattr(nodeid, b"user.a", b"value", flags=os.XATTR_REPLACE, expect=errno.ENODATA)
    again.removexattr(99, b"user.a", expect=errno.ESTALE)


@pytest.mark.parametrize("name", [b"system.posix_acl_access", b"system.posix_acl_default"])
def test_acls_are_not_there(mount: Mount, name: bytes) -> None:
    """The guest judges by modes alone: an ACL it doesn't see it doesn't enforce."""
    (mount.root / "f").touch()
    nodeid = mount.client.lookup(ROOT, b"f").nodeid
    mount.client.getxattr(nodeid, name, expect=errno.EOPNOTSUPP)
    mount.client.setxattr(nodeid, name, b"x", expect=errno.EOPNOTSUPP)
    mount.client.removexattr(nodeid, name, expect=errno.EOPNOTSUPP)
    # struct posix_acl_xattr_header and _entry: tag, permissions, id. u::rw- u:1234:r-- g::r-- m::r-- o::---
    entries = ((1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(mount.root / "f", "system.posix_acl_access", acl)
    assert b"acl" not in mount.client.listxattr(nodeid)


def test_whatever_type_has_them(mount: Mount) -> None:
    """By the inode, not by a name: nothing is opened, a symlink isn't followed, an unlinked file still has its own."""
    os.mkfifo(mount.root / "fifo")
    (mount.root / "link").symlink_to("/etc/passwd")
    (mount.root / "gone").touch()
    nodes = {name: mount.client.lookup(ROOT, name).nodeid for name in (b"fifo", b"link", b"gone")}
    (mount.root / "gone").unlink()
    mount.client.setxattr(nodes[b"gone"], b"user.a", b"kept")
    assert mount.client.getxattr(nodes[b"gone"], b"user.a") == b"kept"
    mount.client.setxattr(nodes[b"fifo"], b"user.a", b"x", expect=errno.EPERM)
    mount.client.setxattr(nodes[b"link"], b"user.a", b"x", expect=errno.EPERM)
    for nodeid in nodes.values():
        mount.client.listxattr(nodeid)
    mount.client.getxattr(99, b"user.a", expect=errno.ESTALE)


def test_names_are_mapped(tmp_path: Path) -> None:
    """In both directions, by each of the four ops; a value is the guest's under whatever name."""
    (tmp_path / "f").touch()
    os.setxattr(tmp_path / "f", "user.host", b"own")
    os.setxattr(tmp_path / "f", "user.virtiofs.security.selinux", b"label")
    xattrmap = XattrMap.parse("/map/security./user.virtiofs./")
    with share(tmp_path, Settings(xattr=True, xattrmap=xattrmap)) as mount:
        client, nodeid = mount.client, mount.client.lookup(ROOT, b"f").nodeid
        assert client.getxattr(nodeid, b"security.selinux") == b"label"
        client.setxattr(nodeid, b"security.capability", b"not looked at")
        assert os.getxattr(tmp_path / "f", "user.virtiofs.security.capability") == b"not looked at"
        assert set(client.listxattr(nodeid).split(b"\0")) == {
            b"security.selinux", b"security.capability", b"user.host", b"",
        }  # fmt: skip
        assert client.listxattr(nodeid, size=0) == len(client.listxattr(nodeid))
        client.removexattr(nodeid, b"security.selinux")
        client.getxattr(nodeid, b"security.selinux", expect=errno.ENODATA)
        for name in (b"user.virtiofs.security.capability", b"user.virtiofs.x"):
            client.getxattr(nodeid, name, expect=errno.EPERM)
            client.setxattr(nodeid, name, b"x", expect=errno.EPERM)
            client.removexattr(nodeid, name, expect=errno.EPERM)
    assert set(os.listxattr(tmp_path / "f")) == {"user.host", "user.virtiofs.security.capability"}


def test_names_that_rules_refuse(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    os.setxattr(tmp_path / "f", "user.hidden", b"x")
    os.setxattr(tmp_path / "f", "user.shown", b"x")
    xattrmap = XattrMap.parse(":unsupported:all:user.h:user.h: :bad:all:user.b:user.b: :ok:all:::")
    with share(tmp_path, Settings(xattr=True, xattrmap=xattrmap)) as mount:
        client, nodeid = mount.client, mount.client.lookup(ROOT, b"f").nodeid
        client.getxattr(nodeid, b"user.hidden", expect=errno.EOPNOTSUPP)
        client.setxattr(nodeid, b"user.bad", b"", expect=errno.EPERM)
        assert client.listxattr(nodeid) == b"user.shown\0"


def test_a_mapped_value_served_twice(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with share(tmp_path, Settings(xattr=True, xattrmap=XattrMap.parse(":map::user.virtiofs.:"))) as mount:
        client, again = mount.client, mount.replayed
        again.setxattr_ext = client.setxattr_ext
        nodeid = client.lookup(ROOT, b"f").nodeid
        for each in (client, again):
            each.setxattr(nodeid, b"trusted.a", b"value", flags=os.XATTR_CREATE)
        for each in (client, again):
            each.removexattr(nodeid, b"trusted.a")
    assert os.listxattr(tmp_path / "f") == []

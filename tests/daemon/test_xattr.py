"""Extended attributes as a daemon offers them: by itself, by force, under other names, or not at all."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, guest
from tests.fuseclient import ROOT
from tests.ops.mount import ALL_FLAGS
from tests.sandbox.user import AS_ROOT, UID, as_user
from vfsd._fuse import lib

#: A file system without extended attributes in the place of the share.
WITHOUT = ["unshare", "-m", "sh", "-c", 'mount -t ramfs none "$0" && touch "$0/hello" && exec "$@"']


def listed(daemon: Daemon) -> int:
    """The errno of LISTXATTR on a file."""
    with guest(daemon) as (_, client):
        try:
            client.listxattr(client.lookup(ROOT, b"hello").nodeid)
        except OSError as error:
            return error.errno or 0
    return 0


def test_on_where_the_share_has_them(start: Callable[..., Daemon], share: Path) -> None:
    os.setxattr(share / "hello", "user.a", b"value")
    with guest(start()) as (_, client):
        nodeid = client.lookup(ROOT, b"hello").nodeid
        assert client.getxattr(nodeid, b"user.a") == b"value"
        client.setxattr(nodeid, b"user.b", b"of the guest")
    assert os.getxattr(share / "hello", "user.b") == b"of the guest"


@pytest.mark.parametrize("option", ["--no-xattr", "-ono_xattr"])
def test_off(start: Callable[..., Daemon], option: str) -> None:
    assert listed(start(option)) == errno.ENOSYS


@pytest.mark.skipif(not AS_ROOT, reason="only root mounts")
@pytest.mark.parametrize(("options", "expected"), [([], errno.ENOSYS), (["--xattr"], 0)])
def test_a_share_without_them(
    start: Callable[..., Daemon], share: Path, options: list[str], expected: int
) -> None:
    """Nothing is offered, unless it is asked for: then the host answers, for what is mounted below too."""
    daemon = start("--sandbox=none", *options, prefix=[*WITHOUT, str(share)])
    assert listed(daemon) == expected


def test_names_are_mapped(start: Callable[..., Daemon], share: Path) -> None:
    with guest(start("--xattrmap=:map::user.virtiofs.:")) as (_, client):
        nodeid = client.lookup(ROOT, b"hello").nodeid
        client.setxattr(nodeid, b"trusted.overlay.opaque", b"y")
        assert client.listxattr(nodeid) == b"trusted.overlay.opaque\0"
    assert os.listxattr(share / "hello") == ["user.virtiofs.trusted.overlay.opaque"]


#: Options, and which of POSIX ACLs and labels they come to, on a share that has ACLs and a host without SELinux.
OFFERED = [
    ([], 0),
    (["--posix-acl=auto"], lib.FUSE_POSIX_ACL),
    (["--posix-acl=auto", "--no-xattr"], 0),
    (["--posix-acl"], lib.FUSE_POSIX_ACL),
    (["--security-label=auto", "--xattrmap=selinux"], lib.FUSE_SECURITY_CTX),
    (["--security-label=auto", "--xattrmap=:map::nonsense.:"], 0),
    (["--security-label=auto", "--no-xattr"], 0),
    (["--security-label", "--xattrmap=selinux"], lib.FUSE_SECURITY_CTX),
]


@pytest.mark.parametrize(("options", "expected"), OFFERED, ids=[" ".join(row[0]) for row in OFFERED])
def test_what_is_offered(start: Callable[..., Daemon], options: list[str], expected: int) -> None:
    with guest(start(*options), init=False) as (_, client):
        out = client.init(minor=45, flags=ALL_FLAGS)
        assert (out.flags2 << 32 | out.flags) & (lib.FUSE_POSIX_ACL | lib.FUSE_SECURITY_CTX) == expected


@pytest.mark.skipif(not AS_ROOT, reason="only root mounts")
def test_acls_that_the_share_does_not_have(start: Callable[..., Daemon], share: Path) -> None:
    """auto does without; what is asked for by always is offered, as virtiofsd does, and the log says what to expect."""
    daemon = start("--sandbox=none", "--posix-acl=always", prefix=[*WITHOUT, str(share)])
    with guest(daemon, init=False) as (_, client):
        client.init(minor=45, flags=ALL_FLAGS)
        acl = b"system.posix_acl_access"
        client.getxattr(client.lookup(ROOT, b"hello").nodeid, acl, expect=errno.EOPNOTSUPP)
    assert "--posix-acl=always" in daemon.log and "without POSIX ACLs" in daemon.log


def test_labels(start: Callable[..., Daemon], share: Path) -> None:
    with guest(start("--security-label=auto", "--xattrmap=selinux"), init=False) as (_, client):
        client.init(minor=45, flags=ALL_FLAGS)
        client.labels = [(b"security.selinux", b"label\0")]
        client.create(ROOT, b"made")
        client.symlink(ROOT, b"link", b"made")
        assert client.getxattr(client.lookup(ROOT, b"made").nodeid, b"security.selinux") == b"label\0"
    assert os.getxattr(share / "made", "user.virtiofs.security.selinux") == b"label\0"


@pytest.mark.parametrize("mode", ["none", "namespace"])
def test_what_overlayfs_needs_of_an_ordinary_user(
    start: Callable[..., Daemon], share: Path, tmp_path: Path, mode: str
) -> None:
    """Whiteouts, made and left behind, and attributes of its own: nothing of it takes privilege."""
    prefix = as_user(tmp_path, False)
    if AS_ROOT:
        for path in (share, share / "hello"):
            os.chown(path, UID, UID)
    with guest(start(f"--sandbox={mode}", "--xattrmap=overlay", prefix=prefix)) as (_, client):
        whiteout = client.mknod(ROOT, b"gone", stat.S_IFCHR, 0)
        assert (whiteout.attr.mode & 0o170000, whiteout.attr.rdev) == (stat.S_IFCHR, 0)
        client.rename2(ROOT, b"hello", ROOT, b"moved", flags=4)
        client.setxattr(client.mkdir(ROOT, b"d").nodeid, b"trusted.overlay.opaque", b"y")
        client.tmpfile(ROOT)
    for name in ("gone", "hello"):
        assert stat.S_ISCHR((share / name).lstat().st_mode) and (share / name).lstat().st_rdev == 0
    assert os.getxattr(share / "d", "user.virtiofs.trusted.overlay.opaque") == b"y"

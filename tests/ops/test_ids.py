"""Translated ids in the ops that Python serves: what is set, and what is shown."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from errno import EACCES, EINVAL, EPERM
from pathlib import Path
from stat import S_IFCHR

import pytest

from tests.core.test_cred import owner
from tests.fuseclient import ROOT
from tests.ops.mount import Mount, share
from vfsd._fuse import lib
from vfsd.settings import Settings
from vfsd.translate import Owner, rule, tables

NOBODY = 2**32 - 1
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change owners")


@pytest.fixture
def translated(tmp_path: Path) -> Iterator[Callable[..., Mount]]:
    with ExitStack() as stack:

        def make(*rules: str, one: Owner | None = None) -> Mount:
            found = [rule(text) for text in rules]
            ids = tables(found, found, one, Owner(os.geteuid(), os.getegid()))
            return stack.enter_context(share(tmp_path, Settings(xattr=True, privileged=os.geteuid() == 0, ids=ids)))

        yield make


@as_root
def test_chown(translated: Callable[..., Mount]) -> None:
    mount = translated("map:0:1000:10", "forbid-guest:20:1")
    mount.root.chmod(0o777)
    client, path = mount.client, mount.root / "f"
    nodeid = client.create(ROOT, b"f")[0].nodeid
    assert owner(path) == (1000, 1000)
    got = client.setattr(nodeid, uid=5, gid=30).attr
    assert (got.uid, got.gid) == (5, 30) and owner(path) == (1005, 30)
    got = client.setattr(nodeid, gid=9).attr
    assert (got.uid, got.gid) == (5, 9) and owner(path) == (1005, 1009)
    client.setattr(nodeid, uid=20, expect=EPERM)
    client.setattr(nodeid, gid=20, expect=EPERM)
    client.setattr(nodeid, uid=NOBODY, expect=EINVAL)
    assert owner(path) == (1005, 1009)


@as_root
def test_the_guests_root_makes_devices(translated: Callable[..., Mount]) -> None:
    mount = translated("map:0:1000:10")
    mount.root.chmod(0o755)
    client = mount.client
    client.mknod(ROOT, b"null", S_IFCHR | 0o666, os.makedev(1, 3))
    assert owner(mount.root / "null") == (1000, 1000)
    mount.root.chmod(0o777)
    client.uid = 1
    client.mknod(ROOT, b"zero", S_IFCHR | 0o666, os.makedev(1, 5), expect=EPERM)


@as_root
def test_statx_and_access_go_by_the_guests_ids(translated: Callable[..., Mount]) -> None:
    mount = translated("map:0:1000:10")
    (mount.root / "f").touch()
    (mount.root / "f").chmod(0o640)
    os.chown(mount.root / "f", 1003, 1004)
    client = mount.client
    nodeid = client.lookup(ROOT, b"f").nodeid
    got = client.statx(nodeid).stat
    assert (got.uid, got.gid) == (3, 4)
    client.uid = 3
    client.access(nodeid, os.R_OK | os.W_OK)
    client.uid, client.gid = 1003, 4
    client.access(nodeid, os.R_OK)
    client.access(nodeid, os.W_OK, expect=EACCES)
    client.gid = 1004
    client.access(nodeid, os.R_OK, expect=EACCES)


def test_one_owner_can_only_be_confirmed(translated: Callable[..., Mount]) -> None:
    mount = translated(one=Owner(4321, 4322))
    client, path = mount.client, mount.root / "f"
    client.uid = client.gid = 4321
    nodeid = client.create(ROOT, b"f")[0].nodeid
    before = owner(path)
    got = client.setattr(nodeid, uid=4321, gid=4322).attr
    assert (got.uid, got.gid) == (4321, 4322)
    for fields in ({"uid": 0}, {"uid": 4321, "gid": 0}, {"gid": 4321}, {"uid": os.geteuid(), "gid": os.getegid()}):
        client.setattr(nodeid, expect=EPERM, **fields)
    assert owner(path) == before == (os.geteuid(), os.getegid())
    client.setattr(nodeid, mode=0o600)
    assert client.statx(nodeid).stat.uid == 4321


def test_a_caller_that_is_not_told_is_the_guests_to_judge(translated: Callable[..., Mount]) -> None:
    """FUSE_ALLOW_IDMAP: only what creates says who asks."""
    mount = translated("forbid-guest:5:1")
    assert mount.core.session.flags & lib.FUSE_ALLOW_IDMAP
    client = mount.client
    (mount.root / "f").touch(mode=0o600)
    nodeid = client.lookup(ROOT, b"f").nodeid
    client.uid = client.gid = NOBODY
    client.access(nodeid, os.W_OK)
    client.setattr(nodeid, mode=0o640)
    client.statx(nodeid)
    fh = client.open(nodeid, os.O_RDWR).fh
    client.write(nodeid, fh, b"x", write_flags=lib.FUSE_WRITE_KILL_SUIDGID)
    client.release(nodeid, fh)
    client.link(nodeid, ROOT, b"g")
    client.rename(ROOT, b"g", ROOT, b"h")
    client.setxattr(nodeid, b"user.a", b"x")
    client.unlink(ROOT, b"h")
    client.mkdir(ROOT, b"d", expect=EINVAL)

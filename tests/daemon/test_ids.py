"""Ids that differ between guest and host, from the command line to the host's files."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.test_cred import owner
from tests.daemon.daemon import Daemon, guest
from tests.fuseclient import ROOT
from tests.ops.mount import ALL_FLAGS
from tests.sandbox.user import AS_ROOT, UID, as_user

MODES = ["none", "namespace", *(["chroot"] if AS_ROOT else [])]
as_root = pytest.mark.skipif(not AS_ROOT, reason="only root can take another identity")


@as_root
@pytest.mark.parametrize("mode", MODES)
def test_translation_by_root(start: Callable[..., Daemon], share: Path, mode: str) -> None:
    rules = ["map:0:1000:10", "forbid-guest:10:4294967285"]
    daemon = start(
        f"--sandbox={mode}", *(f"--translate-{kind}={rule}" for kind in ("uid", "gid") for rule in rules)
    )
    share.chmod(0o777)
    with guest(daemon, init=False) as (_, client):
        client.init(minor=45, flags=ALL_FLAGS)
        client.uid, client.gid = 3, 4
        made = client.mkdir(ROOT, b"d").attr
        assert (made.uid, made.gid) == (3, 4) and owner(share / "d") == (1003, 1004)
        # What no rule is about stays as it is.
        assert client.getattr(ROOT).attr.uid == 0
        client.uid = 10
        client.mkdir(ROOT, b"e", expect=errno.EPERM)
        # A worker is forked with the same rules.
        daemon.kill_worker()
        client.uid = 5
        client.create(ROOT, b"f")
        assert owner(share / "f") == (1005, 1004)
    assert daemon.wait() == 0


@pytest.mark.parametrize("granted", [False, True])
@pytest.mark.parametrize("mode", ["none", "namespace"])
def test_owner_by_an_ordinary_user(
    start: Callable[..., Daemon], share: Path, tmp_path: Path, mode: str, granted: bool
) -> None:
    """Each user of the guest makes files, which belong to the user here and to 1234:5678 there."""
    prefix = as_user(tmp_path, granted)
    if AS_ROOT:
        os.chown(share, UID, UID)
    daemon = start(f"--sandbox={mode}", "--owner=1234:5678", prefix=prefix)
    with guest(daemon, init=False) as (_, client):
        client.init(minor=45, flags=ALL_FLAGS)
        assert (client.getattr(ROOT).attr.uid, client.getattr(ROOT).attr.gid) == (1234, 5678)
        for uid in (0, 1234, 77):
            client.uid = client.gid = uid
            made, _ = client.create(ROOT, b"%d" % uid, mode=0o640)
            assert (made.attr.uid, made.attr.gid, made.attr.mode & 0o777) == (1234, 5678, 0o640)
            assert (share / str(uid)).stat().st_uid == UID
            client.setattr(made.nodeid, uid=1234, gid=5678)
            client.setattr(made.nodeid, mode=0o600)
            for other in (0, 77, UID):
                client.setattr(made.nodeid, uid=other, expect=errno.EPERM)
            client.setattr(made.nodeid, gid=0, expect=errno.EPERM)
        # Of whoever else it is, it is the guest's; to change it is the host's to allow.
        found = client.lookup(ROOT, b"hello")
        assert (found.attr.uid, found.attr.gid) == (1234, 5678)
        client.setattr(found.nodeid, uid=1234, gid=5678)
        if AS_ROOT:
            assert owner(share / "hello") == (0, 0)
            client.setattr(found.nodeid, mode=0o666, expect=errno.EPERM)
    assert daemon.wait() == 0


@as_root
def test_ids_outside_of_a_user_namespaces_map(start: Callable[..., Daemon], share: Path) -> None:
    """Nobody can be who is not mapped: EINVAL, as chown(2) and setresuid(2) say. What such a one owns is shown as the
    overflow id's."""
    maps = ("--uid-map=:0:400000:1000:", "--gid-map=:0:500000:1000:")
    daemon = start(*maps)
    os.chown(share, 400000, 500000)
    share.chmod(0o777)
    with guest(daemon, init=False) as (_, client):
        client.init(minor=45, flags=ALL_FLAGS)
        client.uid, client.gid = 999, 999
        made, _ = client.create(ROOT, b"f")
        assert (made.attr.uid, made.attr.gid) == (999, 999) and owner(share / "f") == (400999, 500999)
        for client.uid, client.gid in ((1000, 0), (0, 1000), (65534, 65534)):
            client.mkdir(ROOT, b"d", expect=errno.EINVAL)
        client.uid = client.gid = 0
        client.setattr(made.nodeid, uid=1000, expect=errno.EINVAL)
        client.setattr(made.nodeid, gid=1000, expect=errno.EINVAL)
        client.setattr(made.nodeid, uid=7, gid=8)
        assert owner(share / "f") == (400007, 500008)
        found = client.lookup(ROOT, b"hello")
        assert (found.attr.uid, found.attr.gid) == (65534, 65534)
        client.setattr(found.nodeid, mode=0o777, expect=errno.EPERM)
    assert daemon.wait() == 0


@as_root
def test_translation_is_of_the_ids_inside_the_namespace(start: Callable[..., Daemon], share: Path) -> None:
    maps = ("--uid-map=:0:400000:1000:", "--gid-map=:0:500000:1000:")
    daemon = start(*maps, "--translate-uid=map:5000:10:10", "--translate-gid=squash-guest:5000:20:10")
    os.chown(share, 400000, 500000)
    share.chmod(0o777)
    with guest(daemon, init=False) as (_, client):
        client.init(minor=45, flags=ALL_FLAGS)
        client.uid = client.gid = 5003
        made = client.mkdir(ROOT, b"d").attr
        assert (made.uid, made.gid) == (5003, 20) and owner(share / "d") == (400013, 500020)
    assert daemon.wait() == 0

"""What a modification leaves of suid and sgid where the daemon is root, or an ordinary user, or lacks CAP_FSETID."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.core.served import REAL_ROOT
from tests.daemon.daemon import Daemon, guest
from tests.fuseclient import ROOT, FuseClient
from tests.ops.mount import ALL_FLAGS
from tests.sandbox.user import AS_ROOT, UID, as_user
from vfsd import facts
from vfsd._fuse import lib

KILL = lib.FUSE_WRITE_KILL_SUIDGID


def after(client: FuseClient, path: Path, change: Callable[[int, int], object]) -> int:
    """What is left of suid, and of sgid with group execute, after a change of a nodeid by a handle."""
    path.chmod(0o6755)
    nodeid = client.lookup(ROOT, os.fsencode(path.name)).nodeid
    fh = client.open(nodeid, os.O_RDWR).fh
    change(nodeid, fh)
    seen: int = client.getattr(nodeid).attr.mode & 0o6000
    assert seen == path.stat().st_mode & 0o6000
    client.release(nodeid, fh)
    return seen


def check_all(client: FuseClient, path: Path) -> None:
    client.init(minor=45, flags=ALL_FLAGS & ~lib.FUSE_ALLOW_IDMAP)
    both, none = stat.S_ISUID | stat.S_ISGID, 0
    truncate = os.O_WRONLY | os.O_TRUNC
    client.uid = client.gid = 0
    assert after(client, path, lambda nodeid, fh: client.write(nodeid, fh, b"x")) == both
    assert after(client, path, lambda nodeid, fh: client.open(nodeid, truncate)) == both
    assert after(client, path, lambda nodeid, fh: client.setattr(nodeid, size=1)) == both
    assert after(client, path, lambda nodeid, fh: client.setattr(nodeid, size=2, fh=fh)) == both
    assert after(client, path, lambda nodeid, fh: client.fallocate(nodeid, fh, 0, 100)) == both
    assert after(client, path, lambda nodeid, fh: client.setattr(nodeid)) == none
    client.uid = client.gid = 12345
    assert after(client, path, lambda nodeid, fh: client.write(nodeid, fh, b"x", write_flags=KILL)) == none
    assert after(client, path, lambda nodeid, fh: client.open(nodeid, truncate, lib.FUSE_OPEN_KILL_SUIDGID)) == none
    assert after(client, path, lambda nodeid, fh: client.setattr(nodeid, lib.FATTR_KILL_SUIDGID, size=1)) == none
    assert after(client, path, lambda nodeid, fh: client.fallocate(nodeid, fh, 0, 100)) == none


@pytest.mark.parametrize("mode", ["none", "namespace", *(["chroot"] if AS_ROOT else [])])
def test_the_daemon_is_root_if_we_are(start: Callable[..., Daemon], share: Path, mode: str) -> None:
    daemon = start(f"--sandbox={mode}")
    with guest(daemon, init=False) as (_, client):
        check_all(client, share / "hello")


@pytest.mark.parametrize("mode", ["none", "namespace"])
@pytest.mark.parametrize("granted", [False, True])
def test_the_daemon_is_an_ordinary_user(
    start: Callable[..., Daemon], share: Path, tmp_path: Path, mode: str, granted: bool
) -> None:
    prefix = as_user(tmp_path, granted)
    if AS_ROOT:
        for path in (share, share / "hello"):
            os.chown(path, UID, UID)
    daemon = start(f"--sandbox={mode}", prefix=prefix)
    with guest(daemon, init=False) as (_, client):
        check_all(client, share / "hello")


def test_a_daemon_without_the_capability(start: Callable[..., Daemon], share: Path) -> None:
    daemon = start("--sandbox=none", "--modcaps=-fsetid")
    with guest(daemon, init=False) as (_, client):
        check_all(client, share / "hello")


@pytest.mark.skipif(not REAL_ROOT, reason="only root has CAP_FSETID")
def test_what_the_host_keeps_is_tried(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert facts.find(fd).keeps_set_id
    os.close(fd)
    script = "import os, sys; from vfsd.facts import find; print(find(os.open(sys.argv[1], os.O_RDONLY)).keeps_set_id)"
    for wall in (["setpriv", "--bounding-set=-fsetid", "--inh-caps=-fsetid"], ["unshare", "--user", "--map-root-user"]):
        command = [*wall, sys.executable, "-c", script, tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == "False\n", wall
    assert os.listdir(tmp_path) == []

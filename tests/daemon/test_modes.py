"""Every sandbox serves the same file system, and none lets a guest out of the share, nor into the daemon."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance import CASES, run
from tests.conformance.fuse import FuseExecutor
from tests.daemon.daemon import Daemon, guest
from tests.driver import NEXT
from tests.fuseclient import ROOT, FuseClient
from tests.ops.mount import ALL_FLAGS
from tests.sandbox.user import AS_ROOT, UID, as_user, first_subordinate
from vfsd import door

MODES = ["none", "namespace", *(["chroot"] if AS_ROOT else [])]

#: Runs vfsd and reports on standard error every import, and every open of a source, that happens behind the walls.
WATCHED = """
import os, sys, vfsd.ops, vfsd.sandbox, vfsd.__main__
from dataclasses import replace
from vfsd.door import OPS

def fail(*_):
    raise KeyError("a bug")

inside = False
def watch(event, arguments):
    if event == "import" and inside:
        os.write(2, b"LATE IMPORT of %s\\n" % arguments[0].encode())
    if event == "open" and inside and str(arguments[0]).endswith(".py"):
        os.write(2, b"LATE OPEN of %s\\n" % arguments[0].encode())
sys.addaudithook(watch)
forbid = vfsd.sandbox.forbid_sources
def forbid_and_watch():
    global inside
    forbid()
    inside = True
    OPS[50] = replace(OPS[50], function=fail)  # SYNCFS
vfsd.sandbox.forbid_sources = forbid_and_watch
sys.exit(vfsd.__main__.main())
"""


def conform(client: FuseClient) -> dict[str, str]:
    """The cases of the conformance list that failed, and how."""
    here = {"xattr", "fuse"} | ({"root"} if AS_ROOT else set())
    client.init(minor=45, flags=ALL_FLAGS)
    cases = [case for case in CASES if case.needs <= here]
    results = {case.name: run(FuseExecutor(client), case, number) for number, case in enumerate(cases)}
    return {name: wrong for name, wrong in results.items() if wrong}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("mode", MODES)
def test_conforms(start: Callable[..., Daemon], mode: str, threads: int) -> None:
    # trusted.* attributes take sys_admin.
    daemon = start(f"--sandbox={mode}", f"--thread-pool-size={threads}", "--xattr", "--modcaps=+sys_admin")
    with guest(daemon, init=False) as (_, client):
        assert conform(client) == {}
    assert daemon.wait() == 0
    assert "ERROR" not in daemon.log


@pytest.mark.parametrize("mode", MODES)
def test_no_way_out(start: Callable[..., Daemon], share: Path, tmp_path: Path, mode: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (share / "out").symlink_to("../secret")
    (share / "up").symlink_to("..")
    (share / "absolute").symlink_to(tmp_path / "secret")
    daemon = start(f"--sandbox={mode}")
    with guest(daemon) as (_, client):
        for name in (b"..", b".", b"../secret", b"up/secret", b"/etc", b""):
            client.lookup(ROOT, name, expect=errno.EINVAL)
            client.mkdir(ROOT, name, expect=errno.EINVAL)
            client.rename(ROOT, b"hello", ROOT, name, expect=errno.EINVAL)
        for name in (b"out", b"up", b"absolute"):
            link = client.lookup(ROOT, name).nodeid
            client.open(link, expect=errno.ELOOP)
            client.opendir(link, expect=errno.ENOTDIR)
            client.lookup(link, b"secret", expect=errno.ENOTDIR)
            client.setattr(link, expect=errno.EOPNOTSUPP, mode=0o777)
        assert (tmp_path / "secret").stat().st_mode & 0o777 != 0o777


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_imported_behind_the_walls(start: Callable[..., Daemon], share: Path, mode: str) -> None:
    # What a traceback would take for our source is the guest's.
    source = share / str(door.__file__).lstrip("/")
    source.parent.mkdir(parents=True)
    source.write_text("words of the guest\n" * 1000)
    daemon = start(f"--sandbox={mode}", "--log-level=debug", "--keep-listening", program=["-c", WATCHED])
    with guest(daemon, init=False, queues=3) as (frontend, client):
        conform(client)
        client.syncfs(expect=errno.EIO)
        daemon.logged("KeyError: 'a bug'")
        frontend.stop()
        frontend.start()
        queue = frontend.queue(2)
        queue.descriptor(0, 0, 64, NEXT, 0)
        queue.publish(0)
        queue.kick()
        daemon.logged("ring 2 is broken")
        daemon.kill_worker()
        client.access(ROOT, os.R_OK)
    with daemon.connect() as connection:
        connection.sendall(b"garbage" * 100)
    daemon.logged("Client disconnected")
    daemon.process.terminate()
    assert daemon.wait() == 1
    assert "LATE" not in daemon.log
    assert "words of the guest" not in daemon.log


@pytest.mark.parametrize("granted", [False, True])
@pytest.mark.parametrize("mode", ["none", "namespace"])
def test_an_ordinary_user(start: Callable[..., Daemon], share: Path, tmp_path: Path, mode: str, granted: bool) -> None:
    prefix = as_user(tmp_path, granted)
    if AS_ROOT:
        os.chown(share, UID, UID)
    daemon = start(f"--sandbox={mode}", prefix=prefix)
    with guest(daemon, init=False) as (_, client):
        client.init(minor=45, flags=ALL_FLAGS)
        # The guest's root is the user, whatever the host's root may do.
        client.create(ROOT, b"mine")
        assert (share / "mine").stat().st_uid == UID
        client.mkdir(ROOT, b"directory")
        client.setattr(client.lookup(ROOT, b"directory").nodeid, mode=0o777)
        # Another user of the guest is one of the user's subordinate ones where there are any, else again the user.
        client.uid = client.gid = 1000
        made, _ = client.create(client.lookup(ROOT, b"directory").nodeid, b"other")
        first = first_subordinate(granted) if mode == "namespace" else None
        assert (share / "directory/other").stat().st_uid == (first + 999 if first else UID)
        assert made.attr.uid == (1000 if first else UID if mode == "none" else 0)
        client.uid = client.gid = 0
        client.list()
        daemon.kill_worker()
        assert client.lookup(ROOT, b"hello").attr.size == 9
    assert daemon.wait() == 0

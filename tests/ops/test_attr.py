"""SETATTR, ACCESS, STATX: what the conformance list can't say."""

import errno
import os
import resource
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuseclient import ROOT
from tests.ops.mount import Mount, share
from vfsd._fuse import lib
from vfsd._process import lib as process
from vfsd.capabilities import effective, mask
from vfsd.settings import Settings

USER, GROUP, OTHER = 1234, 2345, 3456


def node(mount: Mount, name: bytes = b"f", data: bytes = b"") -> int:
    path = mount.root / os.fsdecode(name)
    path.write_bytes(data)
    nodeid: int = mount.client.lookup(ROOT, name).nodeid
    return nodeid


def test_all_at_once(mount: Mount) -> None:
    nodeid = node(mount, data=b"0123456789")
    got = mount.client.setattr(nodeid, mode=0o640, size=4, atime=1, atimensec=2, mtime=3, mtimensec=4).attr
    host = (mount.root / "f").stat()
    assert (stat.S_IMODE(host.st_mode), host.st_size) == (0o640, 4)
    assert (host.st_atime_ns, host.st_mtime_ns) == (1_000_000_002, 3_000_000_004)
    assert (got.mode, got.size, got.mtime) == (stat.S_IFREG | 0o640, 4, 3)


def test_nothing(mount: Mount) -> None:
    """It changes the ctime, which comes last."""
    nodeid = node(mount)
    before = (mount.root / "f").stat()
    mount.client.setattr(nodeid)
    assert (mount.root / "f").stat()[:-1] == before[:-1]


def test_ctime_is_the_hosts(mount: Mount) -> None:
    nodeid = node(mount)
    mount.client.setattr(nodeid, ctime=5, ctimensec=6)
    assert (mount.root / "f").stat().st_ctime > 1_700_000_000


@pytest.mark.parametrize(
    ("fields", "expect"),
    [
        ({"size": 1 << 63}, errno.EFBIG),
        ({"size": (1 << 64) - 1}, errno.EFBIG),
        ({"atime": 1, "atimensec": 1_000_000_000}, errno.EINVAL),
        # UTIME_OMIT and UTIME_NOW are ours to say, not the guest's.
        ({"mtime": 1, "mtimensec": (1 << 30) - 1}, errno.EINVAL),
        ({"uid": 0xFFFFFFFF}, errno.EINVAL),
        ({"gid": 0xFFFFFFFF}, errno.EINVAL),
        ({"size": 1, "fh": 99}, errno.EBADF),
    ],
)
def test_values_that_make_no_sense(mount: Mount, fields: dict[str, int], expect: int) -> None:
    mount.client.setattr(node(mount), expect=expect, **fields)


def test_times_far_away(mount: Mount) -> None:
    """The host's file system clamps what it can't keep; no value may be too large for us."""
    for seconds in (0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        mount.client.setattr(node(mount), mtime=seconds)


def test_mode_of_a_symlink(mount: Mount) -> None:
    node(mount)
    (mount.root / "l").symlink_to("f")
    nodeid = mount.client.lookup(ROOT, b"l").nodeid
    mode = (mount.root / "f").stat().st_mode
    mount.client.setattr(nodeid, mode=0o777, expect=errno.EOPNOTSUPP)
    mount.client.setattr(nodeid, size=1, expect=errno.EINVAL)
    assert (mount.root / "f").stat().st_mode == mode


def test_size_by_handle_needs_no_permission(mount: Mount) -> None:
    nodeid = node(mount, data=b"abc")
    fh = mount.client.open(nodeid, os.O_WRONLY).fh
    mount.client.setattr(nodeid, mode=0)
    assert mount.client.setattr(nodeid, size=1, fh=fh).attr.size == 1
    read_only = mount.client.open(node(mount, b"g")).fh
    mount.client.setattr(nodeid, size=1, fh=read_only, expect=errno.EINVAL)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps suid at a truncate")
def test_truncate_kills_suid_when_asked(mount: Mount) -> None:
    nodeid = node(mount, data=b"abc")
    (mount.root / "f").chmod(0o6755)
    assert mount.client.setattr(nodeid, size=2).attr.mode & 0o6000 == 0o6000
    assert mount.client.setattr(nodeid, lib.FATTR_KILL_SUIDGID, size=1).attr.mode & 0o6000 == 0
    # The thread has got its CAP_FSETID back.
    (mount.root / "f").chmod(0o6755)
    assert mount.client.setattr(nodeid, size=2).attr.mode & 0o6000 == 0o6000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root owns what it likes")
@pytest.mark.parametrize(
    ("mode", "uid", "gid", "expected"),
    [
        (0o6755, 0, 0, 0o755),
        (0o6745, 0, 0, 0o2745),
        (0o6755, USER, OTHER, 0o755),
        (0o6745, USER, GROUP, 0o2745),
        (0o6745, USER, OTHER, 0o745),
        # Not by somebody who may not change it.
        (0o6755, OTHER, GROUP, 0o6755),
        (0o6755, 0xFFFFFFFF, 0xFFFFFFFF, 0o6755),
    ],
)
@pytest.mark.parametrize("valid", [0, lib.FATTR_CTIME, lib.FATTR_KILL_SUIDGID])
def test_a_chown_to_nobody_else(mount: Mount, mode: int, uid: int, gid: int, expected: int, valid: int) -> None:
    """chown(path, -1, -1) comes as a SETATTR of nothing, or of the ctime."""
    nodeid = node(mount)
    os.chown(mount.root / "f", USER, GROUP)
    (mount.root / "f").chmod(mode)
    mount.client.uid, mount.client.gid = uid, gid
    assert stat.S_IMODE(mount.client.setattr(nodeid, valid).attr.mode) == expected


@pytest.mark.parametrize("uid", [0, OTHER, 0xFFFFFFFF])
@pytest.mark.parametrize("killpriv", [True, False])
def test_a_chown_of_nothing_sets_the_ctime(tmp_path: Path, uid: int, killpriv: bool) -> None:
    """By anybody, as natively, where there is no bit to take."""
    with share(tmp_path, Settings(killpriv=killpriv)) as mount:
        nodeid = node(mount)
        before = (mount.root / "f").stat().st_ctime_ns
        mount.client.uid = uid
        time.sleep(0.02)  # a tick of the clock that times are taken from
        mount.client.setattr(nodeid)
        assert (mount.root / "f").stat().st_ctime_ns > before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps suid at a chown of nothing")
def test_a_guest_that_kills_them_itself_sends_nothing_for_nothing(tmp_path: Path) -> None:
    with share(tmp_path, Settings(killpriv=False)) as mount:
        nodeid = node(mount)
        (mount.root / "f").chmod(0o6755)
        assert stat.S_IMODE(mount.client.setattr(nodeid).attr.mode) == 0o6755


@contextmanager
def refusing() -> Iterator[None]:
    """On a host that lets nobody give files away, nor make them long."""
    had, limit = effective(), resource.getrlimit(resource.RLIMIT_FSIZE)
    assert process.process_set_capabilities(had & ~mask("chown"), had, 0) == 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert process.process_set_capabilities(had, had, 0) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may lose the right to")
def test_what_is_refused_takes_nothing(mount: Mount) -> None:
    """As natively: the host judges before it takes anything."""
    nodeid = node(mount, data=b"abc")
    for mode in (0o6755, 0o6745):
        (mount.root / "f").chmod(mode)
        with refusing():
            mount.client.setattr(nodeid, lib.FATTR_KILL_SUIDGID, uid=70_000, expect=errno.EPERM)
            mount.client.setattr(nodeid, lib.FATTR_KILL_SUIDGID, size=17, expect=errno.EFBIG)
        assert stat.S_IMODE((mount.root / "f").stat().st_mode) == mode


def test_a_program_that_runs_on_the_host_keeps_its_bits(mount: Mount) -> None:
    """An open that truncates it is refused."""
    shutil.copy("/bin/sleep", mount.root / "sleep")
    (mount.root / "sleep").chmod(0o4755)
    nodeid = mount.client.lookup(ROOT, b"sleep").nodeid
    with subprocess.Popen([mount.root / "sleep", "100"]) as program:
        try:
            mount.client.open(
                nodeid, os.O_WRONLY | os.O_TRUNC, open_flags=lib.FUSE_OPEN_KILL_SUIDGID, expect=errno.ETXTBSY
            )
            mount.client.create(
                ROOT, b"sleep", os.O_WRONLY | os.O_TRUNC, open_flags=lib.FUSE_OPEN_KILL_SUIDGID, expect=errno.ETXTBSY
            )
            assert stat.S_IMODE((mount.root / "sleep").stat().st_mode) == 0o4755
        finally:
            program.kill()


def test_a_chown_kills_and_a_chmod_with_it_does_not(mount: Mount) -> None:
    nodeid = node(mount)
    (mount.root / "f").chmod(0o6755)
    assert stat.S_IMODE(mount.client.setattr(nodeid, uid=USER).attr.mode) == 0o755
    (mount.root / "f").chmod(0o6755)
    assert stat.S_IMODE(mount.client.setattr(nodeid, uid=USER, mode=0o4755).attr.mode) == 0o4755
    (mount.root / "d").mkdir()
    (mount.root / "d").chmod(0o2755)
    directory = mount.client.lookup(ROOT, b"d").nodeid
    assert stat.S_IMODE(mount.client.setattr(directory, uid=USER).attr.mode) == 0o2755
    assert stat.S_IMODE(mount.client.setattr(directory).attr.mode) == 0o2755


def test_access_is_by_the_callers_class(mount: Mount) -> None:
    nodeid = node(mount)
    client, host = mount.client, (mount.root / "f").stat()
    client.setattr(nodeid, mode=0o421)
    client.uid, client.gid = host.st_uid, host.st_gid
    if client.uid:
        client.access(nodeid, os.R_OK)
        client.access(nodeid, os.W_OK, expect=errno.EACCES)
    client.uid = host.st_uid + 1
    client.access(nodeid, os.W_OK)
    client.access(nodeid, os.R_OK, expect=errno.EACCES)
    client.gid = host.st_gid + 1
    client.access(nodeid, os.X_OK)
    client.access(nodeid, os.F_OK)
    client.access(nodeid, os.W_OK, expect=errno.EACCES)
    client.access(nodeid, 8, expect=errno.EINVAL)


def test_statx(mount: Mount) -> None:
    nodeid = node(mount, data=b"abc")
    fh = mount.client.open(nodeid).fh
    for out in (mount.client.statx(nodeid), mount.client.statx(nodeid, fh=fh)):
        got, host = out.stat, (mount.root / "f").stat()
        assert (got.size, got.mode, got.nlink, got.ino) == (3, host.st_mode, 1, host.st_ino)
        assert got.mtime.tv_sec * 10**9 + got.mtime.tv_nsec == host.st_mtime_ns
        assert (out.attr_valid, out.attr_valid_nsec) == (1, 0)
        assert not got.mask & 0x800 or got.btime.tv_sec > 1_700_000_000
    (mount.root / "f").chmod(0o4755)
    for answer in (mount.client.statx(nodeid), mount.client.getattr(nodeid)):
        assert (answer.attr_valid, answer.attr_valid_nsec) == (0, 0)
    mount.client.statx(99, expect=errno.ESTALE)
    mount.client.statx(nodeid, fh=99, expect=errno.EBADF)

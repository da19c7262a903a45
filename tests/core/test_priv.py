"""What a modification leaves of suid, sgid and a capability: every rule of vfsd/fuse/priv.c."""

import ctypes
import os
import stat
from collections.abc import Callable, Iterator
from errno import EINVAL, EROFS
from pathlib import Path
from typing import Any

import pytest

from tests.core.served import REAL_ROOT, Served
from tests.core.test_cred import identity
from tests.core.threads import CAPSET, answer, in_thread
from tests.fuseclient import ROOT
from vfsd._fuse import ffi, lib

pytestmark = pytest.mark.skipif(not REAL_ROOT, reason="only root owns what it likes and has CAP_FSETID to lose")

OWNER, GROUP, OTHER = 1234, 2345, 3456
UNKNOWN = 0xFFFFFFFF
V2 = lib.FUSE_HANDLE_KILLPRIV_V2
#: security.capability under another name.
MAPPED = "user.virtiofs.security.capability"

_libc = ctypes.CDLL(None, use_errno=True)


def make(served: Served, mode: int, name: str = "f") -> Path:
    """A file of OWNER and GROUP."""
    path = served.root / name
    path.write_bytes(b"0123456789")
    os.chown(path, OWNER, GROUP)
    path.chmod(mode)
    return path


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def opened(served: Served, flags: int = os.O_RDWR) -> tuple[int, int]:
    nodeid = served.client.lookup(ROOT, b"f").nodeid
    return nodeid, served.client.open(nodeid, flags).fh


@pytest.fixture(autouse=True)
def nothing_is_lost() -> Iterator[None]:
    before = identity()
    yield
    assert identity() == before


@pytest.mark.parametrize(
    ("mode", "gid", "expected"),
    [
        (0o644, OTHER, 0o644),
        (0o4755, OTHER, 0o755),
        (0o2755, OTHER, 0o755),
        (0o2755, GROUP, 0o755),
        (0o6755, UNKNOWN, 0o755),
        (0o2745, OTHER, 0o745),
        (0o2745, GROUP, 0o2745),
        (0o2745, UNKNOWN, 0o2745),
        (0o6745, OTHER, 0o745),
        (0o6745, GROUP, 0o2745),
        (0o7777, GROUP, 0o1777),
    ],
)
def test_a_write_that_kills(served: Served, mode: int, gid: int, expected: int) -> None:
    path = make(served, mode)
    nodeid, fh = opened(served)
    served.client.uid, served.client.gid = OTHER, gid
    assert served.client.write(nodeid, fh, b"x", write_flags=lib.FUSE_WRITE_KILL_SUIDGID) == 1
    assert mode_of(path) == expected
    assert path.read_bytes() == b"x123456789"


@pytest.mark.parametrize("mode", [0o644, 0o4755, 0o6755, 0o6745])
@pytest.mark.parametrize("flags", [0, lib.FUSE_WRITE_CACHE])
@pytest.mark.parametrize("core_flags", [0, lib.CORE_KEEPS_SET_ID])
def test_a_write_that_does_not(serve: Callable[..., Served], mode: int, flags: int, core_flags: int) -> None:
    served = serve(core_flags=core_flags)
    path = make(served, mode)
    nodeid, fh = opened(served)
    served.client.write(nodeid, fh, b"x", write_flags=flags)
    assert mode_of(path) == mode


@pytest.mark.parametrize(
    ("session", "kill", "uid", "expected"),
    [
        (V2, lib.FUSE_OPEN_KILL_SUIDGID, OTHER, 0o755),
        (V2, lib.FUSE_OPEN_KILL_SUIDGID, 0, 0o755),
        (V2, 0, 0, 0o6755),
        (V2, 0, OTHER, 0o6755),
        # Who does not know the flag can't send it.
        (0, 0, 0, 0o6755),
        (0, 0, OTHER, 0o755),
        (0, 0, UNKNOWN, 0o755),
    ],
)
@pytest.mark.parametrize("access", [os.O_RDONLY, os.O_WRONLY])
def test_an_open_that_truncates(
    serve: Callable[..., Served], session: int, kill: int, uid: int, expected: int, access: int
) -> None:
    served = serve(session_flags=session)
    path = make(served, 0o6755)
    nodeid = served.client.lookup(ROOT, b"f").nodeid
    served.client.uid = uid
    served.client.open(nodeid, access | os.O_TRUNC, kill)
    assert mode_of(path) == expected
    assert path.stat().st_size == 0


def test_an_open_that_does_not_truncate_keeps_them(serve: Callable[..., Served]) -> None:
    served = serve(session_flags=V2)
    path = make(served, 0o6755)
    served.client.open(served.client.lookup(ROOT, b"f").nodeid, os.O_RDWR, lib.FUSE_OPEN_KILL_SUIDGID)
    assert mode_of(path) == 0o6755


@pytest.mark.parametrize(("uid", "kill", "expected"), [(OTHER, 1, 0o777), (OTHER, 0, 0o6777), (0, 0, 0o6777),
                                                     (0, 1, 0o777)])  # fmt: skip
@pytest.mark.parametrize("session", [V2, V2 | lib.FUSE_CREATE_SUPP_GROUP])
def test_a_create_of_what_exists(
    serve: Callable[..., Served], session: int, uid: int, kill: int, expected: int
) -> None:
    served = serve(session_flags=session, core_flags=lib.CORE_PRIVILEGED)
    path = make(served, 0o6777)
    served.client.uid = served.client.gid = uid
    served.client.create(ROOT, b"f", os.O_RDWR | os.O_TRUNC, open_flags=kill * lib.FUSE_OPEN_KILL_SUIDGID)
    assert mode_of(path) == expected
    assert path.stat().st_size == 0


def test_a_new_file_is_not_modified(serve: Callable[..., Served]) -> None:
    served = serve(session_flags=V2)
    served.client.create(ROOT, b"f", os.O_RDWR | os.O_TRUNC, 0o6755, open_flags=lib.FUSE_OPEN_KILL_SUIDGID)
    assert mode_of(served.root / "f") == 0o6755


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of capset")
@pytest.mark.parametrize(("mode", "gid", "expected"), [(0o6755, OTHER, 0o755), (0o6745, GROUP, 0o2745)])
def test_a_host_that_ignores_fsetid(served: Served, mode: int, gid: int, expected: int) -> None:
    path = make(served, mode)
    nodeid, fh = opened(served)
    served.client.uid, served.client.gid = OTHER, gid

    def write() -> None:
        # Its capset() succeeds and does nothing: its host is as one that ignores CAP_FSETID.
        answer(CAPSET, 0)
        served.client.write(nodeid, fh, b"x", write_flags=lib.FUSE_WRITE_KILL_SUIDGID)

    in_thread(write)
    assert mode_of(path) == expected


def become(uid: int, gid: int) -> None:
    """This thread is an ordinary user from now on."""
    numbers = {"x86_64": (116, 119, 117), "aarch64": (159, 149, 147)}[os.uname().machine]
    for number, arguments in zip(numbers, ((0, 0), (gid, gid, gid), (uid, uid, uid)), strict=True):
        assert _libc.syscall(number, *arguments) == 0


@pytest.mark.parametrize(("mode", "group", "expected"), [(0o4755, GROUP, 0o4755), (0o6755, GROUP, 0o6755),
                                                         (0o6755, OTHER, 0o4755)])  # fmt: skip
def test_a_daemon_that_never_had_fsetid_puts_back(served: Served, mode: int, group: int, expected: int) -> None:
    """The guest's root has it. What the host took comes back, but for an sgid of a group the daemon is no member of."""
    path = make(served, mode)
    nodeid, fh = opened(served)

    def write() -> None:
        become(OWNER, group)
        served.client.write(nodeid, fh, b"x")

    in_thread(write)
    assert mode_of(path) == expected


def test_a_daemon_that_does_not_own_the_file(served: Served) -> None:
    path = make(served, 0o6777)
    nodeid, fh = opened(served)

    def write() -> None:
        become(OTHER, OTHER)
        assert served.client.write(nodeid, fh, b"x") == 1

    in_thread(write)
    assert mode_of(path) == 0o777


def test_what_somebody_else_took_does_not_come_back(served: Served) -> None:
    path = make(served, 0o6755)
    priv = ffi.new("struct priv *")
    fd = os.open(path, os.O_RDWR)
    assert lib.priv_begin(served.core, fd, lib.PRIV_KEEP, 0, 0, priv) == 0
    path.chmod(0o700)
    lib.priv_end(served.core, priv)
    assert mode_of(path) == 0o700
    os.close(fd)


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "expected"),
    [
        (0o6755, 0, 0, 0o755),
        (0o6745, 0, 0, 0o2745),
        (0o6745, OWNER, GROUP, 0o2745),
        (0o6745, OWNER, OTHER, 0o745),
        (0o2745, OWNER, OTHER, 0o745),
    ],
)
def test_a_chown_kills_whoever_asks(served: Served, mode: int, uid: int, gid: int, expected: int) -> None:
    path = make(served, mode)
    priv = ffi.new("struct priv *")
    fd = os.open(path, os.O_PATH)
    assert lib.priv_begin(served.core, fd, lib.PRIV_KILL_OWNER, uid, gid, priv) == 0
    os.chown(path, OTHER, -1)
    lib.priv_end(served.core, priv)
    os.close(fd)
    assert mode_of(path) == expected


@pytest.mark.parametrize(("kill", "directory", "fifo"), [(lib.PRIV_KILL, 0o6755, 0o6755),
                                                         (lib.PRIV_KILL_OWNER, 0o6755, 0o755)])  # fmt: skip
def test_what_is_no_regular_file(served: Served, kill: int, directory: int, fifo: int) -> None:
    (served.root / "d").mkdir()
    os.mkfifo(served.root / "p")
    for name, expected in (("d", directory), ("p", fifo)):
        (served.root / name).chmod(0o6755)
        priv = ffi.new("struct priv *")
        fd = os.open(served.root / name, os.O_PATH)
        assert lib.priv_begin(served.core, fd, kill, OTHER, OTHER, priv) == 0
        lib.priv_end(served.core, priv)
        os.close(fd)
        assert mode_of(served.root / name) == expected


def map_capability(served: Served, name: str) -> None:
    served.config.capability = name.encode()
    served.restart()


def test_a_host_that_keeps_them_loses_them_all_the_same(serve: Callable[..., Served]) -> None:
    served = serve(session_flags=V2, core_flags=lib.CORE_KEEPS_SET_ID)
    path = make(served, 0o6755)
    nodeid, fh = opened(served)
    served.client.write(nodeid, fh, b"x", write_flags=lib.FUSE_WRITE_KILL_SUIDGID)
    assert mode_of(path) == 0o755


@pytest.mark.parametrize("core_flags", [0, lib.CORE_KEEPS_SET_ID])
def test_a_capability_of_another_name_goes(serve: Callable[..., Served], core_flags: int) -> None:
    served = serve(session_flags=V2, core_flags=core_flags)
    map_capability(served, MAPPED)
    path = make(served, 0o600)
    nodeid, fh = opened(served)

    def changes(function: Callable[[], Any]) -> bool:
        os.setxattr(path, MAPPED, b"value")
        os.setxattr(path, "user.other", b"value")
        function()
        assert "user.other" in os.listxattr(path)
        return MAPPED not in os.listxattr(path)

    assert changes(lambda: served.client.write(nodeid, fh, b"x"))
    assert changes(lambda: served.client.write(nodeid, opened(served, os.O_WRONLY)[1], b"x"))
    assert changes(lambda: served.client.open(nodeid, os.O_WRONLY | os.O_TRUNC))
    assert changes(lambda: served.client.create(ROOT, b"f", os.O_RDWR | os.O_TRUNC))
    assert not changes(lambda: served.client.open(nodeid, os.O_RDWR))
    assert not changes(lambda: served.client.read(nodeid, fh, 1))


def test_a_capability_that_cannot_go_stops_the_write(served: Served) -> None:
    map_capability(served, "user.")  # no name of an attribute: EINVAL
    path = make(served, 0o6755)
    nodeid, fh = opened(served)
    served.client.write(nodeid, fh, b"x", expect=EINVAL)
    served.client.open(nodeid, os.O_WRONLY | os.O_TRUNC, expect=EINVAL)
    assert path.read_bytes() == b"0123456789"
    assert mode_of(path) == 0o6755


def test_a_read_only_share_is_not_modified(serve: Callable[..., Served]) -> None:
    served = serve(core_flags=lib.CORE_READONLY)
    map_capability(served, MAPPED)
    path = make(served, 0o6755)
    os.setxattr(path, MAPPED, b"value")
    nodeid = served.client.lookup(ROOT, b"f").nodeid
    served.client.open(nodeid, os.O_WRONLY | os.O_TRUNC, lib.FUSE_OPEN_KILL_SUIDGID, expect=EROFS)
    assert MAPPED in os.listxattr(path)
    assert mode_of(path) == 0o6755

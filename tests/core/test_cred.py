"""The caller's identity on what a request creates, and on nothing else."""

import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from errno import EACCES, EEXIST, EINVAL
from pathlib import Path
from typing import Any

import pytest

from tests.core.served import REAL_ROOT, Served
from tests.fuseclient import ROOT, pack
from vfsd._fuse import ffi, lib

pytestmark = pytest.mark.skipif(not REAL_ROOT, reason="only root can take another identity")

USER, GROUP, OTHER = 1234, 2345, 3456


def identity() -> dict[str, str]:
    with open(f"/proc/self/task/{threading.get_native_id()}/status") as status:
        fields = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    return {name: fields[name].strip() for name in ("Uid", "Gid", "Groups", "CapEff", "CapPrm")}


@pytest.fixture
def privileged(serve: Callable[..., Served]) -> Iterator[Callable[..., Served]]:
    """Cores that may switch identity. The worker's own supplementary groups are gone, as the sandbox leaves them."""
    groups = os.getgroups()
    os.setgroups([])
    before = identity()

    def make(session_flags: int = 0, **options: Any) -> Served:
        served = serve(core_flags=lib.CORE_PRIVILEGED, session_flags=session_flags, **options)
        served.root.chmod(0o777)
        served.client.uid, served.client.gid = USER, GROUP
        return served

    yield make
    assert identity() == before
    os.setgroups(groups)


def owner(path: Path) -> tuple[int, int]:
    host = path.lstat()
    return host.st_uid, host.st_gid


def test_create_belongs_to_the_caller(privileged: Callable[..., Served]) -> None:
    served = privileged()
    entry, _ = served.client.create(ROOT, b"f", mode=0o600)
    assert owner(served.root / "f") == (USER, GROUP)
    assert (entry.attr.uid, entry.attr.gid) == (USER, GROUP)


def test_root_and_a_group(privileged: Callable[..., Served]) -> None:
    served = privileged()
    served.client.uid = 0
    served.client.create(ROOT, b"f")
    served.client.uid, served.client.gid = USER, 0
    served.client.create(ROOT, b"g")
    assert owner(served.root / "f") == (0, GROUP)
    assert owner(served.root / "g") == (USER, 0)


def test_without_the_privilege_everything_is_ours(serve: Callable[..., Served]) -> None:
    served = serve()
    served.client.uid, served.client.gid = USER, GROUP
    served.client.create(ROOT, b"f")
    assert owner(served.root / "f") == (0, 0)


def test_what_is_made_belongs_to_the_caller(privileged: Callable[..., Served]) -> None:
    served = privileged()
    ours = identity()
    served.client.mkdir(ROOT, b"d")
    served.client.mknod(ROOT, b"f", 0o100644)
    served.client.symlink(ROOT, b"l", b"x")
    for name in "dfl":
        assert owner(served.root / name) == (USER, GROUP)
    assert identity() == ours


def test_what_takes_no_identity_is_done_as_us(privileged: Callable[..., Served]) -> None:
    """In a directory that is closed to the caller."""
    served = privileged(session_flags=lib.FUSE_CREATE_SUPP_GROUP)
    for name in "abc":
        (served.root / name).touch()
    nodeid = served.client.lookup(ROOT, b"a").nodeid
    served.root.chmod(0o700)
    served.client.link(nodeid, ROOT, b"d")
    served.client.unlink(ROOT, b"b")
    served.client.rename(ROOT, b"c", ROOT, b"e")
    assert {path.name for path in served.root.iterdir()} == {"a", "d", "e"}
    served.client.mkdir(ROOT, b"f", expect=EACCES)


def test_python_ops_run_as_the_caller(privileged: Callable[..., Served]) -> None:
    seen = {}

    def door(core: Any, request: Any) -> int:
        seen[request.header.opcode] = identity()
        return -EINVAL

    served = privileged(door=door)
    ours = identity()
    served.client.tmpfile(ROOT, expect=EINVAL)
    assert seen[lib.FUSE_TMPFILE]["Uid"].split() == ["0", str(USER), "0", str(USER)]
    assert seen[lib.FUSE_TMPFILE]["Gid"].split() == ["0", str(GROUP), "0", str(GROUP)]
    served.client.removexattr(ROOT, b"user.a", expect=EINVAL)
    assert seen[lib.FUSE_REMOVEXATTR] == ours


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_behind_the_door_leaks_no_identity(privileged: Callable[..., Served]) -> None:
    def door(core: Any, request: Any) -> int:
        raise RuntimeError

    with pytest.raises(OSError):
        privileged(door=door).client.tmpfile(ROOT)


def test_other_threads_stay_who_they_are(privileged: Callable[..., Served]) -> None:
    inside, go = threading.Event(), threading.Event()

    def door(core: Any, request: Any) -> int:
        inside.set()
        go.wait(10)
        return -EINVAL

    served, ours = privileged(door=door), identity()
    thread = threading.Thread(target=lambda: served.client.tmpfile(ROOT, expect=EINVAL))
    thread.start()
    assert inside.wait(10)
    assert identity() == ours
    go.set()
    thread.join()


def test_an_old_guest_has_checked_access_itself(privileged: Callable[..., Served]) -> None:
    """Without the extension the daemon cannot know the caller's groups: the guest's word stands."""
    served = privileged()
    (served.root / "d").mkdir(mode=0o700)
    nodeid = served.client.lookup(ROOT, b"d").nodeid
    served.client.create(nodeid, b"f")
    assert owner(served.root / "d" / "f") == (USER, GROUP)


@pytest.mark.parametrize(("minor", "kept"), [(36, 0), (37, stat.S_ISGID), (38, stat.S_ISGID)])
def test_an_old_guest_has_judged_the_group(privileged: Callable[..., Served], minor: int, kept: int) -> None:
    """From Linux 6.1 on, that is: it sends no sgid bit that its caller may not give."""
    served = privileged()
    served.session.minor = minor
    directory = served.root / "d"
    directory.mkdir()
    os.chown(directory, 0, OTHER)
    directory.chmod(0o2777)
    nodeid = served.client.lookup(ROOT, b"d").nodeid
    served.client.create(nodeid, b"f", mode=0o2755)
    assert owner(directory / "f") == (USER, OTHER)
    assert (directory / "f").stat().st_mode & stat.S_ISGID == kept
    # It is about what is made: what is there and truncated loses its bits.
    (directory / "old").touch()
    (directory / "old").chmod(0o6777)
    served.client.create(nodeid, b"old", os.O_RDWR | os.O_TRUNC)
    assert (directory / "old").stat().st_mode & 0o7777 == 0o777


def test_a_newer_guest_is_checked_by_the_host(privileged: Callable[..., Served]) -> None:
    served = privileged(session_flags=lib.FUSE_CREATE_SUPP_GROUP)
    (served.root / "d").mkdir()
    os.chown(served.root / "d", 0, OTHER)
    (served.root / "d").chmod(0o2770)
    nodeid = served.client.lookup(ROOT, b"d").nodeid
    served.client.create(nodeid, b"f", expect=EACCES)
    served.client.groups = [OTHER]
    served.client.create(nodeid, b"f", mode=0o2755)
    assert owner(served.root / "d" / "f") == (USER, OTHER)
    assert (served.root / "d" / "f").stat().st_mode & stat.S_ISGID
    served.client.groups = []
    served.client.create(nodeid, b"g", expect=EACCES)


def test_the_groups_extension_needs_no_alignment(privileged: Callable[..., Served]) -> None:
    served = privileged(session_flags=lib.FUSE_CREATE_SUPP_GROUP)
    served.client.groups = [OTHER, OTHER + 1, OTHER + 2]
    for length in range(1, 9):
        served.client.create(ROOT, b"n" * length)
        served.client.create(ROOT, b"n" * length, expect=EEXIST)


@pytest.mark.parametrize(
    ("extension", "units"),
    [
        (b"", 1),
        (b"", 65535),
        (struct.pack("=IIII", 8, 32, 0, 0), 2),  # the second header has size 0
        (struct.pack("=II", 8, 32), 1),  # no count
        (struct.pack("=IIII", 16, 32, 2, 7), 2),  # two groups claimed, one there
        (struct.pack("=IIII", 16, 32, 2**32 - 1, 7), 2),
        (struct.pack("=IIII", 16, 32, 0x40000000, 7), 2),
        (struct.pack("=IIII", 24, 32, 1, 7), 2),  # longer than it is
        (struct.pack("=IIII", 12, 32, 1, 7), 2),
        (struct.pack("=IIII", 2**32 - 8, 32, 1, 7), 2),
        (struct.pack("=III", 8 + 4 + 33 * 4, 32, 33) + bytes(33 * 4), 18),  # more than we take
    ],
    ids=range(11),
)
def test_hostile_extensions(privileged: Callable[..., Served], extension: bytes, units: int) -> None:
    served = privileged(session_flags=lib.FUSE_CREATE_SUPP_GROUP)
    body = pack("fuse_create_in", flags=os.O_RDWR | os.O_CREAT, mode=0o644) + b"f\0" + extension
    header = pack("fuse_in_header", len=40 + len(body), opcode=lib.FUSE_CREATE, unique=2, nodeid=ROOT, uid=USER,
                  gid=GROUP, total_extlen=units)  # fmt: skip
    reply = served.client.transport(header + body, 4096)
    assert struct.unpack_from("=Ii", reply) == (16, -EINVAL)
    assert not (served.root / "f").exists()


def test_an_unknown_extension_is_not_ours(privileged: Callable[..., Served]) -> None:
    served = privileged(session_flags=lib.FUSE_CREATE_SUPP_GROUP)
    body = pack("fuse_create_in", flags=os.O_RDWR | os.O_CREAT, mode=0o644) + b"f\0" + struct.pack("=IIQ", 16, 77, 0)
    header = pack("fuse_in_header", len=40 + len(body), opcode=lib.FUSE_CREATE, unique=2, nodeid=ROOT, uid=USER,
                  gid=GROUP, total_extlen=2)  # fmt: skip
    assert struct.unpack_from("=Ii", served.client.transport(header + body, 4096))[1] == 0


@pytest.mark.parametrize(("uid", "gid"), [(2**32 - 1, GROUP), (USER, 2**32 - 1), (2**32 - 1, 2**32 - 1)])
def test_nobody_creates_nothing(privileged: Callable[..., Served], uid: int, gid: int) -> None:
    served = privileged()
    served.client.uid, served.client.gid = uid, gid
    served.client.create(ROOT, b"f", expect=EINVAL)
    assert served.client.getattr(ROOT).attr.mode  # an op that creates nothing does not care


def test_write_strips_suid_where_the_guest_asks(privileged: Callable[..., Served]) -> None:
    served = privileged()
    served.client.uid = served.client.gid = 0
    entry, opened = served.client.create(ROOT, b"f", mode=0o6755)
    served.client.write(entry.nodeid, opened.fh, b"x")
    assert (served.root / "f").stat().st_mode & 0o7777 == 0o6755
    served.client.write(entry.nodeid, opened.fh, b"x", write_flags=lib.FUSE_WRITE_KILL_SUIDGID)
    assert (served.root / "f").stat().st_mode & 0o7777 == 0o755


def test_truncating_open_strips_suid_where_the_guest_asks(privileged: Callable[..., Served]) -> None:
    served = privileged()
    served.client.uid = served.client.gid = 0
    entry, _ = served.client.create(ROOT, b"f", mode=0o6755)
    served.client.open(entry.nodeid, os.O_RDWR | os.O_TRUNC)
    assert (served.root / "f").stat().st_mode & 0o7777 == 0o6755
    served.client.open(entry.nodeid, os.O_RDWR | os.O_TRUNC, lib.FUSE_OPEN_KILL_SUIDGID)
    assert (served.root / "f").stat().st_mode & 0o7777 == 0o755


def test_fsetid_comes_back(privileged: Callable[..., Served]) -> None:
    served = privileged()
    (served.root / "f").touch()
    (served.root / "f").chmod(0o4755)
    before, priv, fd = identity(), ffi.new("struct priv *"), os.open(served.root / "f", os.O_PATH)
    assert lib.priv_begin(served.core, fd, lib.PRIV_KILL, USER, GROUP, priv) == 0
    assert priv.dropped and identity() != before
    lib.priv_end(served.core, priv)
    os.close(fd)
    assert identity() == before

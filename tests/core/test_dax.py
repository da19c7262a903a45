"""Which files are offered for the DAX window, and what its owner is told."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.served import REAL_ROOT, Served
from tests.fuseclient import ROOT, unpack
from vfsd._fuse import ffi, lib

AGREED = lib.FUSE_MAP_ALIGNMENT | lib.FUSE_HAS_INODE_DAX
MIN, MAX = 100, 1000
#: File systems on which auto offers files (vfsd/fuse/mounts.c).
MAPPED = {"ext2/ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "tmpfs"}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The window's socket, as the core has it and as its owner."""
    ours, owner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owner.setblocking(False)
    yield ours, owner
    ours.close()
    owner.close()


@pytest.fixture
def make(serve: Callable[..., Served], pair: tuple[socket.socket, socket.socket]) -> Callable[..., Served]:
    def make(policy: str = "auto", flags: int = AGREED, window: bool = True, **options: int) -> Served:
        always = lib.CORE_DAX_ALWAYS if policy == "always" else 0
        return serve(
            core_flags=always, session_flags=flags, window=pair[0].fileno() if window else -1, dax_sizes=(MIN, MAX),
            **options,
        )  # fmt: skip

    return make


@pytest.fixture
def auto(make: Callable[..., Served], tmp_path: Path) -> Served:
    kind = subprocess.check_output(["stat", "-f", "-c", "%T", tmp_path], text=True).strip()
    if kind not in MAPPED:
        pytest.skip(f"on {kind} nothing is offered")
    return make()


def file(served: Served, name: str, size: int = MAX, mode: int = 0o644) -> int:
    """Its nodeid."""
    path = served.root / name
    path.write_bytes(bytes(size))
    path.chmod(mode)
    return int(served.client.lookup(ROOT, name.encode()).nodeid)


def offered(served: Served, nodeid: int) -> bool:
    return bool(served.client.getattr(nodeid).attr.flags & lib.FUSE_ATTR_DAX)


@pytest.mark.parametrize(
    ("size", "mode", "wanted"),
    [
        (MIN, 0o644, True),
        (MAX, 0o600, True),
        (MIN - 1, 0o644, False),
        (MAX + 1, 0o644, False),
        (0, 0o644, False),
        (MAX, 0o755, False),
        (MAX, 0o610, False),
        (MAX, 0o601, False),
        (MAX, 0o4644, True),
    ],
)
def test_what_auto_offers(auto: Served, size: int, mode: int, wanted: bool) -> None:
    nodeid = file(auto, "f", size, mode)
    assert offered(auto, nodeid) == wanted
    assert bool(auto.client.lookup(ROOT, b"f").attr.flags & lib.FUSE_ATTR_DAX) == wanted
    (found,) = [entry for entry in auto.client.list(plus=True) if entry.name == b"f"]
    assert bool(found.entry.attr.flags & lib.FUSE_ATTR_DAX) == wanted


@pytest.mark.parametrize("size", [0, 1, MIN, 100 * MAX])
@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_always_offers_every_file(make: Callable[..., Served], size: int, mode: int) -> None:
    served = make("always")
    assert offered(served, file(served, "f", size, mode))


@pytest.mark.parametrize("policy", ["auto", "always"])
def test_what_is_no_file(make: Callable[..., Served], policy: str) -> None:
    served = make(policy)
    (served.root / "d").mkdir()
    (served.root / "s").symlink_to("d")
    os.mkfifo(served.root / "p")
    assert not offered(served, ROOT)
    for name in (b"d", b"s", b"p"):
        assert not served.client.lookup(ROOT, name).attr.flags & lib.FUSE_ATTR_DAX


@pytest.mark.parametrize("policy", ["auto", "always"])
@pytest.mark.parametrize("attribute", ["i", "a"])
def test_what_nobody_can_open_for_writing(make: Callable[..., Served], policy: str, attribute: str) -> None:
    served = make(policy)
    nodeid = file(served, "f")
    if subprocess.run(["chattr", f"+{attribute}", served.root / "f"], capture_output=True, check=False).returncode:
        pytest.skip("takes root, and a file system with attributes")
    try:
        assert not offered(served, nodeid)
    finally:
        subprocess.run(["chattr", f"-{attribute}", served.root / "f"], check=True)


@pytest.mark.skipif(not REAL_ROOT, reason="only root mounts")
@pytest.mark.parametrize(("policy", "wanted"), [("auto", False), ("always", True)])
def test_another_file_system(make: Callable[..., Served], policy: str, wanted: bool) -> None:
    served = make(policy)
    (served.root / "sub").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", served.root / "sub"], check=True)
    try:
        (served.root / "sub/f").write_bytes(bytes(MAX))
        nodeid = served.client.walk(b"sub/f").nodeid
        assert offered(served, nodeid) == wanted
        lib.core_reset(served.core)
    finally:
        subprocess.run(["umount", served.root / "sub"], check=True)


@pytest.mark.parametrize("policy", ["auto", "always"])
@pytest.mark.parametrize("flags", [0, lib.FUSE_MAP_ALIGNMENT])
def test_a_guest_that_does_not_ask(make: Callable[..., Served], policy: str, flags: int) -> None:
    served = make(policy, flags)
    assert not offered(served, file(served, "f"))


@pytest.mark.parametrize("policy", ["auto", "always"])
def test_no_window(make: Callable[..., Served], policy: str) -> None:
    """As for a mount that has agreed to one, after the front-end closed the channel."""
    served = make(policy, window=False)
    assert not offered(served, file(served, "f"))


def test_what_grows_into_it(auto: Served) -> None:
    """The guest looks when it sees an inode first; but every answer is true."""
    nodeid = file(auto, "f", 0)
    assert not offered(auto, nodeid)
    os.truncate(auto.root / "f", MAX)
    assert offered(auto, nodeid)


def test_what_was_created(make: Callable[..., Served]) -> None:
    served = make("always")
    entry, _ = served.client.create(ROOT, b"f")
    assert entry.attr.flags & lib.FUSE_ATTR_DAX


def test_what_thrashes(make: Callable[..., Served]) -> None:
    served = make("auto")
    nodeid, other = file(served, "f"), file(served, "g")
    lib.dax_note(served.core, nodeid, lib.DAX_UNSUITABLE)
    lib.dax_note(served.core, 1 << 40, lib.DAX_UNSUITABLE)
    for _ in range(2):
        assert not offered(served, nodeid) and offered(served, other)
        served.restart()
    # That it is not offered makes the guest forget it, and look it up again.
    served.client.forget(nodeid, 1)
    assert not offered(served, served.client.lookup(ROOT, b"f").nodeid)


def test_always_is_always(make: Callable[..., Served]) -> None:
    served = make("always")
    nodeid = file(served, "f")
    lib.dax_note(served.core, nodeid, lib.DAX_UNSUITABLE)
    assert offered(served, nodeid)


# What the guest keeps in its cache.


def keeps(served: Served, nodeid: int) -> bool:
    out = served.client.open(nodeid)
    served.client.release(nodeid, out.fh)
    return bool(out.open_flags & lib.FOPEN_KEEP_CACHE)


@pytest.mark.parametrize(("flags", "wanted"), [(AGREED, True), (lib.FUSE_MAP_ALIGNMENT, True), (0, False)])
def test_a_mapped_file_is_kept_whatever_happens_to_it(make: Callable[..., Served], flags: int, wanted: bool) -> None:
    served = make("always", flags)
    nodeid = file(served, "f")
    offered(served, nodeid)
    for _ in range(3):
        (served.root / "f").write_bytes(os.urandom(MAX))
        assert keeps(served, nodeid) == wanted


def test_a_file_that_is_not_offered_is_looked_at(auto: Served) -> None:
    nodeid = file(auto, "f", MIN - 1)
    (auto.root / "f").write_bytes(b"changed")
    assert not keeps(auto, nodeid)


# What the owner of the window is told.


def told(owner: socket.socket) -> list[tuple[int, int, int, int]]:
    """(token, kind, fd, nodeid) of each message."""
    found = []
    while True:
        try:
            question = unpack("window_question", owner.recv(1 << 17))
        except BlockingIOError:
            return found
        found.append((question.token, question.kind, question.fd, question.nodeid))


def test_the_end_of_a_mapped_inode(make: Callable[..., Served], pair: tuple[socket.socket, socket.socket]) -> None:
    served = make("always")
    mapped, offered_only = file(served, "f"), file(served, "g")
    assert offered(served, mapped) and offered(served, offered_only)
    lib.dax_note(served.core, mapped, lib.DAX_MAPPED)
    served.restart()
    served.client.lookup(ROOT, b"f")
    served.client.forget(mapped, 1)
    assert told(pair[1]) == []
    served.client.forget(mapped, 1)
    served.client.forget(offered_only, 1)
    assert told(pair[1]) == [(0, lib.WINDOW_FORGET, -1, mapped)]


def test_who_is_told_and_does_not_read(make: Callable[..., Served], pair: tuple[socket.socket, socket.socket]) -> None:
    """Nobody waits."""
    served = make("always")
    pair[0].setblocking(True)
    for number in range(1000):
        lib.dax_note(served.core, file(served, f"{number}"), lib.DAX_MAPPED)
    lib.core_reset(served.core)
    pair[0].setblocking(False)
    assert 100 < len(told(pair[1])) < 1000
    assert ffi.sizeof("struct window_question") == 48

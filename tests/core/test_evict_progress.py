"""Making room comes to an end, and loses nothing that changes meanwhile."""

import os
import threading
from collections.abc import Callable

import pytest

from tests.core.conftest import MODES
from tests.core.served import Served, closed, crowd
from tests.fuseclient import ROOT
from vfsd._fuse import ffi, lib


@pytest.mark.parametrize("kind", ["unlinked", "moved"])
def test_an_inode_that_can_not_be_found_again(serve: Callable[..., Served], kind: str) -> None:
    """Its directory, which is closed, is not opened for it: to close that again would be taken for room made, without
    end."""
    served = serve()
    path, away = served.root / "d/f", served.root.parent / "away"
    path.parent.mkdir()
    away.mkdir()
    path.touch()
    os.link(path, away / "other")
    at = served.client.lookup(ROOT, b"d").nodeid
    nodeid = served.client.lookup(at, b"f").nodeid
    if kind == "unlinked":
        path.unlink()
    else:
        path.rename(away / "f")
    while lib.inode_evict(served.core):
        continue
    assert closed(served) == {at}
    for _ in range(50):
        assert not lib.inode_evict(served.core)
    assert served.client.getattr(nodeid).attr.nlink == (1 if kind == "unlinked" else 2)
    served.client.forget(nodeid)
    assert served.client.getattr(at).attr.mode


@pytest.mark.parametrize("to", [b"", b"new"])
def test_what_was_linked_and_unlinked_is_found_by_its_other_name(serve: Callable[..., Served], to: bytes) -> None:
    """As programs do that write under a passing name, link the file to its own, and unlink the first."""
    served = serve()
    served.limit(12)
    (served.root / "new").mkdir()
    at = served.client.lookup(ROOT, to).nodeid if to else ROOT
    known = {}
    for i in range(60):
        path, linked = served.root / f"passing{i}", served.root / os.fsdecode(to) / f"own{i}"
        path.touch()
        nodeid = served.client.lookup(ROOT, path.name.encode()).nodeid
        os.link(path, linked)
        assert served.client.lookup(at, linked.name.encode()).nodeid == nodeid
        path.unlink()
        known[nodeid] = linked.stat().st_ino
    assert {nodeid: served.client.getattr(nodeid).attr.ino for nodeid in known} == known
    assert len(served.descriptors()) <= 12


def test_inodes_that_can_not_be_closed_are_in_nobodys_way(serve: Callable[..., Served], mode: str) -> None:
    """However many there are one after the other: others can be closed in their place."""
    served = serve(core_flags=MODES[mode])
    served.limit(300)
    for i in range(200):
        path = served.root / f"gone{i}"
        path.touch()
        served.client.lookup(ROOT, path.name.encode())
        path.unlink()
    crowd(served, 300)
    assert len(served.descriptors()) <= 300


def test_a_search_ends_where_nothing_can_be_closed(served: Served) -> None:
    """Also when the inodes that were tried before come to their turn one after the other."""
    for i in range(24):
        path = served.root / f"gone{i}"
        path.touch()
        served.client.lookup(ROOT, path.name.encode())
        path.unlink()
        for _ in range(i % 3 + 1):
            assert not lib.inode_evict(served.core)


def test_a_closed_directory_is_opened_for_what_it_holds(tight: Served) -> None:
    """And not the whole way to it."""
    path, at = tight.root, ROOT
    for name in ("a", "b", "c"):
        path = path / name
        path.mkdir()
        at = tight.client.lookup(at, name.encode()).nodeid
    (path / "f").touch()
    nodeid = tight.client.lookup(at, b"f").nodeid
    pinned = lib.inode_get(tight.core, nodeid, ffi.NULL)
    assert pinned >= 0
    crowd(tight)
    lib.inode_put(tight.core, nodeid)
    # On the host what is above it moves: its own path is still right.
    (tight.root / "a").rename(tight.root / "z")
    crowd(tight)
    assert nodeid in closed(tight)
    assert tight.client.getattr(nodeid).attr.ino == (tight.root / "z/b/c/f").stat().st_ino


def test_renames_beside_evictions(serve: Callable[..., Served]) -> None:
    """An inode is not closed under a name that was taken from it while it was looked at."""
    served = serve(records=256)
    served.limit(100)
    names = [b"a", b"b"]
    (served.root / "a").touch()
    nodeid = served.client.lookup(ROOT, b"a").nodeid
    (served.root / "other").touch()
    served.client.lookup(ROOT, b"other")
    lib.inode_evict(served.core)
    stop = threading.Event()

    def evict() -> None:
        while not stop.is_set():
            lib.inode_evict(served.core)

    threads = [threading.Thread(target=evict) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for i in range(30_000):
            old, new = names[i % 2], names[1 - i % 2]
            served.client.rename(ROOT, old, ROOT, new)
            assert lib.inode_get(served.core, nodeid, ffi.NULL) >= 0, f"lost at rename {i}"
            lib.inode_put(served.core, nodeid)
    finally:
        stop.set()
        for thread in threads:
            thread.join()

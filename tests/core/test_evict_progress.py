"""Making room comes to an end, and loses nothing that changes meanwhile."""

import os
from collections.abc import Callable

import pytest

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
    os.link(path, path.with_name("other"))
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

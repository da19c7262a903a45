"""Inodes that the kernel knows no name of any more when they are saved: closed, and opened again by file handle after
their names left its cache."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.core.records import move, save
from tests.core.served import REAL_ROOT, Served, closed, crowd
from tests.disk import ext4, forget_names
from tests.fuseclient import ROOT
from vfsd._fuse import ffi, lib

Make = Callable[[], Served]

pytestmark = pytest.mark.skipif(not REAL_ROOT, reason="a file handle is opened by root only")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes cores on one directory of an ext4."""
    with ext4(tmp_path) as root, ExitStack() as stack:

        def make() -> Served:
            served = Served(root, core_flags=lib.CORE_FILE_HANDLES)
            stack.callback(served.close)
            return served

        yield make


@pytest.fixture
def source(make: Make) -> Served:
    """With few descriptors."""
    served = make()
    served.limit(8)
    return served


def path_of(served: Served, nodeid: int) -> str:
    fd = lib.inode_get(served.core, nodeid, ffi.NULL)
    assert fd >= 0
    path = os.readlink(f"/proc/self/fd/{fd}")
    lib.inode_put(served.core, nodeid)
    return path


def look_up(served: Served, path: str) -> int:
    """As a guest does, which knows each directory on the way."""
    nodeid = ROOT
    for name in path.split("/"):
        nodeid = served.client.lookup(nodeid, name.encode()).nodeid
    return nodeid


def cool_down(served: Served, *nodeids: int) -> None:
    """Closes inodes, and lets the kernel forget their names."""
    crowd(served)
    assert closed(served) >= set(nodeids)
    forget_names(served.root)
    for nodeid in nodeids:
        assert path_of(served, nodeid) == "/", "the kernel knows a name"


def test_in_directories_that_the_guest_knows(source: Served, make: Make) -> None:
    (source.root / "d/e").mkdir(parents=True)
    paths = ["top", "d/e/deep", "d/e/" + "n" * 255]
    for path in paths:
        (source.root / path).write_text(path)
    os.symlink("d", source.root / "d/link")
    known = {path: look_up(source, path) for path in [*paths, "d/link"]}
    cool_down(source, *known.values())
    target = make()
    assert move(source, target, lib.STATE_TAGS, paths=True) == []
    assert lib.core_inode_count(target.core) == lib.core_inode_count(source.core), "some were left out"
    for path, nodeid in known.items():
        assert target.client.getattr(nodeid).attr.ino == (source.root / path).lstat().st_ino


def test_open_already(source: Served, make: Make) -> None:
    """It was used since its name left the cache. That it is looked up again gives its descriptor no path."""
    (source.root / "file").write_text("data")
    nodeid = look_up(source, "file")
    cool_down(source, nodeid)
    fh = source.client.open(nodeid).fh
    assert look_up(source, "file") == nodeid and nodeid not in closed(source)
    assert path_of(source, nodeid) == "/"
    target = make()
    assert move(source, target, paths=True) == []
    assert target.client.read(nodeid, fh, 9) == b"data"


def test_what_the_host_did_meanwhile(source: Served, make: Make) -> None:
    """Files moved to another directory, and with another file where they were."""
    for name in ("d", "e"):
        (source.root / name).mkdir()
        look_up(source, name)
    for name in ("moved", "linked", "replaced"):
        (source.root / "d" / name).write_text(name)
    known = {name: look_up(source, f"d/{name}") for name in ("moved", "linked", "replaced")}
    crowd(source)
    (source.root / "d/moved").rename(source.root / "e/1")
    os.link(source.root / "d/linked", source.root / "e/2")
    (source.root / "d/linked").unlink()
    (source.root / "d/replaced").rename(source.root / "e/replaced")
    (source.root / "d/replaced").write_text("another")
    cool_down(source, *known.values())
    target = make()
    assert move(source, target, paths=True) == []
    for name, nodeid in known.items():
        fh = target.client.open(nodeid).fh
        assert target.client.read(nodeid, fh, 99) == name.encode()


def test_in_a_directory_that_the_guest_does_not_know(source: Served) -> None:
    """It is not searched for, and is missed."""
    for name in ("d", "e"):
        (source.root / name).mkdir()
    (source.root / "d/file").touch()
    nodeid = look_up(source, "d/file")
    crowd(source)
    (source.root / "d/file").rename(source.root / "e/file")
    cool_down(source, nodeid)
    (lost,) = [record for record in save(source, paths=True) if record.how == lib.STATE_LOST]
    assert (lost.nodeid, lost.error) == (nodeid, errno.ENOENT)


def test_gone(source: Served) -> None:
    """Nobody misses what has no name."""
    (source.root / "file").touch()
    nodeid = look_up(source, "file")
    cool_down(source, nodeid)
    fd = lib.inode_get(source.core, nodeid, ffi.NULL)
    (source.root / "file").unlink()
    assert fd >= 0 and nodeid not in {record.nodeid for record in save(source, paths=True)}
    lib.inode_put(source.core, nodeid)


def test_out_of_descriptors(source: Served) -> None:
    """What can't be opened to be looked at is missed. By names none of these can be closed again."""
    crowd(source)
    forget_names(source.root)
    source.config.flags = 0
    source.restart()
    assert len(save(source)) == lib.core_inode_count(source.core) - 1
    assert errno.ENFILE in {record.error for record in save(source)}

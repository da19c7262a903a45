"""LOOKUP of "." and "..": what a guest's kernel needs to open file handles."""

import os
from collections.abc import Callable
from errno import EINVAL, ENOENT, ENOTDIR, ESTALE
from pathlib import Path

import pytest

from tests.core.served import REAL_ROOT, Served, crowd
from tests.fuseclient import ROOT
from vfsd._fuse import lib


@pytest.fixture
def exported(serve: Callable[..., Served]) -> Served:
    served = serve(session_flags=lib.FUSE_EXPORT_SUPPORT)
    (served.root / "a/b").mkdir(parents=True)
    (served.root / "a/b/f").write_text("data")
    return served


def test_only_when_agreed(served: Served) -> None:
    for name in (b".", b".."):
        served.client.lookup(ROOT, name, expect=EINVAL)


def test_an_inode_itself(exported: Served) -> None:
    client = exported.client
    f = client.walk(b"a/b/f")
    again = client.lookup(f.nodeid, b".")
    assert (again.nodeid, again.attr.ino, again.attr.size) == (f.nodeid, f.attr.ino, 4)
    client.forget(f.nodeid)
    assert client.lookup(f.nodeid, b".").nodeid == f.nodeid, "each is owed a FORGET"
    client.forget(f.nodeid, 2)
    client.lookup(f.nodeid, b".", expect=ESTALE)
    assert client.lookup(ROOT, b".").nodeid == ROOT


def test_an_inode_without_a_name(exported: Served) -> None:
    nodeid = exported.client.walk(b"a/b/f").nodeid
    (exported.root / "a/b/f").unlink()
    assert exported.client.lookup(nodeid, b".").attr.nlink == 0


def test_a_parent(exported: Served) -> None:
    client = exported.client
    a = client.lookup(ROOT, b"a").nodeid
    b = client.lookup(a, b"b").nodeid
    f = client.lookup(b, b"f").nodeid
    assert client.lookup(b, b"..").nodeid == a
    assert client.lookup(a, b"..").nodeid == ROOT
    assert client.lookup(ROOT, b"..").nodeid == ROOT
    client.lookup(f, b"..", expect=ENOTDIR)
    client.forget(a, 2)
    again = client.lookup(b, b"..")
    assert again.nodeid != a and again.attr.ino == (exported.root / "a").stat().st_ino
    (exported.root / "a/b/f").unlink()
    (exported.root / "a/b").rename(exported.root / "moved")
    assert client.lookup(b, b"..").nodeid == ROOT


@pytest.mark.parametrize("name", [b"...", b". ", b"./", b"../", b"../..", b""])
def test_names_beside_them(exported: Served, name: bytes) -> None:
    exported.client.lookup(ROOT, name, expect=EINVAL if name in (b"./", b"../", b"../..", b"") else ENOENT)


def test_no_way_out(exported: Served, tmp_path: Path) -> None:
    """The host moves a directory out of the share: the guest goes on with it, and gets no further up."""
    client = exported.client
    a = client.lookup(ROOT, b"a").nodeid
    b = client.lookup(a, b"b").nodeid
    (exported.root / "a").rename(tmp_path / "outside")
    client.lookup(a, b"..", expect=ESTALE)
    client.lookup(b, b"..", expect=ESTALE)
    assert client.lookup(a, b"b").nodeid == b
    (tmp_path / "outside").rename(exported.root / "back")
    assert client.lookup(a, b"..").nodeid == ROOT


def test_without_a_descriptor(tight: Served) -> None:
    (tight.root / "a/b").mkdir(parents=True)
    a = tight.client.lookup(ROOT, b"a").nodeid
    b = tight.client.lookup(a, b"b").nodeid
    crowd(tight)
    assert tight.client.lookup(b, b"..").nodeid == a
    crowd(tight)
    assert tight.client.lookup(b, b".").nodeid == b


@pytest.mark.skipif(not REAL_ROOT, reason="only root can mount")
def test_across_a_mount(exported: Served) -> None:
    from vfsd._process import lib as process

    sub = exported.root / "sub"
    sub.mkdir()
    assert process.process_mount(b"none", os.fsencode(sub), b"tmpfs", 0, b"size=64k") == 0
    try:
        (sub / "d").mkdir()
        mount = exported.client.lookup(ROOT, b"sub").nodeid
        directory = exported.client.lookup(mount, b"d").nodeid
        assert exported.client.lookup(directory, b"..").nodeid == mount
        assert exported.client.lookup(mount, b"..").nodeid == ROOT
    finally:
        assert process.process_umount(os.fsencode(sub), 2) == 0

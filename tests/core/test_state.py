"""Inodes and handles that move into the tables of another core, on the same directory."""

import errno
import os
from collections.abc import Callable

import pytest

from tests.core.conftest import MODES
from tests.core.records import load, move, numbers, save
from tests.core.served import REAL_ROOT, Served, closed, crowd
from tests.fuseclient import ROOT
from vfsd._fuse import ffi, lib

Serve = Callable[..., Served]


def points_to(served: Served, nodeid: int) -> str:
    fd = lib.inode_get(served.core, nodeid, ffi.NULL)
    assert fd >= 0
    target = os.readlink("", dir_fd=fd)
    lib.inode_put(served.core, nodeid)
    return target


def make_directory(served: Served, name: str) -> int:
    (served.root / name).mkdir()
    return served.client.walk(name.encode()).nodeid


@pytest.fixture
def tree(serve: Serve, mode: str) -> Served:
    source = serve(core_flags=MODES[mode], session_flags=lib.FUSE_EXPORT_SUPPORT)
    (source.root / "a/b").mkdir(parents=True)
    (source.root / "a/b/file").write_bytes(b"contents")
    os.symlink("a", source.root / "link")
    return source


def test_ids_stay(tree: Served, serve: Serve) -> None:
    client = tree.client
    nodeids = [client.lookup(ROOT, b"link").nodeid, client.lookup(ROOT, b"a").nodeid]
    nodeids.append(client.lookup(nodeids[1], b"b").nodeid)
    nodeids.append(client.lookup(nodeids[2], b"file").nodeid)
    fh = client.open(nodeids[3], os.O_RDWR).fh
    target = serve()
    assert move(tree, target) == []
    assert target.client.read(nodeids[3], fh, 100) == b"contents"
    assert target.client.lookup(nodeids[2], b"file").nodeid == nodeids[3]
    assert points_to(target, nodeids[0]) == "a"
    made = target.client.create(ROOT, b"new")
    assert made[0].nodeid not in nodeids and made[1].fh != fh
    assert made[0].nodeid >> 32 > max(nodeid >> 32 for nodeid in nodeids)
    for nodeid in nodeids[:3]:
        target.client.forget(nodeid)
        target.client.getattr(nodeid, expect=errno.ESTALE)
    target.client.forget(nodeids[3])
    assert target.client.getattr(nodeids[3]).attr.size == 8, "it was looked up once more there"


def test_a_directory_may_be_younger_than_what_is_in_it(tree: Served, serve: Serve) -> None:
    """Slots are used again, so their order says nothing."""
    client = tree.client
    a = client.lookup(ROOT, b"a").nodeid
    early = client.lookup(ROOT, b"link").nodeid
    b = client.lookup(a, b"b").nodeid
    file = client.lookup(b, b"file").nodeid
    client.forget(early)
    young = make_directory(tree, "young")
    (tree.root / "a/b").rename(tree.root / "young/b")
    assert early & 0xFFFFFFFF == young & 0xFFFFFFFF
    client.forget(a)
    target = serve()
    assert move(tree, target) == []
    assert target.client.getattr(file).attr.size == 8
    assert target.client.lookup(young, b"b").nodeid == b


def test_what_is_closed(tight: Served, serve: Serve) -> None:
    client = tight.client
    (tight.root / "d").mkdir()
    (tight.root / "d" / ("n" * 200)).write_bytes(b"far")
    directory = client.lookup(ROOT, b"d").nodeid
    file = client.lookup(directory, b"n" * 200).nodeid
    crowd(tight)
    assert file in closed(tight)
    for flags in (0, lib.STATE_CONFIRM):
        target = serve(core_flags=tight.config.flags)
        assert move(tight, target, flags) == []
        assert target.client.getattr(file).attr.size == 3


def test_a_target_with_few_descriptors(serve: Serve, mode: str) -> None:
    source, target = serve(core_flags=MODES[mode]), serve(core_flags=MODES[mode])
    names = [b"%d" % number for number in range(60)]
    make_directory(source, "d")
    known = {name: make_directory(source, f"d/{name.decode()}") for name in names}
    target.limit(8)
    assert move(source, target) == []
    assert closed(target)
    for name, nodeid in known.items():
        assert target.client.getattr(nodeid).attr.ino == (source.root / "d" / name.decode()).stat().st_ino


def test_a_directory_that_only_the_table_keeps(tight: Served, serve: Serve) -> None:
    """The guest has forgotten it, and closed inodes are found through it."""
    client = tight.client
    (tight.root / "d").mkdir()
    for name in ("1", "2"):
        (tight.root / "d" / name).touch()
    directory = client.lookup(ROOT, b"d").nodeid
    known = [client.lookup(directory, name).nodeid for name in (b"1", b"2")]
    crowd(tight)
    client.forget(directory)
    target = serve()
    assert move(tight, target) == []
    for nodeid in known:
        target.client.getattr(nodeid)
    target.client.getattr(directory, expect=errno.ESTALE)


def test_where_the_host_put_it(tree: Served, serve: Serve) -> None:
    """In a directory the guest does not know."""
    nodeid = tree.client.walk(b"a/b/file").nodeid
    (tree.root / "x/y").mkdir(parents=True)
    (tree.root / "a/b/file").rename(tree.root / "x/y/z")
    target = serve()
    assert move(tree, target) == []
    assert target.client.getattr(nodeid).attr.size == 8


def test_another_name(serve: Serve) -> None:
    source, target = serve(), serve()
    (source.root / "first").write_bytes(b"12")
    nodeid = source.client.lookup(ROOT, b"first").nodeid
    os.link(source.root / "first", source.root / "second")
    os.unlink(source.root / "first")
    assert move(source, target) == []
    assert target.client.getattr(nodeid).attr.size == 2


def test_another_name_elsewhere(serve: Serve) -> None:
    """In another directory that the guest knows."""
    source, target = serve(), serve()
    for name in ("d", "e"):
        make_directory(source, name)
    (source.root / "d/first").write_bytes(b"12")
    nodeid = source.client.walk(b"d/first").nodeid
    os.link(source.root / "d/first", source.root / "e/second")
    os.unlink(source.root / "d/first")
    assert move(source, target) == []
    assert target.client.getattr(nodeid).attr.size == 2


def test_unlinked_by_path(serve: Serve) -> None:
    source, target = serve(), serve()
    made, opened = source.client.create(ROOT, b"gone")
    kept = make_directory(source, "kept")
    (source.root / "gone").unlink()
    (record,) = [record for record in save(source) if record.how == lib.STATE_LOST]
    assert record.error == errno.ENOENT and record.nodeid == made.nodeid
    assert move(source, target) == [errno.ENOENT, errno.ESTALE]
    target.client.getattr(made.nodeid, expect=errno.ESTALE)
    target.client.read(made.nodeid, opened.fh, 1, expect=errno.EBADF)
    target.client.forget(made.nodeid)
    target.client.getattr(kept)
    assert target.client.create(ROOT, b"next")[0].nodeid != made.nodeid


def test_unlinked_and_not_open(serve: Serve) -> None:
    """It is about to be forgotten: nobody misses it."""
    source, target = serve(), serve()
    made, opened = source.client.create(ROOT, b"gone")
    directory = make_directory(source, "d")
    (source.root / "gone").unlink()
    (source.root / "d").rmdir()
    source.client.release(made.nodeid, opened.fh)
    assert save(source) == []
    assert move(source, target) == []
    for nodeid in (made.nodeid, directory):
        target.client.forget(nodeid)
        target.client.getattr(nodeid, expect=errno.ESTALE)


def test_closed_and_lost_already(tight: Served, serve: Serve) -> None:
    client = tight.client
    (tight.root / "d").mkdir()
    (tight.root / "d/file").touch()
    directory = client.lookup(ROOT, b"d").nodeid
    file = client.lookup(directory, b"file").nodeid
    crowd(tight)
    assert file in closed(tight)
    (tight.root / "d/file").unlink()
    client.getattr(file, expect=errno.ESTALE)
    assert file not in {record.nodeid for record in save(tight, lib.STATE_CONFIRM)}
    target = serve(core_flags=tight.config.flags)
    assert move(tight, target, lib.STATE_CONFIRM) == []


@pytest.mark.skipif(not REAL_ROOT, reason="a file handle is opened by root only")
def test_unlinked_by_handle(serve: Serve) -> None:
    source, target = serve(core_flags=lib.CORE_FILE_HANDLES), serve()
    made, opened = source.client.create(ROOT, b"gone")
    source.client.write(made.nodeid, opened.fh, b"still there")
    (source.root / "gone").unlink()
    assert {record.how for record in save(source)} == {lib.STATE_HANDLE}
    assert move(source, target) == []
    assert target.client.read(made.nodeid, opened.fh, 100) == b"still there"


def test_another_file_of_that_name(tree: Served, serve: Serve) -> None:
    nodeid = tree.client.lookup(ROOT, b"link").nodeid
    blind, seeing = serve(), serve()
    by_path = save(tree, lib.STATE_TAGS)
    assert all(record.tag for record in by_path)
    path = tree.root / "link"
    path.rename(tree.root / "moved")
    os.symlink("other", path)
    data = b"".join(record.pack() for record in by_path)
    for target in (blind, seeing):
        assert lib.state_set_numbers(target.core, numbers(tree)) == 0
    if by_path[0].how == lib.STATE_PATH:
        assert load(blind, data) == []
        assert points_to(blind, nodeid) == "other"
        assert load(seeing, data, lib.STATE_TAGS) == [errno.ESTALE]
    else:
        assert load(seeing, data, lib.STATE_TAGS) == []
        assert points_to(seeing, nodeid) == "a"


def test_another_kind_of_file(tree: Served, serve: Serve) -> None:
    tree.client.lookup(ROOT, b"link")
    (record,) = save(tree)
    target = serve()
    assert lib.state_set_numbers(target.core, numbers(tree)) == 0
    assert load(target, record._replace(type=0o100000).pack()) == [errno.ESTALE]

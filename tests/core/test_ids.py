"""Ids that have another number on the host."""

import os
import stat
from collections.abc import Callable, Iterator
from errno import EACCES, EPERM
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.served import REAL_ROOT, Served
from tests.core.test_cred import owner
from tests.fuseclient import ROOT
from vfsd._fuse import lib
from vfsd.translate import ID_MAX, Ids, Owner, rule, tables

as_root = pytest.mark.skipif(not REAL_ROOT, reason="only root can take another identity")


def ids(*uid_rules: str, gid: tuple[str, ...] = ()) -> Ids:
    made = tables([rule(text) for text in uid_rules], [rule(text) for text in gid], None, Owner(0, 0))
    assert made
    return made


@pytest.fixture
def privileged(serve: Callable[..., Served]) -> Iterator[Callable[..., Served]]:
    groups = os.getgroups()
    os.setgroups([])

    def make(ids: Ids, session_flags: int = lib.FUSE_CREATE_SUPP_GROUP) -> Served:
        served = serve(core_flags=lib.CORE_PRIVILEGED, session_flags=session_flags, ids=ids)
        served.root.chmod(0o777)
        return served

    yield make
    os.setgroups(groups)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["guest", "squash-guest", "forbid-guest"])), max_size=40))
def test_every_id_finds_its_range(tmp_path: Path, gaps: list[tuple[int, str]]) -> None:
    rules, expected, at = [], {}, 0
    for number, (gap, word) in enumerate(gaps):
        first, count = at + gap, 1 + gap % 3
        at = first + count
        rules.append(f"{word}:{first}:{count}" if "forbid" in word else f"{word}:{first}:{1000 * number}:{count}")
        for n in range(count):
            expected[first + n] = -EPERM if "forbid" in word else 1000 * number + (0 if "squash" in word else n)
    served = Served(tmp_path, ids=ids("squash-host:0:7:1", *rules))
    try:
        for id in (*range(at + 10), ID_MAX):
            assert lib.id_to_host(served.core, lib.CORE_UID, id) == expected.get(id, id)
            assert lib.id_to_host(served.core, lib.CORE_GID, id) == id
            assert lib.id_to_guest(served.core, lib.CORE_UID, id) == (id or 7)
    finally:
        served.close()


def test_the_last_ids(serve: Callable[..., Served]) -> None:
    served = serve(ids=ids(f"squash-guest:0:1:{ID_MAX + 1}", f"map:0:{ID_MAX}:0", f"host:{ID_MAX}:0:1"))
    assert lib.id_to_host(served.core, lib.CORE_UID, ID_MAX) == 1
    assert lib.id_to_guest(served.core, lib.CORE_UID, ID_MAX) == 0
    # What is no id stays what it is.
    assert lib.id_to_guest(served.core, lib.CORE_UID, 2**32 - 1) == 2**32 - 1


@as_root
def test_every_reply_shows_the_guests_ids(serve: Callable[..., Served]) -> None:
    served = serve(ids=ids("host:1000:5:10", gid=("squash-host:0:77:4000",)))
    client = served.client
    for name, uid in (("f", 1003), ("d", 1010)):
        (served.root / name).mkdir()
        os.chown(served.root / name, uid, uid)
    found = client.lookup(ROOT, b"f")
    assert (found.attr.uid, found.attr.gid) == (8, 77)
    got = client.getattr(found.nodeid).attr
    assert (got.uid, got.gid) == (8, 77)
    listed = {entry.name: entry.entry.attr for entry in client.list(plus=True)}
    assert (listed[b"f"].uid, listed[b"d"].uid) == (8, 1010)


@as_root
def test_what_is_made_belongs_to_the_host_s_caller(privileged: Callable[..., Served]) -> None:
    served = privileged(ids("map:0:1000:10", gid=("map:0:2000:10",)))
    client = served.client
    for uid, gid in ((0, 0), (5, 7), (30, 40)):
        client.uid, client.gid = uid, gid
        entry, _ = client.create(ROOT, b"%d" % uid)
        assert (entry.attr.uid, entry.attr.gid) == (uid, gid)
    assert [owner(served.root / name) for name in ("0", "5", "30")] == [(1000, 2000), (1005, 2007), (30, 40)]


@as_root
def test_the_guests_root_is_root_where_it_comes_from(privileged: Callable[..., Served]) -> None:
    served = privileged(ids("map:0:1000:10", gid=("map:0:2000:10",)))
    directory = served.root / "d"
    directory.mkdir()
    os.chown(directory, 1005, 2005)
    directory.chmod(0o2700)
    client = served.client
    nodeid = client.lookup(ROOT, b"d").nodeid
    client.create(nodeid, b"f", mode=0o2755)
    assert owner(directory / "f") == (1000, 2005)
    assert (directory / "f").stat().st_mode & stat.S_ISGID
    client.uid, client.gid = 1, 1
    client.create(nodeid, b"g", expect=EACCES)


@as_root
def test_supplementary_groups_are_translated(privileged: Callable[..., Served]) -> None:
    served = privileged(ids(gid=("map:10:2000:10", "forbid-guest:30:1")))
    directory = served.root / "d"
    directory.mkdir()
    os.chown(directory, 0, 2005)
    directory.chmod(0o2770)
    client = served.client
    client.uid, client.gid, client.groups = 1234, 1234, [15]
    nodeid = client.lookup(ROOT, b"d").nodeid
    client.create(nodeid, b"f", mode=0o2755)
    assert owner(directory / "f") == (1234, 2005)
    assert (directory / "f").stat().st_mode & stat.S_ISGID
    client.groups = [16]
    client.create(nodeid, b"g", expect=EACCES)
    client.groups = [15, 30]
    client.create(nodeid, b"g", expect=EPERM)


@pytest.mark.parametrize("flags", [0, lib.CORE_PRIVILEGED] if REAL_ROOT else [0])
def test_a_forbidden_caller_makes_nothing(serve: Callable[..., Served], flags: int) -> None:
    served = serve(core_flags=flags, ids=ids("forbid-guest:5:1", gid=("forbid-guest:6:2",)))
    client = served.client
    for uid, gid in ((5, 0), (0, 6), (5, 7)):
        client.uid, client.gid = uid, gid
        client.create(ROOT, b"f", expect=EPERM)
        client.mkdir(ROOT, b"d", expect=EPERM)
        # What makes nothing has no owner to forbid.
        client.getattr(ROOT)
    assert list(served.root.iterdir()) == []


def test_one_owner(serve: Callable[..., Served]) -> None:
    me = Owner(os.geteuid(), os.getegid())
    served = serve(ids=tables((), (), Owner(1000, 100), me))
    client = served.client
    for uid in (0, 1000, 4321):
        client.uid, client.gid = uid, uid
        entry, _ = client.create(ROOT, b"%d" % uid)
        assert (entry.attr.uid, entry.attr.gid) == (1000, 100)
        assert owner(served.root / str(uid)) == me
    assert client.getattr(ROOT).attr.uid == 1000
    for kind, same in ((lib.CORE_UID, 1000), (lib.CORE_GID, 100)):
        assert lib.id_to_set(served.core, kind, same) == 2**32 - 1
        assert lib.id_to_set(served.core, kind, 0) == -EPERM

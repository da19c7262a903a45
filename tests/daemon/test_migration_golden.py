"""States of versions that were released: each is read for good. tests/daemon/states has one of each version, made of
the guest below by the vfsd that brought it in."""

import os
from collections.abc import Callable
from fcntl import F_RDLCK, F_WRLCK
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.daemon.daemon import Daemon
from tests.daemon.locking import ONE, TWO, Asked, Guest, on
from tests.daemon.moving import Journey
from tests.fuseclient import ROOT
from vfsd import state
from vfsd._fuse import lib

STATES = sorted((Path(__file__).parent / "states").iterdir())
FLAGS = lib.FUSE_POSIX_LOCKS | lib.FUSE_FLOCK_LOCKS | lib.FUSE_BIG_WRITES | lib.FUSE_MAX_PAGES | lib.FUSE_ASYNC_READ


class Traveller(NamedTuple):
    """What the guest has, besides its file "hello"."""

    guest: Guest
    directory: int
    deep: int
    listing: int
    asked: Asked


def settle(guest: Guest, share: Path) -> Traveller:
    """Files and directories, some of them forgotten; open ones; locks; a request that waits for one."""
    (share / "dir/inner").mkdir(parents=True)
    (share / "dir/inner" / ("n" * 255)).write_bytes(b"deep")
    os.symlink("dir", share / "link")
    client = guest.client
    client.forget(client.lookup(ROOT, b"link").nodeid)
    directory = client.lookup(ROOT, b"dir").nodeid
    inner = client.lookup(directory, b"inner").nodeid
    deep = client.lookup(inner, b"n" * 255).nodeid
    client.lookup(inner, b"n" * 255)
    client.forget(client.lookup(ROOT, b"hello").nodeid)
    listing = client.opendir(directory).fh
    client.release(guest.nodeid, guest.open().fh)
    guest.lock(ONE, F_WRLCK, 0, 9)
    guest.lock(ONE, F_RDLCK, 100)
    guest.lock(TWO, F_RDLCK, flock=True)
    asked = guest.ask(TWO, F_WRLCK, 5, 5)
    client.getattr(deep)
    return Traveller(guest, directory, deep, listing, asked)


def check(traveller: Traveller) -> None:
    guest, directory, deep, listing, asked = traveller
    client = guest.client
    assert client.read(guest.nodeid, guest.fh, 100) == b"hi there\n"
    assert client.getattr(deep).attr.size == 4
    assert {entry.name for entry in client.readdir(directory, listing)} == {b".", b"..", b"inner"}
    client.forget(deep)
    client.getattr(deep)
    client.forget(deep)
    client.getattr(deep, expect=116)
    guest.lock(TWO, F_WRLCK, 100, 100, expect=11)
    assert not asked.answered
    guest.flush(ONE)
    assert asked.answer() == 0


@pytest.mark.parametrize("path", STATES, ids=lambda path: path.name)
def test_it_is_read(daemons: Callable[..., Daemon], share: Path, path: Path) -> None:
    source, target = daemons(), daemons()
    with on(source, flags=FLAGS) as guest:
        traveller = settle(guest, share)
        journey = Journey(guest.frontend)
        assert journey.arrive(target, path.read_bytes()), target.log
        journey.go_on()
        check(traveller)
    assert "WARNING" not in target.log


def test_this_version_is_what_it_was(daemons: Callable[..., Daemon], share: Path) -> None:
    """What changes a byte is a new version."""
    with on(daemons(), flags=FLAGS) as guest:
        settle(guest, share)
        made = Journey(guest.frontend).state
    assert made == STATES[-1].read_bytes()
    assert STATES[-1].name == f"version-{state.VERSION}"
    assert [path.name for path in STATES] == [f"version-{number + 1}" for number in range(state.VERSION)]

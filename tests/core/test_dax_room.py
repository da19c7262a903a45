"""Which files are offered for the DAX window, in view of those that are open (vfsd/fuse/dax.c, dax_room.c)."""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.served import Served
from tests.fuseclient import ROOT
from vfsd._fuse import lib

MIB = 1 << 20
#: Bytes that open files may take together: six ranges.
ROOM = 13 * MIB
#: Longer than what is merely offered takes room, seconds.
LATER = 2.1


@pytest.fixture
def served() -> Iterator[Served]:
    # tmpfs, where a mapping is what others read, whatever the tests' own directory lies on.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        served = Served(Path(directory), session_flags=lib.FUSE_HAS_INODE_DAX | lib.FUSE_MAP_ALIGNMENT)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        served.config.window_fd = theirs.fileno()
        served.config.dax_min, served.config.dax_max, served.config.dax_room = MIB // 2, 10 * MIB, ROOM
        served.restart()
        yield served
        served.close()
        ours.close()
        theirs.close()


def make(served: Served, **sizes: int) -> None:
    for name, size in sizes.items():
        (served.root / name).touch()
        os.truncate(served.root / name, size)


def offered(served: Served, name: str) -> bool:
    return bool(served.client.lookup(ROOT, name.encode()).attr.flags & lib.FUSE_ATTR_DAX)


def opened(served: Served, name: str) -> tuple[int, int]:
    nodeid = served.client.lookup(ROOT, name.encode()).nodeid
    return nodeid, served.client.open(nodeid).fh


def test_sizes(served: Served) -> None:
    make(served, small=MIB // 2 - 1, least=MIB // 2, most=10 * MIB, large=10 * MIB + 1)
    assert not offered(served, "small") and not offered(served, "large")
    assert offered(served, "most") and offered(served, "least")


def test_what_is_offered_at_the_same_time_fits(served: Served) -> None:
    make(served, **{f"f{number}": MIB for number in range(9)})
    assert [offered(served, f"f{number}") for number in range(9)] == [True] * 6 + [False] * 3


def test_an_offer_that_nobody_takes_up_ends(served: Served) -> None:
    make(served, a=10 * MIB, b=10 * MIB)
    assert offered(served, "a") and not offered(served, "b")
    time.sleep(LATER)
    assert offered(served, "b")


def test_an_open_file_keeps_its_room(served: Served) -> None:
    make(served, a=10 * MIB, b=10 * MIB)
    nodeid, fh = opened(served, "a")
    _, again = opened(served, "a")
    time.sleep(LATER)
    assert not offered(served, "b") and offered(served, "a")
    served.client.release(nodeid, fh)
    assert not offered(served, "b")
    served.client.release(nodeid, again)
    assert offered(served, "b")


def test_a_forgotten_file_gives_its_room_back(served: Served) -> None:
    make(served, a=10 * MIB, b=10 * MIB)
    nodeid, _ = opened(served, "a")
    served.client.forget(nodeid)
    assert offered(served, "b")
    served.client.forget(served.client.lookup(ROOT, b"b").nodeid, 2)
    assert offered(served, "a")


def test_a_file_opened_without_room_stays_as_it_is(served: Served) -> None:
    make(served, a=10 * MIB, b=10 * MIB)
    nodeid, fh = opened(served, "a")
    other, _ = opened(served, "b")
    served.client.release(nodeid, fh)
    served.client.forget(nodeid)
    assert not offered(served, "b")
    served.client.forget(other, 2)
    assert offered(served, "b")


def test_a_new_worker_counts_what_is_open(served: Served) -> None:
    make(served, a=10 * MIB, b=10 * MIB)
    nodeid, fh = opened(served, "a")
    served.restart()
    assert not offered(served, "b")
    served.client.release(nodeid, fh)
    assert offered(served, "b")


def test_with_always_there_is_room_for_all(served: Served) -> None:
    served.config.flags |= lib.CORE_DAX_ALWAYS
    served.restart()
    make(served, tiny=1, huge=1 << 40)
    assert offered(served, "tiny") and offered(served, "huge")


def test_a_file_that_thrashed_is_known_when_it_comes_back(served: Served) -> None:
    make(served, a=MIB, b=MIB)
    nodeid = served.client.lookup(ROOT, b"a").nodeid
    lib.dax_note(served.core, nodeid, lib.DAX_UNSUITABLE)
    assert not offered(served, "a") and offered(served, "b")
    served.client.forget(nodeid, 2)
    served.restart()
    assert not offered(served, "a")


def test_what_is_larger_than_the_room_takes_it_all(served: Served) -> None:
    served.config.dax_max = 100 * MIB
    served.restart()
    make(served, a=100 * MIB, b=MIB)
    nodeid, fh = opened(served, "a")
    assert offered(served, "a") and not offered(served, "b")
    served.client.release(nodeid, fh)
    assert offered(served, "b")

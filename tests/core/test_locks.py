"""The lock table: what a new core finds in the arena, what ends an owner's locks, and the descriptors it takes."""

import fcntl
import os
import struct
from errno import EAGAIN, EBADF, ENFILE, ENOLCK
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from pathlib import Path
from typing import Any

import pytest

from tests.core.served import Served
from tests.fuseclient import ROOT, FuseClient
from vfsd._fuse import ffi, lib

#: struct lock_record
RECORD = struct.Struct("=IIQQQiIQ")
FIELDS = ("valid", "generation", "nodeid", "owner", "fh", "fd", "pid", "reserved")


def records(served: Served) -> dict[int, dict[str, int]]:
    """The valid ones, by slot."""
    found = {
        slot: dict(zip(FIELDS, RECORD.unpack_from(served.locks, slot * RECORD.size), strict=True))
        for slot in range(1, len(served.locks) // RECORD.size)
    }
    return {slot: record for slot, record in found.items() if record["valid"]}


class File:
    """A file "f" and a handle of it."""

    def __init__(self, served: Served) -> None:
        self.served = served
        entry, opened = served.client.create(ROOT, b"f")
        self.nodeid, self.fh = entry.nodeid, opened.fh
        self.path: Path = served.root / "f"

    def set(self, owner: int, kind: int, start: int = 0, end: int = lib.LOCK_END, fh: int = 0) -> int:
        lock = {"start": start, "end": end, "type": kind, "pid": 7}
        arg = ffi.new("struct fuse_lk_in *", {"fh": fh or self.fh, "owner": owner, "lk": lock})
        return lib.lock_set(self.served.core, self.nodeid, arg)  # type: ignore[no-any-return]

    def open(self) -> int:
        return self.served.client.open(self.nodeid, os.O_RDWR).fh  # type: ignore[no-any-return]

    def is_free(self) -> bool:
        """For an open file of the host."""
        with open(self.path, "r+b") as file:
            lock = struct.pack("hhqqi4x", F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, lock)
            return struct.unpack("hhqqi4x", answer)[0] == F_UNLCK


@pytest.fixture
def file(served: Served) -> File:
    return File(served)


def test_a_new_core_finds_the_locks(served: Served, file: File) -> None:
    assert file.set(1, F_WRLCK, 0, 9) == file.set(2, F_RDLCK, 20, 29) == 0
    (one, two), before = records(served).values(), served.descriptors()
    assert (one["nodeid"], one["owner"], one["fh"], one["pid"]) == (file.nodeid, 1, file.fh, 7)
    for _ in range(2):
        served.restart()
        assert file.set(2, F_RDLCK, 9, 9) == -EAGAIN
        assert file.set(1, F_WRLCK, 0, 9) == 0
        assert (list(records(served).values()), served.descriptors()) == ([one, two], before)
    served.client.flush(file.nodeid, file.fh, 1)
    served.client.flush(file.nodeid, file.fh, 2)
    assert not records(served) and file.is_free()


def test_the_handle_of_an_owner_and_several(served: Served, file: File) -> None:
    second, third = file.open(), file.open()
    assert file.set(1, F_WRLCK, 0, 9, second) == file.set(2, F_WRLCK, 10, 19, second) == 0
    assert file.set(2, F_WRLCK, 20, 29, third) == file.set(3, F_WRLCK, 30, 39, third) == 0
    served.restart()
    served.client.release(file.nodeid, second)
    assert {record["owner"] for record in records(served).values()} == {2, 3}
    served.client.release(file.nodeid, third)
    assert {record["owner"] for record in records(served).values()} == {2}
    served.client.forget(file.nodeid)
    assert not records(served) and file.is_free()


def test_a_refused_lock_is_not_remembered(served: Served, file: File) -> None:
    second = file.open()
    assert file.set(1, F_WRLCK, 0, 9) == file.set(2, F_WRLCK, 10, 19) == 0
    assert file.set(2, F_WRLCK, 0, 9, second) == -EAGAIN
    served.client.release(file.nodeid, file.fh)
    assert not records(served)


def test_reset_frees_all(served: Served, file: File) -> None:
    for owner in range(10):
        assert file.set(owner, F_WRLCK, owner, owner) == 0
    lib.core_reset(served.core)
    assert lib.core_lock_count(served.core) == 0 and file.is_free() and served.descriptors() == set()


def test_nothing_is_locked_for_a_mount_that_is_gone(served: Served, file: File) -> None:
    served.session.mounted = 0
    assert file.set(1, F_WRLCK) == -ENOLCK
    served.session.mounted = 1
    assert file.is_free()


def test_owners_count_as_descriptors(served: Served, file: File) -> None:
    assert file.set(1, F_RDLCK) == 0
    served.limit(1 + 3)  # root, inode, handle, owner
    assert file.set(2, F_RDLCK) == -ENOLCK
    assert file.set(1, F_WRLCK) == 0
    served.client.open(file.nodeid, expect=ENFILE)
    assert file.set(1, F_UNLCK) == 0
    assert file.set(2, F_RDLCK) == 0


def test_who_watches_is_told(served: Served, file: File) -> None:
    watch = os.eventfd(0, os.EFD_NONBLOCK)
    lib.lock_watch(served.core, watch)

    def told() -> bool:
        try:
            return os.eventfd_read(watch) > 0
        except BlockingIOError:
            return False

    def flock(kind: int) -> None:
        arg = ffi.new("struct fuse_lk_in *", {"fh": file.fh, "lk": {"type": kind}})
        assert lib.lock_flock(served.core, arg) == 0

    file.set(1, F_WRLCK)
    flock(F_WRLCK)
    assert not told()
    flock(F_RDLCK)
    assert told()
    flock(F_UNLCK)
    assert told()
    file.set(1, F_RDLCK)
    assert told()
    file.set(1, F_UNLCK, 5, 5)
    assert told()
    served.client.flush(file.nodeid, file.fh, 2)
    assert not told()
    served.client.flush(file.nodeid, file.fh, 1)
    assert told()
    served.client.release(file.nodeid, file.fh, release_flags=lib.FUSE_RELEASE_FLOCK_UNLOCK)
    assert told()
    lib.lock_watch(served.core, -1)
    lib.core_reset(served.core)
    assert not told()
    os.close(watch)


@pytest.mark.parametrize(
    "damage",
    [{"fd": -1}, {"fd": 2**31 - 1}, {"nodeid": 1}, {"nodeid": 2**63}, {"generation": 0}, {"valid": 2}, {"owner": 2}],
    ids=str,
)
def test_a_record_that_makes_no_sense_is_dropped(served: Served, file: File, damage: dict[str, Any]) -> None:
    assert file.set(1, F_WRLCK, 0, 9) == file.set(2, F_WRLCK, 10, 19) == 0
    slot, record = next((slot, record) for slot, record in records(served).items() if record["owner"] == 1)
    RECORD.pack_into(served.locks, slot * RECORD.size, *{**record, **damage}.values())
    served.restart()
    assert [kept["owner"] for kept in records(served).values()] == [2]
    # Whose the descriptor is, nobody knows: the sweep of unrecorded ones decides. Until then its lock stays.
    assert record["fd"] not in served.descriptors()
    os.close(record["fd"])


def test_a_handle_that_is_not_there(file: File, client: FuseClient) -> None:
    assert file.set(1, F_WRLCK, fh=12345) == -EBADF
    assert lib.core_lock_count(file.served.core) == 0

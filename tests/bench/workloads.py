"""What is measured: for each workload the files it needs, the requests each lane repeats, and what the share must look
like after each of them."""

import os
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.build import lib
from tests.bench.guest import PAGE, Guest, Lane, Script, Step, match, put, take
from tests.frontend import MIB
from tests.fuseclient import HEADER, REPLY_HEADER, ROOT
from tests.fusestructs import pack
from vfsd._fuse import ffi
from vfsd._fuse import lib as fuse

#: Of the files that are read and written.
FILE_SIZE = 32 * MIB
#: Files in the directory that is listed. Their names have 10 bytes.
MANY = 1000

NODEID_AT: int = ffi.offsetof("struct fuse_in_header", "nodeid")
#: Of a handle in the arguments of all requests that have one.
FH_AT = HEADER
ENTRY: int = ffi.sizeof("struct fuse_entry_out")
ATTR: int = ffi.sizeof("struct fuse_attr_out")
OPENED: int = ffi.sizeof("struct fuse_open_out")
WRITTEN: int = ffi.sizeof("struct fuse_write_out")
#: Where replies say what file it is.
ENTRY_NODEID = REPLY_HEADER + ffi.offsetof("struct fuse_entry_out", "nodeid")
ATTR_INO = REPLY_HEADER + ffi.offsetof("struct fuse_attr_out", "attr") + ffi.offsetof("struct fuse_attr", "ino")

# Registers.
NODEID, FH, INO = range(3)


class Place(NamedTuple):
    """Where a lane works: a directory of its own, as only one process at a time changes a directory of a guest."""

    number: int
    depth: int
    path: Path
    nodeid: int

    @property
    def file(self) -> Path:
        return self.path / "known"


class Workload(NamedTuple):
    title: str
    #: What a lane repeats.
    lane: Callable[[Guest, Place], Lane]
    #: AssertionError when the share does not show what the lane's first `done` requests did.
    check: Callable[[Script, Place, int], None] = lambda script, place, done: None
    #: The same of a run that has ended.
    finished: Callable[[Script, Place], None] = lambda script, place: None
    #: Every byte that is read is compared with this file.
    read: str = ""


def stamp(page: int) -> bytes:
    return struct.pack("=Q", lib.driver_stamp(page, 0))


def content() -> bytes:
    """Of the file that is read."""
    data = bytearray(random.Random(0).randbytes(FILE_SIZE))
    for page in range(FILE_SIZE // PAGE):
        data[page * PAGE : page * PAGE + 8] = stamp(page)
    return bytes(data)


def prepare(share: Path, depth: int, data: bytes) -> None:
    """Makes all that any workload needs. `data` is what `content` gave."""
    for number in range(depth):
        place = share / f"lane-{number}"
        place.mkdir(parents=True)
        (place / "known").write_bytes(b"known")
    (share / "many").mkdir()
    for number in range(MANY):
        (share / "many" / f"file-{number:05}").touch()
    (share / "read").write_bytes(data)
    (share / "written").write_bytes(data)


def places(guest: Guest, depth: int) -> list[Place]:
    share = guest.daemon.share
    return [
        Place(number, depth, share / f"lane-{number}", guest.client.lookup(ROOT, b"lane-%d" % number).nodeid)
        for number in range(depth)
    ]


def _known(guest: Guest, place: Place) -> int:
    nodeid: int = guest.client.lookup(place.nodeid, b"known").nodeid
    return nodeid


def _forget() -> Step:
    arguments = pack("fuse_forget_in", nlookup=1)
    return Step(fuse.FUSE_FORGET, 0, arguments, replied=False, patches=(put(NODEID_AT, NODEID),))


def _release(opcode: int = fuse.FUSE_RELEASE, flags: int = os.O_RDONLY, **more: Any) -> Step:
    return Step(opcode, arguments=pack("fuse_release_in", flags=flags), **more)


# Names and attributes.


def getattr_(guest: Guest, place: Place) -> Lane:
    ino = place.file.stat().st_ino
    step = Step(fuse.FUSE_GETATTR, _known(guest, place), pack("fuse_getattr_in"), ATTR, units=1,
                patches=(match(ATTR_INO, INO),))  # fmt: skip
    return Lane([step], [0, 0, ino])


def lookup_known(guest: Guest, place: Place) -> Lane:
    nodeid = _known(guest, place)
    step = Step(fuse.FUSE_LOOKUP, place.nodeid, b"known\0", ENTRY, units=1, patches=(match(ENTRY_NODEID, NODEID),))
    return Lane([step], [nodeid])


def lookup_missing(guest: Guest, place: Place) -> Lane:
    return Lane([Step(fuse.FUSE_LOOKUP, place.nodeid, b"missing\0", ENTRY, error=2, units=1)])


def chmod(guest: Guest, place: Place) -> Lane:
    nodeid = _known(guest, place)
    modes = [pack("fuse_setattr_in", valid=fuse.FATTR_MODE, mode=0o100000 | mode) for mode in (0o600, 0o644)]
    return Lane([Step(fuse.FUSE_SETATTR, nodeid, mode, ATTR, units=1) for mode in modes])


def chmod_check(script: Script, place: Place, done: int) -> None:
    assert place.file.stat().st_mode & 0o777 == (0o644, 0o600)[done % 2]


def rename(guest: Guest, place: Place) -> Lane:
    _known(guest, place)
    to = pack("fuse_rename_in", newdir=place.nodeid)
    names = (b"known\0renamed\0", b"renamed\0known\0")
    return Lane([Step(fuse.FUSE_RENAME, place.nodeid, to + both, units=1) for both in names])


def rename_check(script: Script, place: Place, done: int) -> None:
    assert [path.name for path in place.path.iterdir()] == [("known", "renamed")[done % 2]]


def mkdir_rmdir(guest: Guest, place: Place) -> Lane:
    made = pack("fuse_mkdir_in", mode=0o755, umask=0o22)
    return Lane([
        Step(fuse.FUSE_MKDIR, place.nodeid, made + b"made\0", ENTRY, patches=(take(ENTRY_NODEID, NODEID),)),
        Step(fuse.FUSE_RMDIR, place.nodeid, b"made\0", units=1),
        _forget(),
    ])  # fmt: skip


def mkdir_check(script: Script, place: Place, done: int) -> None:
    assert (place.path / "made").is_dir() == (done == 1)


def readdirplus(guest: Guest, place: Place) -> Lane:
    nodeid = guest.client.lookup(ROOT, b"many").nodeid
    fh = guest.client.opendir(nodeid).fh
    # A page at a time, as Linux 6.1 does.
    step = Step(fuse.FUSE_READDIRPLUS, nodeid, pack("fuse_read_in", fh=fh, size=PAGE), data=lib.DRIVER_ENTRIES,
                size=PAGE, offset_at=ffi.offsetof("struct fuse_read_in", "offset"), entries=MANY)  # fmt: skip
    return Lane([step])


# Open files.


def open_release(guest: Guest, place: Place) -> Lane:
    nodeid = _known(guest, place)
    opened = Step(fuse.FUSE_OPEN, nodeid, pack("fuse_open_in", flags=os.O_RDONLY), OPENED,
                  patches=(take(REPLY_HEADER, FH),))  # fmt: skip
    return Lane([opened, _release(nodeid=nodeid, units=1, patches=(put(FH_AT, FH),))])


def create_cycle(guest: Guest, place: Place) -> Lane:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    created = pack("fuse_create_in", flags=flags, mode=0o100644, umask=0o22)
    known = put(NODEID_AT, NODEID), put(FH_AT, FH)
    return Lane([
        Step(fuse.FUSE_CREATE, place.nodeid, created + b"created\0", ENTRY + OPENED,
             patches=(take(ENTRY_NODEID, NODEID), take(REPLY_HEADER + ENTRY, FH))),
        _write(0, 0, PAGE, patches=known),
        Step(fuse.FUSE_FLUSH, arguments=pack("fuse_flush_in"), patches=known),
        _release(flags=flags, patches=known),
        Step(fuse.FUSE_UNLINK, place.nodeid, b"created\0", units=1),
        _forget(),
    ], end=PAGE)  # fmt: skip


def create_check(script: Script, place: Place, done: int) -> None:
    path = place.path / "created"
    assert path.exists() == (1 <= done <= 4)
    if done in (2, 3, 4):
        assert path.read_bytes() == script.data(place.number, 1)


def _read(nodeid: int, fh: int, size: int) -> Step:
    arguments = pack("fuse_read_in", fh=fh, size=size)
    return Step(fuse.FUSE_READ, nodeid, arguments, data=lib.DRIVER_READ, size=size, units=1,
                offset_at=ffi.offsetof("struct fuse_read_in", "offset"))  # fmt: skip


def _write(nodeid: int, fh: int, size: int, **more: Any) -> Step:
    arguments = pack("fuse_write_in", fh=fh, size=size)
    return Step(fuse.FUSE_WRITE, nodeid, arguments, WRITTEN, data=lib.DRIVER_WRITE, size=size,
                offset_at=ffi.offsetof("struct fuse_write_in", "offset"), **more)  # fmt: skip


def read(size: int) -> Callable[[Guest, Place], Lane]:
    def lane(guest: Guest, place: Place) -> Lane:
        nodeid = guest.client.lookup(ROOT, b"read").nodeid
        fh = guest.client.open(nodeid, os.O_RDONLY).fh
        offset = place.number * FILE_SIZE // place.depth // MIB * MIB
        return Lane([_read(nodeid, fh, size)], end=FILE_SIZE, offset=offset)

    return lane


def write(size: int) -> Callable[[Guest, Place], Lane]:
    """Each lane has a part of the file to itself."""

    def lane(guest: Guest, place: Place) -> Lane:
        nodeid = guest.client.lookup(ROOT, b"written").nodeid
        fh = guest.client.open(nodeid, os.O_WRONLY).fh
        part = FILE_SIZE // place.depth // MIB * MIB
        first = place.number * part
        return Lane([_write(nodeid, fh, size, units=1)], first=first, end=first + part, offset=first)

    return lane


def write_finished(script: Script, place: Place) -> None:
    """The last write is there, and every page of the lane's part is where it belongs."""
    lane, size = script.lanes[place.number], script.described[place.number].steps[0].size
    with open(place.path.parent / "written", "rb") as file:
        file.seek(lane.first)
        part = file.read(lane.end - lane.first)
    last = (lane.offset if lane.offset > lane.first else lane.end) - size - lane.first
    assert part[last : last + size] == script.data(place.number, 0)
    numbers = [page for (page,) in struct.iter_unpack(f"=4xI{PAGE - 8}x", part)]
    assert numbers == list(range(lane.first // PAGE, lane.end // PAGE))


WORKLOADS = {
    "getattr": Workload("getattr", getattr_),
    "lookup": Workload("lookup, known inode", lookup_known),
    "missing": Workload("lookup, missing name", lookup_missing),
    "open": Workload("open + release", open_release),
    "create": Workload("create, write 4K, flush, release, unlink", create_cycle, create_check),
    "readdirplus": Workload("readdirplus, per entry", readdirplus),
    "read-4k": Workload("read 4K", read(PAGE), read="read"),
    "read-1m": Workload("read 1M", read(MIB), read="read"),
    "write-4k": Workload("write 4K", write(PAGE), finished=write_finished),
    "write-1m": Workload("write 1M", write(MIB), finished=write_finished),
    "rename": Workload("rename", rename, rename_check),
    "chmod": Workload("chmod", chmod, chmod_check),
    "mkdir": Workload("mkdir + rmdir", mkdir_rmdir, mkdir_check),
}


def verify(guest: Guest, workload: Workload, script: Script, where: Sequence[Place], data: bytes) -> None:
    """All lanes go through their requests once, one at a time; after each the share is looked at."""
    compared = data if workload.read else None
    for done in range(1, len(script.described[0].steps) + 1):
        guest.run(script, limit=1, content=compared)
        for place in where if not guest.daemon.kind.alone else ():
            workload.check(script, place, done)
    if not guest.daemon.kind.alone:
        for place in where:
            workload.finished(script, place)

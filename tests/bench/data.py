"""Workloads that move data. Each lane has a part of the file to itself."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.build import lib
from tests.bench.guest import Guest, Script
from tests.bench.layout import PAGE, Lane, Step
from tests.bench.share import COLD_SIZE, FILE_SIZE, OWN_SIZE, Place, drop
from tests.fuseclient import HEADER, ROOT
from tests.fusestructs import pack
from vfsd._fuse import ffi
from vfsd._fuse import lib as fuse

NODEID_AT: int = ffi.offsetof("struct fuse_in_header", "nodeid")
#: Of a handle in the arguments of all requests that have one.
FH_AT = HEADER
WRITTEN: int = ffi.sizeof("struct fuse_write_out")

# Registers.
NODEID, FH = range(2)


class File(NamedTuple):
    """What a lane reads or writes of a file, in bytes."""

    path: Path
    first: int
    end: int


def _shared(name: str, size: int) -> Callable[[Place], File]:
    """A file of which each lane has a part to itself."""
    return lambda place: File(place.path.parent / name, *place.part(size))


def own_file(place: Place) -> File:
    return File(place.path / "own", 0, OWN_SIZE)


class Workload(NamedTuple):
    title: str
    #: What a lane repeats.
    lane: Callable[[Guest, Place], Lane]
    #: The system calls it can't do without: an operation of bare.c, or "" of what is more than one operation,
    bare: str
    #: the file, of those that move data,
    file: Callable[[Place], File] = own_file
    #: how many bytes they move,
    size: int = PAGE
    #: at random,
    random: bool = False
    #: and whether they block.
    blocks: bool = False
    #: AssertionError when the share does not show what the lane's first `done` requests did.
    check: Callable[[Script, Place, int], None] = lambda script, place, done: None
    #: The same of a run that has ended.
    finished: Callable[[Script, Place], None] = lambda script, place: None
    #: Every byte that is read is compared with the content of the file.
    compared: bool = False
    #: It reads a disk: this makes it do so again.
    cold: Callable[[Path], None] | None = None
    #: It is not measured with more requests in flight.
    depth: int = 32
    #: It makes inodes.
    makes: bool = False


def read_step(nodeid: int, fh: int, size: int, **more: Any) -> Step:
    arguments = pack("fuse_read_in", fh=fh, size=size)
    return Step(fuse.FUSE_READ, nodeid, arguments, data=lib.DRIVER_READ, size=size,
                offset_at=ffi.offsetof("struct fuse_read_in", "offset"), **more)  # fmt: skip


def write_step(nodeid: int, fh: int, size: int, **more: Any) -> Step:
    arguments = pack("fuse_write_in", fh=fh, size=size)
    return Step(fuse.FUSE_WRITE, nodeid, arguments, WRITTEN, data=lib.DRIVER_WRITE, size=size,
                offset_at=ffi.offsetof("struct fuse_write_in", "offset"), **more)  # fmt: skip


def _moved(name: bytes, flags: int, file: Callable[[Place], File], size: int, random: bool) -> Callable[..., Lane]:
    """A lane that reads, or writes, what it has of a file in the share's root."""
    step = write_step if flags == os.O_WRONLY else read_step

    def lane(guest: Guest, place: Place) -> Lane:
        nodeid = guest.client.lookup(ROOT, name).nodeid
        fh = guest.client.open(nodeid, flags).fh
        _, first, end = file(place)
        return Lane([step(nodeid, fh, size, units=1)], first=first, end=end, offset=first, random=random)

    return lane


def read(title: str, size: int, random: bool = False) -> Workload:
    file = _shared("read", FILE_SIZE)
    lane = _moved(b"read", os.O_RDONLY, file, size, random)
    return Workload(title, lane, "read", file, size, random, compared=True)


def read_cold(title: str) -> Workload:
    file = _shared("cold", COLD_SIZE)
    lane = _moved(b"cold", os.O_RDONLY, file, PAGE, True)
    return Workload(title, lane, "read", file, random=True, blocks=True, cold=lambda share: drop(share / "cold"))


def write(title: str, size: int, random: bool = False) -> Workload:
    file = _shared("written", FILE_SIZE)
    lane = _moved(b"written", os.O_WRONLY, file, size, random)
    return Workload(title, lane, "write", file, size, random,
                    finished=lambda script, place: _look(script, place, file(place)))  # fmt: skip


def synced(guest: Guest, place: Place, size: int) -> Lane:
    """Writes so much and has it put on the disk. Each lane has a file to itself."""
    nodeid = guest.client.lookup(place.nodeid, b"own").nodeid
    fh = guest.client.open(nodeid, os.O_WRONLY).fh
    sync = Step(fuse.FUSE_FSYNC, nodeid, pack("fuse_fsync_in", fh=fh), units=1)
    return Lane([write_step(nodeid, fh, size), sync], end=OWN_SIZE)


def fsync(title: str) -> Workload:
    return Workload(title, lambda guest, place: synced(guest, place, PAGE), "fsync", blocks=True,
                    finished=lambda script, place: _look(script, place, own_file(place)))  # fmt: skip


def _look(script: Script, place: Place, file: File) -> None:
    """The last write is there, and every page of the lane's part is where it belongs."""
    lane, size = script.lanes[place.number], script.described[place.number].steps[0].size
    with open(file.path, "rb") as whole:
        whole.seek(file.first)
        part = whole.read(file.end - file.first)
    last = lane.last - file.first
    assert part[last : last + size] == script.data(place.number, 0)
    numbers = [page for (page,) in struct.iter_unpack(f"=4xI{PAGE - 8}x", part)]
    assert numbers == list(range(file.first // PAGE, file.end // PAGE))

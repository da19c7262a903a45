"""The saved state of a guest's mount: the stream in which it moves from one daemon to another.

Rule 1. A stream is MAGIC, VERSION, and parts: a kind, a size in bytes, and that many. The kinds come in their order,
        the last is a checksum of all before. Numbers are in the machine's byte order, which no guest changes either.
Rule 2. Whoever made it, what is read is untrusted: here or in state_load.c each field is checked before it is used.
Rule 3. A version that was ever released is read for good. A new one is a new number, and a golden file in the tests.
"""

import zlib
from collections.abc import Callable, Iterator
from enum import IntEnum
from struct import Struct, error
from typing import Any, NamedTuple

from vfsd._fuse import ffi
from vhost.saved import StateError
from vhost.suspended import Suspended

MAGIC = b"vfsstate"
VERSION = 1
#: Bytes of a part at most, and of inodes in one.
PART_MAX = 1 << 20
BATCH = 1 << 18

_VERSION = Struct("=I")
_PART = Struct("=II")
#: minor, max_pages, max_write, STATE_TAGS or 0, flags.
_SESSION = Struct("=IIIIQ16s")
#: nodeid, owner, fh, pid, ranges; and kind, start, end of each.
_OWNER = Struct("=QQQII")
_RANGE = Struct("=QQi4x")
#: index, num, last_avail_idx, used_idx, heads; and each head.
_RING = Struct("=IIHHI")
_HEAD = Struct("=I")
_CHECKSUM = Struct("=I")

HANDLE = ffi.sizeof("struct state_handle")


class Part(IntEnum):
    SESSION = 1  #: what INIT agreed to, and the numbers of the tables
    INODES = 2  #: struct state_inode, as many as fit; any number of such parts
    HANDLES = 3  #: struct state_handle; any number of such parts
    LOCKS = 4  #: the POSIX locks of one owner; any number of such parts
    RINGS = 5  #: what is in flight on one ring; any number of such parts
    END = 6


class Session(NamedTuple):
    """What a mount has agreed to, and how many ids were given."""

    minor: int
    max_pages: int
    max_write: int
    #: STATE_TAGS when the records of inodes tell their file handles.
    tags: int
    flags: int
    #: struct state_numbers
    numbers: bytes


class Range(NamedTuple):
    """A lock, `end` being the last byte."""

    start: int
    end: int
    kind: int


class Owner(NamedTuple):
    """A lock owner of the guest, and what it has locked of an inode. fh 0: through several handles."""

    nodeid: int
    owner: int
    fh: int
    pid: int
    ranges: tuple[Range, ...]


class Writer:
    """Writes a stream's parts, in order. `write` takes all the bytes it is given."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write, self._checksum = write, 0
        #: Bytes so far.
        self.size = 0
        self._put(MAGIC + _VERSION.pack(VERSION))

    def session(self, session: Session) -> None:
        self._part(Part.SESSION, _SESSION.pack(*session))

    def inodes(self, records: bytes) -> None:
        self._part(Part.INODES, records)

    def handles(self, records: bytes) -> None:
        self._part(Part.HANDLES, records)

    def owner(self, owner: Owner) -> None:
        head = _OWNER.pack(*owner[:4], len(owner.ranges))
        self._part(Part.LOCKS, head + b"".join(_RANGE.pack(*each) for each in owner.ranges))

    def ring(self, ring: Suspended) -> None:
        head = _RING.pack(*ring[:4], len(ring.heads))
        self._part(Part.RINGS, head + b"".join(map(_HEAD.pack, ring.heads)))

    def end(self) -> None:
        self._part(Part.END, _CHECKSUM.pack(self._checksum))

    def _part(self, kind: Part, data: bytes) -> None:
        if len(data) > PART_MAX:
            raise StateError(f"the guest has more locks on one file than can be moved: {len(data)} bytes of them")
        self._put(_PART.pack(kind, len(data)))
        self._put(data)

    def _put(self, data: bytes) -> None:
        self._checksum = zlib.crc32(data, self._checksum)
        self.size += len(data)
        self._write(data)


def read_parts(read: Callable[[int], bytes]) -> Iterator[tuple[Part, bytes]]:
    """The parts of a stream but for the last, which is checked: a caller that got all may believe that none is missing.
    `read` returns at most so many bytes, none at the end. Raises StateError."""
    checksum = 0

    def exactly(size: int) -> bytes:
        nonlocal checksum
        data = b""
        while len(data) < size:
            if not (more := read(size - len(data))):
                raise StateError("it ends before it is complete")
            data += more
        checksum = zlib.crc32(data, checksum)
        return data

    if exactly(len(MAGIC)) != MAGIC:
        raise StateError("it was made by another program")
    (version,) = _VERSION.unpack(exactly(_VERSION.size))
    if version != VERSION:
        raise StateError(f"it has version {version}, and this vfsd reads version {VERSION}")
    last = 0
    while True:
        expected = checksum
        kind, size = _PART.unpack(exactly(_PART.size))
        if kind not in list(Part) or kind < last or (kind == last == Part.SESSION) or (last == 0) != (kind == 1):
            raise StateError(f"it is damaged: part {kind} does not belong where it is")
        if size > PART_MAX:
            raise StateError(f"it is damaged: a part of {size} bytes is too large")
        data = exactly(size)
        last = kind
        if kind == Part.END:
            break
        yield Part(kind), data
    if size != _CHECKSUM.size or _CHECKSUM.unpack(data)[0] != expected:
        raise StateError("it is damaged: its checksum is wrong")
    if read(1):
        raise StateError("it is damaged: something follows its end")


def read_session(data: bytes) -> Session:
    """Raises StateError."""
    try:
        return Session(*_SESSION.unpack(data))
    except error:
        raise StateError("it is damaged: what the mount has agreed to has a wrong size") from None


def read_handles(data: bytes) -> Iterator[Any]:
    """struct state_handle, one after the other. Raises StateError."""
    if len(data) % HANDLE:
        raise StateError("it is damaged: open files have a wrong size")
    for start in range(0, len(data), HANDLE):
        yield ffi.from_buffer("struct state_handle *", data[start : start + HANDLE])


def read_owner(data: bytes) -> Owner:
    """Raises StateError."""
    try:
        nodeid, owner, fh, pid, count = _OWNER.unpack_from(data)
        ranges = tuple(Range(*each) for each in _RANGE.iter_unpack(data[_OWNER.size :]))
    except error:
        raise StateError("it is damaged: locks have a wrong size") from None
    if len(ranges) != count:
        raise StateError("it is damaged: locks are missing")
    return Owner(nodeid, owner, fh, pid, ranges)


def read_ring(data: bytes, queues: int) -> Suspended:
    """Raises StateError."""
    try:
        index, num, last_avail_idx, used_idx, count = _RING.unpack_from(data)
        heads = tuple(head for (head,) in _HEAD.iter_unpack(data[_RING.size :]))
    except error:
        raise StateError("it is damaged: requests in flight have a wrong size") from None
    if len(heads) != count:
        raise StateError("it is damaged: requests in flight are missing")
    ring = Suspended(index, num, last_avail_idx, used_idx, heads)
    try:
        ring.check(queues)
    except ValueError as reason:
        raise StateError(f"it is damaged: {reason}") from None
    return ring

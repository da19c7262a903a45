"""In-flight regions: what a ring's worker was serving, kept where the next worker finds it (vhost-user specification,
"Inflight I/O tracking").

Rule 1. There always is a region: our own arena, unless the front-end handed one over.
Rule 2. Only a worker maps a region of the front-end, for the front-end can truncate it.
"""

import mmap
import os
from typing import Any

from ._virtq import ffi, lib
from .arena import Arena, Maker
from .message import Inflight
from .protocol import RemoteProtocolError
from .saved import Packed, Unpacked, numbers

ALIGNMENT = 64  # bytes: a cache line, so that rings share none


def region_size(num: int) -> int:
    """Bytes of the region of one split ring of `num` descriptors."""
    size = ffi.sizeof("struct virtq_inflight") + num * ffi.sizeof("struct virtq_inflight_desc")
    return int(-(-size // ALIGNMENT) * ALIGNMENT)


def inflight_arena(queues: int, make: Maker = Arena) -> Arena:
    """An arena for our own regions of `queues` rings of any size."""
    return make("vhost-inflight", queues * region_size(lib.VIRTQ_MAX_SIZE))


class InflightRegions:
    """The region of each ring of a connection."""

    def __init__(self, arena: Arena, queues: int) -> None:
        self._arena = arena
        self._queues = queues
        self._fd = -1  # the front-end's region, if any
        self._wire = Inflight(0, 0, 0, 0)

    def descriptors(self) -> set[int]:
        return {self._fd} - {-1}

    def create(self, wire: Inflight) -> tuple[Inflight, int]:
        """GET_INFLIGHT_FD: a fresh region for the front-end to keep, and its descriptor, which is the caller's."""
        self._check(wire)
        size = wire.num_queues * region_size(wire.queue_size)
        fd = os.memfd_create("vhost-inflight", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        return Inflight(size, 0, wire.num_queues, wire.queue_size), fd

    def adopt(self, wire: Inflight, fds: list[int]) -> None:
        """SET_INFLIGHT_FD: rings use this region from now on. Pops its descriptor. No worker may run."""
        self._check_region(wire, fds[0])
        self.clear()
        self._fd, self._wire = fds.pop(), wire

    def clear(self) -> None:
        """Forgets the front-end's region and zeroes ours. No worker may run."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._arena.clear()

    def save(self, packed: Packed) -> dict[str, Any]:
        """Which region there is (vhost/resume.py)."""
        wire = self._wire
        fields = [wire.mmap_size, wire.mmap_offset, wire.num_queues, wire.queue_size]
        return {"fd": packed.put(self._fd), "wire": fields}

    def resume(self, data: Any, unpacked: Unpacked) -> None:
        """Goes on with what was saved; our own region is as it was. Raises StateError, RemoteProtocolError."""
        fd = unpacked.take(data, "fd")
        if fd >= 0:
            wire = Inflight(*numbers(data, "wire", 4))
            self._check_region(wire, fd)
            self._fd, self._wire = fd, wire

    def recovers(self, index: int, num: int) -> bool:
        """Whether ring `index` of `num` descriptors, about to start, has a past in the front-end's region.

        Raises RemoteProtocolError when that region has no room for the ring.
        """
        if self._fd < 0:
            return False
        if index >= self._wire.num_queues or num > self._wire.queue_size:
            raise RemoteProtocolError(f"ring {index} of size {num} has no room in the region of SET_INFLIGHT_FD")
        version = ffi.offsetof("struct virtq_inflight", "version")
        return os.pread(self._fd, 2, self._offset(index) + version) not in (b"", b"\0\0")

    def marks(self, index: int, num: int) -> list[int]:
        """The heads of a ring that are marked in flight. Asked while no worker runs."""
        size = region_size(num)
        if self._fd < 0:
            region = self._arena.pointer(ffi, "struct virtq_inflight *", index * region_size(lib.VIRTQ_MAX_SIZE))
            data = ffi.buffer(region, size)[:]
        else:
            # Shorter, if the front-end has truncated it.
            data = os.pread(self._fd, size, self._offset(index))
        first, step = ffi.sizeof("struct virtq_inflight"), ffi.sizeof("struct virtq_inflight_desc")
        return [head for head, mark in enumerate(data[first::step][:num]) if mark]

    def map(self, index: int) -> Any:
        """The `struct virtq_inflight *` of a ring, which keeps its mapping alive. For a worker.

        Raises OSError or ValueError when the front-end made its region unusable.
        """
        if self._fd < 0:
            return self._arena.pointer(ffi, "struct virtq_inflight *", index * region_size(lib.VIRTQ_MAX_SIZE))
        offset = self._offset(index)
        start = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        area = mmap.mmap(self._fd, offset - start + region_size(self._wire.queue_size), offset=start)
        return ffi.from_buffer("struct virtq_inflight *", memoryview(area)[offset - start :])

    def _check_region(self, wire: Inflight, fd: int) -> None:
        self._check(wire)
        if wire.num_queues * region_size(wire.queue_size) > wire.mmap_size:
            raise RemoteProtocolError(
                f"SET_INFLIGHT_FD: {wire.mmap_size} bytes are too few for {wire.num_queues} rings of {wire.queue_size}"
            )
        if wire.mmap_offset + wire.mmap_size > os.fstat(fd).st_size or wire.mmap_offset % 8:
            raise RemoteProtocolError("SET_INFLIGHT_FD: the region is misaligned or exceeds its file")

    def _offset(self, index: int) -> int:
        return self._wire.mmap_offset + index * region_size(self._wire.queue_size)

    def _check(self, wire: Inflight) -> None:
        if not 1 <= wire.num_queues <= self._queues or not 1 <= wire.queue_size <= lib.VIRTQ_MAX_SIZE:
            raise RemoteProtocolError(
                f"an in-flight region for {wire.num_queues} rings of {wire.queue_size} is not possible: "
                f"at most {self._queues} of {lib.VIRTQ_MAX_SIZE}"
            )

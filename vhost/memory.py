"""The guest's memory as the front-end describes it: the table in an arena that workers read.

Rule 1. This process never maps guest memory. It looks at the files behind it in one place, `looks_private`, and only to
        tell whether they are empty.
Rule 2. A region no worker has used comes and goes while rings run. What a worker has used goes only after `quiesce`,
        as does a table that must be packed anew.
Rule 3. A region's descriptor is closed only when no worker can map it any more: it was retired unused, or no worker
        runs.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ._virtq import ffi, lib
from .arena import Arena
from .message import SHARE_ON, MemoryRegion
from .protocol import RemoteProtocolError, close_all

MAX_SLOTS = 512  # what GET_MAX_MEM_SLOTS answers: QEMU uses no more (VHOST_USER_MAX_RAM_SLOTS)
CAPACITY = 1024  # records of the table, so that retired ones rarely force it to be packed
PAGE = 4096
CHUNK = 1 << 16

PRIVATE = f"guest memory is private: {SHARE_ON}"


def table_arena() -> Arena:
    """An arena for the table of one front-end's memory."""
    return Arena("vhost-memory", ffi.sizeof("struct memory_table") + CAPACITY * ffi.sizeof("struct memory_region"))


@dataclass(frozen=True, slots=True)
class Region:
    """A live region. Two are the same when they show the same bytes at the same places, whatever their descriptors."""

    wire: MemoryRegion
    device: int  # identity of the file
    inode: int
    fd: int

    @property
    def key(self) -> tuple[MemoryRegion, int, int]:
        return self.wire, self.device, self.inode


class GuestMemory:
    """The live regions, in the order of their appearance. `quiesce` returns when no worker runs."""

    def __init__(self, arena: Arena, quiesce: Callable[[], None]) -> None:
        self._arena = arena
        self._quiesce = quiesce
        self._records: list[Region] = []  # record n of the table, retired ones included
        self._live: dict[tuple[MemoryRegion, int, int], int] = {}  # to the index of its record
        self._pack([])

    @property
    def table(self) -> Any:
        """The `struct memory_table *` a worker builds its view on."""
        return self._arena.pointer(ffi, "struct memory_table *")

    @property
    def regions(self) -> list[Region]:
        return [self._records[index] for index in self._live.values()]

    def descriptors(self) -> set[int]:
        return {region.fd for region in self.regions}

    def set_table(self, wires: Sequence[MemoryRegion], fds: list[int]) -> None:
        """SET_MEM_TABLE: makes these regions the live ones. Pops from `fds` what it keeps.

        Raises RemoteProtocolError, with nothing changed.
        """
        if not wires:
            raise RemoteProtocolError("SET_MEM_TABLE holds no memory region")
        wanted = [_examine(wire, fd) for wire, fd in zip(wires, fds, strict=True)]
        _check_apart(wanted)
        self._change(wanted, fds)

    def add(self, wire: MemoryRegion, fds: list[int]) -> None:
        """ADD_MEM_REG: adds one region. Pops its descriptor. Raises RemoteProtocolError, with nothing changed."""
        wanted = [*self.regions, _examine(wire, fds[0])]
        if len(wanted) > MAX_SLOTS:
            raise RemoteProtocolError(f"ADD_MEM_REG: the table has room for {MAX_SLOTS} memory regions, all in use")
        _check_apart(wanted)
        self._change(wanted, fds)

    def remove(self, wire: MemoryRegion) -> None:
        """REM_MEM_REG: removes the region with this guest address, user address and size.

        Raises RemoteProtocolError when there is none.
        """
        wanted = [region for region in self.regions if not _same_place(region.wire, wire)]
        if len(wanted) == len(self._live):
            raise RemoteProtocolError(f"REM_MEM_REG names no live region: {_describe(wire)}")
        self._change(wanted, [])

    def clear(self) -> None:
        """Forgets everything. No worker may run."""
        fds = [region.fd for region in self.regions]
        self._pack([])
        close_all(fds)

    def holds(self, user_addr: int) -> bool:
        """Whether a ring address of the front-end lies in a live region."""
        return any(0 <= user_addr - region.wire.user_addr < region.wire.size for region in self.regions)

    def looks_private(self, user_addr: int) -> bool:
        """Whether a front-end seems to have mapped its memory privately (share=off): the page behind a ring address
        and the guest's lowest memory are all zero in the files announced, though a guest runs there.

        Ask when a ring was kicked and yet seems empty. False when the address is in no region, or a file can't be read.
        """
        regions = sorted(self.regions, key=lambda region: region.wire.guest_addr)
        for region in regions:
            offset = user_addr - region.wire.user_addr
            if 0 <= offset < region.wire.size:
                # The length: firmware, the interrupt vectors or a device tree are there on every machine QEMU has.
                return _is_zero(region, offset // PAGE * PAGE, PAGE) and _is_zero(regions[0], 0, 2 << 20)
        return False

    def _change(self, wanted: list[Region], fds: list[int]) -> None:
        """Makes `wanted` the live regions and pops the descriptors of the new ones from `fds`."""
        keys = {region.key for region in wanted}
        new = [region for region in wanted if region.key not in self._live]
        gone = [index for key, index in self._live.items() if key not in keys]
        for region in new:
            fds.remove(region.fd)
        stale = [self._records[index].fd for index in gone]
        used = any(self.table.regions[index].used for index in gone)
        full = len(self._records) + len(new) > CAPACITY
        # A region may become used between that look and memory_retire, which then says so.
        if used or full or any(lib.memory_retire(self.table, index) for index in gone):
            self._repack(wanted)
        else:
            for index in gone:
                del self._live[self._records[index].key]
            for region in new:
                self._append(region)
        close_all(stale)

    def _repack(self, wanted: list[Region]) -> None:
        self._quiesce()
        self._pack([self._records[self._live[region.key]] if region.key in self._live else region for region in wanted])

    def _pack(self, regions: list[Region]) -> None:
        """Writes the table from scratch. No worker may run."""
        self._arena.clear()
        self.table.capacity = CAPACITY
        self._records, self._live = [], {}
        for region in regions:
            self._append(region)

    def _append(self, region: Region) -> None:
        record = ffi.new("struct memory_region *")
        record.guest_addr = region.wire.guest_addr
        record.user_addr = region.wire.user_addr
        record.size = region.wire.size
        record.mmap_offset = region.wire.mmap_offset
        record.fd = region.fd
        if error := lib.memory_append(self.table, record):
            raise AssertionError(f"memory_append: {os.strerror(-error)}: {_describe(region.wire)}")
        self._live[region.key] = len(self._records)
        self._records.append(region)


def _examine(wire: MemoryRegion, fd: int) -> Region:
    """Checks one region against itself and against the file it lies in."""
    if not wire.size:
        raise RemoteProtocolError(f"a memory region is empty: {_describe(wire)}")
    if max(wire.guest_addr, wire.user_addr) + wire.size > 1 << 64:
        raise RemoteProtocolError(f"a memory region wraps around the address space: {_describe(wire)}")
    if wire.mmap_offset + wire.size > 1 << 63:
        raise RemoteProtocolError(f"a memory region lies outside of any file: {_describe(wire)}")
    try:
        file = os.fstat(fd)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        # On a FUSE mount whose server has ended. What QEMU has mapped is still guest memory, and we can map it, too.
        return Region(wire, 0, 0, fd)
    # A character device (/dev/dax) has no size to compare with.
    if not stat.S_ISCHR(file.st_mode) and wire.mmap_offset + wire.size > file.st_size:
        raise RemoteProtocolError(f"a memory region exceeds its file of {file.st_size} bytes: {_describe(wire)}")
    return Region(wire, file.st_dev, file.st_ino, fd)


def _check_apart(regions: list[Region]) -> None:
    """No two regions share a guest physical address. (User addresses may be shared: one memory at two places.)"""
    wires = sorted((region.wire for region in regions), key=lambda wire: wire.guest_addr)
    for low, high in pairwise(wires):
        if low.guest_addr + low.size > high.guest_addr:
            raise RemoteProtocolError(f"memory regions overlap: {_describe(low)} and {_describe(high)}")


def _same_place(a: MemoryRegion, b: MemoryRegion) -> bool:
    return (a.guest_addr, a.user_addr, a.size) == (b.guest_addr, b.user_addr, b.size)


def _describe(wire: MemoryRegion) -> str:
    return f"{wire.size:#x} bytes at guest address {wire.guest_addr:#x}, offset {wire.mmap_offset:#x}"


def _is_zero(region: Region, offset: int, size: int) -> bool:
    """Whether the bytes from `offset` in a region are zero. A read, unlike an access to a mapping, can only fail."""
    size = min(size, region.wire.size - offset)
    try:
        return not any(
            os.pread(region.fd, min(CHUNK, size - done), region.wire.mmap_offset + offset + done).strip(b"\0")
            for done in range(0, size, CHUNK)
        )
    except OSError:
        return False

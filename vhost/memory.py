"""The guest's memory as the front-end describes it: the table in an arena that workers read.

Rule 1. This process never maps guest memory. It looks at the files behind it in one place, `looks_private`, and only to
        tell whether they are empty.
Rule 2. A region no worker has used comes and goes while rings run. What a worker has used goes only after `quiesce`,
        as does a table that must be packed anew.
Rule 3. A region's descriptor is closed only when no worker can map it any more: it was retired unused, or no worker
        runs.
Rule 4. Mappings in shared memory regions (SHMEM_MAP) are left out of what the front-end tells. Those of our device are
        shown by the device itself, which knows all of them; QEMU tells of few.
"""

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ._virtq import ffi, lib
from .arena import Arena
from .device import Refused
from .message import SHARE_ON, MemoryRegion
from .protocol import RemoteProtocolError, close_all
from .saved import Packed, Unpacked, items, numbers

MAX_SLOTS = 512  # what GET_MAX_MEM_SLOTS answers: QEMU uses no more (VHOST_USER_MAX_RAM_SLOTS)
CAPACITY = 4096  # records of the table, so that retired ones rarely force it to be packed
SHOWN_MAX = CAPACITY - 2 * MAX_SLOTS  # mappings shown; what is told finds room beside them
Place = tuple[int, int, int]  # guest address, user address, size
Key = tuple[MemoryRegion, int, int]  # and identity of the file
NO_FILE = (-1, -1)  # in place of that of a mapping, of which there is only one at its address
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
    def key(self) -> Key:
        return self.wire, self.device, self.inode


class GuestMemory:
    """The live regions, in the order of their appearance. `quiesce` returns when no worker runs, `is_mapping` is
    Device.is_mapping."""

    def __init__(
        self, arena: Arena, quiesce: Callable[[], None], is_mapping: Callable[[MemoryRegion, int], bool]
    ) -> None:
        self._arena = arena
        self._quiesce, self._is_mapping = quiesce, is_mapping
        self._records: list[Region] = []  # record n of the table, retired ones included
        self._told: dict[Key, int] = {}  # what the front-end has told of, to the index of its record
        self._shown: dict[Key, int] = {}  # what the device shows
        self._mappings: set[Place] = set()  # what the front-end has added, and is left out
        self._pack([], [])

    @property
    def table(self) -> Any:
        """The `struct memory_table *` a worker builds its view on."""
        return self._arena.pointer(ffi, "struct memory_table *")

    @property
    def regions(self) -> list[Region]:
        """What the front-end has told of."""
        return [self._records[index] for index in self._told.values()]

    def descriptors(self) -> set[int]:
        return {self._records[index].fd for index in (*self._told.values(), *self._shown.values())}

    def set_table(self, wires: Sequence[MemoryRegion], fds: list[int]) -> None:
        """SET_MEM_TABLE: makes these regions the live ones. Pops from `fds` what it keeps.

        Raises RemoteProtocolError, with nothing changed.
        """
        if not wires:
            raise RemoteProtocolError("SET_MEM_TABLE holds no memory region")
        self._mappings.clear()
        told = [(wire, fd) for wire, fd in zip(wires, fds, strict=True) if not self._is_mapping(wire, fd)]
        wanted = [_examine(wire, fd) for wire, fd in told]
        _check_apart(wanted)
        keys = {region.key for region in wanted}
        new = [region for region in wanted if region.key not in self._told]
        self._tell(new, [region for region in self.regions if region.key not in keys], fds)

    def add(self, wire: MemoryRegion, fds: list[int], running: bool = False) -> None:
        """ADD_MEM_REG: adds one region. Pops its descriptor. `running`: a ring is started.

        Raises RemoteProtocolError or Refused, with nothing changed.
        """
        if self._is_mapping(wire, fds[0]):
            # QEMU crashes when the device starts after a reset that dropped a mapping it had added: it looks in vain
            # for the memory it was (hw/virtio/vhost-user.c, send_remove_regions). It forgets what was refused, and
            # goes on; but with a refusal at the start, it would not start the device.
            if running:
                raise Refused(f"a mapping in shared memory: {_describe(wire)}", routine=True)
            self._mappings.add(_place(wire))
            return
        region, told = _examine(wire, fds[0]), self.regions
        if len(told) >= MAX_SLOTS:
            raise RemoteProtocolError(f"ADD_MEM_REG: the table has room for {MAX_SLOTS} memory regions, all in use")
        _check_apart([*told, region])
        self._tell([region], [], fds)

    def remove(self, wire: MemoryRegion) -> None:
        """REM_MEM_REG: removes the region with this guest address, user address and size.

        Raises RemoteProtocolError when there is none.
        """
        place = _place(wire)
        if place in self._mappings:
            self._mappings.remove(place)
            return
        gone = [region for region in self.regions if _place(region.wire) == place]
        if not gone:
            raise RemoteProtocolError(f"REM_MEM_REG names no live region: {_describe(wire)}")
        self._tell([], gone, [])

    def show(self, wire: MemoryRegion, fd: int) -> bool:
        """The device has this mapping in the file `fd`, which stays the caller's. False where the front-end has told of
        memory, which is what is there, and beyond SHOWN_MAX of them."""
        if len(self._shown) == SHOWN_MAX or any(_overlap(wire, region.wire) for region in self.regions):
            return False
        self._change(self._shown, [Region(wire, *NO_FILE, os.dup(fd))], [])
        return True

    def shows(self, wire: MemoryRegion) -> bool:
        """Whether a mapping that was shown still is: memory that is told of later hides it."""
        return (wire, *NO_FILE) in self._shown

    def hide(self, wire: MemoryRegion) -> None:
        """The device has it no more. `quiesce` was called if a worker had used it."""
        if (index := self._shown.get((wire, *NO_FILE))) is not None:
            self._change(self._shown, [], [self._records[index]])

    def settle(self) -> None:
        """No worker runs: what the last one has used is not used any more, and what is changed before the next one
        starts needs no `quiesce`."""
        if len(self._records) > CAPACITY // 2:
            self._repack()
        for index in (*self._told.values(), *self._shown.values()):
            self.table.regions[index].used = 0

    def save(self, packed: Packed) -> dict[str, Any]:
        """What the front-end has told of (vhost/resume.py)."""
        told = [
            {"place": [*_place(region.wire), region.wire.mmap_offset], "fd": packed.put(region.fd)}
            for region in self.regions
        ]
        return {"told": told, "mappings": [{"place": [*place]} for place in self._mappings]}

    def resume(self, data: Any, unpacked: Unpacked) -> None:
        """Goes on with what was saved, in a fresh table. Raises StateError, RemoteProtocolError."""
        regions = []
        for told in items(data, "told", MAX_SLOTS):
            address, user, size, offset = numbers(told, "place", 4)
            regions.append(_examine(MemoryRegion(address, size, user, offset), unpacked.take(told, "fd")))
        _check_apart(regions)
        self._pack(regions, [])
        for mapping in items(data, "mappings", CAPACITY):
            address, user, size = numbers(mapping, "place", 3)
            self._mappings.add((address, user, size))

    def clear(self) -> None:
        """Forgets everything. No worker may run."""
        fds = list(self.descriptors())
        self._mappings.clear()
        self._pack([], [])
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

    def _tell(self, new: list[Region], gone: list[Region], fds: list[int]) -> None:
        """Changes what is told. Pops the descriptors of the new regions from `fds`."""
        for region in new:
            fds.remove(region.fd)
        shown = [self._records[index] for index in self._shown.values()] if new else []
        hidden = [each for each in shown if any(_overlap(each.wire, region.wire) for region in new)]
        self._change(self._shown, [], hidden)
        self._change(self._told, new, gone)

    def _change(self, live: dict[Key, int], new: list[Region], gone: list[Region]) -> None:
        """Has regions come into `live`, one of the two kinds, and others leave it."""
        indexes = [live.pop(region.key) for region in gone]
        used = any(self.table.regions[index].used for index in indexes)
        full = len(self._records) + len(new) > CAPACITY
        # A region may become used between that look and memory_retire, which then says so.
        if used or full or any(lib.memory_retire(self.table, index) for index in indexes):
            self._quiesce()
            self._repack()
        for region in new:
            self._append(live, region)
        close_all([region.fd for region in gone])

    def _repack(self) -> None:
        self._pack(*([self._records[index] for index in live.values()] for live in (self._told, self._shown)))

    def _pack(self, told: list[Region], shown: list[Region]) -> None:
        """Writes the table from scratch. No worker may run."""
        self._arena.clear()
        self.table.capacity = CAPACITY
        self._records = []
        for live, regions in ((self._told, told), (self._shown, shown)):
            live.clear()
            for region in regions:
                self._append(live, region)

    def _append(self, live: dict[Key, int], region: Region) -> None:
        record = ffi.new("struct memory_region *")
        record.guest_addr = region.wire.guest_addr
        record.user_addr = region.wire.user_addr
        record.size = region.wire.size
        record.mmap_offset = region.wire.mmap_offset
        record.fd = region.fd
        if error := lib.memory_append(self.table, record):
            raise AssertionError(f"memory_append: {os.strerror(-error)}: {_describe(region.wire)}")
        live[region.key] = len(self._records)
        self._records.append(region)


def _examine(wire: MemoryRegion, fd: int) -> Region:
    """Checks one region against itself and against the file it lies in."""
    if not wire.size:
        raise RemoteProtocolError(f"a memory region is empty: {_describe(wire)}")
    if max(wire.guest_addr, wire.user_addr) + wire.size > 1 << 64:
        raise RemoteProtocolError(f"a memory region wraps around the address space: {_describe(wire)}")
    if wire.mmap_offset + wire.size > 1 << 63:
        raise RemoteProtocolError(f"a memory region lies outside of any file: {_describe(wire)}")
    file = os.fstat(fd)
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


def _overlap(a: MemoryRegion, b: MemoryRegion) -> bool:
    return a.guest_addr < b.guest_addr + b.size and b.guest_addr < a.guest_addr + a.size


def _place(wire: MemoryRegion) -> Place:
    return wire.guest_addr, wire.user_addr, wire.size


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

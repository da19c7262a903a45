"""Memory regions in files, and the table that workers read."""

import os

from tests.vhost.examples import is_open
from vhost import memory as memory_module
from vhost._virtq import lib
from vhost.memory import GuestMemory
from vhost.message import MemoryRegion

PAGE = 4096
USER = 0x7F00_0000_0000
#: Descriptors of files that are mapped in shared memory.
MAPPED: set[int] = set()


def is_mapping(region: MemoryRegion, fd: int) -> bool:
    return fd in MAPPED


class Quiesce:
    """Counts the calls; a real one ends a worker, which is the only writer of `used`."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


def file(pages: int = 64) -> int:
    fd = os.memfd_create("guest", os.MFD_CLOEXEC)
    os.ftruncate(fd, pages * PAGE)
    return fd


def region(page: int, pages: int = 1, offset: int = 0) -> MemoryRegion:
    return MemoryRegion(page * PAGE, pages * PAGE, USER + page * PAGE, offset * PAGE)


def live(memory: GuestMemory) -> list[MemoryRegion]:
    """The table as a worker reads it."""
    table = memory.table
    assert table.capacity == memory_module.CAPACITY
    records = [table.regions[i] for i in range(table.count) if table.regions[i].state == lib.MEMORY_LIVE]
    assert all(is_open(record.fd) for record in records)
    return [MemoryRegion(r.guest_addr, r.size, r.user_addr, r.mmap_offset) for r in records]


def use(memory: GuestMemory, wire: MemoryRegion) -> None:
    """What a worker does before it maps a region."""
    table = memory.table
    for i in range(table.count):
        record = table.regions[i]
        if record.state == lib.MEMORY_LIVE and record.guest_addr == wire.guest_addr:
            record.used = 1

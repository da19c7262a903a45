"""The driver side of split virtqueues, in plain Python on shared guest memory (virtio 1.3, section 2.7).

It plays the guest: it owns descriptors, buffers and the available ring, and reads the used ring. It knows no vhost-user
and no device; a front-end gives it memory, addresses and eventfds. In three steps:

    memory = GuestMemory()
    memory.add(guest_addr, mmap_object, offset, size)         # one call per region; ranges may cross adjacent ones
    allocator = Allocator(start, size)                        # guest addresses free for buffers and indirect tables
    queue = DriverQueue(memory, allocator, layout(128, base), 128, kick=kick_fd, call=call_fd)

    head = queue.add([b"request"], [4096])                    # readable bytes, writable lengths: publishes a chain
    queue.kick()                                              # unless the device asked not to be
    used = queue.wait(head)                                   # Used(head, length, data)

`queue.request(readable, writable)` is the three of them. `layout` computes where the rings lie from one guest address;
any other `Layout` will do. Options: `indirect` puts every chain in an indirect table (or per chain,
`add(indirect=...)`); `event_idx` as negotiated; `index` is where both rings start. Chains complete in any order: `poll`
returns what is new, `wait` keeps the rest. `add_buffers` takes guest addresses instead of bytes. With a call
eventfd, `wait` relies on it: an interrupt that never comes is a TimeoutError.

Hostile tests go below that: `descriptor`, `publish` and the item views `avail` and `used_ring` write whatever they are
told. Nothing here is safe to call from two threads at once; give each thread a queue, or a lock.
"""

import os
import select
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from mmap import mmap
from typing import NamedTuple

NEXT, WRITE, INDIRECT = 1, 2, 4
NO_NOTIFY = 1  # used.flags
NO_INTERRUPT = 1  # avail.flags
DESCRIPTOR = struct.Struct("<QIHH")
MAX = 0xFFFF

_lock = threading.Lock()


def fence() -> None:
    """A full memory fence: a lock is taken and released with atomic read-modify-writes, which order all accesses."""
    with _lock:
        pass


class GuestMemory:
    """Guest physical memory as a set of regions, each a window of a shared mmap."""

    def __init__(self) -> None:
        self.regions: list[tuple[int, memoryview]] = []

    def add(self, guest_addr: int, buffer: mmap, offset: int, size: int) -> None:
        self.regions.append((guest_addr, memoryview(buffer)[offset : offset + size]))

    def view(self, addr: int, length: int) -> memoryview:
        """A writable view of a range within one region."""
        for base, view in self.regions:
            if base <= addr and addr + length <= base + len(view):
                return view[addr - base : addr - base + length]
        raise ValueError(f"no region holds {addr:#x}+{length:#x}")

    def pieces(self, addr: int, length: int) -> list[memoryview]:
        """Views of a range that may cross adjacent regions."""
        found = []
        while length:
            base, view = next((b, v) for b, v in self.regions if b <= addr < b + len(v))
            part = view[addr - base : addr - base + length]
            found.append(part)
            addr += len(part)
            length -= len(part)
        return found

    def read(self, addr: int, length: int) -> bytes:
        return b"".join(self.pieces(addr, length))

    def write(self, addr: int, data: bytes) -> None:
        for piece in self.pieces(addr, len(data)):
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]

    def close(self) -> None:
        """Releases the views, so that the mmaps can be closed."""
        for _, view in self.regions:
            view.release()
        self.regions.clear()


class Allocator:
    """First fit over a range of guest addresses, in units of 16 bytes."""

    def __init__(self, start: int, size: int) -> None:
        first = -(-start // 16) * 16
        self.free_ranges = [(first, start + size)]
        self.sizes: dict[int, int] = {}

    def allocate(self, size: int) -> int:
        size = max(16, -(-size // 16) * 16)
        for i, (start, end) in enumerate(self.free_ranges):
            if end - start >= size:
                self.free_ranges[i : i + 1] = [(start + size, end)] if end - start > size else []
                self.sizes[start] = size
                return start
        raise MemoryError(f"no {size} bytes of guest memory left")

    def free(self, addr: int) -> None:
        ranges = sorted([*self.free_ranges, (addr, addr + self.sizes.pop(addr))])
        self.free_ranges = ranges[:1]
        for start, end in ranges[1:]:
            if start == self.free_ranges[-1][1]:
                self.free_ranges[-1] = (self.free_ranges[-1][0], end)
            else:
                self.free_ranges.append((start, end))


class Layout(NamedTuple):
    """Guest physical addresses of a ring's three parts."""

    desc: int
    avail: int
    used: int
    end: int


def layout(num: int, base: int) -> Layout:
    """The three parts one after the other from `base` (16-byte aligned), with room for the event words."""
    avail = base + 16 * num
    used = -(-(avail + 6 + 2 * num) // 4) * 4
    return Layout(base, avail, used, -(-(used + 6 + 8 * num) // 16) * 16)


class Buffer(NamedTuple):
    """Guest memory given to the device: physical address and length in bytes."""

    addr: int
    length: int


class Used(NamedTuple):
    """A chain the device is done with; `data` is what it says it wrote."""

    head: int
    length: int
    data: bytes


class Chain(NamedTuple):
    """What the driver remembers of a chain in flight."""

    descriptors: list[int]
    writable: list[Buffer]
    owned: list[int]


class DriverQueue:
    """One split virtqueue. `kick` and `call` are eventfds, -1 for none."""

    def __init__(
        self,
        memory: GuestMemory,
        allocator: Allocator,
        where: Layout,
        num: int,
        *,
        kick: int = -1,
        call: int = -1,
        event_idx: bool = False,
        indirect: bool = False,
        index: int = 0,
    ) -> None:
        self.memory, self.allocator, self.where, self.num = memory, allocator, where, num
        self.kick_fd, self.call_fd = kick, call
        self.event_idx, self.indirect = event_idx, indirect
        # Items of the native size are stored in one piece; struct.pack_into may store bytes.
        self.table = memory.view(where.desc, 16 * num)
        self.avail = memory.view(where.avail, 6 + 2 * num).cast("H")  # flags, idx, ring..., used_event
        self.used = memory.view(where.used, 4).cast("H")  # flags, idx
        self.used_ring = memory.view(where.used + 4, 8 * num).cast("I")  # id, len, id, len...
        self.avail_event = memory.view(where.used + 4 + 8 * num, 2).cast("H")
        self.index = self.kicked = self.last_used = index
        self.avail[1] = self.used[1] = index
        self.free = list(range(num))
        self.chains: dict[int, Chain] = {}
        self.done: dict[int, tuple[Used, Chain]] = {}  # used, but not handed out: their heads are not reused
        self.held_back = False
        self.interrupts_on(True)

    # What any driver does.

    def add(
        self, readable: Sequence[bytes], writable: Sequence[int], *, indirect: bool | None = None, direct: int = 0
    ) -> int:
        """Copies bytes into guest memory and publishes a chain; returns its head. See `add_buffers`."""
        first = [Buffer(self.allocator.allocate(len(data)), len(data)) for data in readable]
        for buffer, data in zip(first, readable, strict=True):
            self.memory.write(buffer.addr, data)
        second = [Buffer(self.allocator.allocate(length), length) for length in writable]
        owned = [buffer.addr for buffer in first + second]
        return self.add_buffers(first, second, indirect=indirect, direct=direct, owned=owned)

    def add_buffers(
        self,
        readable: Sequence[Buffer],
        writable: Sequence[Buffer],
        *,
        indirect: bool | None = None,
        direct: int = 0,
        owned: Sequence[int] = (),
    ) -> int:
        """Publishes a chain of guest buffers. An indirect one leaves its first `direct` buffers in the ring's table.

        `owned` addresses are given back to the allocator when the chain is used.
        """
        owned = list(owned)
        entries = [(b.addr, b.length, 0) for b in readable] + [(b.addr, b.length, WRITE) for b in writable]
        if self.indirect if indirect is None else indirect:
            table = self.allocator.allocate(16 * (len(entries) - direct))
            owned.append(table)
            self.write_table(table, entries[direct:])
            entries[direct:] = [(table, 16 * (len(entries) - direct), INDIRECT)]
        if len(entries) > len(self.free):
            raise BufferError(f"{len(entries)} descriptors wanted, {len(self.free)} free")
        indices = [self.free.pop(0) for _ in entries]
        for position, (addr, length, flags) in enumerate(entries):
            last = position == len(entries) - 1
            self.descriptor(
                indices[position], addr, length, flags | (0 if last else NEXT), 0 if last else indices[position + 1]
            )
        self.chains[indices[0]] = Chain(indices, list(writable), owned)
        self.publish(indices[0])
        return indices[0]

    def kick(self) -> bool:
        """Tells the device of what was published since the last kick, unless it asked not to; whether it was told."""
        old, self.kicked = self.kicked, self.index
        if old == self.index:
            return False
        # The device stores avail_event or used.flags, fences, and reads avail.idx: one of us sees the other.
        fence()
        if self.event_idx:
            wanted = (self.index - self.avail_event[0] - 1) & MAX < (self.index - old) & MAX
        else:
            wanted = not self.used[0] & NO_NOTIFY
        if wanted and self.kick_fd >= 0:
            os.eventfd_write(self.kick_fd, 1)
        return wanted

    def poll(self) -> list[Used]:
        """What was used and nobody has waited for yet; its heads are free again."""
        self._collect()
        return [self._take(head) for head in list(self.done)]

    def wait(self, head: int, timeout: float = 20.0) -> Used:
        """Sleeps until a chain is used, in seconds; TimeoutError. A busy poll when there is no call eventfd."""
        deadline = time.monotonic() + timeout
        while True:
            self._collect()
            if head in self.done:
                return self._take(head)
            if time.monotonic() > deadline:
                raise TimeoutError(f"chain {head} was not used in time")
            self.interrupts_on(True)
            if self.used[1] == self.last_used:
                self._sleep(deadline)

    def request(self, readable: Sequence[bytes], writable: Sequence[int]) -> bytes:
        """One round trip: what the device wrote."""
        head = self.add(readable, writable)
        self.kick()
        return self.wait(head).data

    def interrupts_on(self, wanted: bool) -> None:
        """Asks for an interrupt at the next used chain, or for none."""
        if self.event_idx:
            self.avail[2 + self.num] = (self.last_used if wanted else self.last_used - 1) & MAX
        else:
            self.avail[0] = 0 if wanted else NO_INTERRUPT
        # The device stores used.idx, fences, and reads the above: one of us sees the other.
        fence()

    # What only a test does.

    def descriptor(self, index: int, addr: int, length: int, flags: int, following: int) -> None:
        DESCRIPTOR.pack_into(self.table, 16 * index, addr, length, flags, following)

    @staticmethod
    def pack(addr: int, length: int, flags: int, following: int) -> bytes:
        """One descriptor's bytes."""
        return DESCRIPTOR.pack(addr, length, flags, following)

    def write_table(self, addr: int, entries: Sequence[tuple[int, int, int]]) -> None:
        """An indirect table of (addr, length, flags), chained in order."""
        last = len(entries) - 1
        self.memory.write(
            addr,
            b"".join(
                DESCRIPTOR.pack(a, n, flags | (0 if i == last else NEXT), 0 if i == last else i + 1)
                for i, (a, n, flags) in enumerate(entries)
            ),
        )

    def publish(self, head: int) -> None:
        """Puts a head on the available ring. The store of the index comes last; a store is not reordered with an
        earlier one on x86, and `kick` fences for the rest."""
        self.avail[2 + self.index % self.num] = head
        self.index = (self.index + 1) & MAX
        if not self.held_back:
            self.avail[1] = self.index

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is published inside the device sees at its end, all of it."""
        self.held_back = True
        try:
            yield
        finally:
            self.held_back = False
            self.avail[1] = self.index

    def close(self) -> None:
        for view in (self.table, self.avail, self.used, self.used_ring, self.avail_event):
            view.release()

    def _collect(self) -> None:
        while self.last_used != self.used[1]:
            slot = 2 * (self.last_used % self.num)
            head, length = self.used_ring[slot], self.used_ring[slot + 1]
            self.last_used = (self.last_used + 1) & MAX
            chain = self.chains.pop(head)
            self.done[head] = Used(head, length, self._written(chain, length)), chain

    def _take(self, head: int) -> Used:
        used, chain = self.done.pop(head)
        self.free[:0] = chain.descriptors
        for addr in chain.owned:
            self.allocator.free(addr)
        return used

    def _written(self, chain: Chain, length: int) -> bytes:
        parts = []
        for buffer in chain.writable:
            part = min(length, buffer.length)
            parts.append(self.memory.read(buffer.addr, part))
            length -= part
        return b"".join(parts)

    def _sleep(self, deadline: float) -> None:
        if self.call_fd < 0:
            time.sleep(0.0005)
            return
        poller = select.poll()
        poller.register(self.call_fd, select.POLLIN)
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError("no interrupt came")
        os.eventfd_read(self.call_fd)

"""One queue with both its ends: guest memory on a memfd, a driver queue, and the engine of `vhost._virtq` on threads.

The memfd is larger than the regions: what lies around and between them holds a pattern that must stay as it is.
"""

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.driver import Allocator, DriverQueue, GuestMemory, layout
from vhost._virtq import ffi, lib

PAGE = 4096
GUARD = 4 * PAGE
USER = 0x7F00_0000_0000  # front-end virtual address of guest physical address 0
DEFERRED = None

#: Serves a chain: bytes read in, bytes to write out; or DEFERRED.
Reply = bytes | None
Handler = Callable[["Chain"], Reply]


class Chain:
    """A chain as a handler sees it."""

    def __init__(self, chain: Any) -> None:
        self.chain = chain
        self.head: int = chain.head
        self.replay: int = chain.replay
        self.input = b"".join(self._buffers(chain.__getattribute__("in"), chain.in_count))
        self.room: int = chain.out_len
        assert len(self.input) == chain.in_len

    @staticmethod
    def _buffers(iov: Any, count: int) -> list[bytes]:
        return [ffi.buffer(iov[i].iov_base, iov[i].iov_len)[:] for i in range(count)]

    def write(self, reply: bytes) -> int:
        left = reply
        for i in range(self.chain.out_count):
            iov = self.chain.out[i]
            part = left[: iov.iov_len]
            ffi.memmove(iov.iov_base, part, len(part))
            left = left[len(part) :]
        return len(reply) - len(left)

    def complete(self, reply: bytes) -> None:
        lib.virtq_complete(self.chain, self.write(reply))


def echo(chain: Chain) -> bytes:
    """As much of the input as there is room for."""
    return chain.input[: chain.room]


class Ring:
    """`regions` are (guest address, size), each a piece of one memfd; the ring lies at `base`."""

    def __init__(
        self,
        num: int = 8,
        *,
        regions: Sequence[tuple[int, int]] = ((0, 1 << 18),),
        base: int = 0,
        index: int = 0,
        event_idx: bool = False,
        indirect: bool = True,
        log: bool = False,
        log_used: bool = False,
        kick: bool = True,
        max_regions: int = 8,
    ) -> None:
        self.num, self.regions = num, tuple(regions)
        total = GUARD + sum(size + GUARD for _, size in regions)
        self.memfd = os.memfd_create("guest")
        os.truncate(self.memfd, total)
        self.file = mmap.mmap(self.memfd, total)
        self.file[:] = b"\xa5" * total
        self.arena = mmap.mmap(-1, 1 << 16)  # shared, as a worker's is
        self.table = self.record("struct memory_table *", 0)
        self.state = self.record("struct virtq_state *", 0x8000)
        self.inflight = self.record("struct virtq_inflight *", 0x9000)
        self.table.capacity = max_regions
        self.memory = GuestMemory()
        offset = GUARD
        self.offsets = []
        for addr, size in regions:
            self.file[offset : offset + size] = bytes(size)
            self.memory.add(addr, self.file, offset, size)
            assert self.append(addr, size, offset) == 0
            self.offsets.append(offset)
            offset += size + GUARD
        self.log = bytearray((max(addr + size for addr, size in regions) // PAGE + 7) // 8) if log else None
        self.kick, self.call, self.err, self.stop_fd = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(4))
        where = layout(num, base)
        first = next((addr, size) for addr, size in regions if addr <= base < addr + size)
        self.allocator = Allocator(where.end, first[0] + first[1] - where.end)
        self.driver = DriverQueue(
            self.memory, self.allocator, where, num, kick=self.kick, call=self.call, event_idx=event_idx, index=index
        )
        self.state.last_avail_idx = index
        self.config = ffi.new("struct virtq_config *")
        self.config.state, self.config.inflight, self.config.num = self.state, self.inflight, num
        self.config.desc_addr, self.config.avail_addr, self.config.used_addr = (USER + addr for addr in where[:3])
        self.config.log_addr, self.config.log_used = where.used, log_used
        self.config.event_idx, self.config.indirect = event_idx, indirect
        self.config.kick, self.config.call = self.kick if kick else -1, self.call
        self.config.err, self.config.stop = self.err, self.stop_fd
        self.view: Any = ffi.NULL
        self.queue: Any = ffi.NULL
        self.threads: list[threading.Thread] = []
        self.results: list[int] = []
        self.failures: list[BaseException] = []

    def record(self, kind: str, offset: int) -> Any:
        return ffi.cast(kind, ffi.from_buffer(self.arena, require_writable=True) + offset)

    def append(self, addr: int, size: int, offset: int) -> int:
        region = ffi.new(
            "struct memory_region *",
            {"guest_addr": addr, "user_addr": USER + addr, "size": size, "mmap_offset": offset, "fd": self.memfd},
        )
        return int(lib.memory_append(self.table, region))

    def open(self, threads: int = 0) -> int:
        """A new view of memory and a new queue: what a new worker begins with. The error, 0 when there is none.

        `threads` is what the queue is told will run it.
        """
        self.config.threads = threads
        log = ffi.from_buffer("uint8_t[]", self.log) if self.log is not None else ffi.NULL
        self.view = lib.memory_new(self.table, log, len(self.log or b""))
        self.config.memory = self.view
        error = ffi.new("int *")
        self.queue = lib.virtq_new(self.config, error)
        return int(error[0])

    def start(self, handler: Handler = echo, threads: int = 1) -> None:
        """Lends threads to the queue, which is opened if it is not: it knows then whether one serves it alone."""
        if not self.queue:
            assert self.open(threads) == 0

        self.serve = self.callback(handler)

        def run() -> None:
            self.results.append(lib.virtq_run(self.queue, self.serve, ffi.NULL))

        self.threads = [threading.Thread(target=run) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def callback(self, handler: Handler) -> Any:
        """A virtq_handler of a Python function. What that raises, `join` reports."""

        @ffi.callback("int64_t(void *, struct virtq_chain *)")  # type: ignore[untyped-decorator, unused-ignore]
        def serve(_opaque: Any, raw: Any) -> int:
            try:
                chain = Chain(raw)
                reply = handler(chain)
                return int(lib.VIRTQ_DEFERRED) if reply is None else chain.write(reply)
            except BaseException as error:
                self.failures.append(error)
                return 0

        return serve

    def join(self) -> list[int]:
        """Waits for the threads to leave; what virtq_run returned to each."""
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "virtq_run hangs"
        self.threads = []
        assert not self.failures, self.failures
        results, self.results = self.results, []
        return results

    def stop(self) -> list[int]:
        os.eventfd_write(self.stop_fd, 1)
        results = self.join()
        os.eventfd_read(self.stop_fd)
        return results

    def park(self) -> None:
        """Stops a drained queue cleanly, as a worker does before it ends."""
        if self.threads:
            assert set(self.stop()) == {0}
        assert lib.virtq_pending(self.queue) == 0
        lib.virtq_park(self.queue)
        self.drop()

    def drop(self) -> None:
        """Forgets queue and view without parking: what is left is what a dead worker leaves."""
        lib.virtq_free(self.queue)
        lib.memory_free(self.view)
        self.queue = self.view = ffi.NULL

    def marks(self) -> list[int]:
        """Heads marked in flight."""
        return [head for head in range(self.num) if self.inflight.desc[head].inflight]

    def broken(self) -> int:
        """Runs until the ring breaks, and returns the errno; its error eventfd was written once."""
        self.start()
        results = self.join()
        assert results == [-self.state.broken]
        assert os.eventfd_read(self.err) == 1
        return int(self.state.broken)

    def marked(self) -> set[int]:
        """Page numbers in the dirty log."""
        assert self.log is not None
        return {8 * i + bit for i, byte in enumerate(self.log) for bit in range(8) if byte >> bit & 1}

    def guards_intact(self) -> bool:
        """Whether nothing was written outside the regions."""
        start = 0
        for offset, (_, size) in zip(self.offsets, self.regions, strict=True):
            if self.file[start:offset].strip(b"\xa5"):
                return False
            start = offset + size
        return not self.file[start:].strip(b"\xa5")

    def close(self) -> None:
        if self.threads:
            self.stop()
        self.drop()
        assert self.guards_intact()
        self.driver.close()
        self.memory.close()
        self.file.close()
        self.arena.close()
        for fd in (self.memfd, self.kick, self.call, self.err, self.stop_fd):
            os.close(fd)


def stream(ring: Ring, messages: Iterable[bytes], free: int, indirect: Iterable[bool]) -> None:
    """Has each message served by `echo`, at most as many at a time as leave so many descriptors free."""
    flying: dict[int, bytes] = {}
    for message, table in zip(messages, indirect, strict=False):
        if len(ring.driver.free) < free:
            head, expected = next(iter(flying.items()))
            assert ring.driver.wait(head).data == expected
            del flying[head]
        flying[ring.driver.add([message], [10], indirect=table)] = message
        ring.driver.kick()
    for head, expected in flying.items():
        assert ring.driver.wait(head).data == expected


def interrupts(ring: Ring) -> int:
    """Interrupts sent and not yet taken."""
    try:
        return os.eventfd_read(ring.call)
    except BlockingIOError as error:
        assert error.errno == errno.EAGAIN
        return 0


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise TimeoutError

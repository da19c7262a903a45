"""A guest for scripts/bench: a front-end that has mounted a share, with memory for requests that lie ready, and lanes
of them to run (driver.h).

Requests have the shape Linux's virtio_fs gives them: their header is a descriptor, all arguments that are no pages
another one, each page of data one more; and the reply's header, arguments and pages likewise. Pages lie in descending
order, since a guest's are seldom adjacent.
"""

import errno
import itertools
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.bench.build import ffi, lib
from tests.bench.daemons import Daemon
from tests.driver import NEXT, WRITE, DriverQueue
from tests.frontend import FEATURES, MIB, FrontEnd
from tests.fuseclient import HEADER, REPLY_HEADER, FuseClient
from tests.fusestructs import pack
from vfsd._fuse import ffi as fuse_ffi
from vfsd._fuse import lib as fuse

PAGE = 4096
#: Of the ring: QEMU's queue-size=1024. Its default of 128 would limit a request to 496 KiB.
QUEUE_SIZE = 1024
MEMORY = 128 * MIB
#: Seconds a run may take longer than it was told to.
PATIENCE = 30
#: What Linux 6.1 offers in FUSE_INIT on a virtio_fs mount without DAX.
LINUX = (
    fuse.FUSE_ASYNC_READ | fuse.FUSE_POSIX_LOCKS | fuse.FUSE_ATOMIC_O_TRUNC | fuse.FUSE_EXPORT_SUPPORT
    | fuse.FUSE_BIG_WRITES | fuse.FUSE_DONT_MASK | fuse.FUSE_SPLICE_WRITE | fuse.FUSE_SPLICE_MOVE
    | fuse.FUSE_SPLICE_READ | fuse.FUSE_FLOCK_LOCKS | fuse.FUSE_HAS_IOCTL_DIR | fuse.FUSE_AUTO_INVAL_DATA
    | fuse.FUSE_DO_READDIRPLUS | fuse.FUSE_READDIRPLUS_AUTO | fuse.FUSE_ASYNC_DIO | fuse.FUSE_WRITEBACK_CACHE
    | fuse.FUSE_NO_OPEN_SUPPORT | fuse.FUSE_PARALLEL_DIROPS | fuse.FUSE_HANDLE_KILLPRIV | fuse.FUSE_POSIX_ACL
    | fuse.FUSE_ABORT_ERROR | fuse.FUSE_MAX_PAGES | fuse.FUSE_CACHE_SYMLINKS | fuse.FUSE_NO_OPENDIR_SUPPORT
    | fuse.FUSE_EXPLICIT_INVAL_DATA | fuse.FUSE_HANDLE_KILLPRIV_V2 | fuse.FUSE_SETXATTR_EXT | fuse.FUSE_SUBMOUNTS
    | fuse.FUSE_SECURITY_CTX
)  # fmt: skip

FAILURES = {
    lib.DRIVER_RING: "a used element is no request in flight",
    lib.DRIVER_USED: "the used length is {got}, the header's {expected}",
    lib.DRIVER_LENGTH: "{got} bytes, not {expected}",
    lib.DRIVER_UNIQUE: "answers {got}, not {expected}",
    lib.DRIVER_ERROR: "error {got}, not {expected}",
    lib.DRIVER_REGISTER: "says {got} where {expected} was",
    lib.DRIVER_DATA: "a page holds {got:#x}, not {expected:#x}",
    lib.DRIVER_COUNT: "the directory has {got} entries, not {expected}",
}


class BadReply(Exception):  # noqa: N818 (what came)
    """A daemon's reply is not what was asked for."""


class Patch(NamedTuple):
    """A field of 64 bits, `at` bytes into the request or the reply, headers included."""

    kind: int
    at: int
    register: int


def put(at: int, register: int) -> Patch:
    return Patch(lib.DRIVER_PUT, at, register)


def take(at: int, register: int) -> Patch:
    """Of the reply."""
    return Patch(lib.DRIVER_TAKE, at, register)


def match(at: int, register: int) -> Patch:
    """Of the reply."""
    return Patch(lib.DRIVER_MATCH, at, register)


class Step(NamedTuple):
    """A request to lie ready. Sizes are in bytes."""

    opcode: int
    nodeid: int = 0
    #: What follows the header, but for pages.
    arguments: bytes = b""
    #: Room for what follows the reply's header, but for pages.
    room: int = 0
    error: int = 0
    units: int = 0
    replied: bool = True
    patches: tuple[Patch, ...] = ()
    #: DRIVER_READ, WRITE or ENTRIES; and how much.
    data: int = 0
    size: int = 0
    #: Where in the arguments the offset is.
    offset_at: int = 0
    #: In the directory.
    entries: int = 0
    #: A register and a mask: it is not sent when any of these bits is set there.
    unless: tuple[int, int] | None = None


class Piece(NamedTuple):
    """A descriptor to be."""

    addr: int
    length: int
    flags: int = 0


class Laid(NamedTuple):
    """Guest addresses of a request's parts, and of the room for its reply."""

    request: int
    arguments: int
    reply: int
    room: int
    pages: list[int]

    def field(self, patch: Patch) -> int:
        if patch.kind != lib.DRIVER_PUT:
            return self.room + patch.at - REPLY_HEADER
        return self.request + patch.at if patch.at < HEADER else self.arguments + patch.at - HEADER


def _buffers(laid: Laid, step: Step) -> list[Piece]:
    """As virtio_fs_enqueue_req makes them."""
    if not step.replied:
        return [Piece(laid.request, HEADER + len(step.arguments))]
    written = step.data == lib.DRIVER_WRITE
    pages = [Piece(page, PAGE, 0 if written else WRITE) for page in laid.pages]
    readable = [Piece(laid.request, HEADER), Piece(laid.arguments, len(step.arguments))]
    writable = [Piece(laid.reply, REPLY_HEADER, WRITE), Piece(laid.room, step.room, WRITE)]
    pieces = readable + pages + writable if written else readable + writable + pages
    return [piece for piece in pieces if piece.length]


class Lane(NamedTuple):
    """What one of the guest's processes repeats."""

    steps: Sequence[Step]
    registers: Sequence[int] = ()
    #: The part of the file its data are from.
    first: int = 0
    end: int = 0
    #: Where in it the first request begins.
    offset: int = 0
    random: bool = False
    #: Its requests count where latencies are asked for.
    timed: bool = True


class Run(NamedTuple):
    """What became of a run."""

    units: int
    seconds: float
    #: Of the ranges of driver_range: how many replies took so long; if it was asked for.
    latencies: Sequence[int] = ()

    def latency(self, percent: float) -> float:
        """So many of the requests took no longer, microseconds: within three percent."""
        sums = itertools.accumulate(self.latencies)
        number = next(number for number, most in enumerate(sums) if most >= sum(self.latencies) * percent / 100)
        low = number if number < 16 else (16 + number % 16) << number // 16 - 1
        return low * 33 / 32 / 1000


class Script:
    """Lanes that lie in guest memory."""

    def __init__(self, guest: "Guest", lanes: Sequence[Lane]) -> None:
        self.guest = guest
        self.described = lanes
        self.run: Any = ffi.new("struct driver_run *")
        self.lanes: Any = ffi.new("struct driver_lane[]", len(lanes))
        self.run.lanes, self.run.depth = self.lanes, len(lanes)
        self._kept = []
        self.pages: list[list[list[int]]] = []
        for lane, described in zip(self.lanes, lanes, strict=True):
            steps = ffi.new("struct driver_step[]", len(described.steps))
            self._kept.append(steps)
            self.pages.append([guest.lay(step, one) for step, one in zip(steps, described.steps, strict=True)])
            lane.steps, lane.count = steps, len(described.steps)
            lane.first, lane.end, lane.offset = described.first, described.end, described.offset
            lane.random, lane.timed = described.random, described.timed
            for register, value in enumerate(described.registers):
                lane.registers[register] = value

    def data(self, lane: int, step: int) -> bytes:
        """What its pages hold."""
        return b"".join(self.guest.frontend.memory.read(page, PAGE) for page in self.pages[lane][step])


class Guest:
    """A mount of `daemon`, with these virtio features where it offers them."""

    def __init__(self, daemon: Daemon, features: int = FEATURES) -> None:
        self.daemon, self.features = daemon, features
        self.frontend = FrontEnd(daemon.connection, queues=1 + daemon.kind.queues, num=QUEUE_SIZE, sizes=(MEMORY,))
        self.client = FuseClient(lambda data, room: self.frontend.request(1, data, room))
        self.unique = 1 << 32  # beyond those of the client

    def __enter__(self) -> Self:
        self.frontend.negotiate(features=self.features)
        hiprio, first, *others = self.frontend.rings
        for ring in others:
            # The driver waits for all of them at once.
            os.dup2(first.call, ring.call, inheritable=False)
        self.frontend.start()
        for ring in (hiprio, first):
            # A daemon makes what it is sent non-blocking, and its description is ours.
            os.set_blocking(ring.call, True)
        self.queues = ffi.new("struct driver_queue[]", len(self.frontend.rings))
        for index, queue in enumerate(self.queues):
            self._set_queue(queue, index)
        init = self.client.init(minor=37, flags=LINUX | fuse.FUSE_INIT_EXT)
        self.max_write = init.max_write
        # Beyond what the client takes for itself.
        area = self.frontend.rings[1].allocator
        size = area.free_ranges[-1][1] - area.free_ranges[-1][0] - MIB
        self._first = -(-area.allocate(size) // PAGE) * PAGE
        self._end = self._first + size - PAGE
        self._next = self._first
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.frontend.close()

    def _set_queue(self, queue: Any, index: int) -> None:
        ring = self.frontend.rings[index]
        features = self.frontend.queue(index)
        queue.memory = ffi.from_buffer("char[]", self.frontend.regions[0].map)
        queue.desc, queue.avail, queue.used, _ = ring.where
        queue.num, queue.event_idx, queue.indirect = QUEUE_SIZE, features.event_idx, features.indirect
        queue.kick, queue.call = ring.kick, ring.call

    # Memory. What is laid out stays until `clear`.

    def clear(self) -> None:
        self._next = self._first

    def allocate(self, size: int, align: int = 16) -> int:
        addr = -(-self._next // align) * align
        self._next = addr + size
        if self._next > self._end:
            raise MemoryError("the guest has too little memory for so many requests")
        return addr

    def lay(self, out: Any, step: Step) -> list[int]:
        """Writes a request to guest memory, and what the driver has to know of it to `out`, a struct driver_step.

        Returns its pages.
        """
        laid = self._room(step)
        self._write(laid, step)
        buffers = _buffers(laid, step)
        out.table, out.descriptors = self._table(buffers), len(buffers)
        if laid.pages:
            out.first_page = next(i for i, buffer in enumerate(buffers) if buffer.addr == laid.pages[0])
        out.request, out.reply = laid.request, laid.reply if step.replied else 0
        wanted = step.room + (0 if step.data == lib.DRIVER_WRITE else step.size)
        out.length = REPLY_HEADER + (0 if step.error else wanted)
        out.error, out.units = -step.error, step.units
        out.data, out.size, out.entries = step.data, step.size, step.entries
        out.offset = laid.arguments + step.offset_at if step.data else 0
        if step.unless:
            out.unless_reg, out.unless_mask = step.unless
        for slot, patch in zip(out.patches, step.patches, strict=False):
            slot.addr, slot.kind, slot.reg = laid.field(patch), patch.kind, patch.register
        return laid.pages

    def _room(self, step: Step) -> Laid:
        """Pages lie in descending order."""
        pages = [self.allocate(PAGE, PAGE) for _ in range(step.size // PAGE)][::-1]
        request = self.allocate(HEADER + len(step.arguments))
        # What has no reply is one buffer (struct virtio_fs_forget).
        arguments = self.allocate(len(step.arguments)) if step.replied else request + HEADER
        return Laid(request, arguments, self.allocate(REPLY_HEADER), self.allocate(step.room), pages)

    def _write(self, laid: Laid, step: Step) -> None:
        memory, written = self.frontend.memory, step.data == lib.DRIVER_WRITE
        size = HEADER + len(step.arguments) + (step.size if written else 0)
        memory.write(laid.request, pack("fuse_in_header", len=size, opcode=step.opcode, nodeid=step.nodeid, pid=1))
        memory.write(laid.arguments, step.arguments)
        for page in laid.pages if written else ():
            memory.write(page, os.urandom(PAGE))

    def _table(self, buffers: Sequence[Piece]) -> int:
        addr = self.allocate(16 * len(buffers))
        last = len(buffers) - 1
        entries = [
            DriverQueue.pack(
                piece.addr, piece.length, piece.flags | (NEXT if i < last else 0), i + 1 if i < last else 0
            )
            for i, piece in enumerate(buffers)
        ]
        self.frontend.memory.write(addr, b"".join(entries))
        return addr

    # Runs.

    def run(
        self,
        script: Script,
        *,
        seconds: float = 0.0,
        limit: int = 0,
        content: Any = None,
        spin: bool = False,
        timed: bool = False,
    ) -> Run:
        """Runs all lanes for so long, or each for so many requests.

        `content` is what the file holds, to compare all that is read; `timed`: latencies are kept. Raises BadReply;
        TimeoutError; OSError.
        """
        run = script.run
        run.spin, run.trusting, run.limit = spin, self.daemon.kind.alone, limit
        run.nanoseconds = int(seconds * 1e9)
        run.content = ffi.NULL if content is None else ffi.from_buffer("char[]", content)
        latencies = ffi.new("uint64_t[]", lib.DRIVER_LATENCIES) if timed else ffi.NULL
        run.latencies = latencies
        run.begun = run.elapsed = run.units = run.busy = 0
        run.unique = self.unique
        run.hiprio, run.requests, run.queues = self.queues, self.queues + 1, len(self.queues) - 1
        for queue, driver in zip(self.queues, self._drivers(), strict=True):
            queue.index = driver.index
        with _patience(self.daemon, seconds + PATIENCE):
            while (ret := lib.driver_run(run)) == -errno.EINTR:
                pass
        self.unique = run.unique
        for queue, driver in zip(self.queues, self._drivers(), strict=True):
            driver.index = driver.kicked = driver.last_used = queue.index
        if ret == -errno.EBADMSG:
            step = script.described[run.failed_lane].steps[run.failed_step]
            name = fuse_ffi.string(fuse.fuse_row_name(step.opcode)).decode()
            said = FAILURES[run.failure].format(expected=run.expected, got=run.got)
            raise BadReply(f"{self.daemon.name}, {name} in lane {run.failed_lane}: {said}")
        if ret:
            raise OSError(-ret, f"{self.daemon.name}: {os.strerror(-ret)}")
        return Run(run.units, run.elapsed / 1e9, list(latencies) if timed else ())

    def _drivers(self) -> list[DriverQueue]:
        return [self.frontend.queue(index) for index in range(len(self.queues))]


@contextmanager
def _patience(daemon: Daemon, seconds: float) -> Iterator[None]:
    """TimeoutError when it takes longer, ConnectionError when the daemon ends.

    The driver returns whenever a signal comes.
    """
    begin = time.monotonic()

    def look(number: int, frame: object) -> None:
        if daemon.process.poll() is not None:
            raise ConnectionError(f"{daemon.name} has ended\n{daemon.log.read_text()}")
        if time.monotonic() > begin + seconds:
            raise TimeoutError(f"{daemon.name}: no reply after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, look)
    # The clock may be in use: it is how pytest-timeout finds what hangs.
    left, interval = signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begin), 0.001), interval)

"""A guest for scripts/bench: a front-end that has mounted a share, with memory for requests that lie ready, and lanes
of them to run (driver.h)."""

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
from tests.bench.layout import PAGE, Lane, Layout
from tests.driver import DriverQueue
from tests.frontend import FEATURES, MIB, FrontEnd
from tests.fuseclient import FuseClient
from vfsd._fuse import ffi as fuse_ffi
from vfsd._fuse import lib as fuse

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
    lib.DRIVER_NUMBER: "the directory has {got} entries, not {expected}",
}


#: A lane has as many registers at least.
REGISTERS = 8


class BadReply(Exception):  # noqa: N818 (what came)
    """A daemon's reply is not what was asked for."""


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
        self._kept: list[Any] = []
        self.pages: list[list[list[int]]] = []
        for lane, described in zip(self.lanes, lanes, strict=True):
            steps = self._array("struct driver_step[]", len(described.steps))
            pairs = zip(steps, described.steps, strict=True)
            self.pages.append([guest.layout.lay(step, one, self._kept) for step, one in pairs])
            lane.steps, lane.count = steps, len(described.steps)
            lane.first, lane.end, lane.offset = described.first, described.end, described.offset
            lane.random, lane.timed = described.random, described.timed
            registers = described.registers
            lane.registers = self._array("uint64_t[]", [*registers, *[0] * (REGISTERS - len(registers))])
            lane.counts = self._array("uint64_t[]", max(len(registers), REGISTERS))

    def _array(self, kind: str, what: Any) -> Any:
        self._kept.append(ffi.new(kind, what))
        return self._kept[-1]

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
        self.places = area.allocate(lib.DRIVER_PLACES * lib.DRIVER_PLACE)
        size = area.free_ranges[-1][1] - area.free_ranges[-1][0] - MIB
        self.layout = Layout(self.frontend.memory, area.allocate(size), size)
        return self

    def clear(self) -> None:
        """Forgets all requests that lie ready."""
        self.layout.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.frontend.close()

    def _set_queue(self, queue: Any, index: int) -> None:
        ring = self.frontend.rings[index]
        features = self.frontend.queue(index)
        queue.memory = ffi.from_buffer("char[]", self.frontend.regions[0].map)
        queue.desc, queue.avail, queue.used, _ = ring.where
        queue.num, queue.event_idx, queue.indirect = QUEUE_SIZE, features.event_idx, features.indirect
        queue.kick, queue.call = ring.kick, ring.call

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
        run.unique, run.places = self.unique, self.places
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

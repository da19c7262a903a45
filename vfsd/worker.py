"""The worker: lends threads to rings and holds no truth of its own. It may die at any instruction.

Rule 1. It is forked with all it needs, and imports nothing.
Rule 2. It shares its descriptor table with the control process: closing an inherited descriptor closes it for both. So
        nothing inherited goes out of scope here, and it ends with os._exit.
"""

import errno
import gc
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, NoReturn

import vfsd.refused  # noqa: F401  (where C says which requests it refuses)
from vfsd._fuse import ffi as fuse_ffi
from vfsd._fuse import lib as fuse
from vfsd._process import lib as process
from vfsd.asking import Asking
from vfsd.child import settle
from vfsd.core import Core
from vfsd.descriptors import leave_room
from vfsd.device import HIPRIO, MEMO_SIZE, FsDevice
from vfsd.door import Pool, close_door, open_door
from vfsd.parking import Parking, address
from vfsd.sandbox import Share
from vfsd.settings import Settings
from vfsd.supervisor import SHORT
from vfsd.threads import begin
from vfsd.window import Window
from vhost._virtq import ffi, lib
from vhost.backend import Backend
from vhost.message import Feature
from vhost.vring import Vring

log = logging.getLogger("vfsd.worker")

#: How long a thread that wants the GIL waits before it asks for it, seconds. Python's default is ten times that, which
#: a request would wait for behind another one's Python op.
SWITCH_INTERVAL = 0.0005
#: A worker that does not get as far as serving its rings in so long hangs, seconds.
START_LIMIT = 10


class Spec(NamedTuple):
    """All that a worker is forked with. Where two are equal, a worker forked with one may serve as the other's: the
    front-end has said nothing in between."""

    share: Share
    device: FsDevice
    backend: Backend
    #: The DAX window, if there is one.
    window: Window | None
    #: The front-end maps files into it.
    mapping: bool
    #: Threads lent to each ring.
    threads: int
    #: How long a dry ring is watched at most, microseconds.
    poll: int
    #: eventfd: readable when the rings are to be parked.
    stop: int
    #: eventfd: written when a ring was found broken.
    broken: int
    #: Process id of the control process, in its own namespace.
    parent: int


class Ring(NamedTuple):
    vring: Vring
    queue: Any


def run(spec: Spec, room: Callable[[], int], spare: bool) -> NoReturn:
    """The worker's life, from the fork on. `room` returns when it may begin, with how many descriptors the guest may
    hold; a `spare` one prepares until then."""
    status = 1
    try:
        _settle(spec)
        if spare:
            _rehearse(spec)
        settings = _settings(spec, room())
        _begin()
        with _core(spec, settings) as (core, parking):
            _serve(spec, core, parking)
        status = 0
    except BaseException as error:
        if _is_shortage(error):
            status = SHORT
            log.error("a worker did not find what it takes to start: %s", error)
        else:
            log.exception("the worker could not do its work")
    finally:
        os._exit(status)


def _is_shortage(error: BaseException) -> bool:
    """Whether there may be what it lacked later on."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOMEM, errno.EAGAIN)
    # What threading says when there is no thread to be had.
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "new thread" in str(error))


def _settle(spec: Spec) -> None:
    """Makes this process its own."""
    settle(b"vfsd-spare")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if os.getppid() != spec.parent:
        os._exit(1)
    # What was inherited must not be collected: it may own descriptors.
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL)


def _begin() -> None:
    process.process_set_name(b"vfsd-worker")
    # The default of its signal ends us: who hangs here is replaced.
    signal.alarm(START_LIMIT)


def _rehearse(spec: Spec) -> None:
    """Does what a worker does as it begins, on memory of its own. So the pages that this writes, which the fork has
    left to be copied one by one, are copied before anybody waits for it."""
    proc_fd = _descriptors(spec)
    core = Core(_settings(spec, 1), spec.share.root_fd, proc_fd, spec.device.scratch())
    parking = Parking(core)
    pool = Pool()
    open_door(core, pool, parking)
    for thread in begin([("rehearsal", lambda: None)] * 2):
        thread.join()
    pool.start()
    close_door(core)
    core.close()
    for fd in (parking.wake, proc_fd):
        os.close(fd)


def _descriptors(spec: Spec) -> int:
    """A directory that names our descriptors."""
    return os.open("self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=spec.share.proc_fd)


def _settings(spec: Spec, room: int) -> Settings:
    return spec.device.settings(max(vring.num for vring in spec.backend.runnable()), room)


@contextmanager
def _core(spec: Spec, settings: Settings) -> Iterator[tuple[Core, Parking]]:
    """The file system, its door open."""
    # The current directory names our descriptors: Python's ops re-open an inode as str(fd).
    proc_fd = _descriptors(spec)
    os.fchdir(proc_fd)
    core = Core(settings, spec.share.root_fd, proc_fd, spec.device.arenas)
    parking = Parking(core)
    if spec.window and spec.mapping:
        core.window = Asking(core, spec.window.worker_socket, spec.window.padded)
    open_door(core, None, parking)
    yield core, parking
    close_door(core)


def _serve(spec: Spec, core: Core, parking: Parking) -> None:
    """Serves every ring until told to stop, and parks them."""
    memory = spec.backend.memory_view()
    rings = [ring for vring in spec.backend.runnable() if (ring := _ring(spec, vring, memory))]
    parking.room = {address(ring.queue): _parking_room(spec, ring.vring) for ring in rings}
    leave_room()
    signal.alarm(0)
    for ring in rings:
        _try_suspects(spec, ring, core)
    pool = Pool()
    open_door(core, pool, parking)
    # What somebody waits for first: not FORGETs, nor what blocks anyway.
    rings.sort(key=lambda ring: ring.vring.index == 0)
    works = [(f"ring {ring.vring.index}", partial(_lend, spec, ring, core)) for ring in rings]
    threads = begin(works * spec.threads)
    pool.start()
    _wait(spec, parking, core.window)
    for thread in threads:
        thread.join()
    for ring in rings:
        queue = address(ring.queue)
        _leave(ring, parking.count(queue) + (core.window.count(queue) if core.window else 0))


def _try_suspects(spec: Spec, ring: Ring, core: Core) -> None:
    """Serves what the last worker may have died of, one request at a time and nothing besides: there is no pool yet,
    and no other thread. What this one dies of is known then (vhost/blame.py)."""
    serve, refuse = (fuse_ffi.addressof(fuse, name) for name in ("fuse_serve", "fuse_refuse"))
    while (result := lib.virtq_try_suspect(ring.queue, serve, refuse, core.pointer)) > 0:
        pass
    _report(spec, ring, result)


def _report(spec: Spec, ring: Ring, result: int) -> None:
    """What became of a ring that is not served any more."""
    if result < 0 and not ring.vring.state.broken:
        raise MemoryError("no room to map the guest's memory")
    if result < 0:
        os.eventfd_write(spec.broken, 1)


def _wait(spec: Spec, parking: Parking, asking: Asking | None) -> None:
    """Returns when the rings are to be parked. Until then this thread looks after the requests that wait."""
    poll = select.poll()
    poll.register(spec.stop, select.POLLIN)
    poll.register(parking.wake, select.POLLIN)
    if asking:
        poll.register(asking.socket, select.POLLIN)
    while True:
        timeouts = [timeout for waiting in (parking, asking) if waiting and (timeout := waiting.timeout()) is not None]
        ready = dict(poll.poll(min(timeouts) * 1000 if timeouts else None))
        if spec.stop in ready:
            return
        if asking:
            asking.work()
        if not asking or asking.socket not in ready or parking.wake in ready:
            parking.retry()


def _leave(ring: Ring, parked: int) -> None:
    """Leaves a ring that no thread runs any more, with so many parked requests in flight."""
    # Deferred requests are still with the pool.
    while lib.virtq_pending(ring.queue) > parked:
        time.sleep(0.0005)
    if parked:
        lib.virtq_suspend(ring.queue)
    else:
        lib.virtq_park(ring.queue)


def _parking_room(spec: Spec, vring: Vring) -> int:
    """How many requests of a ring may be parked: half of what it holds. Without indirect descriptors each of these
    takes three."""
    return int(vring.num) // (2 if spec.backend.features & Feature.INDIRECT_DESC else 8)


def _ring(spec: Spec, vring: Vring, memory: Any) -> Ring | None:
    """None when the front-end set the ring up in a way that can't work: it is broken then."""
    error = ffi.new("int *")
    inflight = spec.backend.inflight.map(vring.index)
    config = vring.config(memory, inflight, spec.backend.features, spec.stop)
    memos = spec.device.memo(vring.index)
    config.memos, config.memo_size = memos, MEMO_SIZE
    config.unhurried = vring.index == HIPRIO
    config.threads, config.poll_ns = spec.threads, spec.poll * 1000
    queue = lib.virtq_new(config, error)
    if queue:
        # The queue points to what these own.
        _kept.append((config, inflight, memos))
        return Ring(vring, queue)
    if error[0] == -errno.ENOMEM:
        raise MemoryError("no room to map the guest's memory")
    vring.state.broken = -error[0]
    with suppress(OSError):
        os.eventfd_write(vring.err, 1)
    os.eventfd_write(spec.broken, 1)
    return None


_kept: list[Any] = []


def _lend(spec: Spec, ring: Ring, core: Core) -> None:
    """A ring thread's life."""
    process.process_set_name(f"vfsd-ring{ring.vring.index}".encode())
    _report(spec, ring, lib.virtq_run(ring.queue, fuse_ffi.addressof(fuse, "fuse_serve"), core.pointer))

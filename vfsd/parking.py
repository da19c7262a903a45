"""Requests that wait for a lock: parked without a thread, tried again when something was freed, and now and then.

Rule 1. A parked request is in flight like any other. The list here is the worker's own: a next one finds the requests
        in flight, tries them again, and parks them again.
Rule 2. At most half of a ring is parked, so that there always is room for the requests that unlock.
Rule 3. Only the worker's main thread answers what is parked.

The guest's kernel can't take such a request back: virtiofs has no INTERRUPT (fs/fuse/virtio_fs.c), and EINTR would
reach programs as errno 512 (fs/fuse/file.c, fuse_setlk). So a request is answered when it has its lock. While its ring
is stopped it stays in flight.
"""

import errno
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from vfsd._fuse import ffi, lib
from vfsd.core import Core
from vfsd.door import Op, Request

#: How often to try again what nobody tells us of: locks of other daemons and of the host's processes. Seconds.
TICK = 0.02
#: The part of a processor's time that this may take.
SHARE = 0.05


class Waiting(NamedTuple):
    chain: Any
    #: Address of its struct virtq.
    queue: int
    op: Op
    request: Request
    body: bytes


def _argument(waiting: Waiting) -> Any:
    (argument,) = waiting.op.unpack(waiting.body)
    return argument


def address(queue: Any) -> int:
    """A struct virtq as a key."""
    return int(ffi.cast("uintptr_t", queue))


class Parking:
    """The parked requests of one core. `room`: how many each ring may have here, by its address."""

    def __init__(self, core: Core) -> None:
        self.room: Mapping[int, int] = {}
        #: eventfd, readable when something was freed, or the first request was parked.
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._core = core
        self._waiting: list[Waiting] = []
        self._lock = threading.Lock()
        self._interval = TICK

    def park(self, chain: Any, op: Op, request: Request, body: bytes) -> tuple[int, bytes]:
        """A request that was refused its lock: VIRTQ_DEFERRED and nothing once it is parked, or what to answer."""
        waiting = Waiting(chain, address(chain.queue), op, request, body)
        with self._lock:
            # Before it is tried once more: what is freed after that wakes us.
            lib.lock_watch(self._core.pointer, self.wake)
            result, reply = op.run(self._core, request, body)
            if result == -errno.EAGAIN:
                result = self._take(waiting)
            if not self._waiting:
                lib.lock_watch(self._core.pointer, -1)
        return result, reply

    def _take(self, waiting: Waiting) -> int:
        if self.count(waiting.queue) >= self.room.get(waiting.queue, 0):
            return -errno.ENOLCK
        others = [(other.request, _argument(other)) for other in self._waiting]
        if waiting.op.waits and waiting.op.waits(self._core, waiting.request, _argument(waiting), others):
            return -errno.EDEADLK
        if not self._waiting:
            os.eventfd_write(self.wake, 1)
        self._waiting.append(waiting)
        return lib.VIRTQ_DEFERRED  # type: ignore[no-any-return]

    def timeout(self) -> float | None:
        """Seconds until `retry` is due though nothing is readable."""
        return self._interval if self._waiting else None

    def retry(self) -> None:
        """Tries all, in the order in which they came; answers those that need not wait any longer. What is freed in the
        middle of it goes to one who came later."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.wake)
        begun = time.monotonic()
        with self._lock:
            self._waiting = [waiting for waiting in self._waiting if not self._answered(waiting)]
            if not self._waiting:
                lib.lock_watch(self._core.pointer, -1)
        self._interval = max(TICK, (time.monotonic() - begun) / SHARE)

    def _answered(self, waiting: Waiting) -> bool:
        result, reply = waiting.op.run(self._core, waiting.request, waiting.body)
        if result == -errno.EAGAIN:
            return False
        lib.fuse_finish(self._core.pointer, waiting.chain, waiting.request.unique, reply, result)
        return True

    def count(self, queue: int) -> int:
        """How many requests of a ring are parked."""
        return sum(waiting.queue == queue for waiting in self._waiting)

"""A worker forked in advance, so that the next one need not be forked first: prepared, it waits to be told to go.

Rule 1. It was forked with what the worker that runs was forked with. Who changes any of that ends it first.
Rule 2. Once it is prepared it has no descriptor of its own: a sweep is not to find any.
"""

import os
import select
import signal
from collections.abc import Callable
from typing import Any, NoReturn

from vfsd.child import fork


class Spare:
    """The worker in waiting, if there is one."""

    def __init__(self) -> None:
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK
        #: eventfds: written when it is prepared, and by us when it is to go.
        self._prepared, self._go = os.eventfd(0, flags), os.eventfd(0, flags)
        self.pid, self._pidfd = 0, -1
        self._spec: Any = None

    def descriptors(self) -> set[int]:
        """Those that come and go with it."""
        return {self._pidfd} - {-1}

    @property
    def there(self) -> bool:
        return self._pidfd >= 0

    @property
    def prepared(self) -> bool:
        """It waits, and has no descriptor but what `descriptors` tells."""
        return _readable(self._prepared)

    @property
    def unheard(self) -> bool:
        """The one that was taken last has not heard yet that it is to go."""
        return _readable(self._go)

    def make(self, spec: Any, life: Callable[[Callable[[], int]], NoReturn]) -> None:
        """Forks one with `spec`. Not while somebody lives who is `unheard`: both would listen. Its life is told what to
        call once it is prepared: that returns when it is to go, with the `room` it was taken with. Raises OSError.

        Should it die before it is taken, nobody asks until then.
        """
        # What one that has ended has not read.
        _clear(self._prepared)
        _clear(self._go)
        self._spec = spec
        self.pid, self._pidfd = fork(lambda: life(self._wait))

    def take(self, spec: Any, room: int) -> tuple[int, int] | None:
        """Has it go: pid and pidfd are the caller's. `room` is how many descriptors the guest may hold, 1 or more. None
        when there is none that is prepared and was forked with an equal `spec`. In any case there is none after it.
        Whoever was taken before has ended."""
        _clear(self._go)
        if not self.there or not self.prepared or spec != self._spec or _readable(self._pidfd):
            self.end()
            return None
        os.eventfd_write(self._go, room)
        taken = self.pid, self._pidfd
        self._pidfd = -1
        return taken

    def end(self, unless_prepared: bool = False) -> None:
        """Returns when there is none, `unless_prepared` when there is none that opens anything."""
        if not self.there or (unless_prepared and self.prepared):
            return
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._pidfd)
        self._pidfd = -1

    def _wait(self) -> int:
        """In the process itself."""
        os.eventfd_write(self._prepared, 1)
        select.select([self._go], [], [])
        return os.eventfd_read(self._go)


def _clear(event: int) -> None:
    if _readable(event):
        os.eventfd_read(event)


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))

"""The signals of the control process, as something to wait for."""

import contextlib
import signal
import socket
from collections.abc import Callable


class Ended(Exception):  # noqa: N818 (a request)
    """A signal asks the daemon to end."""


class Signals:
    """SIGTERM, SIGHUP, SIGINT, and those that have something done (`calls`), as a readable descriptor."""

    NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def __init__(self, calls: dict[int, Callable[[], None]]) -> None:
        self._calls = calls
        self.wakeups, self._write = socket.socketpair()
        self.wakeups.setblocking(False)
        self._write.setblocking(False)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in (*self.NUMBERS, *calls):
            signal.signal(number, lambda *_: None)
        # They are blocked where this process was started to take the place of another one.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

    def fileno(self) -> int:
        return self.wakeups.fileno()

    def check(self) -> None:
        """Raises Ended if one of them came."""
        with contextlib.suppress(BlockingIOError):
            for number in self.wakeups.recv(64):
                if number in self.NUMBERS:
                    raise Ended(signal.Signals(number).name)
                if number in self._calls:
                    self._calls[number]()

"""Signals as something to wait for."""

import contextlib
import signal
import socket
from collections.abc import Callable, Iterable


class Ended(Exception):  # noqa: N818 (a request)
    """A signal asks the daemon to end."""


class Wakeups:
    """These signals, from now on, as a readable descriptor. One at a time in a process."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._read, self._write = socket.socketpair()
        for sock in (self._read, self._write):
            sock.setblocking(False)
        signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        # They are blocked where this process was started to take the place of another one, or has just forked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())

    def fileno(self) -> int:
        return self._read.fileno()

    def unread(self) -> list[int]:
        """Those that came and that nobody has looked at."""
        with contextlib.suppress(BlockingIOError):
            return [*self._read.recv(64)]
        return []

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._read.close()
        self._write.close()


class Signals(Wakeups):
    """SIGTERM, SIGHUP, SIGINT, and those that have something done (`calls`)."""

    NUMBERS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def __init__(self, calls: dict[int, Callable[[], None]]) -> None:
        self._calls = calls
        super().__init__((*self.NUMBERS, *calls))

    def check(self) -> None:
        """Raises Ended if one of them came."""
        for number in self.unread():
            if number in self.NUMBERS:
                raise Ended(signal.Signals(number).name)
            if number in self._calls:
                self._calls[number]()

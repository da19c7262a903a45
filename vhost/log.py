"""The dirty log of SET_LOG_BASE: one bit for each page of guest memory a device has written (vhost-user specification,
"Migration").

Rule 1. Only a worker maps it, for the front-end can truncate it.
"""

import mmap
import os
from typing import Any

from ._virtq import ffi
from .message import Log
from .protocol import RemoteProtocolError
from .saved import Packed, Unpacked, number


class DirtyLog:
    """The log and the eventfd of SET_LOG_FD, by which a back-end may say that it logged. Front-ends read the log
    anyway, so it is kept and never written."""

    def __init__(self) -> None:
        self._fd = -1
        self._eventfd = -1
        self._wire = Log(0, 0)

    def descriptors(self) -> set[int]:
        return {self._fd, self._eventfd} - {-1}

    def set_base(self, wire: Log, fds: list[int]) -> None:
        """SET_LOG_BASE. Pops the descriptor. Raises RemoteProtocolError. No worker may run."""
        _check(wire, fds[0])
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._wire = fds.pop(), wire

    def set_eventfd(self, fds: list[int]) -> None:
        """SET_LOG_FD. Pops the descriptor."""
        if self._eventfd >= 0:
            os.close(self._eventfd)
        self._eventfd = fds.pop()

    def save(self, packed: Packed) -> dict[str, Any]:
        """What there is (vhost/resume.py)."""
        descriptors = {"fd": packed.put(self._fd), "eventfd": packed.put(self._eventfd)}
        return {**descriptors, "size": self._wire.size, "offset": self._wire.offset}

    def resume(self, data: Any, unpacked: Unpacked) -> None:
        """Goes on with what was saved. Raises StateError, RemoteProtocolError."""
        self._fd, self._eventfd = unpacked.take(data, "fd"), unpacked.take(data, "eventfd")
        if self._fd >= 0:
            self._wire = Log(number(data, "size"), number(data, "offset"))
            _check(self._wire, self._fd)

    def clear(self) -> None:
        """Forgets both. No worker may run."""
        for fd in self.descriptors():
            os.close(fd)
        self._fd = self._eventfd = -1

    def map(self) -> tuple[Any, int]:
        """The log as a `uint8_t *`, which keeps its mapping alive, and its size in bytes; NULL without a log.

        For a worker. Raises OSError or ValueError when the front-end made its log unusable.
        """
        if self._fd < 0:
            return ffi.NULL, 0
        skip = self._wire.offset % mmap.ALLOCATIONGRANULARITY
        area = mmap.mmap(self._fd, skip + self._wire.size, offset=self._wire.offset - skip)
        return ffi.from_buffer("uint8_t *", memoryview(area)[skip:]), self._wire.size


def _check(wire: Log, fd: int) -> None:
    size = os.fstat(fd).st_size
    if not wire.size or wire.offset + wire.size > size:
        raise RemoteProtocolError(f"SET_LOG_BASE: the dirty log is empty or exceeds its file of {size} bytes")

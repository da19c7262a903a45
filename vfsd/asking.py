"""Questions to the control process about the DAX window: the worker's side of vfsd/window.py.

Rule 1. A question is in flight like any other request. A worker that ends leaves it so, and the next one asks again:
        the window knows what has been done.
Rule 2. Only the worker's main thread answers the guest. Nobody waits for an answer, and none is waited for where the
        rings are parked: control may be waiting for just that.
"""

import errno
import os
import sys
import threading
from collections import deque
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple

from vfsd._fuse import ffi, lib
from vfsd.core import Core
from vfsd.door import Request
from vfsd.padded import Padded
from vfsd.parking import address

ANSWER = ffi.sizeof("struct window_answer")


class Asked(NamedTuple):
    chain: Any
    #: Address of its struct virtq.
    queue: int
    unique: int


class Asking:
    """The open questions of one core. `socket` is a SOCK_SEQPACKET descriptor that does not block."""

    def __init__(self, core: Core, socket: int, padded: Padded) -> None:
        self.socket, self.padded = socket, padded
        self._core = core
        self._tokens = count(1)
        self._asked: dict[int, Asked] = {}
        #: Questions the socket had no room for, in order.
        self._unsent: deque[bytes] = deque()
        self._lock = threading.Lock()

    def ask(self, chain: Any, request: Request, question: bytes) -> int:
        """Sends a struct window_question, and what follows it: VIRTQ_DEFERRED, or -errno."""
        with self._lock:
            token = next(self._tokens)
            # Known before it is sent: the answer may be quicker than we are.
            self._asked[token] = Asked(chain, address(chain.queue), request.unique)
            try:
                self._send(token.to_bytes(8, sys.byteorder) + question[8:])
            except OSError as error:
                del self._asked[token]
                return -(error.errno or errno.EIO)
        return lib.VIRTQ_DEFERRED  # type: ignore[no-any-return]

    def tell(self, question: bytes) -> None:
        """Sends one that is not answered."""
        with self._lock:
            self._send(question)

    def timeout(self) -> float | None:
        """Seconds until `send` is due though nothing is readable."""
        return 0.002 if self._unsent else None

    def work(self) -> None:
        """Sends what waits, and answers the guest what was answered."""
        with self._lock:
            while self._unsent and self._sent(self._unsent[0]):
                self._unsent.popleft()
        with suppress(BlockingIOError):
            while data := os.read(self.socket, ANSWER):
                self._answered(ffi.from_buffer("struct window_answer *", data))

    def count(self, queue: int) -> int:
        """How many requests of a ring are not answered."""
        with self._lock:
            return sum(asked.queue == queue for asked in self._asked.values())

    def _send(self, question: bytes) -> None:
        if self._unsent or not self._sent(question):
            self._unsent.append(question)

    def _sent(self, question: bytes) -> bool:
        try:
            os.write(self.socket, question)
        except BlockingIOError:
            return False
        return True

    def _answered(self, answer: Any) -> None:
        if answer.thrashes:
            lib.dax_note(self._core.pointer, answer.nodeid, lib.DAX_UNSUITABLE)
        with self._lock:
            asked = self._asked.pop(answer.token)
        lib.fuse_finish(self._core.pointer, asked.chain, asked.unique, b"", answer.error)

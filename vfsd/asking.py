"""Questions to the control process about the DAX window: the worker's side of vfsd/window.py.

Rule 1. A question is in flight like any other request. A worker that ends leaves it so, and the next one asks again:
        the window knows what has been done.
Rule 2. Only the worker's main thread answers the guest. Nobody waits for an answer, and none is waited for where the
        rings are parked: control may be waiting for just that.
Rule 3. No more is asked at a time than answers have room for: control does not wait for us to read them.
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
from vfsd.door import Question, Request
from vfsd.padded import Padded
from vfsd.parking import address

ANSWER = ffi.sizeof("struct window_answer")
#: Questions asked and not answered, at most. A socket holds some 250 small messages.
OPEN_MAX = 64
#: Seconds until what the socket had no room for is sent again.
RETRY = 0.002


class Asked(NamedTuple):
    chain: Any
    #: Address of its struct virtq.
    queue: int
    unique: int
    reply: bytes


class Asking:
    """The open questions of one core. `socket` is a SOCK_SEQPACKET descriptor that does not block."""

    def __init__(self, core: Core, socket: int, padded: Padded) -> None:
        self.socket, self.padded = socket, padded
        self._core = core
        self._tokens = count(1)
        self._asked: dict[int, Asked] = {}
        #: Questions not sent yet, in order. All of them are in _asked.
        self._unsent: deque[bytes] = deque()
        self._lock = threading.Lock()

    def ask(self, chain: Any, request: Request, question: Question) -> int:
        """Asks a struct window_question, and what follows it: VIRTQ_DEFERRED, or -errno."""
        with self._lock:
            token = next(self._tokens)
            # Known before it is sent: the answer may be quicker than we are.
            self._asked[token] = Asked(chain, address(chain.queue), request.unique, question.reply)
            self._unsent.append(token.to_bytes(8, sys.byteorder) + question[8:])
            try:
                self._send()
            except OSError as error:
                del self._asked[token]
                self._unsent.pop()
                return -(error.errno or errno.EIO)
        return lib.VIRTQ_DEFERRED  # type: ignore[no-any-return]

    def timeout(self) -> float | None:
        """Seconds until `work` is due though nothing is readable."""
        return RETRY if self._may_send() else None

    def work(self) -> None:
        """Answers the guest what was answered, and sends what waits."""
        with suppress(BlockingIOError):
            while data := os.read(self.socket, ANSWER):
                self._answered(ffi.from_buffer("struct window_answer *", data))
        with self._lock:
            self._send()

    def count(self, queue: int) -> int:
        """How many requests of a ring are not answered."""
        with self._lock:
            return sum(asked.queue == queue for asked in self._asked.values())

    def _may_send(self) -> bool:
        return bool(self._unsent) and len(self._asked) - len(self._unsent) < OPEN_MAX

    def _send(self) -> None:
        with suppress(BlockingIOError):
            while self._may_send():
                os.write(self.socket, self._unsent[0])
                self._unsent.popleft()

    def _answered(self, answer: Any) -> None:
        if answer.thrashes:
            lib.dax_note(self._core.pointer, answer.nodeid, lib.DAX_UNSUITABLE)
        with self._lock:
            asked = self._asked.pop(answer.token)
        reply = b"" if answer.error else asked.reply
        lib.fuse_finish(self._core.pointer, asked.chain, asked.unique, reply, answer.error or len(reply))

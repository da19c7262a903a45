"""The back-end channel: requests we make of the front-end, on the socket of SET_BACKEND_REQ_FD.

Rule 1. One request is under way at a time and the others wait in order, where REPLY_ACK was negotiated.
Rule 2. Nothing here blocks: while we wait for an answer, the front-end may wait for one of ours.
"""

import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from .message import (
    BACKEND_ROWS,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    SHARED_WRITABLE,
    U64,
    VERSION,
    BackendRequest,
    Payload,
    SharedMapping,
)
from .protocol import LocalProtocolError, RemoteProtocolError


class ChannelClosed(Exception):  # noqa: N818 (no error)
    """The front-end closed the channel while nothing was asked of it: it is leaving."""


class Question(NamedTuple):
    """A request, and who is told whether the front-end accepted it."""

    request: BackendRequest
    payload: Payload | None = None
    #: Stays its owner's, and open until `done`.
    fd: int = -1
    done: Callable[[bool], None] | None = None


class BackendChannel:
    """Owns the descriptor `fd`, which must be a stream socket."""

    def __init__(self, fd: int, reply_ack: bool) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._reply_ack = reply_ack
        self._waiting: deque[Question] = deque()
        self._pending: Question | None = None
        self._answer = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def owed(self) -> bool:
        """The front-end owes an answer."""
        return self._pending is not None

    def config_changed(self, done: Callable[[bool], None] | None = None) -> None:
        """CONFIG_CHANGE_MSG: the device's configuration space has changed, read it anew."""
        self._ask(Question(BackendRequest.CONFIG_CHANGE_MSG, done=done))

    def shmem_map(
        self,
        region: int,
        fd: int,
        file_offset: int,
        offset: int,
        length: int,
        writable: bool,
        done: Callable[[bool], None],
    ) -> None:
        """SHMEM_MAP: `length` bytes of a file are to appear at `offset` of a region. `done` is called by `handle`, not
        after `close`, with whether they do."""
        mapping = SharedMapping(region, file_offset, offset, length, SHARED_WRITABLE if writable else 0)
        self._ask(Question(BackendRequest.SHMEM_MAP, mapping, fd, done))

    def shmem_unmap(self, region: int, offset: int, length: int, done: Callable[[bool], None]) -> None:
        """SHMEM_UNMAP: takes exactly one mapping back. `done` as above."""
        mapping = SharedMapping(region, 0, offset, length, 0)
        self._ask(Question(BackendRequest.SHMEM_UNMAP, mapping, done=done))

    def handle(self) -> None:
        """Takes what the front-end answered. Call when the socket is readable.

        Raises ChannelClosed; RemoteProtocolError when it closed the channel and owes an answer, or answers what was not
        asked.
        """
        size = HEADER.size + U64.layout.size
        try:
            data = self._socket.recv(size - len(self._answer))
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data and self._pending is None:
            raise ChannelClosed
        if not data:
            raise RemoteProtocolError("the front-end closed the back-end channel")
        self._answer += data
        if len(self._answer) < size:
            return
        answer, self._answer = self._answer, b""
        pending = self._pending
        if pending is None or HEADER.unpack_from(answer) != (pending.request, VERSION | FLAG_REPLY, U64.layout.size):
            raise RemoteProtocolError("the front-end answers on the back-end channel what was not asked")
        self._pending = None
        self._send_next()
        if pending.done:
            pending.done(U64.unpack(answer[HEADER.size :]).value == 0)

    def close(self) -> None:
        self._socket.close()

    def _ask(self, question: Question) -> None:
        self._waiting.append(question)
        self._send_next()

    def _send_next(self) -> None:
        while self._waiting and self._pending is None:
            self._send(self._waiting.popleft())

    def _send(self, question: Question) -> None:
        # QEMU answers whoever asks for it, whether REPLY_ACK was negotiated or not (hw/virtio/vhost-user.c,
        # backend_read).
        answered = self._reply_ack or question.done is not None
        payload = question.payload.pack() if question.payload else b""
        flags = VERSION | (FLAG_NEED_REPLY if answered else 0)
        message = HEADER.pack(BACKEND_ROWS[question.request].request, flags, len(payload)) + payload
        try:
            sent = socket.send_fds(self._socket, [message], [question.fd] if question.fd >= 0 else [])
        except BlockingIOError:
            raise RemoteProtocolError("the front-end does not read the back-end channel") from None
        except ConnectionError:
            raise RemoteProtocolError("the front-end closed the back-end channel") from None
        except OSError as error:
            # As a descriptor that is closed: no front-end can help it.
            raise LocalProtocolError(f"{question.request.name} can't be sent: {error.strerror}") from error
        if sent < len(message):
            raise RemoteProtocolError("the front-end does not read the back-end channel")
        if answered:
            self._pending = question

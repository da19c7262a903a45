"""The back-end channel: requests we make of the front-end, on the socket of SET_BACKEND_REQ_FD.

Rule 1. One request is under way at a time and the others wait in order, where REPLY_ACK was negotiated.
Rule 2. Nothing here blocks: while we wait for an answer, the front-end may wait for one of ours.
Rule 3. A request with a `done` goes out in two parts. QEMU crashes over one that it reads while the device is stopped
        (hw/virtio/vhost-user.c, vhost_user_backend_handle_shmem_map: `vdev` is NULL after vhost_dev_stop), and what is
        in the socket can't be recalled. But it reads a message to its end before it does anything else: once it has
        taken the first byte, the device is as it was, and will be until the message is done. Until then the other bytes
        may still make it a request that the front-end does not know, and only complains of.
"""

import array
import fcntl
import select
import socket
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
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

#: What the upper bytes of a request's number become to withdraw it.
NO_REQUEST = 0x7FFFFF00


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
        self.reply_ack = reply_ack
        self._waiting: deque[Question] = deque()
        self._pending: Question | None = None
        self._answer = b""
        #: Of the pending request, what is not sent.
        self._rest = b""
        self._suspended = False
        self._taken = select.epoll()
        self._taken.register(self._socket, select.EPOLLOUT | select.EPOLLET)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def owed(self) -> bool:
        """The front-end owes an answer."""
        return self._pending is not None

    @property
    def taken(self) -> int:
        """A descriptor: readable when the front-end may have taken the beginning of a request; then `go_on`."""
        return self._taken.fileno()

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
        expected = pending and (pending.request, VERSION | FLAG_REPLY, U64.layout.size)
        if pending is None or self._rest or HEADER.unpack_from(answer) != expected:
            raise RemoteProtocolError("the front-end answers on the back-end channel what was not asked")
        self._pending = None
        self._send_next()
        if pending.done:
            pending.done(U64.unpack(answer[HEADER.size :]).value == 0)

    def go_on(self) -> None:
        """Sends the rest of a request whose beginning was taken. Raises RemoteProtocolError."""
        self._taken.poll(0)
        if self._rest and not self._unread():
            rest, self._rest = self._rest, b""
            self._write(rest)

    def suspend(self) -> None:
        """Until `resume` nothing reaches the front-end, which may stop the device: call before it can be told that the
        rings have stopped. What it has not begun to read is asked again then. Answers still come."""
        self._suspended = True
        # Whether it has left `handle` tells.
        with suppress(RemoteProtocolError):
            self.go_on()
            if self._rest and self._pending:
                number = BACKEND_ROWS[self._pending.request].request | NO_REQUEST
                self._waiting.appendleft(self._pending)
                self._pending, self._rest = None, b""
                self._write(HEADER.pack(number, VERSION, 0)[1:])

    def resume(self) -> None:
        """The rings run."""
        self._suspended = False
        self._send_next()

    def descriptors(self) -> set[int]:
        return {self._socket.fileno(), self._taken.fileno()}

    def close(self) -> None:
        self._taken.close()
        self._socket.close()

    def _ask(self, question: Question) -> None:
        self._waiting.append(question)
        self._send_next()

    def _send_next(self) -> None:
        while self._waiting and self._pending is None and not self._suspended:
            self._send(self._waiting.popleft())

    def _unread(self) -> bool:
        """Whether something of ours is in the socket."""
        count = array.array("i", [0])
        fcntl.ioctl(self._socket, termios.TIOCOUTQ, count)
        # It counts memory: hundreds of bytes for one that was sent. The last of them goes when we have been woken
        # (net/core/sock.c, sock_wfree).
        return count[0] > 1

    def _send(self, question: Question) -> None:
        # QEMU answers whoever asks for it, whether REPLY_ACK was negotiated or not (hw/virtio/vhost-user.c,
        # backend_read).
        answered = self.reply_ack or question.done is not None
        payload = question.payload.pack() if question.payload else b""
        flags = VERSION | (FLAG_NEED_REPLY if answered else 0)
        message = HEADER.pack(BACKEND_ROWS[question.request].request, flags, len(payload)) + payload
        if question.done:
            message, self._rest = message[:1], message[1:]
        if answered:
            self._pending = question
        self._write(message, question.fd)

    def _write(self, data: bytes, fd: int = -1) -> None:
        try:
            sent = socket.send_fds(self._socket, [data], [fd] if fd >= 0 else [])
        except BlockingIOError:
            raise RemoteProtocolError("the front-end does not read the back-end channel") from None
        except ConnectionError:
            raise RemoteProtocolError("the front-end closed the back-end channel") from None
        except OSError as error:
            # As a descriptor that is closed: no front-end can help it.
            raise LocalProtocolError(f"the back-end channel can't be written to: {error.strerror}") from error
        if sent < len(data):
            raise RemoteProtocolError("the front-end does not read the back-end channel")

"""The socket of one front-end: messages in, answers out. Nothing here waits.

Rule 1. What a message asks is known to backend.py alone.
"""

import os
import select
import socket
from typing import NamedTuple

from .message import Payload
from .protocol import Endpoint, Message, RemoteProtocolError, close_all
from .receive import FDS_MAX, receive


class Disconnected(Exception):  # noqa: N818 (no error)
    """The front-end closed the connection."""


class ReplyWithFd(NamedTuple):
    payload: Payload
    fd: int  # closed once it is sent


class Connection:
    """The connected stream socket `sock`, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._endpoint = Endpoint()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def features(self) -> int:
        """Protocol features negotiated."""
        return self._endpoint.features

    @features.setter
    def features(self, features: int) -> None:
        self._endpoint.features = features

    @property
    def idle(self) -> bool:
        """It is between two messages."""
        return self._endpoint.idle

    @property
    def left(self) -> bool:
        """The front-end has closed its end, though there may be messages of it yet."""
        poll = select.poll()
        poll.register(self._socket, 0)
        return bool(poll.poll(0))

    def descriptors(self) -> set[int]:
        """The socket's, and those of a message that is not complete yet."""
        return {self._socket.fileno()} | self._endpoint.fds

    def close(self) -> None:
        self._endpoint.close()
        self._socket.close()

    def receive(self) -> Message | None:
        """The next message; None when the socket holds no whole one. Raises Disconnected; RemoteProtocolError."""
        while True:
            try:
                data, fds, flags = receive(self._socket, self._endpoint.wants, FDS_MAX)
            except BlockingIOError:
                return None
            except ConnectionError:
                data, fds, flags = b"", [], 0
            if flags & socket.MSG_CTRUNC:
                close_all(fds)
                raise RemoteProtocolError("file descriptors of the front-end were lost: raise --rlimit-nofile")
            if not data:
                close_all(fds)
                raise Disconnected("the front-end left" if self._endpoint.idle else "the front-end left in mid-message")
            if message := self._endpoint.receive(data, fds):
                return message

    def answer(self, message: Message, result: Payload | ReplyWithFd | None = None, failed: bool = False) -> None:
        """The reply, or the acknowledgement, that a message is due; `failed` without a result. Raises Disconnected;
        RemoteProtocolError."""
        if isinstance(result, ReplyWithFd):
            try:
                self._send(self._endpoint.reply(message, result.payload), [result.fd])
            finally:
                os.close(result.fd)
        elif result is not None:
            self._send(self._endpoint.reply(message, result))
        else:
            self._send(self._endpoint.acknowledge(message, failed))

    def refuse(self, message: Message) -> None:
        """The answer of a device that refuses: a reply without a payload, or an acknowledgement that says so."""
        if message.row.reply:
            self._send(self._endpoint.reply(message, None))
        else:
            self.answer(message, failed=True)

    def _send(self, data: bytes, fds: list[int] | None = None) -> None:
        """Replies are small: a socket buffer that has no room for one holds hundreds nobody reads."""
        if not data:
            return
        try:
            socket.send_fds(self._socket, [data], fds or [])
        except BlockingIOError:
            raise RemoteProtocolError("the front-end does not read its replies") from None
        except ConnectionError:
            raise Disconnected("the front-end left while it was owed a reply") from None

"""The back-end channel: requests we make of the front-end, on the socket of SET_BACKEND_REQ_FD.

Rule 1. One request is under way at a time and the others wait in order, where REPLY_ACK was negotiated.
Rule 2. Nothing here blocks: while we wait for an answer, the front-end may wait for one of ours.
"""

import socket
from collections import deque

from .message import BACKEND_ROWS, FLAG_NEED_REPLY, FLAG_REPLY, HEADER, U64, VERSION, BackendRequest
from .protocol import RemoteProtocolError


class BackendChannel:
    """Owns the descriptor `fd`, which must be a stream socket."""

    def __init__(self, fd: int, reply_ack: bool) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._reply_ack = reply_ack
        self._waiting: deque[BackendRequest] = deque()
        self._pending: BackendRequest | None = None
        self._answer = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def config_changed(self) -> None:
        """CONFIG_CHANGE_MSG: the device's configuration space has changed, read it anew."""
        self._request(BackendRequest.CONFIG_CHANGE_MSG)

    def handle(self) -> None:
        """Takes what the front-end answered. Call when the socket is readable.

        Raises RemoteProtocolError when it closed the channel or answers what was not asked.
        """
        size = HEADER.size + U64.layout.size
        try:
            data = self._socket.recv(size - len(self._answer))
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise RemoteProtocolError("the front-end closed the back-end channel")
        self._answer += data
        if len(self._answer) < size:
            return
        answer, self._answer = self._answer, b""
        if self._pending is None or HEADER.unpack_from(answer) != (
            self._pending,
            VERSION | FLAG_REPLY,
            U64.layout.size,
        ):
            raise RemoteProtocolError("the front-end answers on the back-end channel what was not asked")
        self._pending = None
        if self._waiting:
            self._send(self._waiting.popleft())

    def close(self) -> None:
        self._socket.close()

    def _request(self, request: BackendRequest) -> None:
        if self._pending is None:
            self._send(request)
        else:
            self._waiting.append(request)

    def _send(self, request: BackendRequest) -> None:
        flags = VERSION | (FLAG_NEED_REPLY if self._reply_ack else 0)
        try:
            self._socket.send(HEADER.pack(BACKEND_ROWS[request].request, flags, 0))
        except OSError as error:
            raise RemoteProtocolError("the front-end does not read the back-end channel") from error
        if self._reply_ack:
            self._pending = request

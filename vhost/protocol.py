"""The vhost-user endpoint, sans I/O: bytes and descriptors in, checked messages out; replies out as bytes.

Rule 1. This file touches no socket and no memory. It knows the rows and the negotiated protocol features.
Rule 2. Descriptors arrive with the bytes of one message. So the caller reads at most `wants` bytes at a time, and never
        across the end of a message.
Rule 3. A descriptor given to an endpoint has one owner: the endpoint until a message is complete, then that message,
        then whoever pops it from `Message.fds`. What a rejected message brought is closed.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field

from .message import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    ROWS,
    U64,
    VERSION,
    VERSION_MASK,
    Payload,
    ProtocolFeature,
    Row,
)


class ProtocolError(Exception):
    """Tree: ProtocolError ─ RemoteProtocolError (the front-end's fault), LocalProtocolError (ours)."""


class RemoteProtocolError(ProtocolError):
    """The front-end broke the protocol: its connection is to be closed. The text is one plain sentence."""


class LocalProtocolError(ProtocolError):
    """This side was about to break the protocol: a bug."""


def close_all(fds: list[int]) -> None:
    """Closes and forgets every descriptor of the list."""
    while fds:
        os.close(fds.pop())


@dataclass(slots=True)
class Message:
    """A checked request: its payload has its row's type, its descriptors are as many as its row allows."""

    row: Row
    payload: Payload | None
    fds: list[int] = field(default_factory=list)  #: pop those you keep
    need_reply: bool = False  #: the front-end waits for an acknowledgement (REPLY_ACK)

    def __str__(self) -> str:
        """For a trace."""
        payload = f" {self.payload}" if self.payload else ""
        return self.row.name + payload + (f" with descriptors {self.fds}" if self.fds else "")


class Endpoint:
    """One side of a connection, reading requests of `rows` and writing their replies."""

    def __init__(self, rows: dict[int, Row] = ROWS) -> None:
        self.features = 0  #: protocol features negotiated: what is needed but missing here is refused
        self._rows = rows
        self._buffer = b""
        self._fds: list[int] = []
        self._row: Row | None = None
        self._need_reply = False
        self._size = HEADER.size

    @property
    def wants(self) -> int:
        """Bytes that complete what is being read (a header or a payload); never 0."""
        return self._size - len(self._buffer)

    @property
    def fds(self) -> frozenset[int]:
        """Descriptors of a message not complete yet."""
        return frozenset(self._fds)

    @property
    def idle(self) -> bool:
        """Nothing of a next message was read yet."""
        return self._row is None and not self._buffer

    def receive(self, data: bytes, fds: Iterable[int] = ()) -> Message | None:
        """Takes at most `wants` bytes and the descriptors that came with them. Returns the message they complete.

        Raises RemoteProtocolError; the endpoint is of no use afterwards.
        """
        self._fds.extend(fds)
        if len(data) > self.wants:
            raise LocalProtocolError(f"{len(data)} bytes given, {self.wants} wanted")
        self._buffer += data
        try:
            if self._row is None and not self.wants:
                self._begin()
            if self._row is not None and not self.wants:
                return self._complete(self._row)
        except RemoteProtocolError:
            self.close()
            raise
        return None

    def close(self) -> None:
        """Closes what an incomplete message brought."""
        close_all(self._fds)

    def reply(self, message: Message, payload: Payload | None) -> bytes:
        """The reply to a request that has one; `payload` None is how GET_CONFIG says that it failed."""
        if message.row.reply is None or not isinstance(payload, message.row.reply | None):
            raise LocalProtocolError(f"{message.row.name} is not answered with {payload!r}")
        return self._reply(message, payload.pack() if payload else b"")

    def acknowledge(self, message: Message, failed: bool = False) -> bytes:
        """The acknowledgement due for a message, or nothing (specification, "VHOST_USER_PROTOCOL_F_REPLY_ACK")."""
        if message.row.reply is not None or not message.need_reply:
            return b""
        return self._reply(message, U64(int(failed)).pack())

    def _reply(self, message: Message, payload: bytes) -> bytes:
        return HEADER.pack(message.row.request, VERSION | FLAG_REPLY, len(payload)) + payload

    def _begin(self) -> None:
        """A header is complete."""
        number, flags, size = HEADER.unpack(self._buffer)
        row = self._rows.get(number)
        if row is None:
            raise RemoteProtocolError(f"request {number} is not one a vhost-user file-system device serves")
        if flags & VERSION_MASK != VERSION or flags & ~(VERSION_MASK | FLAG_NEED_REPLY):
            raise RemoteProtocolError(f"{row.name} has flags {flags:#x}: not a request of vhost-user version {VERSION}")
        self._need_reply = bool(flags & FLAG_NEED_REPLY)
        if self._need_reply and not self.features & ProtocolFeature.REPLY_ACK:
            raise RemoteProtocolError(f"{row.name} asks for a reply, but REPLY_ACK was not negotiated")
        if row.feature & ~self.features:
            raise RemoteProtocolError(f"{row.name} needs protocol feature {row.feature.name}, which was not negotiated")
        if size not in row.sizes():
            raise RemoteProtocolError(f"{row.name} has a payload of {size} bytes, not of {_spell(row.sizes())}")
        self._row, self._size, self._buffer = row, size, b""

    def _complete(self, row: Row) -> Message:
        """A payload is complete."""
        try:
            payload = row.payload.unpack(self._buffer) if row.payload else None
        except ValueError as error:
            raise RemoteProtocolError(f"{row.name} contradicts itself: {error}") from None
        allowed = row.fds.allowed(payload)
        if len(self._fds) not in allowed:
            few = len(self._fds) < allowed[0]
            sentence = f"{row.name} came with {len(self._fds)} file descriptors, not with {_spell(allowed)}"
            raise RemoteProtocolError(row.without_fd if few and row.without_fd else sentence)
        message = Message(row, payload, self._fds, self._need_reply)
        self._row, self._size, self._buffer, self._fds = None, HEADER.size, b"", []
        return message


def _spell(numbers: range) -> str:
    """A range as people write it."""
    if len(numbers) == 1:
        return str(numbers[0])
    return f"{numbers[0]} to {numbers[-1]}" + (f" in steps of {numbers.step}" if numbers.step > 1 else "")

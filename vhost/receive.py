"""Bytes and descriptors from a socket. socket.recv_fds of Python 3.11 leaves its flags out, so that what it receives
would be inherited by whatever this process executes."""

import array
import socket
from typing import NamedTuple

#: Descriptors in one message at most (Linux, SCM_MAX_FD).
FDS_MAX = 253


class Received(NamedTuple):
    data: bytes
    #: Close-on-exec, and the receiver's.
    fds: list[int]
    #: Of recvmsg(2).
    flags: int


def receive(sock: socket.socket, size: int, fds: int) -> Received:
    """At most so many bytes and descriptors. Raises OSError."""
    room, found = socket.CMSG_LEN(fds * array.array("i").itemsize), array.array("i")
    data, ancillary, flags, _ = sock.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return Received(data, list(found), flags)

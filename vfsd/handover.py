"""How one control process gives what it serves to another: messages, and the descriptors that go with them.

    old                                  new
    hello: versions, what lasts     ──►  imports, goes behind the walls                   the old one serves on
                                    ◄──  prepared
    state, and all descriptors      ──►  takes all of it                                   nobody serves
                                    ◄──  ready
    go                              ──►
                                    ◄──  serving                                           the new one serves

Rule 1. Until "serving" the old one can go on as if nothing had been, and nothing the new one does before it can be seen
        by the guest. It starts no worker before it has said so.
Rule 2. "failed", from either, or the end of the socket, is the end of the attempt.
Rule 3. What the guest's inodes, handles and locks are recorded by keeps its number. All others get new ones.
"""

import json
import os
import select
import socket
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from vfsd.descriptors import PLACES
from vhost.receive import FDS_MAX
from vhost.receive import receive as receive_from
from vhost.saved import StateError

#: Bytes of a message.
MESSAGE_MAX = 1 << 16
ENDED = "the other process has ended"


class HandoverError(Exception):
    """The handover has failed. The text is one phrase."""


class Note(NamedTuple):
    """One message. Its descriptors are the receiver's."""

    kind: str
    data: Any
    fds: list[int]


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, kind: str, data: Any = None, fds: Sequence[int] = ()) -> None:
    """Raises HandoverError."""
    try:
        socket.send_fds(sock, [json.dumps([kind, data]).encode()], [*fds])
    except OSError as error:
        raise HandoverError(f"the other process can't be told ({error.strerror})") from None


def receive(sock: socket.socket, seconds: float | None = None) -> Note:
    """The next message, which is waited for as long. Raises HandoverError, also for "failed"."""
    _await(sock, seconds)
    try:
        data, fds, flags = receive_from(sock, MESSAGE_MAX, FDS_MAX)
    except ConnectionError:
        # It had not read everything.
        raise HandoverError(ENDED) from None
    except OSError as error:
        raise HandoverError(f"the other process is not heard ({error.strerror})") from None
    try:
        if not data:
            raise HandoverError(ENDED)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise HandoverError("a message did not arrive in whole")
        kind, content = json.loads(data)
        if kind == "failed":
            raise HandoverError(str(content))
    except (ValueError, HandoverError) as error:
        for fd in fds:
            os.close(fd)
        raise error if isinstance(error, HandoverError) else HandoverError("a message makes no sense") from None
    return Note(kind, content, fds)


def expect(sock: socket.socket, kind: str, seconds: float | None = None) -> Note:
    """The next message, which has to be of this kind. Raises HandoverError."""
    note = receive(sock, seconds)
    if note.kind != kind:
        raise HandoverError(f"{note.kind!r} came and not {kind!r}")
    return note


def send_state(sock: socket.socket, state: Any, recorded: Sequence[int], others: Sequence[int]) -> None:
    """`recorded` keep their numbers, of which none is below PLACES, and are sorted. Raises HandoverError."""
    fd = os.memfd_create("vfsd-state", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(json.dumps(state).encode())
        send(sock, "state", {"recorded": len(recorded), "others": len(others)}, [fd])
    finally:
        os.close(fd)
    for start in range(0, len(recorded), FDS_MAX):
        part = recorded[start : start + FDS_MAX]
        send(sock, "recorded", part, part)
    for start in range(0, len(others), FDS_MAX):
        send(sock, "others", None, others[start : start + FDS_MAX])


def receive_state(sock: socket.socket, seconds: float) -> tuple[Any, list[int]]:
    """What `send_state` sends, `seconds` after its beginning at most, and the other descriptors. Raises HandoverError,
    StateError."""
    note = expect(sock, "state", None)
    deadline = time.monotonic() + seconds
    (fd,) = note.fds
    with open(fd, "rb") as file:
        file.seek(0)
        state = json.load(file)
    last, left = PLACES - 1, note.data["recorded"]
    while left > 0:
        part = expect(sock, "recorded", deadline - time.monotonic())
        last = _place(part, last)
        left -= len(part.fds)
    others: list[int] = []
    while len(others) < note.data["others"]:
        others += expect(sock, "others", deadline - time.monotonic()).fds
    return state, others


def _place(part: Note, last: int) -> int:
    """Gives descriptors the numbers they had. Returns the last one.

    These numbers come in order, so each is at least the one that was received: received ones are the lowest that are
    free, and all below PLACES are taken. From the last to the first, then, none is in another's way.
    """
    wanted, received = part.data, part.fds
    if len(wanted) != len(received) or any(low >= high for low, high in pairwise((last, *wanted))):
        raise StateError("the numbers of descriptors are not in order")
    for fd, number in reversed([*zip(received, wanted, strict=True)]):
        if fd != number:
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
    return int(wanted[-1])


def _await(sock: socket.socket, seconds: float | None) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    if not poll.poll(None if seconds is None else max(0.0, seconds) * 1000):
        raise HandoverError("the other process does not answer in time")

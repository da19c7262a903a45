"""The back-end channel: one request at a time, never blocking."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vhost.examples import PAYLOADS
from vhost.channel import BackendChannel, ChannelClosed, Question
from vhost.message import (
    BACKEND_ROWS,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    U64,
    VERSION,
    BackendRequest,
    Row,
)
from vhost.protocol import LocalProtocolError, RemoteProtocolError

REQUEST = HEADER.pack(2, VERSION | FLAG_NEED_REPLY, 0)
ANSWER = HEADER.pack(2, VERSION | FLAG_REPLY, 8) + U64(0).pack()


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    yield ours.detach(), theirs
    theirs.close()


def read(channel: BackendChannel, front_end: socket.socket) -> tuple[bytes, list[int]]:
    """What the front-end reads, in two parts."""
    data, fds, _, _ = socket.recv_fds(front_end, 4096, 8)
    channel.go_on()
    with suppress(BlockingIOError):
        data += front_end.recv(4096, socket.MSG_DONTWAIT)
    return data, fds


def test_one_at_a_time(pair) -> None:
    channel, front_end = BackendChannel(pair[0], True), pair[1]
    for _ in range(3):
        channel.config_changed()
    for _ in range(3):
        assert front_end.recv(100) == REQUEST
        channel.handle()
        for part in (ANSWER[:5], ANSWER[5:]):
            front_end.send(part)
            channel.handle()
    with pytest.raises(BlockingIOError):
        front_end.recv(1)
    channel.close()


def test_without_reply_ack(pair) -> None:
    channel, front_end = BackendChannel(pair[0], False), pair[1]
    channel.config_changed()
    channel.config_changed()
    assert front_end.recv(100) == 2 * HEADER.pack(2, VERSION, 0)
    channel.close()


@pytest.mark.parametrize(
    "answer",
    [HEADER.pack(9, VERSION | FLAG_REPLY, 8) + bytes(8), HEADER.pack(2, VERSION, 8) + bytes(8), bytes(20), b""],
)
def test_a_bad_answer(pair, answer: bytes) -> None:
    channel, front_end = BackendChannel(pair[0], True), pair[1]
    channel.config_changed()
    front_end.send(answer)
    if not answer:
        front_end.close()
    with pytest.raises(RemoteProtocolError, match="back-end channel"):
        channel.handle()
    channel.close()


def test_an_answer_to_nothing(pair) -> None:
    channel, front_end = BackendChannel(pair[0], True), pair[1]
    front_end.send(ANSWER)
    with pytest.raises(RemoteProtocolError, match="not asked"):
        channel.handle()
    channel.close()


def test_a_front_end_that_does_not_read(pair) -> None:
    channel = BackendChannel(pair[0], False)
    with pytest.raises(RemoteProtocolError, match="does not read"):
        for _ in range(100_000):
            channel.config_changed()
    channel.close()


def test_a_front_end_that_leaves(pair) -> None:
    """Nothing is owed: the end of the channel is no error."""
    channel = BackendChannel(pair[0], True)
    pair[1].close()
    with pytest.raises(ChannelClosed):
        channel.handle()
    channel.close()


def test_what_needs_no_answer_is_not_waited_for(pair) -> None:
    """Without REPLY_ACK some are answered and some are not; they go out in order all the same."""
    channel, front_end = BackendChannel(pair[0], False), pair[1]
    answers: list[int] = []
    channel.shmem_unmap(0, 0, 4096, lambda _: answers.append(1))
    for _ in range(2):
        channel.config_changed()
    channel.shmem_unmap(0, 4096, 4096, lambda _: answers.append(2))
    channel.config_changed()

    def asked() -> list[int]:
        data, numbers = read(channel, front_end)[0], []
        while data:
            number, _, size = HEADER.unpack_from(data)
            numbers.append(number)
            data = data[HEADER.size + size :]
        return numbers

    unmap = BackendRequest.SHMEM_UNMAP
    assert asked() == [unmap] and channel.owed
    front_end.send(good_answer(BACKEND_ROWS[unmap]))
    channel.handle()
    assert asked() == [2, 2, unmap] and answers == [1]
    front_end.send(good_answer(BACKEND_ROWS[unmap]))
    channel.handle()
    assert asked() == [2] and answers == [1, 2] and not channel.owed
    channel.close()


def test_a_descriptor_that_is_closed_is_our_fault(pair) -> None:
    channel = BackendChannel(pair[0], True)
    os.close(fd := os.memfd_create("closed"))
    with pytest.raises(LocalProtocolError, match="can't be written to: Bad file descriptor"):
        channel.shmem_map(0, fd, 0, 0, 4096, True, lambda _: None)
    channel.close()


def test_a_front_end_that_left_is_asked(pair) -> None:
    channel = BackendChannel(pair[0], True)
    pair[1].close()
    with pytest.raises(RemoteProtocolError, match="closed the back-end channel"):
        channel.config_changed()
    channel.close()


# Every row, and the ways to spoil its answer.

FILE = os.memfd_create("file", os.MFD_CLOEXEC)


def question(row: Row, done) -> Question:
    return Question(row.request, PAYLOADS[row.payload], FILE if 1 in row.fds.allowed(None) else -1, done)  # type: ignore[arg-type]


def good_answer(row: Row, value: int = 0) -> bytes:
    return HEADER.pack(row.request, VERSION | FLAG_REPLY, 8) + U64(value).pack()


def bad_answers(row: Row) -> Iterator[bytes]:
    rest = U64(0).pack()
    for number in {0, row.request - 1, row.request + 1, row.request | 1 << 31, *BACKEND_ROWS} - {row.request}:
        yield HEADER.pack(number, VERSION | FLAG_REPLY, 8) + rest
    for flags in (0, VERSION, FLAG_REPLY, FLAG_REPLY | 2, VERSION | FLAG_REPLY | FLAG_NEED_REPLY, 1 << 31 | 5):
        yield HEADER.pack(row.request, flags, 8) + rest
    for size in (0, 7, 9, 40, 1 << 31):
        yield HEADER.pack(row.request, VERSION | FLAG_REPLY, size) + rest


@pytest.mark.parametrize("row", BACKEND_ROWS.values(), ids=lambda row: row.name)
def test_a_request_is_as_its_row_says(pair, row: Row) -> None:
    channel, front_end = BackendChannel(pair[0], True), pair[1]
    answers: list[bool] = []
    channel._ask(asked := question(row, answers.append))
    data, fds = read(channel, front_end)
    number, flags, size = HEADER.unpack_from(data)
    assert (number, flags) == (row.request, VERSION | FLAG_NEED_REPLY)
    assert size == len(data) - HEADER.size and size in row.sizes()
    assert len(fds) in row.fds.allowed(asked.payload)
    if row.payload:
        assert row.payload.unpack(data[HEADER.size :]) == asked.payload
    for value, accepted in ((0, True), (1, False), (1 << 63, False)):
        if not channel.owed:
            channel._ask(question(row, answers.append))
            read(channel, front_end)
        for byte in good_answer(row, value):
            front_end.send(bytes([byte]))
            channel.handle()
        assert answers.pop() is accepted
    channel.close()


@pytest.mark.parametrize(
    ("row", "answer"),
    [(row, answer) for row in BACKEND_ROWS.values() for answer in bad_answers(row)],
    ids=lambda what: what.name if isinstance(what, Row) else what.hex(),
)
def test_a_spoiled_answer(pair, row: Row, answer: bytes) -> None:
    channel, front_end = BackendChannel(pair[0], True), pair[1]
    answers: list[bool] = []
    channel._ask(question(row, answers.append))
    front_end.send(answer)
    with pytest.raises(RemoteProtocolError, match="what was not asked"):
        channel.handle()
    assert answers == []
    channel.close()


@given(st.binary(max_size=60), st.sampled_from(list(BACKEND_ROWS.values())))
def test_any_answer(data: bytes, row: Row) -> None:
    ours, theirs = socket.socketpair()
    channel = BackendChannel(ours.detach(), True)
    answers: list[bool] = []
    channel._ask(question(row, answers.append))
    read(channel, theirs)
    theirs.send(data) if data else theirs.close()
    try:
        for _ in range(4):
            channel.handle()
    except RemoteProtocolError as error:
        assert "\n" not in str(error)
    assert len(answers) <= (data[:20] == good_answer(row)[:12] + data[12:20])
    channel.close()
    theirs.close()

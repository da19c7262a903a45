"""The back-end channel: one request at a time, never blocking."""

import socket

import pytest

from vhost.channel import BackendChannel, ChannelClosed
from vhost.message import FLAG_NEED_REPLY, FLAG_REPLY, HEADER, U64, VERSION
from vhost.protocol import RemoteProtocolError

REQUEST = HEADER.pack(2, VERSION | FLAG_NEED_REPLY, 0)
ANSWER = HEADER.pack(2, VERSION | FLAG_REPLY, 8) + U64(0).pack()


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    yield ours.detach(), theirs
    theirs.close()


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

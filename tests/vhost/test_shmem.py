"""Shared memory regions: the channel's requests against a front-end that maps, and refuses what QEMU does."""

import os
import select
import socket
from collections.abc import Iterator

import pytest

from tests.frontend import MIB
from tests.vhost.connection import Connection
from vhost.channel import BackendChannel, Question
from vhost.message import HEADER, U64, VERSION, BackendRequest, Request, SharedMapping

PAGE = 4096
SIZE = 2 * MIB


@pytest.fixture
def mapping(connection: Connection) -> Connection:
    connection.fe.negotiate()
    connection.fe.start()
    return connection


@pytest.fixture
def file() -> Iterator[int]:
    """Four pages and a half, each full of its number."""
    fd = os.memfd_create("file", os.MFD_CLOEXEC)
    os.write(fd, b"".join(bytes([page + 1]) * PAGE for page in range(5))[: 4 * PAGE + PAGE // 2])
    yield fd
    os.close(fd)


def channel(connection: Connection) -> BackendChannel:
    assert connection.backend.channel
    return connection.backend.channel


def settle(connection: Connection) -> None:
    """The front-end serves one request, and we what it says of it, as two loops would."""
    connection.fe.take()
    channel(connection).go_on()
    connection.fe.serve()
    connection.backend.handle()
    channel(connection).handle()


def asked(connection: Connection, kind: str, *arguments: int) -> bool:
    """Whether the front-end accepts it."""
    answers: list[bool] = []
    getattr(channel(connection), kind)(*arguments, answers.append)
    assert answers == [], "an answer before its time"
    settle(connection)
    (accepted,) = answers
    return accepted


def test_sizes(mapping: Connection) -> None:
    assert mapping.fe.ask(Request.GET_SHMEM_CONFIG).regions == (SIZE, *[0] * 255)
    assert mapping.fe.window[0].size == SIZE


def test_map_and_unmap(mapping: Connection, file: int) -> None:
    window = mapping.fe.window[0]
    assert asked(mapping, "shmem_map", 0, file, PAGE, 8 * PAGE, 2 * PAGE, True)
    assert window.read(7 * PAGE, 4 * PAGE) == bytes(PAGE) + b"\2" * PAGE + b"\3" * PAGE + bytes(PAGE)
    window.write(8 * PAGE, b"guest")
    assert os.pread(file, 6, PAGE) == b"guest\2"
    os.pwrite(file, b"host", 2 * PAGE)
    assert window.read(9 * PAGE, 5) == b"host\3"
    assert asked(mapping, "shmem_unmap", 0, 8 * PAGE, 2 * PAGE)
    assert window.read(7 * PAGE, 4 * PAGE) == bytes(4 * PAGE)
    assert os.fstat(file), "the descriptor stays its owner's"


@pytest.mark.parametrize(
    ("region", "file_offset", "offset", "length", "why"),
    [
        (0, 0, 0, PAGE, "overlaps"),
        (0, 0, PAGE, 2 * PAGE, "overlaps"),
        (1, 0, 8 * PAGE, PAGE, "no such region"),
        (0, 0, SIZE, PAGE, "not inside"),
        (0, 0, SIZE - PAGE, 2 * PAGE, "not inside"),
        (0, 0, (1 << 64) - PAGE, 2 * PAGE, "not inside"),
        (0, 0, 8 * PAGE, 0, "length"),
        (0, 512, 8 * PAGE, PAGE, "file offset"),
        (0, 4 * PAGE, 8 * PAGE, PAGE, "end of the file"),
        (0, 0, 8 * PAGE, 5 * PAGE, "end of the file"),
    ],
)
def test_refused_maps(
    mapping: Connection, file: int, region: int, file_offset: int, offset: int, length: int, why: str
) -> None:
    assert asked(mapping, "shmem_map", 0, file, 0, 0, 2 * PAGE, True)
    assert not asked(mapping, "shmem_map", region, file, file_offset, offset, length, True)
    assert why in mapping.fe.handled[-1][2]
    assert list(mapping.fe.window[0].mappings) == [(0, 2 * PAGE)]
    assert asked(mapping, "shmem_map", 0, file, 0, 8 * PAGE, PAGE, True), "the channel stays up"


@pytest.mark.parametrize(
    ("region", "offset", "length"),
    [(0, 0, PAGE), (0, 0, 4 * PAGE), (0, PAGE, PAGE), (0, 0, 2 * PAGE + 1), (0, 8 * PAGE, PAGE), (0, 0, 0), (9, 0, 1)],
)
def test_refused_unmaps(mapping: Connection, file: int, region: int, offset: int, length: int) -> None:
    for page in (0, 2):
        assert asked(mapping, "shmem_map", 0, file, page * PAGE, page * PAGE, 2 * PAGE, True)
    assert not asked(mapping, "shmem_unmap", region, offset, length)
    assert sorted(mapping.fe.window[0].mappings) == [(0, 2 * PAGE), (2 * PAGE, 2 * PAGE)]


@pytest.mark.parametrize(("path", "accepted"), [("/", False), ("/dev/null", False), ("/dev/zero", True)])
def test_what_is_no_file(mapping: Connection, path: str, accepted: bool) -> None:
    fd = os.open(path, os.O_RDONLY if path == "/" else os.O_RDWR)
    assert asked(mapping, "shmem_map", 0, fd, 0, 0, PAGE, True) == accepted
    os.close(fd)


@pytest.mark.parametrize("writable", [False, True])
def test_a_descriptor_that_can_not_write(mapping: Connection, file: int, writable: bool) -> None:
    """QEMU has no read-only mappings, and the flag does not make one."""
    fd = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    assert not asked(mapping, "shmem_map", 0, fd, 0, 0, PAGE, writable)
    os.close(fd)
    assert asked(mapping, "shmem_map", 0, file, 0, 0, PAGE, writable)
    mapping.fe.window[0].write(0, b"written")
    assert os.pread(file, 7, 0) == b"written"


def test_an_empty_file_grows(mapping: Connection) -> None:
    fd = os.memfd_create("empty", os.MFD_CLOEXEC)
    assert asked(mapping, "shmem_map", 0, fd, PAGE, 0, PAGE, True)
    assert os.fstat(fd).st_size == 2 * PAGE
    os.close(fd)


def test_one_under_way_and_answers_in_order(mapping: Connection, file: int) -> None:
    answers: list[tuple[int, bool]] = []
    for page in (0, 1, 0, 2):
        args = (0, file, 0, page * PAGE, PAGE, True)
        channel(mapping).shmem_map(*args, lambda accepted, page=page: answers.append((page, accepted)))
    for count in range(1, 5):
        settle(mapping)
        assert len(answers) == count
        with pytest.raises(BlockingIOError):
            channel(mapping)._socket.recv(1)
    assert answers == [(0, True), (1, True), (0, False), (2, True)]


def test_an_answer_makes_the_next_request(mapping: Connection, file: int) -> None:
    answers: list[bool] = []

    def then(accepted: bool) -> None:
        answers.append(accepted)
        channel(mapping).shmem_unmap(0, 0, PAGE, answers.append)

    channel(mapping).shmem_map(0, file, 0, 0, PAGE, True, then)
    settle(mapping)
    settle(mapping)
    assert answers == [True, True] and not mapping.fe.window[0].mappings


def test_the_answer_comes_after_the_rings_have_stopped(mapping: Connection, file: int) -> None:
    answers: list[bool] = []
    channel(mapping).shmem_map(0, file, 0, 0, PAGE, True, answers.append)
    mapping.fe.stop()
    assert answers == []
    settle(mapping)
    assert answers == [True] and mapping.fe.late == 1


def test_what_is_not_begun_when_rings_stop_is_asked_when_they_run(mapping: Connection, file: int) -> None:
    answers: list[bool] = []
    channel(mapping).shmem_map(0, file, 0, 0, PAGE, True, answers.append)
    channel(mapping).shmem_unmap(0, 0, PAGE, answers.append)
    channel(mapping).suspend()
    mapping.fe.stop()
    mapping.fe.serve()
    assert (mapping.fe.withdrawn, mapping.fe.late, mapping.fe.handled) == (1, 0, [])
    mapping.fe.start()
    channel(mapping).resume()
    settle(mapping)
    assert mapping.fe.window[0].read(0, 1) == b"\1"
    settle(mapping)
    assert answers == [True, True] and not mapping.fe.window[0].mappings


def test_what_is_begun_when_rings_stop_is_done(mapping: Connection, file: int) -> None:
    """The front-end reads it, so it has not stopped anything yet."""
    answers: list[bool] = []
    channel(mapping).shmem_map(0, file, 0, 0, PAGE, True, answers.append)
    channel(mapping).shmem_unmap(0, 0, PAGE, answers.append)
    mapping.fe.take()
    channel(mapping).suspend()
    mapping.fe.serve()
    mapping.backend.handle()
    channel(mapping).handle()
    assert answers == [True] and mapping.fe.withdrawn == 0
    assert mapping.fe.window[0].read(0, 1) == b"\1"


def test_the_rest_waits_until_the_beginning_is_taken(mapping: Connection, file: int) -> None:
    """And a descriptor tells when."""

    def due() -> bool:
        return bool(select.select([channel(mapping).taken], [], [], 0)[0])

    channel(mapping).go_on()
    assert not due()
    channel(mapping).shmem_map(0, file, 0, 0, PAGE, True, lambda accepted: None)
    assert not due()
    channel(mapping).go_on()
    assert mapping.fe.channel and len(mapping.fe.channel.recv(100, socket.MSG_PEEK)) == 1
    mapping.fe.take()
    assert due()
    channel(mapping).go_on()
    assert not due() and len(mapping.fe.channel.recv(100, socket.MSG_PEEK)) == HEADER.size - 1 + 40
    mapping.fe.serve()


def test_no_answer_after_close(mapping: Connection, file: int) -> None:
    answers: list[bool] = []
    channel(mapping).shmem_map(0, file, 0, 0, PAGE, True, answers.append)
    mapping.backend.close()
    assert answers == []


def test_a_channel_closed_while_idle(mapping: Connection) -> None:
    assert mapping.fe.channel
    mapping.fe.channel.close()
    mapping.backend.handle_channel()
    assert mapping.backend.channel is None
    mapping.fe.tell(Request.SET_OWNER)


def test_a_map_without_a_file(mapping: Connection) -> None:
    """None of ours; QEMU refuses it."""
    answers: list[bool] = []
    wanted = SharedMapping(0, 0, 0, PAGE, 1)
    channel(mapping)._ask(Question(BackendRequest.SHMEM_MAP, wanted, done=answers.append))
    settle(mapping)
    assert answers == [False] and mapping.fe.handled[-1][2] == "no descriptor"


def another_channel(connection: Connection) -> socket.socket:
    ours, theirs = socket.socketpair()
    connection.fe.send(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()], need_reply=True)
    theirs.close()
    return ours


def test_another_channel(mapping: Connection, file: int) -> None:
    assert asked(mapping, "shmem_map", 0, file, 0, 0, PAGE, True)
    old, mapping.fe.channel = mapping.fe.channel, another_channel(mapping)
    assert mapping.fe.receive().payload == U64(0).pack()
    assert old
    assert old.recv(1) == b"", "the first one is closed"
    old.close()
    assert asked(mapping, "shmem_unmap", 0, 0, PAGE)


def test_another_channel_while_an_answer_is_owed(mapping: Connection, file: int) -> None:
    """It can't come any more."""
    channel(mapping).shmem_map(0, file, 0, 0, PAGE, True, lambda _: None)
    ours = another_channel(mapping)
    assert "SET_BACKEND_REQ_FD came while an answer is owed" in mapping.sentence()
    ours.close()


def test_a_reset_drops_the_mappings(mapping: Connection, file: int) -> None:
    assert asked(mapping, "shmem_map", 0, file, 0, 0, PAGE, True)
    mapping.fe.reset()
    assert not mapping.fe.window[0].mappings and mapping.fe.window[0].read(0, PAGE) == bytes(PAGE)
    mapping.fe.start()
    assert not asked(mapping, "shmem_unmap", 0, 0, PAGE)


@pytest.mark.parametrize("announces", ["before", "after"])
def test_the_memory_table_follows(mapping: Connection, file: int, announces: str) -> None:
    mapping.fe.announces = announces
    before = len(mapping.backend.memory.regions)
    assert asked(mapping, "shmem_map", 0, file, 0, 0, PAGE, True)
    assert len(mapping.backend.memory.regions) == before + 1
    assert asked(mapping, "shmem_unmap", 0, 0, PAGE)
    assert len(mapping.backend.memory.regions) == before


def test_asked_for_an_answer_without_reply_ack() -> None:
    ours, theirs = socket.socketpair()
    channel = BackendChannel(ours.detach(), False)
    answers: list[bool] = []
    channel.shmem_unmap(0, 0, PAGE, answers.append)
    message = HEADER.pack(BackendRequest.SHMEM_UNMAP, VERSION | 8, 40) + SharedMapping(0, 0, 0, PAGE, 0).pack()
    assert theirs.recv(100) == message[:1]
    channel.go_on()
    assert theirs.recv(100) == message[1:]
    theirs.send(HEADER.pack(BackendRequest.SHMEM_UNMAP, VERSION | 4, 8) + U64(7).pack())
    channel.handle()
    assert answers == [False], "whatever is not 0 is a refusal"
    channel.close()
    theirs.close()

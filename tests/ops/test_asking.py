"""The worker's questions about the DAX window: vfsd.asking, with an owner that is this test."""

import errno
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

import vfsd.asking
from tests.fuseclient import pack, unpack
from vfsd._fuse import lib
from vfsd.asking import OPEN_MAX, Asking
from vfsd.door import Question, Request


class Owner:
    """An Asking, and what it answers the guest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, kind)
        self.finished: list[tuple[int, int, bytes]] = []  # (unique, result, reply)
        self.noted: list[tuple[int, int]] = []
        fake = SimpleNamespace(
            VIRTQ_DEFERRED=lib.VIRTQ_DEFERRED,
            DAX_UNSUITABLE=lib.DAX_UNSUITABLE,
            fuse_finish=lambda core, chain, unique, reply, result: self.finished.append((unique, result, reply)),
            dax_note=lambda core, nodeid, what: self.noted.append((nodeid, what)),
        )
        monkeypatch.setattr(vfsd.asking, "lib", fake)
        monkeypatch.setattr(vfsd.asking, "address", lambda queue: queue)
        self.asking = Asking(SimpleNamespace(pointer=None), self.ours.fileno(), None)  # type: ignore[arg-type]
        self.unique = 0

    def ask(self, queue: int = 1, reply: bytes = b"", tail: bytes = b"") -> int:
        self.unique += 2
        question = Question(pack("window_question", kind=lib.WINDOW_REMOVE) + tail)
        question.reply = reply
        request = Request(1, self.unique, 0, 0, False, 4096)
        return self.asking.ask(SimpleNamespace(queue=queue), request, question)

    def asked(self) -> list[int]:
        """The tokens that came."""
        found = []
        try:
            while True:
                found.append(unpack("window_question", self.theirs.recv(1 << 18)).token)
        except BlockingIOError:
            return found

    def answer(self, token: int, error: int = 0, **fields: int) -> None:
        self.theirs.send(pack("window_answer", token=token, error=error, **fields))
        self.asking.work()


@pytest.fixture
def owner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Owner]:
    owner = Owner(monkeypatch)
    yield owner
    owner.ours.close()
    owner.theirs.close()


def test_an_answer_is_the_guests(owner: Owner) -> None:
    for reply in (b"", b"init", b"init"):
        assert owner.ask(reply=reply) == lib.VIRTQ_DEFERRED
    first, second, third = owner.asked()
    owner.answer(second)
    owner.answer(first)
    owner.answer(third, -errno.EIO)
    assert owner.finished == [(4, 4, b"init"), (2, 0, b""), (6, -errno.EIO, b"")]
    assert owner.asking.timeout() is None


def test_a_file_that_thrashes_is_noted_before_the_answer(owner: Owner) -> None:
    owner.ask()
    owner.answer(owner.asked()[0], thrashes=1, nodeid=77)
    assert owner.noted == [(77, lib.DAX_UNSUITABLE)] and len(owner.finished) == 1


def test_questions_of_each_ring_are_counted(owner: Owner) -> None:
    for queue in (1, 2, 2):
        owner.ask(queue)
    assert [owner.asking.count(queue) for queue in (1, 2, 3)] == [1, 2, 0]
    for token in owner.asked():
        owner.answer(token)
    assert owner.asking.count(2) == 0


def test_no_more_is_asked_than_answers_have_room_for(owner: Owner) -> None:
    count = 5 * OPEN_MAX
    for _ in range(count):
        assert owner.ask() == lib.VIRTQ_DEFERRED
    assert owner.asking.count(1) == count and owner.asking.timeout() is None
    seen = []
    while tokens := owner.asked():
        assert len(tokens) <= OPEN_MAX
        seen += tokens
        for token in tokens:
            owner.theirs.send(pack("window_answer", token=token))
        owner.asking.work()
    assert seen == list(range(1, count + 1))
    assert [unique for unique, _, _ in owner.finished] == [2 * token for token in seen]


def test_what_the_socket_has_no_room_for_is_sent_later(owner: Owner) -> None:
    tail = bytes(100_000)
    for _ in range(6):
        assert owner.ask(tail=tail) == lib.VIRTQ_DEFERRED
    assert owner.asking.timeout() is not None
    seen = []
    while tokens := owner.asked():
        seen += tokens
        owner.asking.work()
    assert seen == [1, 2, 3, 4, 5, 6] and owner.asking.timeout() is None


def test_an_owner_that_is_gone(owner: Owner) -> None:
    owner.theirs.close()
    assert owner.ask() == -errno.EPIPE
    assert owner.asking.count(1) == 0 and owner.asking.timeout() is None

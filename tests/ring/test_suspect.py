"""Chains that a worker may have died of are served first, one at a time, and by name."""

from collections.abc import Callable
from errno import EFAULT, EPROTO
from typing import Any

import pytest

from tests.ring.ring import DEFERRED, Chain, Ring
from tests.ring.test_recovery import MARKED, DeadWorker, Served
from vhost._virtq import ffi, lib

Make = Callable[..., Ring]
SUSPECT, CONDEMNED, UNREADABLE = lib.VIRTQ_SUSPECT, lib.VIRTQ_CONDEMNED, lib.VIRTQ_UNREADABLE


def dead(ring: Ring, *suspicions: int) -> list[int]:
    """Chains "0", "1" and so on, left in flight by a worker, each with what speaks against it; their heads."""
    worker = DeadWorker(ring)
    heads = [ring.driver.add([b"%d" % number], [8]) for number in range(len(suspicions))]
    for head, suspicion in zip(heads, suspicions, strict=True):
        worker.serve(head, MARKED)
        ring.state.suspicion[head] = suspicion
    assert ring.open() == 0
    return heads


class Tried:
    """What each handler got, and what was said to be alone at the time."""

    def __init__(self, ring: Ring, reply: bytes | None = b"new") -> None:
        self.calls: list[tuple[str, bytes, int, bool]] = []
        self.failure = 0
        self._ring, self._reply = ring, reply
        self._serve = ring.callback(lambda chain: self._called("serve", chain))

        @ffi.callback("int64_t(void *, struct virtq_chain *)")  # type: ignore[untyped-decorator, unused-ignore]
        def refuse(_opaque: Any, raw: Any) -> int:
            chain = Chain(raw)
            self._called("refuse", chain)
            return self.failure or chain.write(b"no")

        self._refuse = refuse

    def _called(self, by: str, chain: Chain) -> bytes | None:
        self.calls.append((by, chain.input, chain.replay, self._ring.state.alone == chain.head + 1))
        return self._reply

    def one(self) -> int:
        return int(lib.virtq_try_suspect(self._ring.queue, self._serve, self._refuse, ffi.NULL))


def test_none(ring: Make) -> None:
    r = ring()
    assert r.open() == 0
    assert Tried(r).one() == 0
    r.park()
    dead(r, 0, SUSPECT - 1)
    tried = Tried(r)
    assert tried.one() == 0 and tried.calls == []
    r.start(Served())
    r.driver.wait(0)


def test_before_the_others_and_one_at_a_time(ring: Make) -> None:
    r = ring(16)
    heads = dead(r, 1, SUSPECT, 0, CONDEMNED, SUSPECT + 3)
    tried = Tried(r)
    for done, head in ((1, heads[1]), (2, heads[3]), (3, heads[4])):
        assert tried.one() == 1
        assert len(tried.calls) == done and lib.virtq_pending(r.queue) == 5 - done
        assert (r.state.alone, r.state.suspicion[head]) == (0, 0)
        assert r.driver.wait(head).data == (b"no" if head == heads[3] else b"new")
    assert tried.one() == 0
    assert tried.calls == [("serve", b"1", 1, True), ("refuse", b"3", 1, True), ("serve", b"4", 1, True)]
    served = Served()
    r.start(served)
    for head in (heads[0], heads[2]):
        r.driver.wait(head)
    assert served.calls == [(b"0", 1), (b"2", 1)]
    r.park()
    assert r.marks() == []


def test_one_that_is_deferred_is_suspect_no_more(ring: Make) -> None:
    r = ring()
    heads = dead(r, SUSPECT, SUSPECT)
    tried = Tried(r, DEFERRED)
    assert [tried.one() for _ in range(3)] == [1, 1, 0]
    assert r.state.alone == 0 and not any(r.state.suspicion[head] for head in heads)
    assert lib.virtq_pending(r.queue) == 2 and r.marks() == sorted(heads)
    lib.virtq_suspend(r.queue)


@pytest.mark.parametrize("why", ["no chain", "no answer", "not to be looked at"])
def test_one_that_can_t_be_answered_breaks_the_ring(ring: Make, why: str) -> None:
    r = ring()
    heads = dead(r, 0, UNREADABLE if why == "not to be looked at" else CONDEMNED)
    tried = Tried(r)
    if why == "no chain":
        r.driver.descriptor(heads[1], 0, 1, 1, 99)
    tried.failure = -EFAULT if why == "no answer" else 0
    error = EPROTO if why == "no chain" else EFAULT
    assert [tried.one(), tried.one()] == [-error, -error]
    assert len(tried.calls) == (why == "no answer")
    assert (r.state.broken, r.state.alone, lib.virtq_pending(r.queue)) == (error, 0, 0)


def test_a_head_that_is_no_longer_in_flight_is_cleared(ring: Make) -> None:
    r = ring()
    head = dead(r, SUSPECT)[0]
    r.state.suspicion[head + 1] = 200
    r.drop()
    assert r.open() == 0
    assert (r.state.suspicion[head], r.state.suspicion[head + 1]) == (SUSPECT, 0)
    assert Tried(r).one() == 1
    r.park()
    r.state.suspicion[3] = CONDEMNED
    assert r.open() == 0
    assert r.state.suspicion[3] == 0, "a ring that starts anew"

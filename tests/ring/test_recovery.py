"""What a new worker makes of a dead one's ring: every chain is used exactly once, whatever the last store was."""

import os
import random
import signal
import time
from collections.abc import Callable
from errno import EPROTO

import pytest

from tests.driver import MAX
from tests.ring.ring import DEFERRED, Chain, Ring, echo, interrupts, wait_for
from vhost._virtq import ffi, lib

Make = Callable[..., Ring]

#: The stores of one chain's way, in order (vhost-user specification, "Inflight I/O tracking").
STEPS = ["counter", "inflight = 1", "next", "last_batch_head", "used element", "used idx", "inflight = 0", "used_idx"]
MARKED, USED = 2, 6  # steps after which a chain counts as in flight, as used


class DeadWorker:
    """Does by hand the first steps of a worker, and dies."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        assert ring.open() == 0
        ring.drop()
        assert ring.state.started == 1
        self.counter = 0

    def serve(self, head: int, steps: int = len(STEPS), reply: bytes = b"", first: int = 0) -> None:
        """The stores number `first` to `steps` for one head."""
        r, driver = self.ring, self.ring.driver
        region, desc = r.inflight, r.inflight.desc[head]
        for step in STEPS[first:steps]:
            slot = driver.used[1] % r.num
            if step == "counter":
                desc.counter, self.counter = self.counter, self.counter + 1
            elif step == "inflight = 1":
                desc.inflight = 1
            elif step == "next":
                desc.next = region.last_batch_head
            elif step == "last_batch_head":
                region.last_batch_head = head
            elif step == "used element":
                if reply:
                    r.memory.write(driver.chains[head].writable[0].addr, reply)
                driver.used_ring[2 * slot], driver.used_ring[2 * slot + 1] = head, len(reply)
            elif step == "used idx":
                driver.used[1] = (driver.used[1] + 1) & MAX
            elif step == "inflight = 0":
                desc.inflight = 0
            else:
                region.used_idx = driver.used[1]


class Served:
    """A handler that keeps what it served."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, int]] = []

    def __call__(self, chain: Chain) -> bytes:
        self.calls.append((chain.input, chain.replay))
        return b"new"


@pytest.mark.parametrize("index", [0, MAX])
@pytest.mark.parametrize("company", ["alone", "after a used one", "beside one in flight", "all"])
@pytest.mark.parametrize("steps", range(len(STEPS) + 1))
def test_death_after_every_store(ring: Make, steps: int, company: str, index: int) -> None:
    r = ring(index=index)
    dead = DeadWorker(r)
    expected = {}
    calls = []
    if company in ("after a used one", "all"):
        head = r.driver.add([b"before"], [8])
        dead.serve(head, reply=b"old")
        expected[head] = b"old"
    if company in ("beside one in flight", "all"):
        head = r.driver.add([b"beside"], [8])
        dead.serve(head, MARKED)
        expected[head] = b"new"
        calls.append((b"beside", 1))
    head = r.driver.add([b"torn"], [8])
    dead.serve(head, steps, reply=b"old")
    expected[head] = b"old" if steps >= USED else b"new"
    if steps < USED:
        calls.append((b"torn", 1 if steps >= MARKED else 0))

    served = Served()
    r.start(served)
    assert {head: r.driver.wait(head).data for head in expected} == expected
    assert r.driver.request([b"after"], [8]) == b"new"
    assert served.calls == [*calls, (b"after", 0)]
    r.park()
    assert r.marks() == []
    assert r.inflight.used_idx == r.driver.used[1] == r.driver.index == r.state.last_avail_idx


def test_served_again_in_the_order_they_were_taken(ring: Make) -> None:
    r = ring(16)
    dead = DeadWorker(r)
    heads = [r.driver.add([b"%d" % i], [8]) for i in range(6)]
    for i in (3, 0, 5, 1, 4, 2):
        dead.counter = 10 + [3, 0, 5, 1, 4, 2].index(i)
        dead.serve(heads[i], MARKED)
    new = r.driver.add([b"new"], [8])
    served = Served()
    r.start(served)
    for head in [*heads, new]:
        r.driver.wait(head)
    assert served.calls == [(b"3", 1), (b"0", 1), (b"5", 1), (b"1", 1), (b"4", 1), (b"2", 1), (b"new", 0)]
    assert min(r.inflight.desc[new].counter, 16) == 16


def test_a_batch_of_another_back_end(ring: Make) -> None:
    """Three heads published by one store of the index, their marks still standing; a fourth is really in flight."""
    r = ring(16)
    dead = DeadWorker(r)
    heads = [r.driver.add([b"%d" % i], [8]) for i in range(4)]
    for head in heads:
        dead.serve(head, MARKED)
    for head in heads[:3]:
        dead.serve(head, USED, reply=b"old", first=MARKED)
    served = Served()
    r.start(served)
    assert [r.driver.wait(head).data for head in heads] == [b"old", b"old", b"old", b"new"]
    assert served.calls == [(b"3", 1)]


def test_tells_the_driver_once(ring: Make) -> None:
    """A call may have been lost with the worker. A clean start has none to make up for."""
    r = ring(event_idx=True)
    assert r.open() == 0
    assert interrupts(r) == 0
    r.drop()
    r.driver.interrupts_on(False)
    assert r.open() == 0
    assert interrupts(r) == 1
    lib.virtq_park(r.queue)
    r.drop()
    assert r.open() == 0
    assert interrupts(r) == 0


def test_recovered_chains_are_served_though_stopped(ring: Make) -> None:
    """How a ring is parked whose worker died: what was in flight is drained, what was not taken stays."""
    r = ring()
    dead = DeadWorker(r)
    taken = [r.driver.add([b"taken"], [8]) for _ in range(2)]
    for head in taken:
        dead.serve(head, MARKED)
    r.driver.add([b"left"], [8])
    assert r.open() == 0
    assert lib.virtq_pending(r.queue) == 2
    os.eventfd_write(r.stop_fd, 1)
    served = Served()
    r.start(served)
    assert r.join() == [0]
    assert [call[0] for call in served.calls] == [b"taken", b"taken"]
    assert lib.virtq_pending(r.queue) == 0
    os.eventfd_read(r.stop_fd)
    r.park()
    assert (r.state.started, r.state.last_avail_idx, r.driver.used[1]) == (0, 2, 2)


def test_recovered_chain_may_be_deferred(ring: Make) -> None:
    r = ring()
    dead = DeadWorker(r)
    head = r.driver.add([b"x"], [8])
    dead.serve(head, MARKED)
    held: list[Chain] = []
    r.start(lambda chain: held.append(chain))
    wait_for(lambda: bool(held))
    assert lib.virtq_pending(r.queue) == 1
    held[0].complete(b"new")
    assert r.driver.wait(head).data == b"new"
    assert lib.virtq_pending(r.queue) == 0


def test_recovered_head_may_not_come_again(ring: Make) -> None:
    r = ring()
    dead = DeadWorker(r)
    head = r.driver.add([b"x"], [8])
    dead.serve(head, MARKED)
    r.driver.publish(head)
    r.start(lambda chain: DEFERRED)
    assert r.join() == [-EPROTO]


def test_no_region_of_ours(ring: Make) -> None:
    def uninitialised(r: Ring) -> None:
        r.inflight.version = 0

    def newer(r: Ring) -> None:
        r.inflight.version = 2

    def small(r: Ring) -> None:
        r.inflight.desc_num = 4

    def far(r: Ring) -> None:
        r.inflight.used_idx = (r.driver.used[1] - 9) & MAX

    def bad_head(r: Ring) -> None:
        r.inflight.used_idx, r.inflight.last_batch_head = MAX, 8

    def bad_next(r: Ring) -> None:
        r.inflight.used_idx, r.inflight.desc[0].next = MAX - 1, 0xFFFF

    for spoil in (uninitialised, newer, small, far, bad_head, bad_next):
        r = ring()
        DeadWorker(r)
        spoil(r)
        assert r.broken() == EPROTO, spoil.__name__


def test_recovered_chain_makes_no_sense_any_more(ring: Make) -> None:
    r = ring()
    dead = DeadWorker(r)
    heads = [r.driver.add([b"x"], [8]) for _ in range(3)]
    for head in heads:
        dead.serve(head, MARKED)
    r.driver.descriptor(heads[1], 0, 0, 1, 99)
    served = Served()
    r.start(served)
    assert r.join() == [-EPROTO]
    assert len(served.calls) == 1
    assert lib.virtq_pending(r.queue) == 0


def test_clean_start_forgets_old_marks(ring: Make) -> None:
    r = ring(index=7)
    r.inflight.version, r.inflight.used_idx, r.inflight.desc[3].inflight = 1, 99, 1
    r.start()
    assert r.driver.request([b"x"], [1]) == b"x"
    assert (r.inflight.desc_num, r.inflight.used_idx, r.marks()) == (8, 8, [])


@pytest.mark.parametrize("threads", [1, 2])
def test_killed_workers(ring: Make, threads: int) -> None:
    """Real processes, killed at any instruction under load; the driver sees every chain used once, with its reply."""
    r = ring(8, event_idx=True, index=65500)
    choose = random.Random(threads)
    flying: dict[int, bytes] = {}
    number = 0
    for _ in range(40):
        child = os.fork()
        if not child:
            work(r, threads)
        for _ in range(choose.randrange(12)):
            while len(r.driver.free) < 2:
                head, expected = flying.popitem()
                assert r.driver.wait(head).data == expected
            flying[r.driver.add([b"%d" % number], [10])] = b"%d" % number
            number += 1
            r.driver.kick()
        time.sleep(choose.random() / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    r.start()
    for head, expected in flying.items():
        assert r.driver.wait(head).data == expected
    r.park()
    assert r.state.last_avail_idx == (65500 + number) & MAX
    assert r.marks() == []


def work(r: Ring, threads: int) -> None:
    """A worker's life, in a child: never returns, nor outlives a failed test for long."""
    signal.alarm(20)
    r.start(echo, threads)
    while True:
        time.sleep(1)


def test_arena_records_are_what_the_specification_says() -> None:
    assert ffi.sizeof("struct virtq_inflight_desc") == 16
    assert ffi.offsetof("struct virtq_inflight", "desc") == 16
    assert ffi.offsetof("struct virtq_inflight", "used_idx") == 14


@pytest.mark.parametrize("index", [0, MAX])
def test_what_is_left_on_purpose_is_served_again(ring: Make, index: int) -> None:
    """One chain stays in flight while others around it are served; a next worker takes it first, and once."""
    r = ring(index=index)
    seen: list[tuple[bytes, int]] = []

    def serve(chain: Chain) -> bytes | None:
        seen.append((chain.input, chain.replay))
        return DEFERRED if chain.input == b"waits" else b"done"

    for round in range(3):
        r.start(serve)
        if round == 0:
            waits = r.driver.add([b"waits"], [8])
        for _ in range(10):
            assert r.driver.request([b"other"], [8]) == b"done"
        assert set(r.stop()) == {0} and lib.virtq_pending(r.queue) == 1
        lib.virtq_suspend(r.queue)
        assert (r.state.started, r.state.suspended) == (1, 1)
        assert r.state.last_avail_idx == r.driver.index
        r.drop()
    assert [call for call in seen if call[0] == b"waits"] == [(b"waits", 0), (b"waits", 1), (b"waits", 1)]
    assert r.open() == 0 and r.state.suspended == 0
    r.start()
    assert r.driver.wait(waits).data == b"waits"
    r.park()
    assert (r.state.started, r.marks()) == (0, [])


@pytest.mark.parametrize("change", ["used index", "a mark"])
def test_what_is_left_is_forgotten_when_the_ring_is_another(ring: Make, change: str) -> None:
    """The driver began anew at the same place, and by chance at the same index."""
    r = ring()
    r.start(lambda chain: DEFERRED)
    for _ in range(3):
        r.driver.add([b"waits"], [8])
    r.driver.kick()
    wait_for(lambda: lib.virtq_pending(r.queue) == 3)
    r.stop()
    lib.virtq_suspend(r.queue)
    r.drop()
    if change == "used index":
        r.driver.used[1] = MAX
    else:
        r.inflight.desc[r.marks()[0]].inflight = 0
    assert r.open() == 0
    assert (r.state.started, r.state.suspended, r.marks()) == (1, 0, [])
    assert lib.virtq_pending(r.queue) == 0

"""Who tells whom, and when: kicks and interrupts."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.bench.build import ffi as bench_ffi
from tests.bench.build import lib as bench
from tests.driver import NO_NOTIFY
from tests.ring.ring import DEFERRED, Chain, Reply, Ring, echo, interrupts, wait_for
from vhost._virtq import ffi, lib

Make = Callable[..., Ring]


def test_no_interrupt_when_flags_say_so(ring: Make) -> None:
    r = ring()
    r.driver.interrupts_on(False)
    r.start()
    r.driver.add([b"x"], [1])
    r.driver.kick()
    wait_for(lambda: r.driver.used[1] == 1)
    assert r.stop() == [0]
    assert interrupts(r) == r.state.interrupts == 0


def test_event_idx_names_the_one_interrupt(ring: Make) -> None:
    """used_event 2: completions 1 and 2 are silent, 3 tells, 4 and 5 are silent again."""
    r = ring(16, event_idx=True)
    r.driver.avail[2 + 16] = 2
    r.start()
    counts = []
    for i in range(5):
        r.driver.add([b"x"], [1])
        r.driver.kick()
        wait_for(lambda: r.state.completed == i + 1 and lib.virtq_pending(r.queue) == 0)  # noqa: B023
        counts.append(interrupts(r))
    assert counts == [0, 0, 1, 0, 0]
    assert r.state.interrupts == 1


def test_interrupts_are_counted(ring: Make) -> None:
    r = ring()
    r.start()
    for _ in range(3):
        r.driver.request([b"x"], [1])
    assert r.stop() == [0]
    assert r.state.interrupts == 3


@pytest.mark.parametrize("event_idx", [False, True])
def test_kicks_are_not_asked_for_while_serving(ring: Make, event_idx: bool) -> None:
    asked = []
    r = ring(event_idx=event_idx)

    def handler(chain: Chain) -> bytes:
        if chain.input == b"first":
            # Which we may have been quicker than.
            wait_for(lambda: r.driver.kicked == r.driver.index)
            r.driver.add([b"second"], [10])
            asked.append(r.driver.kick())
        return chain.input

    r.start(handler)
    os.eventfd_write(r.kick, 1)
    wait_for(lambda: r.state.kicks > 0)  # it slept, and asked no more when it woke
    first = r.driver.add([b"first"], [10])
    r.driver.kick()
    assert r.driver.wait(first).data == b"first"
    wait_for(lambda: r.state.completed == 2)
    assert asked == [False]
    if not event_idx:
        wait_for(lambda: not r.driver.used[0] & NO_NOTIFY)


def test_a_kick_wakes_once(ring: Make) -> None:
    """Nobody reads the eventfd, and nobody is woken by what was written before."""
    r = ring()
    r.start()
    os.eventfd_write(r.kick, 1)
    wait_for(lambda: r.state.kicks == 1)
    for number in range(20):
        assert r.driver.request([b"%d" % number], [10]) == b"%d" % number
    assert r.stop() == [0]
    assert r.state.kicks <= 21
    assert os.eventfd_read(r.kick) >= 1


def test_a_queue_leaves_no_descriptor(ring: Make) -> None:
    r = ring()
    before = sorted(os.listdir("/proc/self/fd"))
    assert r.open() == 0
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    r.drop()
    assert sorted(os.listdir("/proc/self/fd")) == before
    r.config.kick = r.memfd
    assert r.open() == -errno.EPERM
    r.drop()
    assert sorted(os.listdir("/proc/self/fd")) == before
    r.config.kick = r.kick


# One thread alone, which may tell of several chains at once.


def left(r: Ring, more: int = 20) -> None:
    """Publishes chains: so many that the driver need not be told of what was before them."""
    for _ in range(more):
        r.driver.add([b"left"], [1])


def served(r: Ring, handler: Callable[[Chain], Reply] = echo, count: int = 0) -> None:
    """Serves what was published, `count` chains or all."""
    r.driver.kick()
    r.start(handler)
    wait_for(lambda: r.state.completed == (count or r.driver.index))
    assert r.stop() == [0]


@pytest.mark.parametrize("event_idx", [False, True])
def test_chains_are_told_of_together(ring: Make, event_idx: bool) -> None:
    """By one that serves them faster than a Python function could."""
    r = ring(512, event_idx=event_idx)
    for _ in range(256):
        r.driver.add([bytes(40)], [16])
    r.driver.kick()
    assert r.open(threads=1) == 0
    alone = bench_ffi.new("struct alone *")
    # Two extensions have a type for the same function.
    handler = ffi.cast("virtq_handler", int(bench_ffi.cast("intptr_t", bench_ffi.addressof(bench, "alone_serve"))))
    os.eventfd_write(r.stop_fd, 1)
    while r.state.completed < 256:
        assert lib.virtq_run(r.queue, handler, ffi.cast("void *", int(bench_ffi.cast("intptr_t", alone)))) == 0
    os.eventfd_read(r.stop_fd)
    assert r.driver.used[1] == 256
    assert interrupts(r) == r.state.interrupts
    assert r.state.interrupts == 1 if event_idx else 1 <= r.state.interrupts < 256


@pytest.mark.parametrize("event_idx", [False, True])
def test_used_is_published_though_not_told_of(ring: Make, event_idx: bool) -> None:
    r = ring(128, event_idx=event_idx)
    seen = []

    def handler(chain: Chain) -> bytes:
        seen.append(r.driver.used[1])
        return b""

    left(r, 40)
    served(r, handler)
    assert seen == list(range(40))
    assert r.marks() == []


@pytest.mark.parametrize(("last", "told"), [("short", 0), ("large", 1), ("asks", 1), ("behind a deferred one", 1)])
def test_what_may_last_finds_nothing_held_back(ring: Make, last: str, told: int) -> None:
    """The first of many chains is held back, unless the next one is of these."""
    r = ring(128)
    seen: list[int] = []
    waiting: list[Chain] = []

    def handler(chain: Chain) -> Reply:
        if chain.input == b"deferred":
            waiting.append(chain)
            return DEFERRED
        if chain.input == last.encode():
            if last == "asks":
                lib.virtq_tell(r.queue)
            seen.append(r.state.interrupts)
        return b""

    r.driver.add([b"first"], [1])
    if last == "behind a deferred one":
        r.driver.add([b"deferred"], [1])
    r.driver.add([last.encode()], [40000 if last == "large" else 1])
    left(r)
    served(r, handler, r.driver.index - (last == "behind a deferred one"))
    for chain in waiting:
        chain.complete(b"")
    assert seen == [told]
    assert lib.virtq_pending(r.queue) == 0


def test_one_that_stops_tells_of_all(ring: Make) -> None:
    stopped = []
    for used_event in (0xFFFF, None):
        r = ring(128, event_idx=True)
        r.driver.avail[2 + 128] = stopped[0] - 1 if stopped else 0xFFFF

        def handler(chain: Chain) -> bytes:
            if chain.input == b"first":
                os.eventfd_write(r.stop_fd, 1)  # noqa: B023
            return b""

        r.driver.add([b"first"], [1])
        left(r, 60)
        r.driver.kick()
        r.start(handler)
        assert r.join() == [0]
        os.eventfd_read(r.stop_fd)
        stopped.append(r.state.completed)
        assert interrupts(r) == (used_event is None)
    assert stopped[0] == stopped[1] < 60


def test_one_whose_ring_breaks_tells_of_all(ring: Make) -> None:
    r = ring(128)
    r.driver.add([b"first"], [1])
    for _ in range(20):
        r.driver.publish(1000)
    r.driver.kick()
    assert r.broken() == errno.EPROTO
    assert r.state.completed == interrupts(r) == 1


def test_several_threads_hold_nothing_back(ring: Make) -> None:
    r = ring(128)
    left(r, 40)
    r.driver.kick()
    r.start(threads=2)
    wait_for(lambda: r.state.completed == 40)
    assert r.stop() == [0, 0]
    assert r.state.interrupts == 40


def test_deferred_chains_are_completed_beside_one_thread(ring: Make) -> None:
    """By others, while it goes on: none is lost or told of twice, and all are counted."""
    r = ring(64, event_idx=True)
    pool = ThreadPoolExecutor(3)

    def handler(chain: Chain) -> Reply:
        if chain.input[0] % 3:
            return chain.input
        pool.submit(chain.complete, chain.input)
        return DEFERRED

    r.start(handler)
    flying: dict[int, bytes] = {}
    for i in range(2000):
        if len(r.driver.free) < 34:
            head, expected = next(iter(flying.items()))
            assert r.driver.wait(head).data == expected
            del flying[head]
        message = bytes([i & 0xFF, i >> 8])
        flying[r.driver.add([message], [10], indirect=True)] = message
        r.driver.kick()
    for head, expected in flying.items():
        assert r.driver.wait(head).data == expected
    pool.shutdown()
    assert r.stop() == [0]
    assert lib.virtq_pending(r.queue) == 0
    assert r.state.popped == r.state.completed == 2000
    r.park()

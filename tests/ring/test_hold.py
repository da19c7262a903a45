"""One thread alone, which may tell of several chains at once."""

import errno
import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.bench.build import ffi as bench_ffi
from tests.bench.build import lib as bench
from tests.driver import NO_NOTIFY
from tests.ring.ring import DEFERRED, Chain, Reply, Ring, echo, interrupts, stream, wait_for
from vhost._virtq import ffi, lib

Make = Callable[..., Ring]


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


def serve_quickly(r: Ring) -> None:
    """Serves what was published with a function in C."""
    assert r.open(threads=1) == 0
    alone = bench_ffi.new("struct alone *")
    # Two extensions have a type for the same function.
    handler = ffi.cast("virtq_handler", int(bench_ffi.cast("intptr_t", bench_ffi.addressof(bench, "alone_serve"))))
    os.eventfd_write(r.stop_fd, 1)
    while r.state.completed < r.driver.index:
        assert lib.virtq_run(r.queue, handler, ffi.cast("void *", int(bench_ffi.cast("intptr_t", alone)))) == 0
    os.eventfd_read(r.stop_fd)


@pytest.mark.parametrize("event_idx", [False, True])
def test_chains_are_told_of_together(ring: Make, event_idx: bool) -> None:
    """By one that serves them faster than a Python function could."""
    r = ring(512, event_idx=event_idx)
    for _ in range(256):
        r.driver.add([bytes(40)], [16])
    r.driver.kick()
    serve_quickly(r)
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


def test_the_slower_a_chain_the_fewer_are_left_when_the_driver_is_told() -> None:
    """What is left is to last while it wakes."""
    pace = ffi.new("struct pace *")
    assert lib.pace_left(pace) == lib.PACE_LEFT, "nothing is known yet"
    for chain, left in [(1000, 8), (2000, 4), (4000, 2), (7000, 1), (25000, 1)]:
        for spell in range(30):
            lib.pace_begin(pace, 1_000_000, 65530)
            # Ten chains, and the index wraps.
            lib.pace_end(pace, 1_000_000 + 10 * chain, 4)
            assert spell < 29 or lib.pace_left(pace) == left


@pytest.mark.parametrize("chain", [lib.PACE_LONG + 10, 10**6, 1 << 60])
def test_chains_that_take_longer_are_told_of_at_once(chain: int) -> None:
    for quick in (1, 5000):
        pace = ffi.new("struct pace *")
        lib.pace_learn(pace, quick, 1)
        assert lib.pace_left(pace) < lib.PACE_NONE
        for _ in range(40):
            lib.pace_learn(pace, chain, 1)
        assert lib.pace_left(pace) == lib.PACE_NONE


def test_what_takes_no_time_tells_nothing() -> None:
    pace = ffi.new("struct pace *")
    lib.pace_learn(pace, 3, 4)
    assert lib.pace_left(pace) == lib.PACE_LEFT
    lib.pace_end(pace, 10**9, 7)
    assert pace.chain == 0, "nobody knows when it began"
    lib.pace_begin(pace, 10**9, 7)
    lib.pace_end(pace, 2 * 10**9, 7)
    assert pace.chain == 0, "nothing came"


def test_a_driver_hears_at_once_of_chains_that_last(ring: Make) -> None:
    """How long they take is known when the ring has run dry once."""
    r = ring(128)
    r.config.poll_ns = 1000
    r.driver.used[0] = NO_NOTIFY  # until it sleeps for the first time
    told: list[int] = []

    def handler(chain: Chain) -> bytes:
        told.append(r.state.interrupts)
        time.sleep(0.001)
        return b""

    r.start(handler)
    for batch in range(2):
        wait_for(lambda: not r.driver.used[0] & NO_NOTIFY)  # it sleeps
        with r.driver.at_once():
            left(r, 12)
        r.driver.kick()
        wait_for(lambda: r.state.completed == 12 * batch + 12)  # noqa: B023
    assert r.stop() == [0]
    assert told[:3] == [0, 0, 1], "the first was held back"
    assert told[12:] == [told[12] + number for number in range(12)]


def test_chains_that_last_are_not_held_long(ring: Make) -> None:
    """Be they after others that did not, so that it is not looked at the clock for each."""
    r = ring(1024)
    left(r, 256)
    serve_quickly(r)
    told: list[int] = []

    def handler(chain: Chain) -> bytes:
        told.append(r.state.interrupts)
        time.sleep(0.001)
        return b""

    left(r, 40)
    served(r, handler)
    together = [len(list(chains)) for _, chains in itertools.groupby(told)]
    assert together[0] <= 5
    assert max(together[1:]) <= 2
    assert set(together[10:]) == {1}


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
    stream(r, (bytes([i & 0xFF, i >> 8]) for i in range(2000)), 34, itertools.repeat(True))
    pool.shutdown()
    assert r.stop() == [0]
    assert lib.virtq_pending(r.queue) == 0
    assert r.state.popped == r.state.completed == 2000
    r.park()

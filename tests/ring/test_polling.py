"""Watching a dry ring: the policy as a function of times, and the ring that follows it. And leaving one alone."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from tests.ring.ring import Ring, wait_for
from vhost._virtq import ffi, lib

Make = Callable[..., Ring]
LIMIT = lib.POLLING_MAX
US = 1000


def policy(limit: int = LIMIT) -> Any:
    return ffi.new("struct polling *", {"limit": limit})


def spells(polling: Any, came: Iterable[int], caught: bool = True, waking: int = 0) -> Iterator[int]:
    """Dry spells, each ended by the driver so late; how long each was watched, nanoseconds. `caught`: it can come while
    it is watched for. `waking`: after so long it is seen by who has to be woken."""
    for late in came:
        span = lib.polling_begin(polling)
        if span and caught and late <= span:
            lib.polling_paid(polling, late)
        elif span:
            lib.polling_failed(polling)
            lib.polling_slept(polling, span + late + waking)
        else:
            lib.polling_slept(polling, late + waking)
        yield span


def test_a_quick_driver_is_watched_for() -> None:
    polling = policy()
    watched = list(spells(polling, itertools.repeat(10 * US, 100)))
    assert watched[0] == 0, "nothing is known of it yet"
    assert all(10 * US <= span <= LIMIT for span in watched[10:])
    assert polling.backoff == 0


@pytest.mark.parametrize("late", [150 * US, 1000 * US, 10**9, 1 << 62])
def test_a_slow_driver_is_not(late: int) -> None:
    assert not any(spells(policy(), itertools.repeat(late, 1000)))


def test_no_longer_than_the_limit() -> None:
    for limit in (1, 5 * US, LIMIT):
        watched = list(spells(policy(limit), itertools.repeat(limit, 100)))
        assert max(watched) == limit
    assert not any(spells(policy(0), itertools.repeat(1, 100)))


def test_a_wake_up_is_not_held_against_a_driver() -> None:
    assert all(list(spells(policy(), itertools.repeat(5 * US, 100), waking=40 * US))[10:])


def test_one_that_can_not_be_caught_costs_little() -> None:
    """It shares our core: while it is watched for it does not run."""
    watched = list(spells(policy(), itertools.repeat(8 * US, 100_000), caught=False))
    tries = [number for number, span in enumerate(watched) if span]
    gaps = [after - before for before, after in itertools.pairwise(tries)]
    assert gaps == sorted(gaps) and max(gaps) == lib.POLLING_REST + 1
    assert len(tries) < 40
    assert sum(watched) < 0.003 * sum(8 * US for _ in watched)


def test_a_driver_that_pauses_is_watched_for_once_more_at_most() -> None:
    """Then it has to show again that it is quick."""
    polling = policy()
    assert list(spells(polling, itertools.repeat(5 * US, 50)))[-1]
    assert sum(map(bool, spells(polling, itertools.repeat(10**9, 50)))) == 1
    again = list(spells(polling, itertools.repeat(5 * US, 50)))
    assert not any(again[:3]) and again[-1]


def test_what_is_paid_back_is_forgiven() -> None:
    polling = policy()
    list(spells(polling, itertools.repeat(8 * US, 2000), caught=False))
    assert polling.backoff > 100
    list(spells(polling, itertools.repeat(8 * US, 10_000)))
    assert polling.backoff == 0


# A ring.


def watched(r: Ring) -> int:
    return int(r.state.polls_paid + r.state.polls_failed)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_busy_ring_is_watched(ring: Make, threads: int) -> None:
    r = ring(event_idx=True)
    r.config.poll_ns = LIMIT
    r.start(threads=threads)

    def asked() -> bool:
        for number in range(100):
            assert r.driver.request([b"%d" % number], [4]) == b"%d" % number
        return watched(r) > 0

    wait_for(asked)
    assert r.stop() == [0] * threads
    # Whatever a spell comes to, there is one for each request at most, and a kick makes another.
    assert watched(r) <= r.state.popped + r.state.kicks


def test_kicks_that_bring_nothing_are_not_watched_for_for_ever(ring: Make) -> None:
    """Whoever sends nothing else gets a moment of each spell at first, and ever less often."""
    r = ring()
    r.config.poll_ns = LIMIT
    r.start()
    for _ in range(3000):
        before = r.state.kicks
        os.eventfd_write(r.kick, 1)
        while r.state.kicks == before:
            pass
    assert r.stop() == [0]
    assert r.state.polls_paid == 0
    assert r.state.polls_failed <= 20


def test_no_ring_is_watched_unless_allowed(ring: Make) -> None:
    r = ring()
    r.start()
    for number in range(300):
        r.driver.request([b"%d" % number], [4])
    assert r.stop() == [0]
    assert watched(r) == 0


# A ring nobody waits for.


def unhurried(ring: Make, poll_ns: int) -> Ring:
    r = ring(event_idx=True)
    r.config.unhurried, r.config.poll_ns = 1, poll_ns
    r.start(threads=1)
    return r


def kicks(r: Ring, room: list[int]) -> int:
    """Of twenty requests one after the other: those that it had to be woken for."""
    before = int(r.state.kicks)
    for number in range(20):
        assert r.driver.request([b"%d" % number], room) == (b"%d" % number if room else b"")
    return int(r.state.kicks) - before


def test_an_unhurried_ring_in_use_is_not_kicked(ring: Make) -> None:
    """It is looked at every millisecond, and the driver has sent the next request by then."""
    r = unhurried(ring, LIMIT)
    wait_for(lambda: kicks(r, []) < 10)
    # Then it sleeps, and is told again.
    wait_for(lambda: r.driver.avail_event[0] == r.driver.index & 0xFFFF)
    r.driver.add([b"x"], [])
    assert r.driver.kick()
    wait_for(lambda: r.state.completed == r.driver.index)
    assert r.stop() == [0]
    assert watched(r) == 0


def test_a_driver_that_waits_is_not_kept_waiting(ring: Make) -> None:
    """Windows' sends its FORGETs with room for a reply, and each when the last one was served."""
    r = unhurried(ring, 0)
    wait_for(lambda: kicks(r, [4]) > 10)
    assert r.stop() == [0]


def test_a_driver_that_waits_is_watched_for(ring: Make) -> None:
    r = unhurried(ring, LIMIT)
    wait_for(lambda: kicks(r, [4]) < 20 and watched(r) > 0)
    assert r.stop() == [0]


def test_an_unhurried_ring_is_stopped_while_it_is_left_alone(ring: Make) -> None:
    for _ in range(10):
        r = ring()
        r.config.unhurried = 1
        r.start()
        r.driver.request([b"x"], [])
        assert r.stop() == [0]
        assert r.state.completed == 1

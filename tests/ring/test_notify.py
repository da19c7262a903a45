"""Who tells whom: kicks and interrupts."""

import errno
import os
from collections.abc import Callable

import pytest

from tests.driver import NO_NOTIFY
from tests.ring.ring import Chain, Ring, interrupts, wait_for
from vhost._virtq import lib

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

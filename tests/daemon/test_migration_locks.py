"""Locks of a guest that moves, and its requests that wait for one."""

import errno
from collections.abc import Callable
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK

import pytest

from tests.daemon.daemon import Daemon
from tests.daemon.locking import ONE, TWO, on
from tests.daemon.moving import Journey, move

Daemons = Callable[..., Daemon]


def test_locks_go_along(daemons: Daemons) -> None:
    """And are in nobody's way where they were."""
    source, target, third = daemons(), daemons(), daemons()
    with on(source) as traveller, on(third) as other:
        flocked = traveller.open()
        traveller.lock(ONE, F_WRLCK, 0, 9)
        traveller.lock(ONE, F_RDLCK, 20)
        traveller.lock(TWO, F_WRLCK, 12, 12)
        flocked.lock(ONE, F_RDLCK, flock=True)
        move(traveller.frontend, target)
        assert source.wait() == 0

        for owner, start in ((TWO, 0), (TWO, 20), (ONE, 12)):
            traveller.lock(owner, F_WRLCK, start, start, expect=errno.EAGAIN)
        for start, kind in ((0, F_RDLCK), (9, F_RDLCK), (12, F_RDLCK), (100, F_WRLCK)):
            other.lock(ONE, kind, start, start, expect=errno.EAGAIN)
        for start in (10, 11, 13, 19):
            other.lock(ONE, F_WRLCK, start, start)
        other.lock(ONE, F_RDLCK, 20, 30)
        other.lock(ONE, F_WRLCK, flock=True, expect=errno.EAGAIN)
        found = traveller.client.getlk(traveller.nodeid, traveller.fh, TWO, F_WRLCK, 5, 5)
        assert (found.type, found.start, found.end) == (F_WRLCK, 0, 9)

        traveller.flush(ONE)
        traveller.lock(TWO, F_UNLCK, 12, 12)
        traveller.client.release(traveller.nodeid, flocked.fh)
        other.lock(ONE, F_WRLCK)
        other.lock(ONE, F_WRLCK, flock=True)


def test_locks_through_several_handles(daemons: Daemons) -> None:
    """Outlive one of them."""
    source, target, third = daemons(), daemons(), daemons()
    with on(source) as traveller, on(third) as other:
        again = traveller.open()
        traveller.lock(ONE, F_WRLCK, 0, 9)
        again.lock(ONE, F_WRLCK, 10, 19)
        move(traveller.frontend, target)
        traveller.client.release(traveller.nodeid, traveller.fh)
        other.lock(ONE, F_WRLCK, 0, 19, expect=errno.EAGAIN)
        again.flush(ONE)
        other.lock(ONE, F_WRLCK, 0, 19)


def test_who_stays_keeps_its_locks(daemons: Daemons) -> None:
    source, third = daemons(), daemons()
    with on(source) as traveller, on(third) as other:
        traveller.lock(ONE, F_WRLCK, 0, 9)
        traveller.lock(ONE, F_WRLCK, flock=True)
        journey = Journey(traveller.frontend)
        journey.turn_back()
        traveller.client.getattr(traveller.nodeid)
        other.lock(ONE, F_WRLCK, 5, 5, expect=errno.EAGAIN)
        other.lock(ONE, F_WRLCK, flock=True, expect=errno.EAGAIN)
        assert "ERROR" not in source.log


@pytest.mark.parametrize("action", ["abort", "guest-error"])
def test_a_lock_that_another_took_meanwhile(daemons: Daemons, action: str) -> None:
    source, target, third = daemons(), daemons(f"--migration-on-error={action}"), daemons()
    with on(source) as traveller, on(third) as other:
        traveller.lock(ONE, F_WRLCK, 0, 9)
        journey = Journey(traveller.frontend)
        other.lock(TWO, F_WRLCK, 5, 5)
        assert journey.arrive(target) == (action == "guest-error")
        target.logged("/hello (Resource temporarily unavailable)")
        if action == "guest-error":
            journey.go_on()
            traveller.lock(ONE, F_WRLCK, 0, 9, expect=errno.EAGAIN)
            return
        journey.turn_back()
        traveller.client.getattr(traveller.nodeid)
        source.logged("1 locks of the guest were lost to others")


def test_a_request_that_waits_goes_along(daemons: Daemons) -> None:
    """It is answered where the guest is by then, when it has its lock; and its order is kept."""
    source, target, third = daemons(), daemons(), daemons()
    with on(source) as traveller, on(third) as other:
        other.lock(ONE, F_WRLCK, 0, 9)
        asked = [traveller.ask(ONE, F_WRLCK, 0, 9), traveller.ask(TWO, F_WRLCK, 0, 9)]
        traveller.client.getattr(traveller.nodeid)
        move(traveller.frontend, target)
        assert source.wait() == 0
        traveller.client.getattr(traveller.nodeid)
        assert not any(each.answered for each in asked)
        other.flush(ONE)
        assert asked[0].answer() == 0
        assert not asked[1].answered
        traveller.flush(ONE)
        assert asked[1].answer() == 0
        other.lock(ONE, F_RDLCK, 0, 9, expect=errno.EAGAIN)


def test_a_request_that_waits_stays_when_the_guest_does(daemons: Daemons) -> None:
    source, third = daemons(), daemons()
    with on(source) as traveller, on(third) as other:
        other.lock(ONE, F_WRLCK, 0, 9)
        asked = traveller.ask(ONE, F_WRLCK, 0, 9)
        traveller.client.getattr(traveller.nodeid)
        Journey(traveller.frontend).turn_back()
        other.flush(ONE)
        assert asked.answer() == 0

"""The worker that waits to be the next one (vfsd/spare.py)."""

import os
import signal
import time
from collections.abc import Callable
from typing import NoReturn

import pytest

from tests.daemon.daemon import Daemon, children, guest, open_files, prepared, until
from tests.driver import Allocator
from tests.frontend import MIB
from tests.fuseclient import ROOT
from vfsd import supervisor
from vfsd.spare import Spare
from vfsd.supervisor import EARLY, Supervisor, Work


def test_is_the_next_worker(daemon: Daemon) -> None:
    with guest(daemon) as (_, client):
        client.getattr(ROOT)
        for _ in range(5):
            spare = prepared(daemon)
            daemon.kill_worker()
            assert client.lookup(ROOT, b"hello").attr.size == 9
            assert daemon.worker == spare
    assert daemon.wait() == 0
    assert daemon.log.count("another one goes on") == 5
    until(lambda: not os.path.exists(f"/proc/{spare}"))


def test_one_that_has_died_is_not_missed(daemon: Daemon) -> None:
    with guest(daemon) as (_, client):
        client.getattr(ROOT)
        spare = daemon.spare
        os.kill(spare, signal.SIGKILL)
        daemon.kill_worker()
        assert client.lookup(ROOT, b"hello").attr.size == 9
        assert daemon.worker != spare != daemon.spare
        until(lambda: not os.path.exists(f"/proc/{spare}"))


def test_one_that_is_late_goes_all_the_same(daemon: Daemon) -> None:
    """It gets no processor while the next one is due, again and again; or has ended by then."""
    with guest(daemon) as (_, client):
        for number, killed in enumerate((False, True, False)):
            client.getattr(ROOT)
            spare = prepared(daemon)
            os.kill(spare, signal.SIGSTOP)
            daemon.kill_worker()
            daemon.logged("another one goes on", 1 + number + (number == 2))
            time.sleep(10 * EARLY)
            assert len(children(daemon.control)) == 1
            os.kill(spare, signal.SIGKILL if killed else signal.SIGCONT)
            assert client.lookup(ROOT, b"hello").attr.size == 9
            assert (daemon.worker == spare) != killed


def test_what_the_front_end_changes_is_known_to_the_next(daemon: Daemon) -> None:
    with guest(daemon) as (frontend, client):
        client.getattr(ROOT)
        spare = prepared(daemon)
        region = frontend.plug(1 << 32, 2 * MIB)
        until(lambda: not os.path.exists(f"/proc/{spare}"))
        daemon.kill_worker()
        frontend.queue(1).allocator = Allocator(region.wire.guest_addr, region.wire.size)
        assert client.lookup(ROOT, b"hello").attr.size == 9


def test_leaves_no_descriptor(daemon: Daemon) -> None:
    with guest(daemon) as (_, client):
        counts = []
        for wait in (0.0, 0.0, 0.01, 0.02, 0.025, 0.03, 0.035, 0.04, 0.05):
            # Some die while the next one prepares.
            time.sleep(wait)
            daemon.kill_worker()
            client.getattr(ROOT)
            prepared(daemon)
            counts.append(len(open_files(daemon.control)))
        assert len(set(counts)) == 1


def test_those_in_vain_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they had opened is not swept before a worker has ended."""

    def life(spec: bool, room: Callable[[], int], spare: bool) -> NoReturn:
        if spec and spare:
            room()
        time.sleep(1000)
        raise AssertionError

    for wait in ("EARLY", "SILENCE"):
        monkeypatch.setattr(supervisor, wait, 0.0)
    owner = Supervisor(os.eventfd(0), lambda: None, os.open("/proc", os.O_RDONLY))
    try:
        for prepares in (False, True, False):
            owner.start(Work(life, prepares, 1, lambda: 0, lambda weight: True))
            for _ in range(supervisor.VAIN):
                assert owner.until_spare() == 0
                owner.prepare()
                until(lambda prepares=prepares: owner._spare.prepared == prepares)
                owner.change()
            assert owner.until_spare() == (0 if prepares else None)
            os.kill(owner.pid, signal.SIGKILL)
            owner.collect()
    finally:
        owner.kill()


def test_one_that_is_not_prepared_does_not_go() -> None:
    def life(wait: Callable[[], int]) -> NoReturn:
        time.sleep(1000)
        raise AssertionError

    spare = Spare()
    spare.make(1, life)
    assert len(spare.descriptors()) == 1
    assert spare.take(1, 1) is None
    assert not spare.there and not spare.descriptors()


def test_learns_what_room_there_is() -> None:
    def life(wait: Callable[[], int]) -> NoReturn:
        os._exit(wait())

    spare = Spare()
    for room, stopped in ((7, True), (11, False)):
        spare.make(1, life)
        until(lambda: spare.prepared)
        if stopped:
            # So that it dies without having heard, which the next one is not to hear in its place.
            os.kill(spare.pid, signal.SIGSTOP)
        taken = spare.take(1, room)
        assert taken
        if stopped:
            os.kill(spare.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(taken[0], 0)[1])
        assert status == (-signal.SIGKILL if stopped else room)
        os.close(taken[1])


def test_one_that_was_forked_with_something_else_does_not_go() -> None:
    def life(wait: Callable[[], int]) -> NoReturn:
        os._exit(wait())

    spare = Spare()
    spare.make("one window", life)
    until(lambda: spare.prepared)
    assert spare.take("another", 1) is None
    assert not spare.there

"""Locks across workers, rings, front-ends and daemons; and requests that wait for one."""

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, open_files, until
from tests.daemon.locking import ALL_FLAGS, ONE, THREE, TWO, Guest, on
from tests.frontend import FEATURES, FrontEnd
from tests.fuseclient import ROOT, FuseClient
from vfsd._fuse import lib
from vhost.message import Feature, ProtocolFeature


def is_free(path: Path, call: str = "lockf", kind: int = fcntl.LOCK_EX) -> bool:
    """Whether a process of the host, this one, gets the lock; it gives it back."""
    with open(path, "r+b") as file:
        try:
            getattr(fcntl, call)(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def second(tmp_path: Path, share: Path) -> Iterator[Daemon]:
    """Another daemon on the same directory."""
    with Daemon(share, tmp_path / "second.sock", "--sandbox=none") as daemon:
        yield daemon


def test_two_guests_and_the_host(daemon: Daemon, second: Daemon, share: Path) -> None:
    with on(daemon) as one, on(second) as two, open(share / "hello", "r+b") as host:
        one.lock(ONE, F_WRLCK, 0, 9)
        # Owners are each guest's own: the same number is somebody else there.
        two.lock(ONE, F_WRLCK, 5, 5, expect=errno.EAGAIN)
        two.lock(ONE, F_WRLCK, 10, 19)
        fcntl.lockf(host, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)
        for who in (one, two):
            who.lock(TWO, F_RDLCK, 29, 29, expect=errno.EAGAIN)
        with pytest.raises(BlockingIOError):
            fcntl.lockf(host, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 19)
        one.lock(ONE, F_WRLCK, flock=True)
        two.lock(ONE, F_RDLCK, flock=True, expect=errno.EAGAIN)
        with pytest.raises(BlockingIOError):
            fcntl.flock(host, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # A guest that is killed frees its locks.
        daemon.process.kill()
        daemon.process.wait()
        # Its worker ends a moment later.
        assert two.ask(TWO, F_WRLCK, 0, 9).answer() == 0
        assert two.ask(ONE, F_WRLCK, flock=True).answer() == 0


def test_locks_outlive_the_worker(daemon: Daemon, share: Path) -> None:
    with on(daemon) as one:
        one.lock(ONE, F_WRLCK, 0, 9)
        one.lock(ONE, F_WRLCK, flock=True)
        for _ in range(2):
            daemon.kill_worker()
            one.lock(TWO, F_WRLCK, 9, 9, expect=errno.EAGAIN)
            one.lock(ONE, F_WRLCK, 20, 29)
            assert not is_free(share / "hello") and not is_free(share / "hello", "flock")
        daemon.kill_worker()
        one.flush(ONE)
        one.lock(TWO, F_WRLCK)
        one.flush(TWO)
        assert is_free(share / "hello")


def test_a_front_end_that_leaves_frees_its_locks(start: Callable[..., Daemon], share: Path) -> None:
    daemon = start("--sandbox=none", "--keep-listening")
    counts = set()
    for number in range(3):
        with on(daemon) as one:
            one.lock(ONE, F_WRLCK, 0, 9)
            one.lock(ONE, F_WRLCK, flock=True)
            waiting = one.ask(TWO, F_WRLCK)
            one.lock(THREE, F_WRLCK, 5, 5, expect=errno.EAGAIN)
            assert not waiting.answered
            assert not is_free(share / "hello")
        daemon.logged("Client disconnected", number + 1)
        assert is_free(share / "hello") and is_free(share / "hello", "flock")
        counts.add(len(open_files(daemon.control)))
    assert len(counts) == 1
    assert "Traceback" not in daemon.log and "has not parked" not in daemon.log


@pytest.mark.parametrize("flock", [False, True])
def test_a_waiter_gets_the_lock_when_it_is_freed(daemon: Daemon, flock: bool) -> None:
    with on(daemon) as one:
        other, third = one.open(), one.open()
        one.lock(ONE, F_WRLCK, flock=flock)
        first, then = other.ask(TWO, F_WRLCK, flock=flock), third.ask(THREE, F_WRLCK, flock=flock)
        one.client.statfs()
        assert not first.answered and not then.answered
        one.lock(ONE, F_UNLCK, flock=flock)
        until(lambda: first.answered or then.answered)
        one.lock(ONE, F_RDLCK, flock=flock, expect=errno.EAGAIN)
        # The first who came gets it, but where it is freed between their being tried.
        assert first.answered != then.answered
        got, owner, next_one = (other, TWO, then) if first.answered else (third, THREE, first)
        if flock:
            got.client.release(got.nodeid, got.fh, release_flags=lib.FUSE_RELEASE_FLOCK_UNLOCK)
        else:
            got.flush(owner)
        assert next_one.answer() == 0
        assert one.ask(ONE, F_UNLCK, flock=flock).answer() == 0


def test_waiting_for_a_process_of_the_host_and_for_another_guest(
    daemon: Daemon, second: Daemon, share: Path
) -> None:
    with on(daemon) as one, on(second) as two:
        with open(share / "hello", "r+b") as host:
            fcntl.lockf(host, fcntl.LOCK_EX, 10, 0)
            fcntl.flock(host, fcntl.LOCK_EX)
            waiting, flock = one.ask(ONE, F_WRLCK, 5, 5), one.ask(ONE, F_RDLCK, flock=True)
            two.lock(ONE, F_RDLCK, 0, 0, expect=errno.EAGAIN)
            assert not waiting.answered and not flock.answered
        assert waiting.answer() == flock.answer() == 0
        theirs = two.ask(ONE, F_WRLCK)
        two.lock(TWO, F_RDLCK, 5, 5, expect=errno.EAGAIN)
        assert not theirs.answered
        one.flush(ONE)
        assert theirs.answer() == 0


def test_ranges_wait_apart(daemon: Daemon) -> None:
    with on(daemon) as one:
        one.lock(ONE, F_WRLCK, 0, 9)
        one.lock(TWO, F_WRLCK, 10, 19)
        low, high = one.ask(THREE, F_WRLCK, 0, 9), one.ask(THREE, F_WRLCK, 10, 19)
        one.lock(TWO, F_UNLCK, 10, 19)
        assert high.answer() == 0
        assert not low.answered
        one.lock(ONE, F_RDLCK, 0, 9)
        assert not low.answered
        readers = one.ask(4, F_RDLCK, 0, 9)
        assert readers.answer() == 0
        one.flush(ONE)
        one.flush(4)
        assert low.answer() == 0


def test_a_waiter_outlives_the_worker(daemon: Daemon) -> None:
    with on(daemon) as one:
        other = one.open()
        one.lock(ONE, F_WRLCK)
        one.lock(ONE, F_WRLCK, flock=True)
        waiting, flock = one.ask(TWO, F_WRLCK), other.ask(TWO, F_WRLCK, flock=True)
        for _ in range(3):
            daemon.kill_worker()
            one.lock(THREE, F_RDLCK, expect=errno.EAGAIN)
            assert not waiting.answered and not flock.answered
        one.lock(ONE, F_UNLCK, flock=True)
        one.flush(ONE)
        assert waiting.answer() == flock.answer() == 0
        one.lock(THREE, F_RDLCK, expect=errno.EAGAIN)
        assert not one.frontend.queue(1).poll(), "answered twice"


def test_a_waiter_outlives_a_change_of_configuration(daemon: Daemon) -> None:
    """Logging begins and ends, as a migration has it: the worker is replaced, and the request stays in flight."""
    with on(daemon) as one:
        one.lock(ONE, F_WRLCK)
        waiting = one.ask(TWO, F_WRLCK)
        for change in (one.frontend.log_start, one.frontend.log_stop, one.frontend.log_start):
            one.client.statfs()
            worker = daemon.worker
            change()
            assert daemon.worker != worker
            one.lock(THREE, F_RDLCK, expect=errno.EAGAIN)
            assert not waiting.answered
        one.frontend.dirty()
        one.flush(ONE)
        assert waiting.answer() == 0
        assert one.frontend.dirty(), "the answer is logged"
        one.frontend.log_stop()
        one.client.statfs()
        assert "has not parked" not in daemon.log


@pytest.mark.parametrize("dies", [False, True], ids=["", "its worker died"])
@pytest.mark.parametrize("enable", [False, True])
def test_a_waiter_outlives_a_pause_of_the_guest(daemon: Daemon, enable: bool, dies: bool) -> None:
    """QEMU's stop disables the rings first (vhost_dev_stop); a front-end without PROTOCOL_FEATURES can't."""
    features = FEATURES if enable else FEATURES & ~Feature.PROTOCOL_FEATURES
    with FrontEnd(daemon.socket_path) as frontend:
        frontend.negotiate(features=features)
        frontend.start()
        client = FuseClient(lambda request, room: frontend.request(1, request, room))
        client.init(minor=45, flags=ALL_FLAGS)
        nodeid = client.lookup(ROOT, b"hello").nodeid
        one = Guest(frontend, client, nodeid, client.open(nodeid, os.O_RDWR).fh)
        one.lock(ONE, F_WRLCK, 0, 9)
        two, three = one.ask(TWO, F_WRLCK), one.ask(THREE, F_RDLCK)
        for _ in range(2):
            client.statfs()
            if dies:
                daemon.kill_worker()
            frontend.stop()
            assert not daemon.workers and not two.answered and not three.answered
            frontend.start()
        one.lock(THREE, F_WRLCK, 5, 5, expect=errno.EAGAIN)
        one.flush(ONE)
        assert two.answer() == 0
        assert not three.answered
        one.flush(TWO)
        assert three.answer() == 0
        assert not frontend.queue(1).poll(), "answered twice"
    assert "has not parked" not in daemon.log and "Traceback" not in daemon.log


@pytest.mark.parametrize("told", [True, False], ids=["RESET_DEVICE", "not told"])
def test_a_reboot_frees_the_locks_and_forgets_who_waits(daemon: Daemon, share: Path, told: bool) -> None:
    with FrontEnd(daemon.socket_path) as frontend:
        frontend.negotiate(protocol_features=~(0 if told else ProtocolFeature.RESET_DEVICE))
        frontend.start()
        client = FuseClient(lambda request, room: frontend.request(1, request, room))
        client.init(minor=45, flags=ALL_FLAGS)
        nodeid = client.lookup(ROOT, b"hello").nodeid
        one = Guest(frontend, client, nodeid, client.open(nodeid, os.O_RDWR).fh)
        one.lock(ONE, F_WRLCK)
        one.ask(TWO, F_WRLCK)
        client.statfs()
        frontend.reset()
        frontend.start()
        client.init(minor=45, flags=ALL_FLAGS)
        assert is_free(share / "hello")
        assert client.lookup(ROOT, b"hello").nodeid
        assert not frontend.queue(1).poll()


@pytest.mark.parametrize("indirect", [True, False])
def test_requests_that_wait_leave_room_for_others(daemon: Daemon, indirect: bool) -> None:
    """Of a ring of 32 so many wait that unlocking always gets through; the next one is told that there are too many."""
    features = FEATURES if indirect else FEATURES & ~Feature.INDIRECT_DESC
    room = 16 if indirect else 4
    with FrontEnd(daemon.socket_path, num=32, queues=3) as frontend:
        frontend.negotiate(features=features)
        frontend.start()
        client = FuseClient(lambda request, room: frontend.request(1, request, room))
        client.init(minor=45, flags=ALL_FLAGS)
        nodeid = client.lookup(ROOT, b"hello").nodeid
        one = Guest(frontend, client, nodeid, client.open(nodeid, os.O_RDWR).fh)
        one.lock(ONE, F_WRLCK)
        waiting = [one.ask(owner, F_RDLCK) for owner in range(room)]
        assert one.ask(99, F_RDLCK).answer() == errno.ENOLCK
        # Another ring has room of its own.
        waiting += [one.ask(owner, F_RDLCK, queue=2) for owner in range(100, 100 + room)]
        assert one.ask(999, F_RDLCK, queue=2).answer() == errno.ENOLCK
        daemon.kill_worker()
        assert one.ask(99, F_RDLCK).answer() == errno.ENOLCK
        assert not any(asked.answered for asked in waiting)
        one.flush(ONE)
        assert {asked.answer() for asked in waiting} == {0}
        assert one.ask(99, F_RDLCK).answer() == 0


def test_owners_that_wait_for_each_other(daemon: Daemon, share: Path) -> None:
    with on(daemon) as one:
        (share / "other").touch()
        nodeid = one.client.lookup(ROOT, b"other").nodeid
        other = one._replace(nodeid=nodeid, fh=one.client.open(nodeid, os.O_RDWR).fh)
        one.lock(ONE, F_WRLCK, 0, 9)
        other.lock(TWO, F_WRLCK)
        one.lock(THREE, F_WRLCK, 20, 29)
        two_waits = one.ask(TWO, F_WRLCK, 5, 25)  # for ONE
        three_waits = other.ask(THREE, F_WRLCK)  # for TWO
        one.client.statfs()
        assert other.ask(ONE, F_RDLCK).answer() == errno.EDEADLK
        assert one.ask(ONE, F_WRLCK, 20, 20).answer() == errno.EDEADLK
        assert not two_waits.answered and not three_waits.answered
        one.flush(ONE)
        one.flush(THREE)
        assert two_waits.answer() == 0
        other.flush(TWO)
        assert three_waits.answer() == 0


def test_many_threads_and_owners_on_one_counter(start: Callable[..., Daemon], share: Path) -> None:
    """Nothing is lost and nobody waits for ever while locks go from hand to hand, and workers die."""
    daemon, rounds, workers = start("--sandbox=none", "--thread-pool-size=2"), 40, 4
    (share / "hello").write_bytes(b"0")
    with on(daemon, queues=1 + workers) as one, ExitStack() as stack:
        failures: list[BaseException] = []

        def count(queue: int) -> None:
            client = FuseClient(lambda request, room: one.frontend.request(queue, request, room))
            mine = one._replace(client=client)
            try:
                for _ in range(rounds):
                    mine.lock(queue, F_WRLCK, wait=True)
                    number = int(client.read(one.nodeid, one.fh, 10))
                    client.write(one.nodeid, one.fh, b"%d" % (number + 1))
                    mine.lock(queue, F_UNLCK)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=count, args=(1 + number,)) for number in range(workers)]
        for thread in threads:
            thread.start()
        stack.callback(lambda: [thread.join() for thread in threads])
        for _ in range(5):
            before = sum(1 for thread in threads if thread.is_alive())
            if before:
                daemon.kill_worker()
                until(lambda: daemon.workers)
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "somebody waits for ever"
        assert not failures, failures
        assert (share / "hello").read_bytes() == b"%d" % (rounds * workers)

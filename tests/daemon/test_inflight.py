"""What was in flight outlives more than workers, where the front-end keeps the region for it; and does not outlive its
guest."""

import errno
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, guest, open_files, until
from tests.daemon.test_poison import REFUSED, deaths, send
from tests.frontend import FrontEnd
from tests.fuseclient import ROOT, FuseClient

Start = Callable[..., Daemon]
POISONED = ["-m", "tests.daemon.poisoned"]


def test_workers_die_with_a_region_of_the_front_end(start: Start) -> None:
    daemon = start("--sandbox=none", program=POISONED)
    with FrontEnd(daemon.socket_path) as frontend:
        frontend.negotiate()
        frontend.get_inflight()
        frontend.start()
        assert frontend.inflight
        client = FuseClient(partial(frontend.request, 1))
        client.init()
        assert any(os.pread(frontend.inflight[1], 4096, 0)), "it is in use"
        for number in range(5):
            slow = send(frontend, lambda aside, number=number: aside.mkdir(ROOT, b"@sleep%d" % number))
            time.sleep(0.05)
            daemon.kill_worker()
            assert slow.answer()[0] == 0
        client.mkdir(ROOT, b"@SIGSEGV", expect=errno.EIO)
        assert deaths(daemon) == 7
        frontend.stop()
        frontend.start()
        client.getattr(ROOT)
    assert daemon.log.count(REFUSED) == 1


def test_the_next_daemon_answers_what_the_last_one_left(share: Path, tmp_path: Path) -> None:
    """It knows nothing of the mount, and says so; but nobody in the guest waits for ever."""
    path = tmp_path / "vfsd.sock"
    with Daemon(share, path, "--sandbox=none", program=POISONED) as first:
        frontend = FrontEnd(path)
        frontend.negotiate()
        frontend.get_inflight()
        frontend.start()
        client = FuseClient(partial(frontend.request, 1))
        client.init()
        for _ in range(5):
            client.getattr(ROOT)
        before = client.getattr(ROOT)
        sent = [send(frontend, lambda aside, name=b"@wait%d" % number: aside.mkdir(ROOT, name)) for number in range(3)]
        # The first of them is taken, the others wait.
        (waits,) = until(lambda: [*share.glob("waits*")])
        first.process.kill()
        first.wait()
        path.with_suffix(".sock.pid").unlink()
    with frontend, Daemon(share, path, "--sandbox=none") as second:
        frontend.reconnect(second.connect)
        frontend.negotiate()
        frontend.start()
        assert [one.answer()[0] for one in sent] == [errno.EIO] * 3
        client.init()
        assert client.getattr(ROOT).attr.ino == before.attr.ino
    waits.unlink()
    assert os.listdir(share) == ["hello"]


def test_guests_come_and_go_with_their_poisons(start: Start) -> None:
    """Of what one guest has sent the next knows nothing."""
    daemon = start("--sandbox=none", "--keep-listening", program=POISONED)
    counts = set()
    for number in range(4):
        with guest(daemon) as (frontend, client):
            client.open(client.lookup(ROOT, b"hello").nodeid)
            for _ in range(3):
                # The same heads in each guest.
                send(frontend, lambda aside: aside.mkdir(ROOT, b"@SIGSEGV"))
            if number % 2:
                daemon.logged("was killed by SIGSEGV")
        daemon.logged("Client disconnected", 2 * number + 1)
        with guest(daemon) as (frontend, client):
            assert client.lookup(ROOT, b"hello").attr.size == 9
            for reboot in range(3):
                frontend.reset()
                frontend.start()
                client.init()
                client.mkdir(ROOT, b"dir%d-%d" % (number, reboot))
        daemon.logged("Client disconnected", 2 * number + 2)
        counts.add(len(open_files(daemon.control)))
    assert len(counts) == 1


@pytest.mark.parametrize("killed", [False, True])
def test_a_guest_that_reboots_with_requests_in_flight(start: Start, killed: bool) -> None:
    """They are the old boot's. The new one, on the same rings and heads, gets answers to its own."""
    daemon = start("--sandbox=none", program=POISONED)
    with guest(daemon) as (frontend, client):
        for boot in range(3):
            for number in range(3):
                send(frontend, lambda aside, name=b"@sleep%d-%d" % (boot, number): aside.mkdir(ROOT, name))
            if killed:
                time.sleep(0.05)
                daemon.kill_worker()
            frontend.reset()
            frontend.start()
            client.init()
            for _ in range(200):
                assert client.lookup(ROOT, b"hello").attr.size == 9

"""Workers come and go, and the guest does not notice."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.daemon.daemon import FORESIGHTED, Daemon, guest, kinds, open_files, settled_files, until
from tests.driver import NEXT, Buffer
from tests.frontend import MIB, FrontEnd
from tests.fuseclient import HEADER, ROOT, FuseClient, pack
from vfsd._fuse import lib
from vhost.message import ProtocolFeature, Request, VringState

SIZE = 200 * MIB


def read_all(client: FuseClient, name: bytes, size: int) -> str:
    """SHA-256 of a file, read in requests of 1 MiB."""
    nodeid = client.lookup(ROOT, name).nodeid
    fh, digest = client.open(nodeid).fh, hashlib.sha256()
    for offset in range(0, size, MIB):
        data = client.read(nodeid, fh, MIB, offset)
        assert len(data) == min(MIB, size - offset)
        digest.update(data)
    client.release(nodeid, fh)
    client.forget(nodeid)
    return digest.hexdigest()


def fill(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            data = os.urandom(4096) * (MIB // 4096)
            digest.update(data)
            file.write(data)
    return digest.hexdigest()


def test_killed_while_idle(daemon: Daemon, share: Path) -> None:
    with guest(daemon) as (_, client):
        nodeid = client.lookup(ROOT, b"hello").nodeid
        fh = client.open(nodeid).fh
        (share / "hello").unlink()
        for _ in range(3):
            killed = daemon.kill_worker()
            assert client.read(nodeid, fh, 100) == b"hi there\n", "an open file that is deleted outlives the worker"
            assert daemon.worker != killed
        client.release(nodeid, fh)
        client.lookup(ROOT, b"hello", expect=2)
    assert daemon.log.count("was killed by SIGKILL; another one goes on") == 3


@pytest.mark.parametrize("threads", [1, 4])
def test_killed_under_a_read_load(start: Callable[..., Daemon], share: Path, threads: int) -> None:
    wanted = fill(share / "big", SIZE)
    daemon = start("--sandbox=none", f"--thread-pool-size={threads}")
    over = threading.Event()
    killed: list[int] = []

    with guest(daemon) as (_, client):

        def killer() -> None:
            # Killed at moments the load does not choose; but no request is there for the death of eight workers.
            while not over.wait(0.1):
                for pid in daemon.workers if killed[-1:] != [client.unique] else []:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(client.unique)

        thread = threading.Thread(target=killer)
        thread.start()
        try:
            assert read_all(client, b"big", SIZE) == wanted
            until(lambda: killed)
            assert read_all(client, b"big", SIZE) == wanted
        finally:
            over.set()
            thread.join()


def test_kills_leak_no_descriptor(daemon: Daemon, share: Path) -> None:
    for number in range(20):
        (share / f"file{number}").write_bytes(b"x")
    with guest(daemon) as (_, client):
        client.list(plus=True)
        nodeid = client.lookup(ROOT, b"hello").nodeid
        fh = client.open(nodeid).fh
        daemon.kill_worker()
        client.read(nodeid, fh, 1)
        baseline = settled_files(daemon)
        for _ in range(20):
            for name in (b"file1", b"file2"):
                entry = client.lookup(ROOT, name)
                client.release(entry.nodeid, client.open(entry.nodeid).fh)
                client.forget(entry.nodeid)
            daemon.kill_worker()
            assert client.read(nodeid, fh, 1) == b"h"
        now = settled_files(daemon)
        assert sorted(kinds(now)) == sorted(kinds(baseline))


def test_thousands_of_descriptors(daemon: Daemon, share: Path) -> None:
    for number in range(2000):
        (share / f"{number}").touch()
    with guest(daemon) as (_, client):
        known = [client.lookup(ROOT, b"%d" % number).nodeid for number in range(2000)]
        for _ in range(3):
            daemon.kill_worker()
            assert [client.getattr(nodeid).attr.size for nodeid in known] == [0] * 2000
        assert len(open_files(daemon.control)) > 2000
        daemon.process.terminate()
        assert daemon.wait() == 1


def test_front_ends_and_mounts_leak_no_descriptor(start: Callable[..., Daemon]) -> None:
    daemon = start("--sandbox=none", "--keep-listening", program=["-c", FORESIGHTED])
    daemon.logged("Waiting")
    until(lambda: len(open_files(daemon.control)) > 5)
    counts = set()
    for number in range(20):
        with guest(daemon) as (_, client):
            for _ in range(2):
                nodeid = client.lookup(ROOT, b"hello").nodeid
                client.open(nodeid)
                client.opendir(ROOT)
                client.destroy()
                client.init()
            client.open(client.lookup(ROOT, b"hello").nodeid)
            inside = len(settled_files(daemon))
        daemon.logged("Client disconnected", number + 1)
        counts.add((inside, len(open_files(daemon.control))))
    assert len(counts) == 1, counts


def test_killed_again_and_again_before_it_did_anything(daemon: Daemon) -> None:
    with guest(daemon) as (_, client):
        for _ in range(4):
            daemon.kill_worker()
        assert client.lookup(ROOT, b"hello").attr.size == 9


def test_memory_comes_and_goes_while_the_guest_works(daemon: Daemon) -> None:
    with guest(daemon) as (frontend, client):
        worker = daemon.worker
        more = frontend.plug(1 << 32, 4 * MIB)
        assert client.lookup(ROOT, b"hello").attr.size == 9
        frontend.unplug(more)
        assert client.lookup(ROOT, b"hello").attr.size == 9
        assert daemon.worker == worker, "memory that no chain touched needs no new worker"


def test_memory_that_was_used_goes_while_the_guest_works(daemon: Daemon) -> None:
    with FrontEnd(daemon.socket_path) as frontend:
        # Without CONFIGURE_MEM_SLOTS every change is a new table, as with QEMU before 9.0.
        frontend.negotiate(protocol_features=~ProtocolFeature.CONFIGURE_MEM_SLOTS)
        frontend.start()
        client = FuseClient(partial(frontend.request, 1))
        client.init()
        more = frontend.plug(1 << 32, 4 * MIB)
        queue = frontend.queue(1)
        request = pack("fuse_in_header", len=HEADER, opcode=lib.FUSE_STATFS, unique=2, nodeid=ROOT)
        frontend.memory.write(1 << 32, request)
        head = queue.add_buffers([Buffer(1 << 32, HEADER)], [Buffer((1 << 32) + 4096, 4096)])
        queue.kick()
        assert queue.wait(head).length > 16
        worker = daemon.worker
        frontend.unplug(more)
        assert client.lookup(ROOT, b"hello").attr.size == 9
        assert daemon.worker != worker


def test_what_the_device_writes_is_logged(daemon: Daemon) -> None:
    with guest(daemon) as (frontend, client):
        nodeid = client.lookup(ROOT, b"hello").nodeid
        fh = client.open(nodeid).fh
        frontend.log_start()
        for _ in range(2):
            client.read(nodeid, fh, 4096)
            dirty = frontend.dirty()
            used = frontend.rings[1].where.used // 4096 * 4096
            assert used in dirty and len(dirty) >= 2
            daemon.kill_worker()
        frontend.log_stop()
        frontend.dirty()
        client.read(nodeid, fh, 4096)
        assert not frontend.dirty()


def test_a_signal_ends_a_wait_for_the_worker(daemon: Daemon) -> None:
    with guest(daemon) as (frontend, _):
        worker = daemon.worker
        os.kill(worker, signal.SIGSTOP)
        frontend.send(Request.GET_VRING_BASE, VringState(1, 0))
        daemon.process.terminate()
        assert daemon.wait() == 1
        until(lambda: not os.path.exists(f"/proc/{worker}"))


def test_a_broken_ring_is_logged_and_the_others_go_on(daemon: Daemon) -> None:
    with guest(daemon, queues=3) as (frontend, client):
        queue = frontend.queue(2)
        queue.descriptor(0, 0, 64, NEXT, 0)
        queue.publish(0)
        queue.kick()
        daemon.logged("ring 2 is broken (")
        assert client.lookup(ROOT, b"hello").attr.size == 9
        daemon.kill_worker()
        assert client.lookup(ROOT, b"hello").attr.size == 9
        frontend.reset()
        frontend.start()
        client.init()
        other = FuseClient(lambda request, room: frontend.request(2, request, room))
        assert other.lookup(ROOT, b"hello").attr.size == 9


def test_many_queues_and_threads(start: Callable[..., Daemon]) -> None:
    daemon = start("--sandbox=none", "--thread-pool-size=3")
    with guest(daemon, queues=9) as (frontend, _):
        for index in range(1, 9):
            client = FuseClient(partial(frontend.request, index))
            assert client.lookup(ROOT, b"hello").attr.size == 9


def test_the_worker_holds_what_the_design_says(daemon: Daemon) -> None:
    with guest(daemon):
        pid = daemon.worker
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert int(status["Umask"], 8) == 0
        assert status["NoNewPrivs"] == "1"
        assert os.readlink(f"/proc/{pid}/cwd") == f"/proc/{pid}/fd"
        assert settled_files(daemon).keys() == open_files(pid).keys(), "the descriptor table is shared"


def test_rings_of_a_worker_that_died_are_parked_where_they_stand(daemon: Daemon) -> None:
    """The front-end's GET_VRING_BASE is there before the worker's death is noticed."""
    with guest(daemon) as (frontend, client):
        for _ in range(5):
            client.forget(client.lookup(ROOT, b"hello").nodeid)
        os.kill(daemon.control, signal.SIGSTOP)
        daemon.kill_worker()
        go_on = threading.Timer(0.2, os.kill, (daemon.control, signal.SIGCONT))
        go_on.start()
        frontend.stop()
        go_on.join()
        queue = frontend.queue(1)
        assert frontend.rings[1].base == queue.index == queue.last_used > 0
        frontend.start()
        assert client.lookup(ROOT, b"hello").attr.size == 9

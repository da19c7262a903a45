"""What else a worker may die of, or stand still for: limits, want of memory, signals. The guest sees none of it."""

import errno
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.daemon.cgroup import Group, group
from tests.daemon.daemon import Daemon, at_rest, guest, until
from tests.frontend import MIB
from tests.fuseclient import ROOT, pack
from vfsd._fuse import lib

Start = Callable[..., Daemon]

CALM = "another one goes on"


@pytest.fixture
def memory() -> Iterator[Group]:
    with group("memory") as made:
        yield made


@pytest.fixture
def processes() -> Iterator[Group]:
    with group("pids") as made:
        yield made


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGKILL, signal.SIGQUIT])
def test_signals(daemon: Daemon, share: Path, number: int) -> None:
    """Whoever sends them."""
    (share / "data").write_bytes(bytes(range(256)) * 256)
    with guest(daemon) as (_, client):
        nodeid = client.lookup(ROOT, b"data").nodeid
        fh = client.open(nodeid, os.O_RDWR).fh
        for turn in range(3):
            os.kill(worker := daemon.worker, number)
            # It may serve the next request before it dies.
            until(lambda worker=worker: worker not in daemon.workers)
            assert client.read(nodeid, fh, 256, 256 * turn) == bytes(range(256))
            assert client.write(nodeid, fh, b"x", 65536 + turn) == 1
    assert daemon.log.count(f"was killed by {signal.Signals(number).name}; {CALM}") == 3


def test_an_address_space_that_is_full(daemon: Daemon) -> None:
    """Its threads can't start; or they have, and each would have to map its scratch for its first request."""
    with guest(daemon) as (_, client):
        for begun in (False, True, True):
            killed = daemon.kill_worker()
            (worker,) = until(lambda killed=killed: set(daemon.workers) - {killed})
            until(lambda begun=begun, worker=worker: not begun or at_rest(worker))
            resource.prlimit(worker, resource.RLIMIT_AS, (1, 1))
            assert client.lookup(ROOT, b"hello").attr.size == 9
            assert daemon.worker != worker
    assert daemon.log.count(f"was killed by SIGKILL; {CALM}") == 3
    assert daemon.log.count(CALM) == 6
    assert daemon.log.count(f"was killed by SIGABRT; {CALM}") >= 2


def test_an_op_that_finds_no_memory(start: Start) -> None:
    daemon = start("--sandbox=none", program=["-m", "tests.daemon.poisoned"])
    with guest(daemon) as (_, client):
        client.removexattr(ROOT, b"#memory", expect=errno.EIO)
        client.mkdir(ROOT, b"dir")
    assert daemon.log.count("a worker is short of memory") == daemon.log.count(CALM) == 2


@pytest.mark.parametrize("sandbox", ["none", "namespace"])
def test_killed_since_memory_is_short(start: Start, tmp_path: Path, memory: Group, sandbox: str) -> None:
    """What a guest writes to a tmpfs is memory that can't be reclaimed, and its writer is who has to pay for it."""
    shared = Path("/dev/shm") / f"vfsd-{os.getpid()}"
    shared.mkdir()
    try:
        with Daemon(shared, tmp_path / "short.sock", f"--sandbox={sandbox}") as daemon, guest(daemon) as (_, client):
            entry, opened = client.create(ROOT, b"file")
            memory.limit(8 * MIB)
            memory.add(daemon.worker)
            for piece in range(24):
                data = bytes([piece]) * MIB
                for half in (data[: MIB // 2], data[MIB // 2 :]):
                    at = piece * MIB + (0 if half is data[: MIB // 2] else MIB // 2)
                    assert client.write(entry.nodeid, opened.fh, half, at) == len(half)
            assert client.getattr(entry.nodeid).attr.size >= 23 * MIB
        assert daemon.log.count(f"was killed by SIGKILL since memory was short; {CALM}") == 1
    finally:
        for path in shared.iterdir():
            path.unlink()
        shared.rmdir()


def test_stopped_for_a_while(daemon: Daemon) -> None:
    with guest(daemon) as (frontend, client):
        worker = daemon.worker
        os.kill(worker, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (worker, signal.SIGCONT)).start()
        assert client.lookup(ROOT, b"hello").attr.size == 9
        os.kill(worker, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (worker, signal.SIGCONT)).start()
        frontend.stop()
        frontend.start()
        assert client.lookup(ROOT, b"hello").attr.size == 9
    assert "WARN" not in daemon.log


def test_a_processor_time_limit(daemon: Daemon, share: Path) -> None:
    for number in range(2000):
        (share / f"{number}").touch()
    with guest(daemon) as (_, client):
        fh, worker = client.opendir(ROOT).fh, daemon.worker
        resource.prlimit(worker, resource.RLIMIT_CPU, (1, 2))
        while worker in daemon.workers:
            # Some milliseconds of its time, and next to none of ours.
            client.call(lib.FUSE_READDIRPLUS, ROOT, pack("fuse_read_in", fh=fh, size=MIB), room=MIB)
        client.getattr(ROOT)
    assert f"was killed by SIGXCPU; {CALM}" in daemon.log


def test_a_file_that_is_truncated_while_it_is_read(daemon: Daemon, share: Path) -> None:
    """Nothing here maps files: there is no SIGBUS, but a short read."""
    (share / "data").write_bytes(bytes(4 * MIB))
    over = threading.Event()

    def truncate() -> None:
        while not over.is_set():
            os.truncate(share / "data", 0)
            os.truncate(share / "data", 4 * MIB)

    with guest(daemon) as (_, client):
        nodeid = client.lookup(ROOT, b"data").nodeid
        fh = client.open(nodeid).fh
        thread = threading.Thread(target=truncate)
        thread.start()
        try:
            for turn in range(200):
                data = client.read(nodeid, fh, MIB, turn % 4 * MIB)
                assert data == bytes(len(data))
        finally:
            over.set()
            thread.join()
    assert CALM not in daemon.log


def killed(daemon: Daemon, times: int) -> list[int]:
    """Kills so many workers, each as soon as it is seen."""
    seen: list[int] = []
    deadline = time.monotonic() + 20
    while len(seen) < times and time.monotonic() < deadline:
        for pid in set(daemon.workers) - set(seen):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            seen.append(pid)
    return seen


def test_killed_while_rings_are_parked(daemon: Daemon) -> None:
    """However often it is: where the rings are is found out in the end."""
    with guest(daemon) as (frontend, client):
        for _ in range(5):
            client.forget(client.lookup(ROOT, b"hello").nodeid)
        os.kill(daemon.control, signal.SIGSTOP)
        daemon.kill_worker()
        killers = threading.Thread(target=killed, args=(daemon, 8))
        killers.start()
        os.kill(daemon.control, signal.SIGCONT)
        frontend.stop()
        queue = frontend.queue(1)
        assert frontend.rings[1].base == queue.index == queue.last_used > 0
        frontend.start()
        killers.join()
        assert client.lookup(ROOT, b"hello").attr.size == 9
    # Some of them may have parked and left just before.
    assert daemon.log.count(f"was killed by SIGKILL; {CALM}") > 4


def test_no_process_to_be_had(daemon: Daemon, processes: Group) -> None:
    """Neither when a worker has died, nor when its rings are to be parked."""
    with guest(daemon) as (frontend, client):
        client.getattr(ROOT)
        processes.add(daemon.control)
        for act in (lambda: client.lookup(ROOT, b"hello"), frontend.stop):
            # Its four threads for what blocks, one a ring, and the main one: from here on it needs no more of them.
            until(lambda: len(os.listdir(f"/proc/{daemon.worker}/task")) == 7)
            os.kill(daemon.spare, signal.SIGKILL)
            before = daemon.log.count("no worker can be started")
            processes.limit(1)
            os.kill(daemon.control, signal.SIGSTOP)
            daemon.kill_worker()
            acting = threading.Thread(target=act)
            acting.start()
            os.kill(daemon.control, signal.SIGCONT)
            daemon.logged("no worker can be started: Resource temporarily unavailable; tried again in", before + 6)
            assert acting.is_alive()
            processes.limit("max")
            acting.join()
        queue = frontend.queue(1)
        assert frontend.rings[1].base == queue.index == queue.last_used > 0
        frontend.start()
        assert client.lookup(ROOT, b"hello").attr.size == 9

"""Front-ends, guests and workers at their worst: control stays in charge, and nothing it says is wrong."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from errno import ENFILE
from functools import partial
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, guest, open_files, until
from tests.frontend import FrontEnd
from tests.fuseclient import HEADER, ROOT, FuseClient, pack
from vfsd._fuse import lib
from vhost.message import Request, VringFile

#: vfsd whose workers have a second to park their rings.
HASTY = "import sys, vfsd.supervisor, vfsd.__main__; vfsd.supervisor.DEADLINE = 1.0; sys.exit(vfsd.__main__.main())"


@contextmanager
def full_pipe() -> Iterator[int]:
    """The writing end of a pipe that takes no byte more: a writer waits for ever."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, True)
    yield write
    os.close(read)
    os.close(write)


def test_a_call_descriptor_that_blocks(start: Callable[..., Daemon]) -> None:
    daemon = start("--sandbox=none", "--keep-listening")
    with full_pipe() as pipe, guest(daemon) as (frontend, client):
        client.lookup(ROOT, b"hello")
        frontend.tell(Request.SET_VRING_CALL, VringFile(1, True), [pipe])
        queue = frontend.queue(1)
        queue.interrupts_on(True)
        queue.add([pack("fuse_in_header", len=HEADER, opcode=lib.FUSE_STATFS, unique=2, nodeid=ROOT)], [4096])
        queue.kick()
        until(queue.poll)
        frontend.stop()
        frontend.start()
        assert client.lookup(ROOT, b"hello").attr.size == 9
    with guest(daemon) as (_, client):
        client.getattr(ROOT)


@pytest.mark.parametrize("gone", [False, True])
def test_a_worker_that_does_not_end(start: Callable[..., Daemon], gone: bool) -> None:
    daemon = start("--sandbox=none", "--keep-listening", program=["-c", HASTY])
    with guest(daemon) as (frontend, client):
        for _ in range(5):
            client.forget(client.lookup(ROOT, b"hello").nodeid)
        os.kill(daemon.worker, signal.SIGSTOP)
        if not gone:
            frontend.stop()
            queue = frontend.queue(1)
            assert frontend.rings[1].base == queue.index == queue.last_used > 0
            frontend.start()
            assert client.lookup(ROOT, b"hello").attr.size == 9
    daemon.logged("has not parked its rings in 1 s: it is killed, and they go to another")
    with guest(daemon) as (_, client):
        client.getattr(ROOT)


@pytest.mark.parametrize("gone", [False, True])
def test_rings_that_can_not_be_parked(start: Callable[..., Daemon], gone: bool) -> None:
    """Every worker dies of the front-end's in-flight region: where a ring is can't be said."""
    daemon = start("--sandbox=none", "--keep-listening")
    with FrontEnd(daemon.socket_path) as frontend:
        frontend.negotiate()
        frontend.get_inflight()
        frontend.start()
        FuseClient(partial(frontend.request, 1)).init()
        assert frontend.inflight
        os.ftruncate(frontend.inflight[1], 0)
        daemon.kill_worker()
        if not gone:
            with pytest.raises(OSError):
                frontend.stop()
    daemon.logged("ERROR vfsd.control] requests in flight are lost" if not gone else "requests in flight are lost")
    daemon.logged("Client disconnected")
    assert daemon.log.count("requests in flight are lost: 4 workers in a row died of them") == 1
    with guest(daemon) as (_, client):
        client.getattr(ROOT)


def test_a_guest_that_fills_the_descriptor_table(start: Callable[..., Daemon], share: Path) -> None:
    for number in range(400):
        (share / f"{number}").touch()
    daemon = start("--sandbox=none", "--rlimit-nofile=300", "--keep-listening")
    with guest(daemon) as (frontend, client):
        with pytest.raises(OSError, match="Too many open files in system"):
            for number in range(400):
                client.open(client.lookup(ROOT, b"%d" % number).nodeid)
        for _ in range(3):
            client.create(ROOT, b"new", expect=ENFILE)
            assert not (share / "new").exists(), "what fails has not happened"
            # A message with a descriptor.
            frontend.tell(Request.SET_VRING_CALL, VringFile(1, True), [frontend.rings[1].call])
            frontend.stop()
            frontend.start()
            client.getattr(ROOT)
            daemon.kill_worker()
            client.getattr(ROOT)
    with guest(daemon) as (_, client):
        client.lookup(ROOT, b"hello")
    daemon.logged("Client disconnected", 2)
    assert "ERROR" not in daemon.log


def test_a_reset_closes_what_the_guest_had_open(daemon: Daemon, share: Path) -> None:
    """Before the next boot, not when the worker of the next boot ends."""
    with guest(daemon) as (frontend, client):

        def held() -> int:
            return list(open_files(daemon.control).values()).count(str(share / "hello"))

        for _ in range(50):
            client.open(client.lookup(ROOT, b"hello").nodeid)
        frontend.stop()
        assert held() == 51
        frontend.tell(Request.RESET_DEVICE)
        until(lambda: held() == 0)
        assert not daemon.workers

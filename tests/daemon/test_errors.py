"""What a front-end does wrong costs its connection, and one sentence."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, guest
from tests.frontend import USER_BASE, FrontEnd
from tests.fuseclient import FuseClient
from vhost.message import HEADER, VERSION, MemoryRegion, MemoryTable, Request


def test_private_memory(daemon: Daemon) -> None:
    with guest(daemon, init=False, private=True) as (frontend, _):
        queue = frontend.queue(1)
        queue.add([b"x" * 64], [4096])
        queue.kick()
        assert daemon.wait() == 1
    assert "guest memory is private: add share=on to the memory backend" in daemon.log


def test_memory_that_is_not_shared(daemon: Daemon) -> None:
    with FrontEnd(daemon.socket_path) as frontend:
        frontend.negotiate(protocol_features=0)
        frontend.send(Request.SET_MEM_TABLE, MemoryTable((MemoryRegion(0, 1 << 20, USER_BASE, 0),)), [])
        assert daemon.wait() == 1
    assert "guest memory is not shared: add share=on to the memory backend" in daemon.log


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", HEADER.pack(9999, VERSION, 0), os.urandom(4096)])
def test_garbage(start: Callable[..., Daemon], garbage: bytes) -> None:
    daemon = start("--sandbox=none", "--keep-listening")
    with daemon.connect() as connection:
        connection.sendall(garbage)
        daemon.logged("Client disconnected")
    assert "ERROR" in daemon.log and "Traceback" not in daemon.log
    with guest(daemon) as (_, client):
        assert client.statfs()


def test_a_worker_that_can_not_start(daemon: Daemon) -> None:
    with FrontEnd(daemon.socket_path) as frontend:
        frontend.negotiate()
        frontend.get_inflight()
        frontend.start()
        client = FuseClient(partial(frontend.request, 1))
        client.init()
        assert frontend.inflight
        os.ftruncate(frontend.inflight[1], 0)
        daemon.kill_worker()
        # It goes on trying, slower each time, and stays in charge of itself.
        daemon.logged("failed with status 1; another one goes on", 3)
        assert "the worker could not do its work" in daemon.log
        daemon.process.terminate()
        assert daemon.wait() == 1


def test_a_share_that_vanishes_is_the_guest_s_errno(daemon: Daemon, share: Path) -> None:
    with guest(daemon) as (_, client):
        (share / "hello").unlink()
        share.rmdir()
        client.lookup(1, b"hello", expect=2)
        client.mkdir(1, b"new", expect=2)
        assert daemon.process.poll() is None

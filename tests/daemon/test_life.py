"""How a daemon begins and ends."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.daemon.daemon import FORESIGHTED, REPOSITORY, Daemon, guest, settled_files, until
from tests.frontend import FrontEnd
from tests.fuseclient import ROOT, FuseClient
from vhost.message import ProtocolFeature

WAITING = "Waiting for vhost-user socket connection..."
CONNECTED = "Client connected, servicing requests"
LEFT = "Client disconnected, shutting down"


def test_ends_with_0_when_the_guest_leaves(daemon: Daemon) -> None:
    with guest(daemon) as (_, client):
        assert client.lookup(ROOT, b"hello").attr.size == 9
    assert daemon.wait() == 0
    lines = [line.split("] ", 1)[1] for line in daemon.log.splitlines()]
    assert lines == [WAITING, CONNECTED, LEFT]


def test_leaves_neither_socket_nor_pid_file(daemon: Daemon) -> None:
    pid_file = daemon.socket_path.with_suffix(".sock.pid")
    assert int(pid_file.read_text()) == daemon.process.pid
    daemon.logged(WAITING)
    daemon.process.terminate()
    assert daemon.wait() == 1
    assert not daemon.socket_path.exists() and not pid_file.exists()


@pytest.mark.parametrize("sandbox", ["none", "namespace"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_ends_with_1_on_a_signal(start: Callable[..., Daemon], sandbox: str, number: int) -> None:
    daemon = start(f"--sandbox={sandbox}")
    with guest(daemon):
        worker = daemon.worker
        daemon.process.send_signal(number)
        assert daemon.wait() == 1
        assert not daemon.socket_path.exists()
        until(lambda: not os.path.exists(f"/proc/{worker}"))
    assert f"{signal.Signals(number).name}: shutting down" in daemon.log


@pytest.mark.parametrize("sandbox", ["none", "namespace"])
def test_tells_what_it_has_served(start: Callable[..., Daemon], sandbox: str) -> None:
    daemon = start(f"--sandbox={sandbox}", "--keep-listening")
    daemon.logged(WAITING)
    daemon.process.send_signal(signal.SIGUSR1)
    daemon.logged("requests served: none")
    for times in (3, 1):
        with guest(daemon) as (_, client):
            for _ in range(times):
                client.lookup(ROOT, b"hello")
            # A worker counts on where another has stopped, and each front-end begins anew.
            daemon.kill_worker()
            client.getattr(ROOT)
            daemon.process.send_signal(signal.SIGUSR1)
            daemon.logged(f"requests served: {times} LOOKUP, 1 GETATTR, 1 INIT")
            daemon.logged(f"ring 1: {times + 2} requests, ")


@pytest.mark.parametrize("microseconds", [0, 50])
def test_watches_no_longer_than_it_may(start: Callable[..., Daemon], microseconds: int) -> None:
    daemon = start(f"--poll-us={microseconds}")
    with guest(daemon) as (_, client):
        for _ in range(500):
            client.getattr(ROOT)
        daemon.process.send_signal(signal.SIGUSR1)
        daemon.logged("ring 1: 501 requests, ")
    assert microseconds or "; watched 0 times, 0 in vain" in daemon.log


@pytest.mark.parametrize("sandbox", ["none", "namespace"])
def test_nothing_outlives_the_started_process(start: Callable[..., Daemon], sandbox: str) -> None:
    daemon = start(f"--sandbox={sandbox}")
    with guest(daemon):
        pids = daemon.control, daemon.worker, daemon.spare
        daemon.process.kill()
        daemon.wait()
        until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


@pytest.mark.parametrize("sandbox", ["none", "namespace"])
def test_keep_listening_serves_one_after_the_other(start: Callable[..., Daemon], sandbox: str) -> None:
    daemon = start(f"--sandbox={sandbox}", "--keep-listening")
    for _ in range(3):
        with guest(daemon) as (_, client):
            nodeid = client.lookup(ROOT, b"hello").nodeid
            assert client.read(nodeid, client.open(nodeid).fh, 100) == b"hi there\n"
    assert daemon.log.count(CONNECTED) == 3
    daemon.process.terminate()
    assert daemon.wait() == 1


def test_a_second_client_is_refused(start: Callable[..., Daemon]) -> None:
    daemon = start("--sandbox=namespace")
    with guest(daemon) as (_, client):
        with pytest.raises(ConnectionRefusedError):
            daemon.connect()
        client.lookup(ROOT, b"hello")


def test_the_configuration_space_is_there_with_a_tag(start: Callable[..., Daemon]) -> None:
    daemon = start("--sandbox=none", "--tag=m\u00fcsli", "--keep-listening")
    with guest(daemon) as (frontend, _):
        assert frontend.config(0, 40) == "m\u00fcsli".encode().ljust(36, b"\0") + b"\1\0\0\0"


def test_no_configuration_space_without_a_tag(daemon: Daemon) -> None:
    with guest(daemon) as (frontend, _):
        assert not frontend.protocol_features & ProtocolFeature.CONFIG


def test_an_inherited_socket_stays_its_owner_s(share: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "inherited.sock"))
        listener.listen()
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, "-m", "vfsd", f"--fd={listener.fileno()}", f"--shared-dir={share}"],
                pass_fds=[listener.fileno()],
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
            with FrontEnd(tmp_path / "inherited.sock") as frontend:
                frontend.negotiate()
                frontend.start()
                client = FuseClient(partial(frontend.request, 1))
                client.init()
                assert client.lookup(ROOT, b"hello").attr.size == 9
            assert process.wait(20) == 0


def test_a_guest_that_is_reset_leaves_nothing(start: Callable[..., Daemon]) -> None:
    daemon = start("--sandbox=none", program=["-c", FORESIGHTED])
    with guest(daemon) as (frontend, client):
        # No DESTROY, and QEMU before 8.1 sends no RESET_DEVICE either.
        frontend.protocol_features &= ~ProtocolFeature.RESET_DEVICE
        counts = set()
        for _ in range(3):
            client.open(client.lookup(ROOT, b"hello").nodeid)
            client.opendir(ROOT)
            counts.add(len(settled_files(daemon)))
            frontend.reset()
            frontend.start()
            client.init()
        assert len(counts) == 1


def test_a_guest_may_pause_reboot_and_mount_again(daemon: Daemon) -> None:
    with guest(daemon) as (frontend, client):
        for again in (frontend.stop, frontend.reset, frontend.stop):
            again()
            assert daemon.workers == []
            frontend.start()
            if again == frontend.reset:
                client.init()
            assert client.lookup(ROOT, b"hello").attr.size == 9
            client.destroy()
            client.init()
            assert client.lookup(ROOT, b"hello").attr.size == 9

"""Requests that kill their worker, those in flight beside them, and workers that die of something else."""

import errno
import os
import re
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.daemon.daemon import Daemon, guest, until
from tests.driver import INDIRECT, Buffer
from tests.frontend import MIB, FrontEnd
from tests.fuseclient import HEADER, ROOT, FuseClient, pack, unpack
from vfsd._fuse import lib

Start = Callable[..., Daemon]
REFUSED = "a request has killed workers and is answered EIO: "


@pytest.fixture
def poisoned(start: Start) -> Callable[..., Daemon]:
    return lambda *options: start("--sandbox=none", *options, program=["-m", "tests.daemon.poisoned"])


class Sent(NamedTuple):
    """A request that is not waited for."""

    frontend: FrontEnd
    queue: int
    head: int

    def answer(self) -> tuple[int, bytes]:
        """The errno and what follows the header."""
        data = self.frontend.queue(self.queue).wait(self.head, 60).data
        return -unpack("fuse_out_header", data).error, data[16:]


def send(frontend: FrontEnd, ask: Callable[[FuseClient], Any], queue: int = 1) -> Sent:
    """Has a client that only writes down what it would send."""
    requests: list[tuple[bytes, int]] = []

    def transport(request: bytes, room: int) -> bytes:
        requests.append((request, room))
        return struct.pack("=IiQ", 16, -errno.EIO, int.from_bytes(request[8:16], "little")) if room else b""

    client = FuseClient(transport)
    with suppress(OSError):
        ask(client)
    ((request, room),) = requests
    ring = frontend.queue(queue)
    head = ring.add([request], [room] if room else [])
    ring.kick()
    return Sent(frontend, queue, head)


def deaths(daemon: Daemon) -> int:
    return daemon.log.count("another one goes on")


FAULTS = ["SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS", "SIGXCPU"]


@pytest.mark.parametrize("how", [*FAULTS, "exit"])
def test_a_poison_is_refused_after_the_second_death(poisoned: Start, share: Path, how: str) -> None:
    daemon = poisoned()
    with guest(daemon) as (_, client):
        client.mkdir(ROOT, f"@{how}".encode(), 0o700, expect=errno.EIO)
        assert deaths(daemon) == 2
        assert client.lookup(ROOT, b"hello").attr.size == 9
        client.mkdir(ROOT, b"dir")
    assert daemon.log.count(f"{REFUSED}MKDIR mode=0o700 umask=0o0 '@{how}' (nodeid 0x1, uid ") == 1
    assert sorted(os.listdir(share)) == ["dir", "hello"]


@pytest.mark.parametrize("how", ["SIGKILL", "SIGALRM"])
def test_of_a_signal_from_outside_it_takes_more(poisoned: Start, how: str) -> None:
    daemon = poisoned()
    with guest(daemon) as (_, client):
        client.lookup(ROOT, f"@{how}".encode(), expect=errno.EIO)
        assert deaths(daemon) == 8
        assert client.lookup(ROOT, b"hello").attr.size == 9
    assert f"{REFUSED}LOOKUP '@{how}' (nodeid 0x1," in daemon.log


def test_a_poison_that_gets_no_answer(poisoned: Start) -> None:
    """Nothing says that it was refused, but the others go on; and so for the queue of its own that FORGET has."""
    daemon = poisoned()
    nlookup = int.from_bytes(b"@SIGSEGV", "little")
    with guest(daemon) as (frontend, client):
        for queue in (0, 1):
            sent = send(frontend, lambda aside: aside.forget(7, nlookup), queue)
            assert frontend.queue(queue).wait(sent.head).length == 0
            assert client.lookup(ROOT, b"hello").attr.size == 9
    assert daemon.log.count(f"{REFUSED}FORGET nlookup={nlookup:#x} (nodeid 0x7,") == 2
    assert deaths(daemon) == 4


def number(text: bytes) -> int:
    return int.from_bytes(text, "little")


def syncfs(frontend: FrontEnd, padding: int = 0) -> Sent:
    arguments = pack("fuse_syncfs_in", padding=padding)
    return send(frontend, lambda aside: aside.call(lib.FUSE_SYNCFS, ROOT, arguments, room=0))


@pytest.mark.parametrize("sign", ["@", "#"])
@pytest.mark.parametrize("queues", [2, 4])
def test_those_beside_a_poison_are_answered(poisoned: Start, share: Path, queues: int, sign: str) -> None:
    """Some thirty requests on all rings are in flight together when the poison kills, none of them twice."""
    daemon = poisoned("--thread-pool-size=12")
    with guest(daemon, queues=queues) as (frontend, client):
        nodeid = client.lookup(ROOT, b"hello").nodeid
        fh = client.open(nodeid, os.O_RDWR).fh
        innocent = []
        for each in range(10):
            name = b"@sleep%d" % each
            innocent.append(send(frontend, lambda aside, name=name: aside.mkdir(ROOT, name), 1 + each % (queues - 1)))
        for _ in range(10):
            innocent.append(syncfs(frontend))
        innocent.append(send(frontend, lambda aside: aside.read(nodeid, fh, 100)))
        poisons = [
            send(frontend, lambda aside: aside.removexattr(nodeid, f"{sign}SIGSEGV".encode()), queues - 1),
            syncfs(frontend, number(f"{sign}SIGABRT".encode())),
        ]
        for _ in range(5):
            innocent.append(send(frontend, lambda aside: aside.getattr(ROOT)))
        assert [sent.answer()[0] for sent in poisons] == [errno.EIO] * 2
        assert [sent.answer()[0] for sent in innocent] == [0] * len(innocent)
        client.getattr(ROOT)
    assert daemon.log.count(REFUSED) == 2
    assert f"{REFUSED}REMOVEXATTR '{sign}SIGSEGV'" in daemon.log
    assert f"{REFUSED}SYNCFS (nodeid 0x1, uid " in daemon.log
    assert sorted(os.listdir(share)) == sorted(["hello", *(f"@sleep{number}" for number in range(10))])


def test_what_waits_for_a_lock_is_no_suspect_for_long(poisoned: Start) -> None:
    daemon = poisoned()
    with guest(daemon) as (frontend, client):
        client.init(flags=(1 << 64) - 1)
        nodeid = client.lookup(ROOT, b"hello").nodeid
        fh = client.open(nodeid, os.O_RDWR).fh
        client.setlk(nodeid, fh, 1, 1)
        waiting = send(frontend, lambda aside: aside.setlk(nodeid, fh, 2, 1, wait=True))
        for number in range(3):
            client.mkdir(ROOT, b"@SIGSEGV%d" % number, expect=errno.EIO)
        for _ in range(10):
            daemon.kill_worker()
            client.getattr(ROOT)
        client.setlk(nodeid, fh, 1, 2)
        assert waiting.answer()[0] == 0
    assert daemon.log.count(REFUSED) == 3


@pytest.mark.parametrize("kills", [7, 8])
def test_somebody_who_kills_it_over_and_over(poisoned: Start, share: Path, kills: int) -> None:
    """A request that takes long is in flight whenever its worker is killed. That alone says little of it."""
    daemon = poisoned()
    with guest(daemon) as (frontend, client):
        slow = send(frontend, lambda aside: aside.mkdir(ROOT, b"@wait"))
        for _ in range(kills):
            pid = daemon.worker
            until(lambda pid=pid: (share / f"waits{pid}").exists())
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: daemon.workers not in ([], [pid]))
        (share / "over").touch()
        assert slow.answer()[0] == (0 if kills == 7 else errno.EIO)
        client.getattr(ROOT)
    assert deaths(daemon) == kills


def test_a_poison_while_the_rings_are_stopped(poisoned: Start) -> None:
    """The front-end wants to know where they are, before their worker has died for the first time or after."""
    daemon = poisoned()
    with guest(daemon) as (frontend, client):
        for number in range(4):
            sent = send(frontend, lambda aside, name=b"@SIGSEGV%d" % number: aside.mkdir(ROOT, name))
            time.sleep(0.002 * number)
            frontend.stop()
            queue = frontend.queue(1)
            assert frontend.rings[1].base in (queue.index, queue.last_used)
            frontend.start()
            assert sent.answer()[0] == errno.EIO
            client.getattr(ROOT)


def test_deaths_that_do_not_end_cost_more_and_more_time(poisoned: Start) -> None:
    daemon = poisoned()
    with guest(daemon) as (_, client):

        def costs(number: int) -> bool:
            client.mkdir(ROOT, b"@SIGSEGV%d" % number, expect=errno.EIO)
            said = r"was killed by SIGSEGV; another one goes on in \d\.\d+ s, after \d+ deaths"
            return bool(re.search(said, daemon.log))

        # Three are enough, unless one of the workers lives for a second.
        assert any(costs(number) for number in range(20))
        assert client.lookup(ROOT, b"hello").attr.size == 9


@pytest.mark.parametrize("part", ["request", "reply", "table"])
def test_guest_memory_that_is_gone(daemon: Daemon, part: str) -> None:
    """The front-end has truncated the file of a region (QEMU: a hugetlbfs that has run out). To touch it is SIGBUS."""
    with guest(daemon) as (frontend, client):
        gone = frontend.plug(1 << 32, MIB)
        ring, memory = frontend.queue(1), frontend.memory
        request = pack("fuse_in_header", len=HEADER, opcode=lib.FUSE_STATFS, unique=2, nodeid=ROOT)
        at = {name: ring.allocator.allocate(4096) for name in ("request", "reply", "table")} | {part: 1 << 32}
        if part != "request":
            memory.write(at["request"], request)
        os.ftruncate(gone.fd, 0)
        if part == "table":
            ring.descriptor(ring.free[0], at["table"], 32, INDIRECT, 0)
            ring.publish(ring.free[0])
        else:
            head = ring.add_buffers([Buffer(at["request"], HEADER)], [Buffer(at["reply"], 4096)], indirect=False)
        ring.kick()
        if part == "request":
            assert unpack("fuse_out_header", ring.wait(head).data[:16]).error == -errno.EIO
            assert "a request has killed workers and is answered EIO; it can't be read" in daemon.log
        else:
            # There is no way to answer it.
            daemon.logged("ring 1 is broken (Bad address): the guest's driver has to reset the device")
            assert (f"{REFUSED}STATFS" in daemon.log) == (part == "reply")
            frontend.reset()
            frontend.start()
            client.init()
        assert deaths(daemon) == (3 if part == "table" else 2)
        assert client.lookup(ROOT, b"hello").attr.size == 9
    assert "killed by SIGBUS" in daemon.log

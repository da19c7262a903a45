"""What a ring has served its driver hears of before the ring takes up what may last."""

import errno
import fcntl
import os
import signal
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.fuseclient import REPLY_HEADER, ROOT, FuseClient
from tests.ops.mount import Mount
from tests.ring.ring import Ring, wait_for
from vfsd._fuse import lib
from vhost._virtq import lib as virtq

Ringed = tuple[Mount, Ring, FuseClient]


@pytest.fixture
def lease(ringed: Ringed) -> Iterator[int]:
    """A descriptor of the file "f", which nobody opens to write, nor truncates, before this lets go of its lease."""
    mount, _, _ = ringed
    (mount.root / "f").write_bytes(b"something")
    fd = os.open(mount.root / "f", os.O_RDONLY)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    yield fd
    os.close(fd)
    signal.signal(signal.SIGIO, before)


ASK: dict[str, Callable[[FuseClient, int], object]] = {
    "OPEN": lambda client, nodeid: client.open(nodeid, os.O_WRONLY),
    "CREATE": lambda client, nodeid: client.create(ROOT, b"f", flags=os.O_WRONLY),
    "SETATTR": lambda client, nodeid: client.setattr(nodeid, lib.FATTR_SIZE, size=3),
}


@pytest.mark.parametrize("ask", ASK.values(), ids=ASK)
def test_before_it_waits_for_a_lease(ringed: Ringed, lease: int, ask: Callable[[FuseClient, int], object]) -> None:
    _, ring, client = ringed
    nodeid = client.lookup(ROOT, b"f").nodeid
    heads: list[int] = []

    def transport(request: bytes, room: int) -> bytes:
        heads.append(ring.driver.add([request], [room]))
        return struct.pack("=IiQ", REPLY_HEADER, -errno.EAGAIN, int.from_bytes(request[8:16], "little"))

    aside = FuseClient(transport)
    wait_for(lambda: virtq.virtq_pending(ring.queue) == 0)
    told = ring.state.interrupts
    # So many that the ring would tell of the first together with others.
    for request in [lambda: aside.getattr(ROOT), lambda: ask(aside, nodeid), *[lambda: aside.getattr(ROOT)] * 20]:
        with pytest.raises(OSError):
            request()
    ring.driver.kick()
    wait_for(lambda: ring.state.interrupts > told)
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    for head in heads:
        assert struct.unpack_from("=Ii", ring.driver.wait(head).data)[1] == 0

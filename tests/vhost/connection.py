"""Both ends of a connection in one thread: a device that records what is asked of it, and no rings running."""

import os
import socket

from tests.frontend import FEATURES, MIB, FrontEnd
from tests.shmem import ShmemFrontEnd
from tests.vhost.examples import ALL_FEATURES, GOOD, open_fds
from vhost.backend import Backend, Refused
from vhost.inflight import inflight_arena
from vhost.memory import table_arena
from vhost.message import (
    ROWS,
    U64,
    Feature,
    Inflight,
    Log,
    MemoryRegion,
    MemoryTable,
    Request,
    SingleRegion,
    VringFile,
    VringState,
)
from vhost.protocol import RemoteProtocolError
from vhost.vring import state_arena

QUEUES = 3
CONFIG = b"tag".ljust(36, b"\0") + (2).to_bytes(4, "little")


class RecordingDevice:
    features = int(FEATURES | Feature.LOG_ALL)
    protocol_features = ALL_FEATURES
    queues = QUEUES

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.shared_memory = {0: 2 * MIB}
        #: What `transferred` says, and what came by `transfer`: the direction, and which pipe.
        self.outcome: bool | None = False
        self.transfers: list[tuple[bool, int]] = []

    def read_config(self, offset: int, size: int) -> bytes:
        return CONFIG[offset : offset + size]

    def write_config(self, offset: int, data: bytes) -> None:
        raise Refused("nothing in the configuration space can be written")

    def is_mapping(self, region: MemoryRegion, fd: int) -> bool:
        return False

    def quiesce(self) -> None:
        self.calls.append("quiesce")

    def reset(self) -> None:
        self.calls.append("reset")

    def transfer(self, load: bool, fd: int) -> None:
        self.transfers.append((load, os.fstat(fd).st_ino))

    def transferred(self) -> bool | None:
        return self.outcome


class Connection:
    """Both ends of a connection in one thread."""

    def __init__(self, **options: object) -> None:
        self.device = RecordingDevice()
        ours, theirs = socket.socketpair()
        self.backend = Backend(ours, self.device, table_arena(), state_arena(QUEUES), inflight_arena(QUEUES))
        self.fe = ShmemFrontEnd(theirs, queues=2, sizes=(4 * MIB, 4 * MIB), pump=self.backend.handle, **options)

    def close(self) -> None:
        self.fe.close()
        self.backend.close()

    def refused(self, request: Request, payload=None, fds=()) -> str:
        """The sentence for a request that breaks the protocol."""
        self.fe.send(request, payload, fds)
        return self.sentence()

    def sentence(self) -> str:
        """What `handle` says of a front-end that breaks the protocol. (Unlike pytest.raises, it keeps no frames.)"""
        try:
            self.backend.handle()
        except RemoteProtocolError as error:
            assert "\n" not in str(error)
            return str(error)
        raise AssertionError("this was served")


def descriptors() -> set[int]:
    fds = set(map(int, os.listdir("/proc/self/fd")))
    return {fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")}


def changed(fe: FrontEnd, request: Request):
    """A message that suits the session `start` has set up."""
    own = {
        Request.SET_FEATURES: lambda: (U64(fe.features), []),
        Request.SET_MEM_TABLE: lambda: (MemoryTable((fe.regions[0].wire,)), open_regions(1)),
        Request.ADD_MEM_REG: lambda: (SingleRegion(MemoryRegion(1 << 40, 4096, 1 << 41, 0)), open_regions(1)),
        Request.REM_MEM_REG: lambda: (SingleRegion(fe.regions[1].wire), []),
        Request.SET_VRING_ADDR: lambda: (fe.addresses(fe.rings[1], logged=True), []),
        Request.SET_VRING_KICK: lambda: (VringFile(1, False), []),
        Request.SET_INFLIGHT_FD: lambda: (Inflight(8448, 0, 2, 128), open_regions(1)),
        Request.SET_PROTOCOL_FEATURES: lambda: (U64(ALL_FEATURES), []),
        Request.SET_BACKEND_REQ_FD: lambda: (None, [socket.socket(socket.AF_UNIX).detach()]),
        Request.SET_LOG_BASE: lambda: (Log(4096, 0), open_regions(1)),
        Request.SET_VRING_NUM: lambda: (VringState(1, 64), []),
    }
    if request in own:
        return own[request]()
    wire = next(wire for wire in GOOD if wire.request == request)
    row = ROWS[request]
    return (row.payload.unpack(wire.payload) if row.payload else None), open_fds(wire.fds)


def open_regions(count: int) -> list[int]:
    fds = open_fds(count)
    for fd in fds:
        os.ftruncate(fd, 4 * MIB)
    return fds

"""A vhost-user front-end in plain Python: it plays QEMU. It owns the guest's memory, speaks every message of
vhost.message, and drives its rings with tests.driver.

    with FrontEnd(path, queues=2) as fe:             # or a connected socket; queue 0 is hiprio
        fe.negotiate()                               # features, protocol features, back-end channel
        fe.start()                                   # memory, rings, enable
        reply = fe.request(1, b"request", 4096)      # queue, readable bytes, room for the reply

`stop` and `start` again is a pause of the guest: the rings go on where they were. `reset` is a reboot: new rings.
`pump` is called before each wait for a reply: a test that calls `Backend.handle` itself passes it here.

Hostile tests use `send`, `send_raw` and `receive`.
"""

import mmap
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.driver import Allocator, DriverQueue, GuestMemory, Layout, layout
from vhost.message import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    ROWS,
    U64,
    VERSION,
    VRING_F_LOG,
    Config,
    Feature,
    Inflight,
    Log,
    MemoryRegion,
    MemoryTable,
    Payload,
    ProtocolFeature,
    Request,
    SingleRegion,
    VringAddr,
    VringFile,
    VringState,
)

MIB = 1 << 20
USER_BASE = 0x7F00_0000_0000  # so that guest physical and user addresses are never mistaken for each other
LOG_PAGE = 4096

#: What QEMU's vhost-user-fs acknowledges.
FEATURES = Feature.VERSION_1 | Feature.INDIRECT_DESC | Feature.EVENT_IDX | Feature.PROTOCOL_FEATURES
PROTOCOL_FEATURES = ~0


class Reply(NamedTuple):
    request: int
    payload: bytes
    fds: list[int]


class Region:
    """A piece of guest memory: a memfd, mapped shared, or privately as by a front-end without share=on."""

    def __init__(self, guest_addr: int, size: int, *, offset: int = 0, private: bool = False) -> None:
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, offset + size)
        self.map = mmap.mmap(self.fd, offset + size, mmap.MAP_PRIVATE if private else mmap.MAP_SHARED)
        self.wire = MemoryRegion(guest_addr, size, USER_BASE + guest_addr, offset)

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


@dataclass
class Ring:
    """What the front-end keeps of one vring."""

    index: int
    where: Layout
    allocator: Allocator
    kick: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    call: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    err: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
    base: int = 0
    queue: DriverQueue | None = None


class FrontEnd:
    """`sizes` are those of the memory regions in bytes, adjacent from guest address 0."""

    def __init__(
        self,
        where: socket.socket | str | Path,
        *,
        queues: int = 2,
        num: int = 128,
        sizes: Sequence[int] = (64 * MIB,),
        private: bool = False,
        pump: Callable[[], object] = lambda: None,
        timeout: float = 30.0,
    ) -> None:
        if isinstance(where, socket.socket):
            self.sock = where
        else:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.connect(str(where))
        self.sock.settimeout(timeout)
        self.num, self.pump, self.timeout = num, pump, timeout
        self.features = self.protocol_features = 0
        self.channel: socket.socket | None = None
        self.memory = GuestMemory()
        self.regions: list[Region] = []
        for size in sizes:
            self._new_region(sum(region.wire.size for region in self.regions), size, private=private)
        self.rings = self._layout_rings(queues, sum(sizes))
        self.log: mmap.mmap | None = None
        self.inflight: tuple[Inflight, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leaves, as a front-end that dies does: without GET_VRING_BASE."""
        self.sock.close()
        if self.channel:
            self.channel.close()
        for ring in self.rings:
            if ring.queue:
                ring.queue.close()
            for fd in (ring.kick, ring.call, ring.err):
                os.close(fd)
        self.rings.clear()
        self.memory.close()
        for region in self.regions:
            region.close()
        self.regions.clear()
        if self.inflight:
            os.close(self.inflight[1])
            self.inflight = None
        if self.log:
            self.log.close()
            self.log = None

    # Messages.

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        socket.send_fds(self.sock, [data], list(fds))

    def send(
        self, request: int, payload: Payload | None = None, fds: Sequence[int] = (), *, need_reply: bool = False
    ) -> None:
        data = payload.pack() if payload else b""
        self.send_raw(HEADER.pack(request, VERSION | (FLAG_NEED_REPLY if need_reply else 0), len(data)) + data, fds)

    def receive(self) -> Reply:
        """The next reply. Raises ConnectionError when the back-end closed the connection."""
        self.pump()
        header, fds = self._read(HEADER.size)
        request, flags, size = HEADER.unpack(header)
        assert flags == VERSION | FLAG_REPLY
        payload, more = self._read(size) if size else (b"", [])
        return Reply(request, payload, fds + more)

    def ask(self, request: Request, payload: Payload | None = None, fds: Sequence[int] = ()) -> Any:
        """A request that has a reply: returns its payload."""
        self.send(request, payload, fds)
        reply = self.receive()
        kind = ROWS[request].reply
        assert reply.request == request and kind is not None and not reply.fds
        return kind.unpack(reply.payload)

    def tell(self, request: Request, payload: Payload | None = None, fds: Sequence[int] = ()) -> None:
        """A request that has none. It is done on return, through REPLY_ACK or else, as QEMU does, GET_FEATURES.

        Raises ConnectionError; OSError when the back-end acknowledges it as failed.
        """
        acknowledged = bool(self.protocol_features & ProtocolFeature.REPLY_ACK)
        self.send(request, payload, fds, need_reply=acknowledged)
        if not acknowledged:
            self.ask(Request.GET_FEATURES)
            return
        reply = self.receive()
        assert reply.request == request and not reply.fds
        if U64.unpack(reply.payload).value:
            raise OSError(f"{request.name} failed")

    # A session.

    def negotiate(self, features: int = FEATURES, protocol_features: int = PROTOCOL_FEATURES) -> None:
        """What QEMU does when the device is realized. Both masks are cut down to what the back-end offers."""
        self.tell(Request.SET_OWNER)
        offered = self.ask(Request.GET_FEATURES).value
        self.features = offered & features
        if self.features & Feature.PROTOCOL_FEATURES:
            offered = self.ask(Request.GET_PROTOCOL_FEATURES).value & protocol_features
            self.send(Request.SET_PROTOCOL_FEATURES, U64(offered))
            self.protocol_features = offered
        if self.protocol_features & ProtocolFeature.MQ:
            assert self.ask(Request.GET_QUEUE_NUM).value >= len(self.rings)
        if self.protocol_features & ProtocolFeature.BACKEND_REQ:
            self.channel, theirs = socket.socketpair()
            self.channel.settimeout(self.timeout)
            with theirs:
                self.tell(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])

    def start(self) -> None:
        """What QEMU does when the driver is ready, or the guest goes on after `stop`."""
        self.tell(Request.SET_FEATURES, U64(self.features))
        self.share_memory()
        if self.inflight:
            self.tell(Request.SET_INFLIGHT_FD, self.inflight[0], [self.inflight[1]])
        for ring in self.rings:
            self.start_ring(ring)
        if self.features & Feature.PROTOCOL_FEATURES:
            for ring in self.rings:
                self.tell(Request.SET_VRING_ENABLE, VringState(ring.index, 1))

    def start_ring(self, ring: Ring) -> None:
        """Sets one ring up and starts it; the driver's side too, if it is new."""
        if ring.queue is None:
            ring.queue = DriverQueue(
                self.memory,
                ring.allocator,
                ring.where,
                self.num,
                kick=ring.kick,
                call=ring.call,
                event_idx=bool(self.features & Feature.EVENT_IDX),
                indirect=bool(self.features & Feature.INDIRECT_DESC),
                index=ring.base,
            )
        self.tell(Request.SET_VRING_NUM, VringState(ring.index, self.num))
        self.tell(Request.SET_VRING_BASE, VringState(ring.index, ring.base))
        self.tell(Request.SET_VRING_ADDR, self.addresses(ring))
        self.tell(Request.SET_VRING_ERR, VringFile(ring.index, True), [ring.err])
        self.tell(Request.SET_VRING_CALL, VringFile(ring.index, True), [ring.call])
        self.tell(Request.SET_VRING_KICK, VringFile(ring.index, True), [ring.kick])

    def stop(self) -> None:
        """What QEMU does when the guest is paused or the driver leaves. On return the rings are idle."""
        for ring in self.rings:
            if self.features & Feature.PROTOCOL_FEATURES:
                self.tell(Request.SET_VRING_ENABLE, VringState(ring.index, 0))
        for ring in self.rings:
            ring.base = self.ask(Request.GET_VRING_BASE, VringState(ring.index, 0)).num

    def reset(self) -> None:
        """A reboot of the guest: stops, and forgets the rings. `start` begins anew."""
        self.stop()
        if self.protocol_features & ProtocolFeature.RESET_DEVICE:
            self.tell(Request.RESET_DEVICE)
        for ring in self.rings:
            if ring.queue:
                ring.queue.close()
            ring.queue, ring.base = None, 0

    def queue(self, index: int) -> DriverQueue:
        queue = self.rings[index].queue
        assert queue, "the rings were not started"
        return queue

    def request(self, queue: int, data: bytes, reply_size: int) -> bytes:
        """One round trip on a ring: what the device wrote, at most `reply_size` bytes."""
        return self.queue(queue).request([data] if data else [], [reply_size] if reply_size else [])

    # Memory.

    def share_memory(self) -> None:
        """Tells the back-end the regions there are."""
        if self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            for region in self.regions:
                if region.wire not in self.announced:
                    self.tell(Request.ADD_MEM_REG, SingleRegion(region.wire), [region.fd])
                    self.announced.append(region.wire)
        else:
            wires = tuple(region.wire for region in self.regions)
            self.tell(Request.SET_MEM_TABLE, MemoryTable(wires), [region.fd for region in self.regions])

    def plug(self, guest_addr: int, size: int) -> Region:
        """Adds memory while the rings run."""
        region = self._new_region(guest_addr, size)
        self.share_memory()
        return region

    def unplug(self, region: Region) -> None:
        """Takes memory away while the rings run. Its content is lost."""
        self.regions.remove(region)
        if self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            self.tell(Request.REM_MEM_REG, SingleRegion(region.wire))
            self.announced.remove(region.wire)
        else:
            self.share_memory()
        for base, view in list(self.memory.regions):
            if base == region.wire.guest_addr:
                view.release()
                self.memory.regions.remove((base, view))
        region.close()

    # Migration and recovery.

    def log_start(self) -> None:
        """Has the back-end log what it writes, as QEMU does when a migration begins."""
        end = max(region.wire.guest_addr + region.wire.size for region in self.regions)
        size = -(-end // (8 * LOG_PAGE))
        fd = os.memfd_create("log", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        self.log = mmap.mmap(fd, size)
        self.ask(Request.SET_LOG_BASE, Log(size, 0), [fd])
        os.close(fd)
        self._set_logging(True)

    def log_stop(self) -> None:
        self._set_logging(False)

    def dirty(self) -> set[int]:
        """Guest physical addresses of the pages logged since the last call."""
        assert self.log
        bits = int.from_bytes(self.log[:], "little")
        self.log[:] = bytes(len(self.log))
        return {page * LOG_PAGE for page in range(bits.bit_length()) if bits >> page & 1}

    def get_inflight(self) -> None:
        """Has the back-end make an in-flight region, which `start` then hands it, also over another connection."""
        self.send(Request.GET_INFLIGHT_FD, Inflight(0, 0, len(self.rings), self.num))
        reply = self.receive()
        (fd,) = reply.fds
        self.inflight = Inflight.unpack(reply.payload), fd

    def reconnect(self, connect: Callable[[], socket.socket]) -> None:
        """The connection was lost: takes another one. `negotiate` and `start` come next, with the rings as they are."""
        self.sock.close()
        if self.channel:
            self.channel.close()
        self.sock, self.channel = connect(), None
        self.sock.settimeout(self.timeout)
        self.features = self.protocol_features = 0
        self.announced.clear()
        for ring in self.rings:
            # As QEMU, which no back-end could tell the last index any more (virtio_queue_restore_last_avail_idx).
            ring.base = ring.queue.last_used if ring.queue else 0

    def config(self, offset: int, size: int) -> bytes:
        """A piece of the device's configuration space."""
        answer: Config = self.ask(Request.GET_CONFIG, Config(offset, 0, bytes(size)))
        return answer.data

    def addresses(self, ring: Ring, *, logged: bool = False) -> VringAddr:
        """The ring's addresses in the terms of SET_VRING_ADDR."""
        desc, avail, used, _ = ring.where
        flags = VRING_F_LOG if logged else 0
        return VringAddr(ring.index, flags, self.user(desc), self.user(used), self.user(avail), used)

    def user(self, guest_addr: int) -> int:
        """The front-end's virtual address of a guest physical one."""
        return USER_BASE + guest_addr

    def _set_logging(self, logged: bool) -> None:
        self.features = self.features | Feature.LOG_ALL if logged else self.features & ~Feature.LOG_ALL
        self.tell(Request.SET_FEATURES, U64(self.features))
        for ring in self.rings:
            self.tell(Request.SET_VRING_ADDR, self.addresses(ring, logged=logged))

    def _new_region(self, guest_addr: int, size: int, *, private: bool = False) -> Region:
        region = Region(guest_addr, size, private=private)
        self.regions.append(region)
        self.memory.add(guest_addr, region.map, region.wire.mmap_offset, size)
        return region

    def _layout_rings(self, queues: int, size: int) -> list[Ring]:
        """The rings one after the other from guest address 64 KiB; what is left is shared out for buffers."""
        self.announced: list[MemoryRegion] = []
        where, end = [], 0x10000
        for _ in range(queues):
            where.append(layout(self.num, end))
            end = -(-where[-1].end // LOG_PAGE) * LOG_PAGE
        share = (size - end) // queues // LOG_PAGE * LOG_PAGE
        return [Ring(i, where[i], Allocator(end + i * share, share)) for i in range(queues)]

    def _read(self, size: int) -> tuple[bytes, list[int]]:
        data, fds = b"", []
        while len(data) < size:
            part, more, _, _ = socket.recv_fds(self.sock, size - len(data), 8)
            fds += more
            if not part:
                raise ConnectionError("the back-end closed the connection")
            data += part
        return data, fds

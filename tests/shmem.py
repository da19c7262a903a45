"""QEMU's shared memory regions: the front-end's side of SHMEM_MAP and SHMEM_UNMAP, with real mappings.

    with ShmemFrontEnd(path) as fe:                  # a FrontEnd; `serve()` answers what waits on the channel
        fe.negotiate()                               # asks for the regions' sizes too
        fe.serve_always()                            # or a thread does, as QEMU's main loop
        fe.window[0].read(offset, size)              # what the guest sees

What is refused is what QEMU 11.1 refuses, and its traps are played or counted: an empty file grows, a mapping is
writable whatever its flag says and in force some time after the answer (`lag`), a reset drops all mappings without a
word, a request that comes while the device is stopped (QEMU would crash) is counted in `late`. Like QEMU's main loop,
one lock keeps the messages of the two sockets apart: whoever waits for an answer on one serves nothing on the other.
"""

import ctypes
import errno
import mmap
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.frontend import FrontEnd
from vhost.message import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    U64,
    VERSION,
    BackendRequest,
    MemoryRegion,
    Payload,
    ProtocolFeature,
    Request,
    SharedMapping,
    SingleRegion,
)

PAGE = mmap.PAGESIZE
BAR = 1 << 36  # guest address of region 0; the others follow at this distance
BASELINE = 8  # regions QEMU puts in one SET_MEM_TABLE; with more it sends none
SLOTS = 512  # regions at most, where memory has slots; with more QEMU ends itself

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_FIXED = 0x10


class RefusedByQemu(Exception):  # noqa: N818 (an answer)
    """The request is answered with 1. The text is for whoever looks for the cause."""


@dataclass
class Mapped:
    """One mapping, which is a region of guest memory for every device of the machine."""

    wire: MemoryRegion
    fd: int

    def close(self) -> None:
        os.close(self.fd)


class Window:
    """The memory of region `shmid`: zeros, and files where they are mapped."""

    def __init__(self, shmid: int, size: int) -> None:
        self.shmid, self.size = shmid, size
        self.mappings: dict[tuple[int, int], Mapped] = {}  #: by offset and length
        self._address = _mmap(None, size, _ANONYMOUS, -1, 0)

    def close(self) -> None:
        """Unlike `drop`, the memory goes too."""
        for mapped in self.drop():
            mapped.close()
        _libc.munmap(self._address, self.size)

    def read(self, offset: int, size: int) -> bytes:
        """Dies of SIGBUS beyond the end of a file, as the guest does."""
        assert 0 <= offset <= offset + size <= self.size
        return ctypes.string_at(self._address + offset, size)

    def write(self, offset: int, data: bytes) -> None:
        assert 0 <= offset <= offset + len(data) <= self.size
        ctypes.memmove(self._address + offset, data, len(data))

    def map(self, wanted: SharedMapping, fds: Sequence[int]) -> Mapped:
        """What is to be put in force by `put`. Raises RefusedByQemu."""
        if not fds:
            raise RefusedByQemu("no descriptor")
        self._check(wanted)
        end = wanted.offset + wanted.length
        if any(offset < end and wanted.offset < offset + length for offset, length in self.mappings):
            raise RefusedByQemu("it overlaps another mapping")
        if wanted.file_offset % PAGE:
            raise RefusedByQemu("the file offset is not page aligned")
        # Taken by QEMU, and of no use to anybody.
        assert wanted.offset % PAGE == 0 and wanted.length % PAGE == 0, f"{wanted} is not page aligned"
        _check_file(fds[0], wanted)
        # Always writable, whatever the flag says.
        where = self._address + wanted.offset
        _libc.munmap(_mmap(None, wanted.length, mmap.MAP_SHARED, fds[0], wanted.file_offset), wanted.length)
        wire = MemoryRegion(self._guest(wanted.offset), wanted.length, where, wanted.file_offset)
        mapped = self.mappings[wanted.offset, wanted.length] = Mapped(wire, os.dup(fds[0]))
        return mapped

    def put(self, mapped: Mapped) -> None:
        """Puts what `map` accepted in force."""
        wire = mapped.wire
        _mmap(wire.user_addr, wire.size, mmap.MAP_SHARED | _FIXED, mapped.fd, wire.mmap_offset)

    def unmap(self, wanted: SharedMapping) -> Mapped:
        """Raises RefusedByQemu."""
        self._check(wanted)
        mapped = self.mappings.pop((wanted.offset, wanted.length), None)
        if mapped is None:
            raise RefusedByQemu("no mapping has this offset and length")
        self._blank(wanted.offset, wanted.length)
        return mapped

    def drop(self) -> list[Mapped]:
        """A reset of the device: what was mapped is gone."""
        dropped = list(self.mappings.values())
        for offset, length in self.mappings:
            self._blank(offset, length)
        self.mappings.clear()
        return dropped

    def _check(self, wanted: SharedMapping) -> None:
        if not wanted.length:
            raise RefusedByQemu("the length is 0")
        if wanted.offset + wanted.length > self.size:  # or beyond 64 bits, which Python doesn't mind
            raise RefusedByQemu("it is not inside the region")

    def _blank(self, offset: int, length: int) -> None:
        _mmap(self._address + offset, length, _ANONYMOUS | _FIXED, -1, 0)

    def _guest(self, offset: int) -> int:
        return BAR * (self.shmid + 1) + offset


class ShmemFrontEnd(FrontEnd):
    """A FrontEnd with the regions the device offers."""

    #: When the memory table changes: "after" the answer to a MAP or UNMAP, as QEMU's does, or "before".
    announces = "after"
    #: Seconds a request waits for its answer, beside what the machine takes.
    delay = 0.0
    #: Seconds between the answer to a MAP and the moment when the guest has it: QEMU commits its memory map later.
    lag = 0.0
    #: Requests to refuse for no reason.
    refuses: Callable[[BackendRequest, SharedMapping], bool] = staticmethod(lambda request, mapping: False)

    def __init__(self, *where: Any, **options: Any) -> None:
        self.lock = threading.RLock()
        self.window: dict[int, Window] = {}
        self.running = False  #: between `start` and `stop`
        self.gate = threading.Event()  #: a request that has come, and is not read yet, waits for it
        self.gate.set()
        self.received = 0  #: requests
        self.late = 0  #: requests that came while it was not: each a crash of QEMU's
        self.handled: list[tuple[BackendRequest, SharedMapping, str]] = []  #: and why it was refused, or nothing
        self.withdrawn = 0  #: requests whose rest made them unknown ones
        self.dangling = 0  #: mappings in memory slots that a reset dropped: with any, QEMU crashes at the next start
        self._begun: tuple[bytes, list[int]] | None = None
        self._loop: threading.Thread | None = None
        self._failed: BaseException | None = None
        super().__init__(*where, **options)

    def negotiate(self, *features: int, **options: int) -> None:
        super().negotiate(*features, **options)
        if self.protocol_features & ProtocolFeature.SHMEM:
            sizes = self.ask(Request.GET_SHMEM_CONFIG).regions
            for shmid, size in enumerate(sizes):
                assert size & (size - 1) == 0 and size % PAGE == 0, f"region {shmid} of {size} bytes ends QEMU"
                if size:
                    self.window[shmid] = Window(shmid, size)

    def start(self) -> None:
        with self.lock:
            super().start()
            self.running = True

    def stop(self) -> None:
        with self.lock:
            super().stop()
            self.running = False

    def reset(self) -> None:
        with self.lock:
            super().reset()
            for window in self.window.values():
                for mapped in window.drop():
                    self._forget(mapped)

    def close(self) -> None:
        """A front-end that dies. Raises what `serve_always` failed with."""
        if self.channel and self._loop:
            self.channel.shutdown(socket.SHUT_RD)
            self._loop.join()
        for window in self.window.values():
            for mapped in window.mappings.values():
                self.regions.remove(mapped)  # type: ignore[arg-type]
            window.close()
        self.window.clear()
        super().close()
        if self._failed:
            raise self._failed

    def ask(self, request: Request, payload: Payload | None = None, fds: Sequence[int] = ()) -> Any:
        with self.lock:
            return super().ask(request, payload, fds)

    def tell(self, request: Request, payload: Payload | None = None, fds: Sequence[int] = ()) -> None:
        with self.lock:
            super().tell(request, payload, fds)

    # The channel.

    def serve_always(self) -> None:
        """Answers in a thread until `close`."""
        self._loop = threading.Thread(target=self._serve_loop, daemon=True)
        self._loop.start()

    def take(self) -> bool:
        """Reads the first byte of a request, waiting for it. False when the back-end closed the channel."""
        first = self._receive(1)
        if first[0]:
            self._begun = first
        return bool(first[0])

    def serve(self) -> bool:
        """Answers one request, waiting for it. False when the back-end closed the channel."""
        assert self.channel
        if not self._begun and self.channel.recv(1, socket.MSG_PEEK):
            self.received += 1
            self.gate.wait()
        # As QEMU's main loop, which does nothing else while it reads a request, and handles it.
        with self.lock:
            if not self._begun and not self.take():
                return False
            assert self._begun
            (first, fds), self._begun = self._begun, None
            try:
                header = first + self._receive(HEADER.size - 1)[0]
                if len(header) < HEADER.size:
                    # It has found that we are leaving.
                    raise ConnectionResetError("the back-end closed the channel within a request")
                number, flags, size = HEADER.unpack(header)
                assert flags & ~FLAG_NEED_REPLY == VERSION
                payload = self._receive(size)[0] if size else b""
                if number not in set(BackendRequest):
                    self.withdrawn += 1
                    assert not flags & FLAG_NEED_REPLY
                    return True
                time.sleep(self.delay)
                self._act(BackendRequest(number), payload, fds, flags)
            finally:
                for fd in fds:
                    os.close(fd)
        return True

    def _serve_loop(self) -> None:
        try:
            while self.serve():
                pass
        except ConnectionError:
            pass
        except BaseException as failure:
            self._failed = failure

    def _act(self, request: BackendRequest, payload: bytes, fds: list[int], flags: int) -> None:
        if request is BackendRequest.CONFIG_CHANGE_MSG:
            self._answer(request, flags, 0)
            return
        wanted = SharedMapping.unpack(payload)
        self.late += not self.running
        try:
            change = self._change(request, wanted, fds)
        except RefusedByQemu as refusal:
            self.handled.append((request, wanted, str(refusal)))
            self._answer(request, flags, 1)
            return
        self.handled.append((request, wanted, ""))
        if self.announces == "before":
            change()
        self._answer(request, flags, 0)
        if self.announces == "after":
            change()

    def _change(self, request: BackendRequest, wanted: SharedMapping, fds: list[int]) -> Callable[[], None]:
        """Does what is asked; returns what is left: to tell the device of the new memory table."""
        window = self.window.get(wanted.region)
        if window is None:
            raise RefusedByQemu("no such region")
        if self.refuses(request, wanted):
            raise RefusedByQemu("the test wants it")
        if request is BackendRequest.SHMEM_UNMAP:
            mapped = window.unmap(wanted)
            return lambda: self._forget(mapped)
        mapped = window.map(wanted, fds)
        if not self.lag:
            window.put(mapped)
        return lambda: self._announce(window, mapped)

    def _announce(self, window: Window, mapped: Mapped) -> None:
        if self.lag:
            time.sleep(self.lag)
            window.put(mapped)
        self.regions.append(mapped)  # type: ignore[arg-type]
        self._share()

    def _forget(self, mapped: Mapped) -> None:
        self.regions.remove(mapped)  # type: ignore[arg-type]
        if mapped.wire in self.announced:
            self.dangling += not self.running
            self.announced.remove(mapped.wire)
            self.tell(Request.REM_MEM_REG, SingleRegion(mapped.wire))
        self._share()
        mapped.close()

    def _share(self) -> None:
        if self.running:
            self.share_memory()

    def share_memory(self) -> None:
        if self.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS:
            assert len(self.regions) <= SLOTS
            self._add_regions()
        elif len(self.regions) <= BASELINE:
            super().share_memory()

    def _add_regions(self) -> None:
        """In the order of guest addresses. With what is refused it ends, and tries again at the next change."""
        for region in sorted(self.regions, key=lambda region: region.wire.guest_addr):
            if region.wire not in self.announced:
                try:
                    self.tell(Request.ADD_MEM_REG, SingleRegion(region.wire), [region.fd])
                except OSError:
                    assert self.running, "QEMU does not start a device that refuses memory"
                    return
                self.announced.append(region.wire)

    def _answer(self, request: BackendRequest, flags: int, value: int) -> None:
        """QEMU looks at the flag alone, not at what was negotiated."""
        if flags & FLAG_NEED_REPLY:
            assert self.channel
            self.channel.sendall(HEADER.pack(request, VERSION | FLAG_REPLY, U64.layout.size) + U64(value).pack())

    def _receive(self, size: int) -> tuple[bytes, list[int]]:
        assert self.channel
        data, fds = b"", []
        while len(data) < size:
            part, more, _, _ = socket.recv_fds(self.channel, size - len(data), 8)
            fds += more
            if not part:
                break
            data += part
        return data, fds


def _check_file(fd: int, wanted: SharedMapping) -> None:
    """What QEMU asks of a file (system/physmem.c, qemu_ram_alloc_from_fd)."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise RefusedByQemu(f"fstat: {error.strerror}") from None
    zero = stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat("/dev/zero").st_rdev
    if not stat.S_ISREG(status.st_mode) and not zero:
        raise RefusedByQemu("no regular file")
    end = wanted.file_offset + wanted.length
    if zero:
        return
    if 0 < status.st_size < end:
        raise RefusedByQemu("it goes beyond the end of the file")
    if not status.st_size:
        try:
            os.ftruncate(fd, end)
        except OSError:
            raise RefusedByQemu("an empty file can't be grown") from None


def _mmap(address: int | None, size: int, flags: int, fd: int, offset: int) -> int:
    """Raises RefusedByQemu."""
    result = _libc.mmap(address, size, _READ_WRITE, flags, fd, offset)
    if result == ctypes.c_void_p(-1).value:
        raise RefusedByQemu(errno.errorcode[ctypes.get_errno()])
    return int(result)

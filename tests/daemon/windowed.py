"""A guest with a DAX window on a real daemon, and a model of what it has to see: every byte of window and files.

The front-end is tests/shmem.py's, which maps what it is told to. Requests can be caught between question and answer:
`caught` runs something while the front-end holds the daemon's question back.
"""

import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.daemon.daemon import Daemon
from tests.driver import Buffer
from tests.fuseclient import HEADER, NO_HANDLE, REPLY_HEADER, ROOT, FuseClient, pack, unpack
from tests.shmem import BAR, PAGE, ShmemFrontEnd
from vfsd._fuse import lib
from vhost.message import BackendRequest, SharedMapping

FLAGS = lib.FUSE_MAP_ALIGNMENT | lib.FUSE_HAS_INODE_DAX | lib.FUSE_HANDLE_KILLPRIV_V2
Range = tuple[int, int]


@dataclass(eq=False)
class File:
    """One file as it must be, and what the guest has of it."""

    name: str
    data: bytearray
    nodeid: int = 0
    lookups: int = 0
    fhs: list[int] = field(default_factory=list)
    linked: bool = True
    #: A descriptor of the host's, while the file has no name.
    host: int = -1


class Guest:
    """The front-end, its driver, and a client whose every request may be disturbed."""

    #: Run in the middle of the next request.
    disturb: Callable[[], None] | None = None

    def __init__(self, daemon: Daemon, without: int = 0, **options: object) -> None:
        """`without`: a protocol feature the front-end lacks."""
        self.daemon = daemon
        self.fe = ShmemFrontEnd(daemon.socket_path, **options)
        self.fe.negotiate(protocol_features=~without)
        if self.fe.channel:
            self.fe.serve_always()
        self.fe.start()
        self.client = FuseClient(self.exchange)
        self.client.init(flags=FLAGS)
        # The daemon has mapped something to learn where the window lies.
        self.fe.handled.clear()
        self.fe.received = 0

    def close(self) -> None:
        self.fe.close()

    def exchange(self, request: bytes, room: int) -> bytes:
        queue, disturb = self.fe.queue(1), self.disturb
        head = queue.add([request], [room] if room else [])
        self.disturb = None
        queue.kick()
        if disturb:
            disturb()
        return self.fe.queue(1).wait(head).data

    def write_out_of_window(self, nodeid: int, fh: int, offset: int, size: int, at: int) -> int:
        """WRITE of what lies at `at` of the window, straight from there: the errno."""
        queue, unique = self.fe.queue(1), next(self.client.uniques)
        body = pack("fuse_write_in", fh=fh, offset=offset, size=size)
        length = HEADER + len(body) + size
        head = pack("fuse_in_header", len=length, opcode=lib.FUSE_WRITE, unique=unique, nodeid=nodeid) + body
        request, reply = queue.allocator.allocate(len(head)), queue.allocator.allocate(REPLY_HEADER + 8)
        queue.memory.write(request, head)
        chain = queue.add_buffers(
            [Buffer(request, len(head)), Buffer(BAR + at, size)], [Buffer(reply, REPLY_HEADER + 8)],
            owned=[request, reply],
        )  # fmt: skip
        queue.kick()
        data = queue.wait(chain).data
        out = unpack("fuse_out_header", data)
        assert out.unique == unique and (out.error or unpack("fuse_write_out", data[REPLY_HEADER:]).size == size)
        return -out.error

    def caught(self, what: Callable[[], object]) -> Callable[[], None]:
        """A disturbance: does `what` while the daemon's next question is held back, or, if none comes, anyway."""
        before = self.fe.received

        def disturb() -> None:
            deadline = time.monotonic() + 0.02
            while self.fe.received == before and time.monotonic() < deadline:
                time.sleep(0.0005)
            what()
            self.fe.gate.set()

        self.fe.gate.clear()
        return disturb

    def kill(self) -> None:
        """Whatever worker there is."""
        for pid in self.daemon.workers:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)

    def interrupt(self) -> None:
        """A pause of the guest in the middle of a request."""
        self.fe.stop()
        self.fe.gate.set()
        # The front-end serves what is in the channel's socket meanwhile, as a QEMU that survives it would.
        deadline = time.monotonic() + 0.005
        while time.monotonic() < deadline:
            time.sleep(0.001)
        self.fe.start()

    def pause(self) -> None:
        self.fe.stop()
        self.fe.start()


class Model:
    """What must be where."""

    def __init__(self, guest: Guest, share: Path, seed: int) -> None:
        self.guest, self.share = guest, share
        self.random = random.Random(seed)
        self.size = guest.fe.window[0].size
        self.pages: list[tuple[File, int] | None] = [None] * (self.size // PAGE)
        self.files: list[File] = []
        self.compared = 0
        self._zeros = bytes(self.size)

    # Files.

    def add(self, name: str, size: int) -> File:
        file = File(name, bytearray(self.random.randbytes(size)))
        (self.share / name).write_bytes(file.data)
        self.files.append(file)
        return file

    def known(self, file: File) -> int:
        """The guest's nodeid, looked up if need be."""
        if not file.lookups:
            file.nodeid = self.guest.client.lookup(ROOT, file.name.encode()).nodeid
            file.lookups = 1
        return file.nodeid

    def handle(self, file: File) -> int:
        """One that the guest can write by: its first."""
        if not file.fhs:
            self.open(file, os.O_RDWR)
        return file.fhs[0]

    def open(self, file: File, flags: int) -> None:
        file.fhs.append(self.guest.client.open(self.known(file), flags).fh)

    def host_fd(self, file: File) -> int:
        return os.dup(file.host) if file.host >= 0 else os.open(self.share / file.name, os.O_RDWR)

    def write(self, file: File, offset: int, data: bytes) -> None:
        """A write changes the file, wherever it comes from."""
        if len(file.data) < offset:
            file.data.extend(bytes(offset - len(file.data)))
        file.data[offset : offset + len(data)] = data

    def resize(self, file: File, size: int) -> None:
        del file.data[size:]
        file.data.extend(bytes(size - len(file.data)))

    def check_file(self, file: File) -> None:
        fd = self.host_fd(file)
        assert os.pread(fd, len(file.data) + PAGE, 0) == file.data, f"{file.name} differs"
        os.close(fd)

    # The window.

    def set(self, offset: int, length: int, file: File | None = None, file_offset: int = 0) -> None:
        for page in range(length // PAGE):
            self.pages[offset // PAGE + page] = (file, file_offset // PAGE + page) if file else None

    def clear(self, file: File | None = None) -> None:
        """All of the window, or what is there of a file."""
        self.pages = [None if file is None or (at and at[0] is file) else at for at in self.pages]

    def runs(self) -> list[tuple[int, int, File | None, int]]:
        """(page, pages, file, page of the file) of what belongs together."""
        found: list[list[object]] = []
        for page, at in enumerate(self.pages):
            file, first = at or (None, 0)
            if found:
                last = found[-1]
                follows = file is None or first == last[3] + last[1]  # type: ignore[operator]
                if last[2] is file and follows:
                    last[1] += 1  # type: ignore[operator]
                    continue
            found.append([page, 1, file, first])
        return [(run[0], run[1], run[2], run[3]) for run in found]  # type: ignore[misc]

    def check(self) -> None:
        """Every byte the guest may look at: beyond the last page of a file there is a SIGBUS."""
        window = self.guest.fe.window[0]
        for page, pages, file, first in self.runs():
            size = pages * PAGE
            if file is None:
                expected = self._zeros[:size]
            else:
                expected = bytes(file.data[first * PAGE : first * PAGE + size])
                expected = expected.ljust(-(-len(expected) // PAGE) * PAGE, b"\0")
            if window.read(page * PAGE, len(expected)) != expected:
                raise AssertionError(self.difference(page, expected, file, first))
            self.compared += len(expected)

    def difference(self, page: int, expected: bytes, file: File | None, first: int) -> str:
        seen = self.guest.fe.window[0].read(page * PAGE, len(expected))
        at = next(at for at in range(len(expected)) if seen[at] != expected[at])
        name = f"{file.name} from page {first}" if file else "nothing"
        maps = sorted(self.guest.fe.window[0].mappings)
        return f"window page {page}: {name} differs at byte {at} of {len(expected)}; mapped are {maps}"

    # What the guest does to it. Each returns the errno.

    def attempt(self, what: Callable[[], object]) -> int:
        """The errno of a request, after which the model has to follow what was refused."""
        try:
            what()
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def setup(
        self, file: File, file_offset: int, length: int, offset: int, write: bool = True, fh: int = NO_HANDLE
    ) -> int:
        nodeid, begun = self.known(file), len(self.guest.fe.handled)
        error = self.attempt(
            lambda: self.guest.client.setupmapping(nodeid, file_offset, length, offset, write=write, fh=fh)
        )
        if error in (0, errno.EIO):
            self.set(offset, length, file, file_offset)
        return self.follow(error, begun)

    def remove(self, ranges: Sequence[Range]) -> int:
        begun = len(self.guest.fe.handled)
        error = self.attempt(lambda: self.guest.client.removemapping(*ranges))
        if error in (0, errno.EIO):
            for offset, length in ranges:
                self.set(offset, length)
        return self.follow(error, begun)

    def follow(self, error: int, begun: int) -> int:
        """What a map that was refused should have brought is not there."""
        missing: set[int] = set()
        refused = 0
        for request, mapping, why in self.guest.fe.handled[begun:]:
            if request is not BackendRequest.SHMEM_MAP:
                continue
            pages = set(range(mapping.offset // PAGE, (mapping.offset + mapping.length) // PAGE))
            missing = missing | pages if why else missing - pages
            refused += bool(why)
        for page in missing:
            self.pages[page] = None
        assert error != errno.EIO or refused, "EIO, though no map was refused"
        return error

    def fence(self) -> None:
        """Returns when what was told before, as by FORGET, is done."""
        self.guest.client.removemapping()

    def forget(self, file: File) -> None:
        """What the guest mapped of it goes with it."""
        if file.lookups:
            self.guest.client.forget(file.nodeid, file.lookups)
            file.lookups = 0
            self.fence()
        self.clear(file)

    def close_handles(self, file: File) -> None:
        for fh in file.fhs:
            self.guest.client.release(file.nodeid, fh)
        file.fhs.clear()

    def gone(self) -> None:
        """The guest has another mount: it knows nothing any more, and what had no name is no more."""
        self.clear()
        for file in list(self.files):
            file.lookups, file.fhs = 0, []
            if not file.linked:
                self.lose(file)

    def lose(self, file: File) -> None:
        self.files.remove(file)
        if file.host >= 0:
            os.close(file.host)
            file.host = -1


def refusing(chance: float, source: random.Random, unmaps: bool) -> Callable[[BackendRequest, SharedMapping], bool]:
    """Refuses maps at random, and an unmap once: the second time we would be believed."""
    seen: set[tuple[int, int]] = set()

    def refuses(request: BackendRequest, mapping: SharedMapping) -> bool:
        if source.random() >= chance:
            return False
        if request is BackendRequest.SHMEM_MAP:
            return True
        key = mapping.offset, mapping.length
        if not unmaps or key in seen:
            return False
        seen.add(key)
        return True

    return refuses

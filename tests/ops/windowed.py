"""The window of the control process without one: a channel that only records, and a worker's end of its socket."""

import os
import struct
from collections.abc import Callable
from typing import Any

from tests.fuseclient import pack, unpack
from vfsd._fuse import lib
from vfsd.window import REGION, Window
from vhost.message import MemoryRegion

SIZE = 4 << 20
RANGE = 2 << 20
PAGE = 4096
BASE = 16 * SIZE  # where the guest has its window
ANSWER = len(pack("window_answer"))


class Channel:
    """A front-end that is asked, and answers when told to. CONFIG_CHANGE_MSG is ("settle",)."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.done: list[Callable[[bool], None]] = []

    #: What was mapped last.
    fd = -1

    def shmem_map(
        self, region: int, fd: int, file_offset: int, offset: int, length: int, writable: bool,
        done: Callable[[bool], None],
    ) -> None:  # fmt: skip
        assert (region, writable) == (REGION, True)
        self.fd = fd
        self._ask(("map", os.readlink(f"/proc/self/fd/{fd}"), file_offset, offset, length), done)

    def shmem_unmap(self, region: int, offset: int, length: int, done: Callable[[bool], None]) -> None:
        assert region == REGION
        self._ask(("unmap", offset, length), done)

    def config_changed(self, done: Callable[[bool], None]) -> None:
        self._ask(("settle",), done)

    def _ask(self, what: tuple[Any, ...], done: Callable[[bool], None]) -> None:
        assert not self.done, "one at a time"
        self.asked.append(what)
        self.done.append(done)

    def answer(self, accepted: bool = True) -> None:
        self.done.pop()(accepted)

    def answer_all(self) -> None:
        while self.done:
            self.answer()


class Memory:
    """What the guest may name: names of files by guest address, length and offset in the file."""

    def __init__(self) -> None:
        self.shown: dict[MemoryRegion, str] = {}

    def show(self, wire: MemoryRegion, fd: int) -> bool:
        assert wire not in self.shown
        self.shown[wire] = os.readlink(f"/proc/self/fd/{fd}").removeprefix("/memfd:").split(" ")[0]
        return True

    def shows(self, wire: MemoryRegion) -> bool:
        return wire in self.shown

    def hide(self, wire: MemoryRegion) -> None:
        del self.shown[wire]

    def names(self) -> dict[tuple[int, int, int], str]:
        return {(wire.guest_addr, wire.size, wire.mmap_offset): name for wire, name in self.shown.items()}


class Padded:
    def __init__(self) -> None:
        self.flushed = 0
        self.probe = os.memfd_create("vfsd-probe", os.MFD_CLOEXEC)

    def open(self, fd: int) -> int:
        return os.dup(fd)

    def flush(self) -> None:
        self.flushed += 1

    def close(self) -> None:
        os.close(self.probe)


class Worker:
    """The window, a worker's end of its socket, and files that are open as a worker hands them over."""

    def __init__(self) -> None:
        self.before = set(os.listdir("/proc/self/fd"))
        self.padded, self.channel = Padded(), Channel()
        self.window = Window(SIZE, self.padded)  # type: ignore[arg-type]
        self.token = 0
        self.begin()

    def begin(self, base: int | None = BASE) -> None:
        """The first worker of a guest, which has its window at `base`, or whose front-end does not tell of it."""
        self.memory = Memory()
        self.resume()
        self.work()
        if base is not None:
            self.tell(base, PAGE)
        self.channel.answer_all()
        assert self.channel.asked == [*mapped("vfsd-probe", 0, 0), ("unmap", 0, PAGE)]
        self.channel.asked.clear()

    def resume(self, paused: bool = False) -> None:
        self.window.resume(self.memory, paused)  # type: ignore[arg-type]

    def tell(self, address: int, length: int, file_offset: int = 0) -> None:
        """The front-end tells of what it was asked to map last."""
        self.window.learn(MemoryRegion(address, length, 12345 * PAGE, file_offset), self.channel.fd)

    def ask(self, kind: int, name: str = "", tail: bytes = b"", token: int | None = None, **fields: int) -> int:
        self.token += 1
        token = self.token if token is None else token
        fd = os.memfd_create(name, os.MFD_CLOEXEC) if name else -1
        os.write(self.window.worker_socket, pack("window_question", token=token, kind=kind, fd=fd, **fields) + tail)
        return token

    def setup(self, nodeid: int, offset: int, file_offset: int = 0, length: int = PAGE, name: str = "") -> int:
        return self.ask(
            lib.WINDOW_SETUP, name or f"file{nodeid}", nodeid=nodeid, offset=offset, file_offset=file_offset,
            length=length,
        )  # fmt: skip

    def remove(self, *ranges: tuple[int, int]) -> int:
        return self.ask(lib.WINDOW_REMOVE, tail=b"".join(struct.pack("=QQ", *each) for each in ranges))

    def work(self) -> None:
        self.window.work(self.channel)  # type: ignore[arg-type]

    def done(self) -> None:
        self.work()
        self.channel.answer_all()

    def answers(self) -> list[tuple[int, int]]:
        """(token, error)."""
        return [(answer.token, answer.error) for answer in self.all_answers()]

    def all_answers(self) -> list[Any]:
        found = []
        try:
            while True:
                found.append(unpack("window_answer", os.read(self.window.worker_socket, ANSWER)))
        except BlockingIOError:
            return found

    def files(self) -> list[str]:
        """What is open of the files."""
        links = (f"/proc/self/fd/{fd}" for fd in set(os.listdir("/proc/self/fd")) - self.before)
        found = [os.readlink(link) for link in links if os.path.lexists(link)]
        names = sorted(name.removeprefix("/memfd:").split(" ")[0] for name in found if name.startswith("/memfd:"))
        return [name for name in names if name != "vfsd-probe"]


def mapped(name: str, file_offset: int, offset: int, length: int = PAGE) -> list[tuple[Any, ...]]:
    return [("map", f"/memfd:{name} (deleted)", file_offset, offset, length), ("settle",)]

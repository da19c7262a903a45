"""Upgrades of a real daemon: other builds of this program, and a guest that does not stop working meanwhile."""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.daemon.daemon import REPOSITORY, Daemon, guest
from tests.daemon.windowed import Guest
from tests.frontend import FrontEnd
from tests.fuseclient import ROOT, FuseClient
from tests.shmem import Window
from vfsd._fuse import lib

#: Seconds: the new program has 30 to start.
PATIENCE = 90
PAGE = 4096
RUN = "import sys; sys.path.insert(0, {tree!r}); from vfsd.__main__ import main; sys.exit(main())"


def executable(place: Path, code: str) -> Path:
    """A program of this interpreter, whatever PYTHONPATH says."""
    place.write_text(f"#!{sys.executable}\n{code}\n")
    place.chmod(0o755)
    return place


def build(place: Path, version: str, change: Callable[[Path], None] = lambda tree: None) -> Path:
    """Another build of this tree, in a directory of its own and with another version; its executable. `change` is
    called with the tree. What is compiled of it already goes with it."""
    tree = place / version
    for package in ("vfsd", "vhost", "dax"):
        shutil.copytree(REPOSITORY / package, tree / package, ignore=shutil.ignore_patterns("*.c"))
    replace(tree / "vfsd/information.py", 'VERSION = "', f'VERSION = "{version}-')
    change(tree)
    return executable(place / f"vfsd-{version}", RUN.format(tree=str(tree)))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def dies_when_given(tree: Path) -> None:
    """A build that ends when it has the state, and has not looked at it."""
    replace(tree / "vfsd/taker.py", "    control.resume(saved", "    os._exit(9)\n    control.resume(saved")


def dies_when_ready(tree: Path) -> None:
    """A build that ends when it is to serve, and has not said that it does."""
    line = '    lib.process_set_death_signal(signal.SIGKILL)\n    handover.send(transfer, "serving")'
    replace(tree / "vfsd/taker.py", line, f"    os._exit(9)\n{line}")


def upgrade(
    target: object, *options: str, meanwhile: Callable[[], object] = lambda: time.sleep(0.01)
) -> subprocess.CompletedProcess[str]:
    """`meanwhile` is done again and again until it is over."""
    command = [sys.executable, "-m", "vfsd", "--upgrade", str(target), *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    deadline = time.monotonic() + PATIENCE
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            while process.poll() is None and time.monotonic() < deadline:
                meanwhile()
            out, error = process.communicate(timeout=1)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(command, process.returncode, out, error)


class Load:
    """A guest's program on one request queue: it makes, writes, renames, lists, reads and removes files, and knows what
    it must find. `pauses` tells how long its requests took at most."""

    def __init__(self, client: FuseClient, number: int) -> None:
        self.client, self.random = client, random.Random(number)
        self.prefix = b"load%d-" % number
        self.done = 0
        self.error: BaseException | None = None
        self._longest = 0.0
        self._files: dict[bytes, bytes] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        if self.error and not kind:
            raise self.error

    def longest(self) -> float:
        """Seconds the longest request took since this was asked last."""
        longest, self._longest = self._longest, 0.0
        return longest

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._timed(self._make)
                self._timed(self._check)
                if len(self._files) > 20:
                    self._timed(self._remove)
            for name in [*self._files]:
                self._check(name)
        except BaseException as error:
            self.error = error

    def _timed(self, operation: Callable[[], None]) -> None:
        # An operation is a handful of requests, each some tenths of a millisecond when nothing is in their way.
        begun = time.monotonic()
        operation()
        self._longest = max(self._longest, time.monotonic() - begun)
        self.done += 1

    def _make(self) -> None:
        name, data = self.prefix + b"%d" % self.done, self.random.randbytes(3 * PAGE)
        entry, file = self.client.create(ROOT, b"new-" + name)
        for offset in range(0, len(data), PAGE):
            assert self.client.write(entry.nodeid, file.fh, data[offset : offset + PAGE], offset) == PAGE
        self.client.rename(ROOT, b"new-" + name, ROOT, name)
        assert self.client.read(entry.nodeid, file.fh, len(data)) == data
        self.client.release(entry.nodeid, file.fh)
        self.client.forget(entry.nodeid)
        self._files[name] = data

    def _check(self, name: bytes = b"") -> None:
        name = name or self.random.choice([*self._files])
        nodeid = self.client.lookup(ROOT, name).nodeid
        fh = self.client.open(nodeid).fh
        found = self.client.read(nodeid, fh, 4 * PAGE)
        assert hashlib.sha256(found).digest() == hashlib.sha256(self._files[name]).digest()
        self.client.release(nodeid, fh)
        self.client.forget(nodeid)

    def _remove(self) -> None:
        name = self.random.choice([*self._files])
        del self._files[name]
        self.client.unlink(ROOT, name)
        self.client.lookup(ROOT, name, expect=2)


class MappedLoad(Load):
    """One that also maps what it has made into its part of the window, at `start`, and reads and stores there."""

    def __init__(self, client: FuseClient, number: int, window: Window, start: int, length: int) -> None:
        super().__init__(client, number)
        # QEMU takes no more than some 500 mappings.
        distance = max(1, length // PAGE // 100) * PAGE
        self._window, self._places = window, range(start, start + length - 3 * PAGE, distance)

    def _check(self, name: bytes = b"") -> None:
        name = name or self.random.choice([*self._files])
        nodeid, data = self.client.lookup(ROOT, name).nodeid, self._files[name]
        offset, at = self.random.choice(self._places), self.random.randrange(len(data))
        self.client.setupmapping(nodeid, 0, len(data), offset)
        assert self._window.read(offset, len(data)) == data
        self._window.write(offset + at, b"!")
        data = self._files[name] = data[:at] + b"!" + data[at + 1 :]
        if self.random.random() < 0.5:
            self.client.removemapping((offset + PAGE, PAGE))
            assert self._window.read(offset, len(data)) == data[:PAGE] + bytes(PAGE) + data[2 * PAGE :]
        super()._check(name)


@contextmanager
def loaded(daemon: Daemon, queues: int = 2) -> Iterator[tuple[FrontEnd, FuseClient, list[Load]]]:
    """A guest on so many request queues, the last two of which are at work."""
    with guest(daemon, init=False, queues=1 + 1 + queues) as (frontend, client):
        client.init(flags=lib.FUSE_POSIX_LOCKS)
        loads = [Load(_client(frontend, 2 + number, client), number) for number in range(queues)]
        with working(loads):
            yield frontend, client, loads


@contextmanager
def mapping(daemon: Daemon, queues: int = 2) -> Iterator[tuple[FrontEnd, FuseClient, list[Load]]]:
    """The same on a daemon with a DAX window."""
    guest = Guest(daemon, queues=1 + 1 + queues)
    try:
        window = guest.fe.window[0]
        part = window.size // queues
        clients = [_client(guest.fe, 2 + number, guest.client) for number in range(queues)]
        loads: list[Load] = [
            MappedLoad(client, number, window, number * part, part) for number, client in enumerate(clients)
        ]
        with working(loads):
            yield guest.fe, guest.client, loads
    finally:
        guest.close()


@contextmanager
def working(loads: list[Load]) -> Iterator[None]:
    with ExitStack() as stack:
        for load in loads:
            stack.enter_context(load)
        yield


def _client(frontend: FrontEnd, queue: int, of: FuseClient) -> FuseClient:
    """The same guest on another queue."""
    client = FuseClient(lambda request, room: frontend.request(queue, request, room))
    client.uniques = of.uniques
    return client

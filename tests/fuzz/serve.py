"""Random and mutated requests for the FUSE core, Python's ops included: `run(count, seed)`.

A guest that knows the protocol and means no good works on a scratch directory: most requests are well formed and name
nodeids, handles and names that exist, so that they get deep; then some are mutated, cut, or lie about their length.
Every request is laid out over odd buffers, each an allocation of its own. Checked of every answer: that it lies inside
the room, that its header is true, that a silent op is silent, that no inode outside the share is in it. At the end:
that nothing outside the share has changed, that no op of ours raised what it should not, and that no inode, handle or
descriptor is left. With an odd seed there is a DAX window, as far as requests get to it without a ring.

Now and then the host moves, replaces and removes what is in the share (host.py), and the core is made anew on its
arenas, as after a worker's death, with other settings: mostly so few descriptors that inodes are closed and opened
again all the time. No inode is lost by that.

The last part of a run has two such guests on two threads at one core. A request that hangs ends the process with a
traceback (`faulthandler`). It means most in a sanitizer build.
"""

import errno
import faulthandler
import logging
import os
import random
import resource
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import vfsd.ops  # noqa: F401  (fills OPS)
from tests.fuzz.guest import Guest
from tests.fuzz.host import Host
from vfsd._fuse import ffi, lib
from vfsd.core import Arenas, Core, descriptors
from vfsd.door import close_door, open_door
from vfsd.settings import Settings
from vfsd.translate import Owner, rule, tables
from vhost.arena import Arena

HANG = 60.0  # seconds
BATCH = 1000
RESTART = 500  # requests, on the average, from one worker to the next
HOSTED = 40  # and from one change on the host to the next
#: How many descriptors a guest may hold, 0: no limit.
BUDGETS = (0, 12, 24, 40, 60)
THREADED = 10  # one request in so many is served beside another
MEMOS = 2  # requests at a time
FILE_MAX = 1 << 20  # bytes; RLIMIT_FSIZE, so that no offset fills the disk


class Complaints(logging.Handler):
    """What the door logs: an op that raised what nobody foresaw."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(self.format(record))


@contextmanager
def scratch() -> Iterator[Path]:
    """A place with `root`, the share; `outside`, which nobody may touch; and `elsewhere`, the host's own. The process
    serves from /proc/self/fd, as a worker does."""
    before, umask, limits = os.open(".", os.O_PATH), os.umask(0), resource.getrlimit(resource.RLIMIT_FSIZE)
    place = Path(tempfile.mkdtemp(prefix="fuzz-serve-"))
    (place / "root").mkdir(mode=0o777)
    (place / "outside").mkdir()
    (place / "outside/file").write_text("untouched")
    (place / "elsewhere").mkdir()
    os.chdir("/proc/self/fd")
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_MAX, limits[1]))
    try:
        yield place
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        os.fchdir(before)
        os.close(before)
        os.umask(umask)
        # The guest has set flags and modes as it liked.
        subprocess.run(["chattr", "-R", "-f", "-ia", place], check=False)
        subprocess.run(["chmod", "-R", "u+rwX", place], check=True)
        shutil.rmtree(place)


class Window:
    """Stands for vfsd.asking.Asking. No ring, no answer: what comes to asking is refused."""

    def __init__(self, seed: int) -> None:
        self.random, self.padded = random.Random(seed), self
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.core: Core | None = None
        self.told = 0

    def open(self, fd: int) -> int:
        """As through a mount that shows files without an end."""
        assert self.core
        opened = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        if self.random.random() < 0.1:
            lib.dax_note(self.core.pointer, self.random.getrandbits(34), lib.DAX_UNSUITABLE)
        # Nobody takes it.
        os.close(opened)
        return opened

    def read(self) -> None:
        """What the core told; sometimes the socket is full meanwhile."""
        with suppress(BlockingIOError):
            while message := self.theirs.recv(1 << 18):
                question = ffi.from_buffer("struct window_question *", message)
                assert (question.token, question.kind, question.fd) == (0, lib.WINDOW_FORGET, -1)
                self.told += 1

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Worker:
    """A core that is made anew now and then."""

    def __init__(self, place: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.root_fd = os.open(place / "root", os.O_PATH | os.O_DIRECTORY)
        self.proc_fd = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        # Small tables, so that they are full at times.
        sizes = {"session": 4096, "inodes": self.random.choice((16384, 65536)), "handles": 4096, "locks": 4096}
        sizes["memos"] = MEMOS * (ffi.sizeof("struct memo") + 4 * lib.MEMO_PAGE)
        self.arenas = Arenas(**{name: Arena(name, size) for name, size in sizes.items()})
        self.memos = ffi.cast("struct memo *", self.arenas.memos.pointer(ffi, "struct memo *"))
        rules = [rule("map:1000:70000:5"), rule("forbid-guest:4000000000:9"), rule("squash-host:80000:7:9")]
        self.ids = tables(rules, rules, None, Owner(0, 0)) if seed % 3 == 0 else None
        self.window = Window(seed) if seed % 2 else None
        self.core = self._core()

    def _core(self) -> Core:
        window = self.window
        settings = Settings(
            privileged=os.geteuid() == 0, xattr=True, queue_size=128, label=b"user.label", ids=self.ids,
            descriptors=self.random.choice(BUDGETS), file_handles=self.random.choice(("never", "prefer", "mandatory")),
            window=window.ours.fileno() if window else -1, dax_policy=self.random.choice(("auto", "always")),
            dax_min=self.random.choice((0, 100)), dax_max=self.random.choice((1000, 1 << 40)),
        )  # fmt: skip
        core = Core(settings, self.root_fd, self.proc_fd, self.arenas)
        open_door(core)
        if window:
            window.read()
            window.core, core.window = core, window  # type: ignore[assignment]
        return core

    def restart(self) -> None:
        """A next worker. What it drops, as a handle of an inode that the guest has forgotten, is swept."""
        before, recorded = self.core.inodes, descriptors(self.core._config)
        self._close()
        self.core = self._core()
        assert self.core.inodes == before, f"{before} inodes before a restart, {self.core.inodes} after it"
        for fd in recorded - descriptors(self.core._config):
            with suppress(OSError):
                os.close(fd)

    def _close(self) -> None:
        close_door(self.core)
        self.core.close()

    def close(self) -> None:
        self._close()
        if self.window:
            self.window.close()
        os.close(self.root_fd)
        os.close(self.proc_fd)


def serve_batches(guest: Guest, worker: Worker, host: Host, count: int, alone: bool = True) -> None:
    chance = guest.random.random
    for first in range(0, count, BATCH):
        faulthandler.dump_traceback_later(HANG, exit=True)
        for _ in range(min(BATCH, count - first)):
            if not worker.core.session.mounted and chance() < 0.2:
                worker.core.session.mounted = 1
            if chance() < 1 / HOSTED:
                host.act()
            if alone and chance() < 1 / RESTART:
                worker.restart()
                guest.core = worker.core.pointer
            guest.serve()
    faulthandler.cancel_dump_traceback_later()


def serve_together(guests: list[Guest], worker: Worker, host: Host, count: int) -> None:
    """The guests at once, on a thread each."""
    failures: list[BaseException] = []

    def work(guest: Guest) -> None:
        try:
            guest.core = worker.core.pointer
            serve_batches(guest, worker, host, count, alone=False)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(guest,)) for guest in guests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def opened() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


def run(count: int, seed: int) -> str:
    """Feeds `count` requests to the core; one sentence of what they got. AssertionError names the seed to repeat."""
    complaints = Complaints()
    logging.getLogger("vfsd.door").addHandler(complaints)
    with scratch() as place:
        outside = place / "outside"
        forbidden = {path.stat().st_ino for path in (place, outside, outside / "file", place / "elsewhere")}
        worker, host = Worker(place, seed), Host(place, seed)
        own = {worker.root_fd, worker.proc_fd}
        if worker.window:
            own |= {worker.window.ours.fileno(), worker.window.theirs.fileno()}
        before = opened() - {str(fd) for fd in own}
        guests = [
            Guest(worker.core.pointer, number, forbidden, worker.memos + index)
            for index, number in enumerate((seed, seed + 1_000_000))
        ]
        agreed = lib.FUSE_POSIX_ACL | lib.FUSE_DONT_MASK | lib.FUSE_SECURITY_CTX | seed % 2 * lib.FUSE_CREATE_SUPP_GROUP
        agreed |= lib.FUSE_POSIX_LOCKS | lib.FUSE_FLOCK_LOCKS | lib.FUSE_EXPORT_SUPPORT
        if worker.window:
            agreed |= lib.FUSE_MAP_ALIGNMENT | lib.FUSE_HAS_INODE_DAX
        worker.core.session.flags, worker.core.session.mounted = agreed, 1
        begun = time.monotonic()
        try:
            together = count // THREADED // 2
            serve_batches(guests[0], worker, host, count - 2 * together)
            serve_together(guests, worker, host, together)
            rate = count / (time.monotonic() - begun)
            worker.core.reset()
            left = worker.core.inodes, worker.core.handles, worker.core.locks
            assert left == (1, 0, 0), f"a reset left something: {left}"
            assert [path.name for path in outside.iterdir()] == ["file"], "something was made outside the share"
            assert (outside / "file").read_text() == "untouched", "a file outside the share was written"
            assert not complaints.records, complaints.records[0]
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        finally:
            worker.close()
            logging.getLogger("vfsd.door").removeHandler(complaints)
        assert opened() == before, f"seed {seed}: a descriptor was left open"
    common = (guests[0].answers + guests[1].answers).most_common(12)
    told = ", ".join(f"{errno.errorcode[error] if error else 'success'} {times}" for error, times in common)
    return f"{count} requests at {rate:.0f}/s: {told}"


if __name__ == "__main__":
    import sys

    print(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))

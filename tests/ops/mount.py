"""A share in this process, without a ring: the core on a directory, Python's ops behind the door, and a client."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import vfsd.ops  # noqa: F401  (fills OPS)
from tests.direct import direct, follow
from tests.fuseclient import FuseClient
from vfsd._fuse import ffi
from vfsd.core import Arenas, Core, core_config, descriptors
from vfsd.door import close_door, open_door
from vfsd.settings import Settings
from vhost.arena import Arena

#: Every INIT flag there is.
ALL_FLAGS = (1 << 64) - 1


class Mount(NamedTuple):
    root: Path
    core: Core
    client: FuseClient
    #: The same guest, whose last request was in flight in a worker that died.
    replayed: FuseClient
    arenas: Arenas
    root_fd: int
    proc_fd: int

    def descriptors(self) -> set[int]:
        """What the arenas record."""
        return descriptors(core_config(self.core.settings, self.root_fd, self.proc_fd, self.arenas))

    @property
    def memo(self) -> Any:
        """The struct memo * of the last request."""
        return memo_of(self.arenas.memos)

    def unfinished(self) -> FuseClient:
        """`replayed`, and the worker died before it had written what came of the request."""
        self.memo.done = 0
        return self.replayed


def memo_of(arena: Arena) -> Any:
    """The first struct memo *. It does not keep the arena: in a cycle of garbage that would crash (cffi 2.0)."""
    return ffi.cast("struct memo *", arena.pointer(ffi, "struct memo *"))


@contextmanager
def share(root: Path, settings: Settings, init: bool = True, handles: int = 1 << 20) -> Iterator[Mount]:
    """Serves `root` as a worker does: from /proc/self/fd, with umask 0. `handles`: bytes of that arena."""
    before, umask = os.open(".", os.O_PATH), os.umask(0)
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    proc_fd = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    os.fchdir(proc_fd)
    arenas = Arenas(
        Arena("session", 4096), Arena("inodes", 1 << 20), Arena("handles", handles), Arena("locks", 1 << 16),
        Arena("memos", 1 << 16),
    )  # fmt: skip
    core = Core(settings, root_fd, proc_fd, arenas)
    open_door(core)
    memo = memo_of(arenas.memos)
    client = FuseClient(direct(core.pointer, memo=memo))
    replayed = follow(FuseClient(direct(core.pointer, replay=True, memo=memo)), client)
    try:
        if init:
            client.init(minor=45, flags=ALL_FLAGS)
        yield Mount(root, core, client, replayed, arenas, root_fd, proc_fd)
        core.reset()
    finally:
        close_door(core)
        core.close()
        os.fchdir(before)
        os.umask(umask)
        for fd in (before, root_fd, proc_fd):
            os.close(fd)

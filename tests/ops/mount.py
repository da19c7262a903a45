"""A share in this process, without a ring: the core on a directory, Python's ops behind the door, and a client."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import vfsd.ops  # noqa: F401  (fills OPS)
from tests.direct import direct
from tests.fuseclient import FuseClient
from vfsd.core import Core, core_config, descriptors
from vfsd.door import close_door, open_door
from vfsd.settings import Settings
from vhost.arena import Arena

#: Every INIT flag there is.
ALL_FLAGS = (1 << 64) - 1


class Mount(NamedTuple):
    root: Path
    core: Core
    client: FuseClient
    #: The same guest, whose requests were all in flight in a worker that died.
    replayed: FuseClient
    #: session, inodes, handles, locks
    arenas: tuple[Arena, Arena, Arena, Arena]
    root_fd: int
    proc_fd: int

    def descriptors(self) -> set[int]:
        """What the arenas record."""
        return descriptors(core_config(self.core.settings, self.root_fd, self.proc_fd, *self.arenas))


@contextmanager
def share(root: Path, settings: Settings, init: bool = True, handles: int = 1 << 20) -> Iterator[Mount]:
    """Serves `root` as a worker does: from /proc/self/fd, with umask 0. `handles`: bytes of that arena."""
    before, umask = os.open(".", os.O_PATH), os.umask(0)
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    proc_fd = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    os.fchdir(proc_fd)
    arenas = Arena("session", 4096), Arena("inodes", 1 << 20), Arena("handles", handles), Arena("locks", 1 << 16)
    core = Core(settings, root_fd, proc_fd, *arenas)
    open_door(core)
    client, replayed = FuseClient(direct(core.pointer)), FuseClient(direct(core.pointer, replay=True))
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

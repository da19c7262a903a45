"""A core on a directory, with no ring and no Python ops: what the tests of this package serve their requests with."""

import errno
import mmap
import os
import struct
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from tests.direct import direct, follow
from tests.fuseclient import ROOT, FuseClient
from vfsd._fuse import ffi, lib
from vfsd.core import core_ids
from vfsd.translate import Ids

#: Records that fit in each arena, the header's slot included.
RECORDS = 4096
SECOND = 1_000_000_000
#: Root of the machine, not of a user namespace that maps a few ids.
REAL_ROOT = os.geteuid() == 0 and Path("/proc/self/uid_map").read_text().split()[2] == str(2**32 - 1)

#: struct inode_record and the header of its arena.
RECORD = struct.Struct("=IIQQQqQiIQQQBBHiI36s")
FIELDS = ["valid", "generation", "dev", "ino", "mnt_id", "btime", "nlookup", "fd", "type", "stamp", "base", "tag",
          "how", "reserved", "len", "handle_type", "tail", "bytes"]  # fmt: skip
HEADER = struct.Struct("=QIIII")  # magic record_size generation high reserved


class Served:
    """One core and its arenas. `client` is a guest that has done INIT; `flags` are what it agreed to."""

    def __init__(
        self,
        root: Path,
        *,
        core_flags: int = 0,
        cache: int = lib.CORE_CACHE_AUTO,
        session_flags: int = 0,
        entry_ns: int = SECOND + 5,
        negative_ns: int = 0,
        settle_ns: int = 60 * SECOND,
        records: int = RECORDS,
        door: Callable[[Any, Any], int] | None = None,
        complete: Callable[[Any, int], None] | None = None,
        ids: Ids | None = None,
        window: int = -1,
        dax_sizes: tuple[int, int] = (0, 0),
    ) -> None:
        self.root = root
        self.root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
        self.proc_fd = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)
        self.inodes = mmap.mmap(-1, records * lib.INODE_RECORD)
        self.handles = mmap.mmap(-1, records * lib.HANDLE_RECORD)
        self.locks = mmap.mmap(-1, records * 48)
        self.memos = mmap.mmap(-1, 1 << 20)
        #: Those of the guests, of whom each has one request at a time; and that of `client`.
        self._memos = count()
        self.memo = ffi.cast("struct memo *", ffi.from_buffer(self.memos))
        self.session = ffi.new("struct core_session *", {"mounted": 1, "minor": 38, "flags": session_flags})
        self.door = ffi.callback("fuse_door_function", door or (lambda core, request: -errno.ENOTSUP), error=-errno.EIO)
        self.complete = ffi.callback("virtq_completion", complete) if complete else ffi.NULL
        self.ids = core_ids(ids) if ids else ffi.NULL
        self.config = ffi.new(
            "struct core_config *",
            {
                "root_fd": self.root_fd,
                "proc_fd": self.proc_fd,
                "flags": core_flags,
                "cache": cache,
                "entry_ns": entry_ns,
                "attr_ns": 2 * SECOND + 7,
                "negative_ns": negative_ns,
                "file_settle_ns": settle_ns,
                "dir_settle_ns": settle_ns,
                "door": self.door,
                "complete": self.complete,
                "session": self.session,
                "inodes": ffi.from_buffer(self.inodes),
                "handles": ffi.from_buffer(self.handles),
                "locks": ffi.from_buffer(self.locks),
                "inodes_size": len(self.inodes),
                "handles_size": len(self.handles),
                "ids": self.ids,
                "locks_size": len(self.locks),
                "memos": self.memo,
                "memos_size": len(self.memos),
                "window_fd": window,
                "dax_min": dax_sizes[0],
                "dax_max": dax_sizes[1],
                "dax_room": 1 << 40,
            },
        )
        self.core = self.attach()
        self.client = self.guest()

    def attach(self) -> Any:
        """A core on the arenas as they are. OSError when it refuses them."""
        error = ffi.new("int *")
        core = lib.core_new(self.config, error)
        if core == ffi.NULL:
            raise OSError(-error[0], os.strerror(-error[0]))
        return core

    def restart(self) -> None:
        """What a worker's death leaves: the arenas and the descriptors, and a new core on them."""
        lib.core_free(self.core)
        self.core = self.attach()

    def guest(self, **options: Any) -> FuseClient:
        """A client; options as for `direct`. It follows a restart."""
        options.setdefault("memo", self.memo + next(self._memos))
        return FuseClient(lambda request, room: direct(self.core, **options)(request, room))

    def again(self) -> FuseClient:
        """The guest whose last request was in flight in a worker that died, before it had written what came of it."""
        self.memo.done = 0
        return follow(self.guest(replay=True, memo=self.memo), self.client)

    def limit(self, descriptors: int) -> None:
        """Lets the guest hold so many from now on, the root's included."""
        self.config.descriptors_max = descriptors
        self.restart()

    def descriptors(self) -> set[int]:
        fds = ffi.new("int32_t[]", 3 * RECORDS)
        return set(fds[0 : lib.core_descriptors(self.config, fds, len(fds))])

    def close(self) -> None:
        lib.core_reset(self.core)
        lib.core_free(self.core)
        os.close(self.root_fd)
        os.close(self.proc_fd)


def records(served: Served) -> dict[int, tuple[Any, ...]]:
    """Slots of the inode arena that are marked valid, the root's left out."""
    found = {}
    for slot in range(2, HEADER.unpack_from(served.inodes)[3]):
        record = RECORD.unpack_from(served.inodes, slot * RECORD.size)
        if record[0] == 1:
            found[slot] = record
    return found


def closed(served: Served) -> set[int]:
    """Nodeids of the inodes without a descriptor."""
    return {record[1] << 32 | slot for slot, record in records(served).items() if record[7] < 0 and record[8]}


def crowd(served: Served, count: int = 40) -> None:
    """Uses other inodes until whatever was idle is closed."""
    directory = served.root / "crowd"
    directory.mkdir(exist_ok=True)
    at = served.client.lookup(ROOT, b"crowd").nodeid
    for i in range(count):
        (directory / str(i)).touch()
        served.client.getattr(served.client.lookup(at, str(i).encode()).nodeid)

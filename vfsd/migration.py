"""A guest's mount as it is put into a saved state (state.py), and taken out of one.

Runs in a process of its own (transfer.py), which holds the core while no worker does.
"""

import errno
import fcntl
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from vfsd import held, state
from vfsd._fuse import ffi, lib
from vfsd.core import Core, packed
from vfsd.held import Lock
from vfsd.ops.session import MINOR_MAX, MINOR_MIN, PAGE, differences
from vfsd.state import Owner, Part, Range, Session, Writer
from vhost.saved import StateError
from vhost.suspended import Suspended

log = logging.getLogger("vfsd.migration")

#: What is missing is named so many times, and counted from then on.
NAMED = 10


class Missing:
    """What can't be taken along, or not be taken up: an inode, an open file, a lock."""

    def __init__(self, level: int, where: str) -> None:
        self._level, self._where = level, where
        self.count = 0

    def add(self, what: str, error: int) -> None:
        self.count += 1
        if self.count <= NAMED:
            log.log(self._level, "%s: %s (%s)", self._where, what, os.strerror(error))
        elif self.count == NAMED + 1:
            log.log(self._level, "%s: and more", self._where)


# Out


def save(
    core: Core, write: Callable[[bytes], object], flags: int, proc_fd: int, rings: Iterable[Suspended]
) -> list[tuple[int, Lock]]:
    """Writes the whole state. `flags` are STATE_CONFIRM, STATE_TAGS and STATE_HANDLES. Returns the locks in it, each
    with its descriptor. Raises StateError; OSError."""
    writer, session = Writer(write), core.session
    numbers = ffi.new("struct state_numbers *")
    lib.state_numbers(core.pointer, numbers)
    # A guest that has not mounted has no minor.
    minor = session.minor if session.mounted else 0
    tags = flags & lib.STATE_TAGS
    writer.session(Session(minor, session.max_pages, session.max_write, tags, session.flags, packed(numbers)))
    missing = Missing(logging.WARNING, "not found for the destination")
    _save_inodes(core, writer, flags, missing)
    locks = _save_handles(core, writer, proc_fd) + _save_owners(core, writer, proc_fd)
    for ring in rings:
        writer.ring(ring)
    writer.end()
    log.info(
        "state saved: %d inodes, %d open files, %d locks, %d bytes", core.inodes, core.handles, len(locks), writer.size
    )
    if missing.count:
        log.warning("%d inodes are not found; the destination decides (--migration-on-error)", missing.count)
    return locks


def _save_inodes(core: Core, writer: Writer, flags: int, missing: Missing) -> None:
    walk = lib.state_walk_new(core.pointer, flags)
    if walk == ffi.NULL:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    buffer, progress = ffi.new("uint8_t[]", state.BATCH), ffi.new("struct state_progress *")
    while True:
        lib.state_save(walk, buffer, state.BATCH, progress)
        if not progress.bytes:
            break
        if progress.error:
            missing.add(_name(core, *_record(buffer, progress)), -progress.error)
        writer.inodes(ffi.buffer(buffer, progress.bytes)[:])
    lib.state_walk_free(walk)


def _save_handles(core: Core, writer: Writer, proc_fd: int) -> list[tuple[int, Lock]]:
    handle, fd = ffi.new("struct state_handle *"), ffi.new("int32_t *")
    locks, records, slot = [], b"", 1
    while slot := lib.state_next_handle(core.pointer, slot, handle, fd):
        if core.session.flags & lib.FUSE_FLOCK_LOCKS:
            for lock in held.look(proc_fd, fd[0]):
                handle.flock = lock.kind
                locks.append((fd[0], lock))
        records += packed(handle)
        if len(records) > state.BATCH:
            writer.handles(records)
            records = b""
        slot += 1
    if records:
        writer.handles(records)
    return locks


def _save_owners(core: Core, writer: Writer, proc_fd: int) -> list[tuple[int, Lock]]:
    owner = ffi.new("struct state_owner *")
    locks, slot = [], 1
    while slot := lib.state_next_owner(core.pointer, slot, owner):
        found = held.look(proc_fd, owner.fd)
        locks += [(owner.fd, lock) for lock in found]
        ranges = tuple(Range(lock.start, lock.end, lock.kind) for lock in found)
        if ranges:
            writer.owner(Owner(owner.nodeid, owner.owner, owner.fh, owner.pid, ranges))
        slot += 1
    return locks


# In


def load(core: Core, read: Callable[[int], bytes], tolerant: bool, queues: int) -> list[Suspended]:
    """Fills empty tables from a stream. What is missing is an error, unless `tolerant`. Returns what is in flight on
    the rings. Raises StateError; OSError."""
    missing = Missing(logging.WARNING if tolerant else logging.ERROR, "not found")
    loader = _Loader(core, missing)
    rings = []
    for kind, data in state.read_parts(read):
        match kind:
            case Part.SESSION:
                loader.session(state.read_session(data))
            case Part.INODES:
                loader.inodes(data)
            case Part.HANDLES:
                loader.handles(data)
            case Part.LOCKS:
                loader.owner(state.read_owner(data))
            case Part.RINGS:
                rings.append(state.read_ring(data, queues))
        if missing.count > NAMED and not tolerant:
            break
    if missing.count and not tolerant:
        raise StateError(
            "some of what the guest uses is not found here: share the same directory, use "
            "--migration-mode=file-handles on the source, or let the guest see errors with "
            "--migration-on-error=guest-error"
        )
    log.info("state loaded: %d inodes, %d open files, %d lock owners", core.inodes, core.handles, core.locks)
    if missing.count:
        log.warning("%d inodes, open files or locks are missing: the guest gets errors", missing.count)
    return rings


class _Loader:
    def __init__(self, core: Core, missing: Missing) -> None:
        self._core, self._missing = core, missing
        self._tags = 0
        self._handles: defaultdict[int, list[int]] = defaultdict(list)

    def session(self, session: Session) -> None:
        numbers = ffi.new("struct state_numbers *")
        if len(session.numbers) != ffi.sizeof(numbers[0]):
            raise StateError("it is damaged: the numbers of its tables have a wrong size")
        ffi.memmove(numbers, session.numbers, len(session.numbers))
        if lib.state_set_numbers(self._core.pointer, numbers) < 0:
            raise StateError("it has more inodes or open files than there is room for")
        self._tags = session.tags & lib.STATE_TAGS
        if not session.minor:
            return
        if session.minor > MINOR_MAX:
            raise StateError(f"its FUSE minor {session.minor} is that of a newer vfsd")
        pages = session.max_pages
        if session.minor < MINOR_MIN or not 0 < pages <= lib.VIRTQ_MAX_SIZE or session.max_write != pages * PAGE:
            raise StateError("it is damaged: what the mount has agreed to makes no sense")
        if others := differences(self._core.settings, session.flags):
            raise StateError(
                f"the guest has agreed to what this daemon is not set to: give both the same {', '.join(others)}"
            )
        to = self._core.session
        to.minor, to.flags = session.minor, session.flags
        to.max_pages, to.max_write = pages, session.max_write
        to.mounted = 1

    def inodes(self, data: bytes) -> None:
        buffer, progress = ffi.from_buffer("uint8_t[]", data), ffi.new("struct state_progress *")
        done = 0
        while done < len(data):
            lib.state_load(self._core.pointer, buffer + done, len(data) - done, self._tags, progress)
            if progress.error == -errno.EBADMSG:
                raise StateError("it is damaged: an inode makes no sense")
            if progress.error:
                self._missing.add(_name(self._core, *_record(buffer + done, progress)), -progress.error)
            done += progress.bytes

    def handles(self, data: bytes) -> None:
        for handle in state.read_handles(data):
            error = lib.state_load_handle(self._core.pointer, handle)
            if error == -errno.EBADMSG:
                raise StateError("it is damaged: an open file makes no sense")
            if error:
                self._missing.add(f"open file {handle.fh:#x} of inode {handle.nodeid:#x}", -error)
                continue
            self._handles[handle.nodeid].append(handle.fh)
            if handle.flock != fcntl.F_UNLCK:
                lock = ffi.new("struct fuse_lk_in *", {"fh": handle.fh, "lk": {"type": handle.flock}})
                self._lock(lib.lock_flock(self._core.pointer, lock), handle.nodeid)

    def owner(self, owner: Owner) -> None:
        # Through several handles: two are as good as all.
        handles = [owner.fh] if owner.fh else self._handles.get(owner.nodeid, [0])[:2]
        for start, end, kind in owner.ranges:
            if kind not in (fcntl.F_RDLCK, fcntl.F_WRLCK):
                raise StateError("it is damaged: a lock makes no sense")
            fields = {"start": start, "end": end, "type": kind, "pid": owner.pid}
            for fh in handles:
                lock = ffi.new("struct fuse_lk_in *", {"fh": fh, "owner": owner.owner, "lk": fields})
                self._lock(lib.lock_set(self._core.pointer, owner.nodeid, lock), owner.nodeid)

    def _lock(self, error: int, nodeid: int) -> None:
        if error == -errno.EINVAL:
            raise StateError("it is damaged: a lock makes no sense")
        if error:
            self._missing.add(f"the lock on {_path(self._core, nodeid)}", -error)


def _record(buffer: Any, progress: Any) -> tuple[Any, bytes]:
    """The last record of a batch, and its bytes."""
    at = buffer + progress.last
    record = ffi.cast("struct state_inode *", at)
    return record, ffi.buffer(at + ffi.sizeof("struct state_inode"), record.len)[:]


def _path(core: Core, nodeid: int) -> str:
    """Where an inode is on the host, for a log."""
    with suppress(OSError), core.inode(nodeid) as fd:
        return os.readlink(str(fd))
    return f"inode {nodeid:#x}"


def _name(core: Core, record: Any, text: bytes) -> str:
    if record.how == lib.STATE_HANDLE:
        return f"the file handle of inode {record.nodeid:#x}"
    name = os.fsdecode(text).encode(errors="backslashreplace").decode() or f"inode {record.nodeid:#x}"
    return f"{_path(core, record.base)}/{name}" if record.how == lib.STATE_PATH else name

"""The Pythonic face of the FUSE core: what a Python op may ask of C, as methods that raise OSError.

Rule 1. The tables live in C, on the arenas. Nothing here caches an inode, a handle or a descriptor.
Rule 2. A descriptor from `inode` or `handle` is pinned: it is used inside its `with` and nowhere else.
Rule 3. Runs once per request: no call here does more than its one C call needs.
"""

import errno
import os
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from vfsd._fuse import ffi, lib
from vfsd.settings import Settings
from vfsd.translate import Ids, Range
from vhost._virtq import ffi as virtq_ffi
from vhost._virtq import lib as virtq
from vhost.arena import Arena

if TYPE_CHECKING:
    from vfsd.asking import Asking

CACHES = {
    "never": lib.CORE_CACHE_NEVER,
    "metadata": lib.CORE_CACHE_METADATA,
    "auto": lib.CORE_CACHE_AUTO,
    "always": lib.CORE_CACHE_ALWAYS,
}

#: An fh that names no handle.
NO_HANDLE = 0xFFFFFFFF_FFFFFFFF
#: chown(2): leave this id as it is.
UNCHANGED = -1

HOW = {"shift": lib.CORE_ID_SHIFT, "squash": lib.CORE_ID_SQUASH, "forbid": lib.CORE_ID_FORBID}

_ENTRY_OUT = ffi.typeof("struct fuse_entry_out *")
_PRIV = ffi.typeof("struct priv *")


class Arenas(NamedTuple):
    """What outlives a worker of a guest's mount (config.h, struct core_config)."""

    session: Arena
    inodes: Arena
    handles: Arena
    locks: Arena
    memos: Arena


class Pin:
    """A descriptor held open for the length of a `with`."""

    __slots__ = ("_core", "_get", "_id", "_put")

    def __init__(self, get: Callable[..., int], put: Callable[..., None], core: Any, id: int) -> None:
        self._get, self._put, self._core, self._id = get, put, core, id

    def __enter__(self) -> int:
        return check(self._get(self._core, self._id))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._put(self._core, self._id)


class Modification:
    """The length of a `with` in which a file is modified, and loses privileges as PRIV_* says (vfsd/fuse/priv.c)."""

    __slots__ = ("_arguments", "_core", "_priv")

    def __init__(self, core: Any, *arguments: int) -> None:
        self._core, self._arguments, self._priv = core, arguments, ffi.new(_PRIV)

    def __enter__(self) -> None:
        check(lib.priv_begin(self._core, *self._arguments, self._priv))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error:
            lib.priv_refused(self._priv)
        lib.priv_end(self._core, self._priv)


def check(result: int) -> int:
    """The result of a C function; OSError when it is -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def packed(out: Any) -> bytes:
    """A struct's bytes, as a reply."""
    return ffi.buffer(out)[:]  # type: ignore[no-any-return]


def _inode_get(core: Any, nodeid: int) -> int:
    return lib.inode_get(core, nodeid, ffi.NULL)  # type: ignore[no-any-return]


def kernel_flags(release: str) -> int:
    """The CORE_* flags of a host's kernel, by what uname(2) calls it.

    Linux 5.9 and 5.10 take the end of what is in the page cache for the end of the file (preadv2(2), BUGS), and a guest
    would believe them.
    """
    return lib.CORE_READS_WAIT if release.startswith(("5.9.", "5.10.")) else 0  # type: ignore[no-any-return]


def core_config(settings: Settings, root_fd: int, proc_fd: int, arenas: Arenas) -> Any:
    """A struct core_config. It points into the arenas, which must outlive it."""
    ids = core_ids(settings.ids) if settings.ids else ffi.NULL
    config = ffi.new(
        "struct core_config *",
        {
            "root_fd": root_fd,
            "proc_fd": proc_fd,
            "flags": settings.flags | kernel_flags(os.uname().release),
            "cache": CACHES[settings.cache],
            "entry_ns": settings.entry_ns,
            "attr_ns": settings.attr_ns,
            "negative_ns": settings.negative_ns,
            "file_settle_ns": settings.file_settle_ns,
            "dir_settle_ns": settings.dir_settle_ns,
            "door": lib.fuse_door,
            "refused": lib.fuse_refused,
            "complete": virtq_ffi.addressof(virtq, "virtq_complete"),
            "tell": virtq_ffi.addressof(virtq, "virtq_tell"),
            "lend": lib.fuse_lend,
            "session": arenas.session.pointer(ffi, "struct core_session *"),
            "inodes": arenas.inodes.pointer(ffi, "char *"),
            "handles": arenas.handles.pointer(ffi, "char *"),
            "locks": arenas.locks.pointer(ffi, "char *"),
            "inodes_size": arenas.inodes.size,
            "handles_size": arenas.handles.size,
            "locks_size": arenas.locks.size,
            "memos": arenas.memos.pointer(ffi, "char *"),
            "memos_size": arenas.memos.size,
            "descriptors_max": settings.descriptors,
            "label": settings.label,
            "ids": ids,
            "capability": settings.capability,
            "window_fd": settings.window,
            "dax_min": settings.dax_min,
            "dax_max": settings.dax_max,
            "dax_room": settings.dax_room,
        },
    )
    _kept[config] = ids
    return config


#: What a struct points to lives as long as the struct.
_kept: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()


def core_ids(ids: Ids) -> Any:
    """A struct core_ids, which owns what it points to."""
    ranges: list[Any] = []

    def table(rows: tuple[Range, ...]) -> dict[str, Any]:
        fields = [{"first": row.first, "last": row.last, "to": row.to, "how": HOW[row.how]} for row in rows]
        ranges.append(ffi.new("struct core_id_range[]", fields))
        return {"ranges": ranges[-1], "count": len(rows)}

    tables = {"to_host": [*map(table, ids.to_host)], "to_guest": [*map(table, ids.to_guest)]}
    made = ffi.new("struct core_ids *", {**tables, "one_owner": ids.one_owner})
    _kept[made] = ranges
    return made


def descriptors(config: Any) -> set[int]:
    """Every descriptor that the arenas record, asked while no worker runs (core_descriptors)."""
    count = lib.core_descriptors(config, ffi.NULL, 0)
    fds = ffi.new("int32_t[]", count)
    return set(ffi.unpack(fds, min(lib.core_descriptors(config, fds, count), count))) if count else set()


class Core:
    """The file system of one worker: `root_fd` (O_PATH of the share), served on the state that the arenas hold.

    The current directory of the process is its /proc/self/fd, which is `proc_fd` too: ops name an inode by its
    descriptor's number there. The umask is 0: the guest has applied its own. Raises OSError when C refuses the arenas.
    """

    def __init__(self, settings: Settings, root_fd: int, proc_fd: int, arenas: Arenas) -> None:
        self.settings = settings
        self._arenas = arenas
        self._config = core_config(settings, root_fd, proc_fd, arenas)
        error = ffi.new("int *")
        #: The struct core, as virtq_run and fuse_serve take it.
        self.pointer = lib.core_new(self._config, error)
        if not self.pointer:
            check(error[0] or -1)
        #: struct core_session of the current mount.
        self.session = self._config.session
        #: Whom to ask about the DAX window; None: there is none.
        self.window: Asking | None = None

    def close(self) -> None:
        """Frees what is private to this worker. The arenas and the descriptors in them stay."""
        lib.core_free(self.pointer)
        self.pointer = ffi.NULL

    def reset(self) -> None:
        """Forgets the mount: every lock, every handle, every inode but the root."""
        self.session.mounted = 0
        lib.core_reset(self.pointer)

    def inode(self, nodeid: int) -> Pin:
        """The O_PATH descriptor of an inode. Entering raises ESTALE."""
        return Pin(_inode_get, lib.inode_put, self.pointer, nodeid)

    def handle(self, fh: int) -> Pin:
        """The descriptor of an open file or directory. Entering raises EBADF."""
        return Pin(lib.handle_get, lib.handle_put, self.pointer, fh)

    def modifying(self, fd: int, kill: int, uid: int, gid: int) -> Modification:
        """Around one modification of the file behind `fd`, by the guest's uid:gid.
        `kill` is PRIV_*. Entering raises OSError when the file must not be modified."""
        return Modification(self.pointer, fd, kill, uid, gid)

    def open(self, nodeid: int, flags: int) -> int:
        """A new descriptor of an inode, the caller's to close. Flags are made safe as OPEN does."""
        return check(lib.inode_open(self.pointer, nodeid, flags))

    def add_handle(self, nodeid: int, fd: int) -> int:
        """Gives `fd` to the handle table; the fh. After an OSError `fd` is still the caller's."""
        fh = ffi.new("uint64_t *")
        check(lib.handle_add(self.pointer, nodeid, fd, fh))
        return fh[0]  # type: ignore[no-any-return]

    def entry_of(self, fd: int) -> tuple[int, bytes]:
        """The nodeid of an open descriptor's inode and its struct fuse_entry_out. The guest owes one FORGET
        more."""
        out = ffi.new(_ENTRY_OUT)
        check(lib.entry_from_fd(self.pointer, fd, out))
        return out.nodeid, packed(out)

    def opening(self, call: Callable[[], int]) -> int:
        """The descriptor that `call` opens. When there is none left, those of idle inodes are closed for it."""
        while True:
            try:
                return call()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not lib.inode_evict(self.pointer):
                    raise

    def forget(self, nodeid: int) -> None:
        """Takes one entry back that the guest is not told after all."""
        lib.inode_forget(self.pointer, nodeid, 1)

    def id_to_host(self, kind: int, id: int) -> int:
        """A guest's id (CORE_UID, CORE_GID) on the host. EPERM for a forbidden one."""
        return check(lib.id_to_host(self.pointer, kind, id))

    def id_to_guest(self, kind: int, id: int) -> int:
        """A host's id as the guest sees it."""
        return lib.id_to_guest(self.pointer, kind, id)  # type: ignore[no-any-return]

    def id_to_set(self, kind: int, id: int) -> int:
        """What a chown(2) of the host gives a file that the guest chowns to `id`, perhaps UNCHANGED. EINVAL for what
        is no id, EPERM for a forbidden one."""
        host = check(lib.id_to_set(self.pointer, kind, id))
        return UNCHANGED if host == 0xFFFFFFFF else host

    @property
    def inodes(self) -> int:
        """Inodes the guest knows, the root included."""
        return lib.core_inode_count(self.pointer)  # type: ignore[no-any-return]

    @property
    def opened(self) -> int:
        """Inodes with a descriptor, the root included."""
        return lib.core_opened_count(self.pointer)  # type: ignore[no-any-return]

    @property
    def handles(self) -> int:
        """Open handles."""
        return lib.core_handle_count(self.pointer)  # type: ignore[no-any-return]

    @property
    def locks(self) -> int:
        """Owners of POSIX locks on an inode; some of them may have none left."""
        return lib.core_lock_count(self.pointer)  # type: ignore[no-any-return]

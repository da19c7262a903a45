"""What is said of a request that has killed workers and is answered EIO, for a person who wants to know which and why.

Rule 1. Data and values of attributes are not logged: they are the guest's.
"""

import logging
from collections.abc import Iterator
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.door import OPS

log = logging.getLogger("vfsd.worker")

#: Of what C serves: the struct its arguments start with, and the names after it.
ARGUMENTS = {
    "LOOKUP": (None, 1),
    "FORGET": ("fuse_forget_in", 0),
    "GETATTR": ("fuse_getattr_in", 0),
    "SETATTR": ("fuse_setattr_in", 0),
    "READLINK": (None, 0),
    "SYMLINK": (None, 2),
    "MKNOD": ("fuse_mknod_in", 1),
    "MKDIR": ("fuse_mkdir_in", 1),
    "UNLINK": (None, 1),
    "RMDIR": (None, 1),
    "RENAME": ("fuse_rename_in", 2),
    "RENAME2": ("fuse_rename2_in", 2),
    "LINK": ("fuse_link_in", 1),
    "STATFS": (None, 0),
    "FSYNC": ("fuse_fsync_in", 0),
    "FSYNCDIR": ("fuse_fsync_in", 0),
    "OPEN": ("fuse_open_in", 0),
    "READ": ("fuse_read_in", 0),
    "WRITE": ("fuse_write_in", 0),
    "RELEASE": ("fuse_release_in", 0),
    "FLUSH": ("fuse_flush_in", 0),
    "OPENDIR": ("fuse_open_in", 0),
    "READDIR": ("fuse_read_in", 0),
    "READDIRPLUS": ("fuse_read_in", 0),
    "RELEASEDIR": ("fuse_release_in", 0),
    "CREATE": ("fuse_create_in", 1),
    "BATCH_FORGET": ("fuse_batch_forget_in", 0),
    "FALLOCATE": ("fuse_fallocate_in", 0),
    "LSEEK": ("fuse_lseek_in", 0),
    "COPY_FILE_RANGE": ("fuse_copy_file_range_in", 0),
    "COPY_FILE_RANGE_64": ("fuse_copy_file_range_in", 0),
}
#: Bytes of a name that are shown.
SHOWN = 255


@ffi.def_extern()  # type: ignore[untyped-decorator]
def fuse_refused(_core: Any, packet: Any) -> int:
    """The `refused` of config.h."""
    header = packet.header
    if header.opcode == 0:
        log.error("a request has killed workers and is answered EIO; it can't be read")
        return 0
    body = ffi.buffer(packet.arg, min(packet.arg_len, header.len))[:]
    what = " ".join([_name(header.opcode), *_arguments(header.opcode, body)])
    log.error(
        "a request has killed workers and is answered EIO: %s (nodeid %#x, uid %d, gid %d, pid %d in the guest)",
        *(what, header.nodeid, header.uid, header.gid, header.pid),
    )
    return 0


def _name(opcode: int) -> str:
    name = lib.fuse_row_name(opcode)
    return ffi.string(name).decode() if name else f"opcode {opcode}"  # type: ignore[no-any-return]


def _arguments(opcode: int, body: bytes) -> list[str]:
    """The fields of the struct and the names, as far as they are there."""
    op = OPS.get(opcode)
    if opcode == lib.FUSE_SETXATTR:
        # Its struct has two sizes, the last words of the longer one being 0 as a rule. The value is not shown.
        return [repr(body[8:].lstrip(b"\0").partition(b"\0")[0][:SHOWN])[1:]]
    kind, names = (op.argument, op.names) if op else ARGUMENTS.get(_name(opcode), (None, 0))
    kind = ffi.typeof(f"struct {kind} *") if isinstance(kind, str) else kind
    size = ffi.sizeof(kind.item) if kind else 0
    if len(body) < size:
        return ["(arguments too short)"]
    strings = body[size:].split(b"\0", names)[:names]
    return [*(_fields(ffi.from_buffer(kind, body)) if kind else ()), *(repr(string[:SHOWN])[1:] for string in strings)]


def _fields(struct: Any) -> Iterator[str]:
    for name, field in ffi.typeof(struct).item.fields:
        if field.type.kind == "primitive" and not name.startswith(("padding", "unused", "dummy")):
            value = getattr(struct, name)
            form = "#o" if name in ("mode", "umask") else "d" if value < 1 << 16 else "#x"
            yield f"{name}={value:{form}}"

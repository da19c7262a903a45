"""TMPFILE: a file without a name."""

import os
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.core import Core, packed
from vfsd.door import Request, op

#: What of a guest's 32 bits is a mode: type and permissions.
MODE = 0o177777


@op("TMPFILE", "fuse_create_in")
def tmpfile(core: Core, request: Request, arg: Any) -> bytes:
    flags = arg.flags & (os.O_ACCMODE | os.O_EXCL | os.O_SYNC | os.O_DSYNC)
    if core.session.flags & lib.FUSE_WRITEBACK_CACHE:
        # The guest reads what it is to write around.
        flags = flags & ~os.O_ACCMODE | os.O_RDWR
    with core.inode(request.nodeid) as parent:
        # `.`, since the kernel takes no empty path here; O_EXCL makes the file one that can't be linked.
        how = flags | os.O_TMPFILE | os.O_CLOEXEC
        fd = core.opening(lambda: os.open(".", how, arg.mode & MODE, dir_fd=parent))
    nodeid = 0
    try:
        nodeid, entry = core.entry_of(fd)
        fh = core.add_handle(nodeid, fd)
    except OSError:
        os.close(fd)
        if nodeid:
            core.forget(nodeid)
        raise
    open_flags = lib.open_reply_flags(core.pointer, nodeid, fd, flags, True)
    opened = ffi.new("struct fuse_open_out *", {"fh": fh, "open_flags": open_flags})
    return entry + packed(opened)

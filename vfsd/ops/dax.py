"""SETUPMAPPING and REMOVEMAPPING: the guest maps files into its DAX window.

The other half is fs/fuse/dax.c. The window belongs to the control process (vfsd/window.py), which is asked; the answer
is an errno, and comes later.

Rule 1. A mapping can be written through, whatever it is asked for: QEMU knows no other. So it takes a file the daemon
        may write.
Rule 2. Of what is written through a mapping nobody hears. So privileges go when a mapping to write through is made
        (the guest's kernel sends nothing itself: fs/fuse/dax.c, fuse_dax_write_iter, under FUSE_HANDLE_KILLPRIV_V2).
"""

import errno
import os
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.core import NO_HANDLE, Core, packed
from vfsd.door import Question, Request, op

UNKNOWN = 0xFFFFFFFF
CAPABILITY = "security.capability"
ONE = ffi.sizeof("struct fuse_removemapping_one")


@op("SETUPMAPPING", "fuse_setupmapping_in")
def setupmapping(core: Core, request: Request, arg: Any) -> bytes:
    window = core.window
    if not window:
        raise OSError(errno.ENOSYS, "no window")
    fd = _open(core, request.nodeid, arg.fh)
    try:
        if arg.flags & lib.FUSE_SETUPMAPPING_FLAG_WRITE:
            with core.modifying(fd, lib.PRIV_KILL, UNKNOWN, UNKNOWN):
                _remove_capability(fd)
        padded = core.opening(lambda: window.padded.open(fd))
    finally:
        os.close(fd)
    # Before anybody can map it: its end is told then, whenever it comes.
    lib.dax_note(core.pointer, request.nodeid, lib.DAX_MAPPED)
    question = ffi.new("struct window_question *", {"kind": lib.WINDOW_SETUP, "fd": padded, "nodeid": request.nodeid})
    question.file_offset, question.offset, question.length = arg.foffset, arg.moffset, arg.len
    return Question(packed(question))


@op("REMOVEMAPPING", "fuse_removemapping_in", tail=True)
def removemapping(core: Core, request: Request, arg: Any, ranges: bytes) -> bytes:
    if not core.window:
        raise OSError(errno.ENOSYS, "no window")
    if len(ranges) < arg.count * ONE:
        raise OSError(errno.EINVAL, "fewer ranges than announced")
    question = ffi.new("struct window_question *", {"kind": lib.WINDOW_REMOVE, "fd": -1, "nodeid": request.nodeid})
    return Question(packed(question) + ranges[: arg.count * ONE])


def _remove_capability(fd: int) -> None:
    """What the host does by itself where it sees a modification (fs/inode.c, file_remove_privs)."""
    try:
        os.getxattr(fd, CAPABILITY)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return
    os.removexattr(fd, CAPABILITY)


def _open(core: Core, nodeid: int, fh: int) -> int:
    """The file, for reading and writing: Linux names it by nodeid, others may by handle."""
    if fh == NO_HANDLE:
        return core.open(nodeid, os.O_RDWR)
    with core.handle(fh) as handle:
        return core.opening(lambda: os.open(str(handle), os.O_RDWR | os.O_CLOEXEC))

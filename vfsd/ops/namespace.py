"""MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME, RENAME2, TMPFILE, READLINK: names in directories.

Rule 1. A name is used relative to its directory's descriptor, and C has checked that it is one: not empty, without a
        slash, not `.` or `..`. Nothing here follows a symlink, so nothing leaves the share.
Rule 2. What was done already by a worker that died is not done again: such a request does not come here
        (vfsd/fuse/once.c).
"""

import errno
import os
from collections.abc import Callable
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.core import Core, check, packed
from vfsd.door import Request, op

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 0x1, 0x2, 0x4  # <linux/fs.h>
RENAME_FLAGS = RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT

#: What of a guest's 32 bits is a mode: type and permissions.
MODE = 0o177777


@op("MKNOD", "fuse_mknod_in", names=1)
def mknod(core: Core, request: Request, arg: Any, name: bytes) -> bytes:
    with core.inode(request.nodeid) as parent:
        # rdev has the layout of dev_t's low 32 bits: new_encode_dev() in the kernel, makedev(3) here.
        os.mknod(name, arg.mode & MODE, arg.rdev, dir_fd=parent)
    return core.entry(request.nodeid, name)


@op("MKDIR", "fuse_mkdir_in", names=1)
def mkdir(core: Core, request: Request, arg: Any, name: bytes) -> bytes:
    with core.inode(request.nodeid) as parent:
        os.mkdir(name, arg.mode & MODE, dir_fd=parent)
    return core.entry(request.nodeid, name)


@op("SYMLINK", names=2)
def symlink(core: Core, request: Request, name: bytes, target: bytes) -> bytes:
    with core.inode(request.nodeid) as parent:
        os.symlink(target, name, dir_fd=parent)
    return core.entry(request.nodeid, name)


@op("LINK", "fuse_link_in", names=1)
def link(core: Core, request: Request, arg: Any, name: bytes) -> bytes:
    with core.inode(request.nodeid) as parent, core.inode(arg.oldnodeid) as old:
        # By the magic link of the descriptor: the inode itself, a symlink or a nameless file too.
        os.link(str(old), name, dst_dir_fd=parent, follow_symlinks=True)
    return core.entry(request.nodeid, name)


@op("UNLINK", names=1)
def unlink(core: Core, request: Request, name: bytes) -> bytes:
    return _remove(core, request, name, os.unlink)


@op("RMDIR", names=1)
def rmdir(core: Core, request: Request, name: bytes) -> bytes:
    return _remove(core, request, name, os.rmdir)


def _remove(core: Core, request: Request, name: bytes, call: Callable[..., None]) -> bytes:
    with core.inode(request.nodeid) as parent, core.moving(parent, name):
        call(name, dir_fd=parent)
    return b""


@op("RENAME", "fuse_rename_in", names=2)
def rename(core: Core, request: Request, arg: Any, old: bytes, new: bytes) -> bytes:
    return _rename(core, request, arg.newdir, old, new, 0)


@op("RENAME2", "fuse_rename2_in", names=2)
def rename2(core: Core, request: Request, arg: Any, old: bytes, new: bytes) -> bytes:
    if arg.flags & ~RENAME_FLAGS:
        raise OSError(errno.EINVAL, "unknown rename flags")
    return _rename(core, request, arg.newdir, old, new, arg.flags)


def _rename(core: Core, request: Request, newdir: int, old: bytes, new: bytes, flags: int) -> bytes:
    with (
        core.inode(request.nodeid) as parent,
        core.inode(newdir) as newparent,
        core.moving(parent, old),
        core.moving(newparent, new),
    ):
        check(lib.sys_renameat2(parent, old, newparent, new, flags))
    return b""


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
    open_flags = lib.open_reply_flags(core.pointer, nodeid, fd, flags)
    opened = ffi.new("struct fuse_open_out *", {"fh": fh, "open_flags": open_flags})
    return entry + packed(opened)


@op("READLINK")
def readlink(core: Core, request: Request) -> bytes:
    with core.inode(request.nodeid) as fd:
        try:
            return os.readlink(b"", dir_fd=fd)
        except FileNotFoundError:
            # What readlinkat(2) says of another type by descriptor.
            raise OSError(errno.EINVAL, "not a symlink") from None

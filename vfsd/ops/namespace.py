"""MKNOD, MKDIR, SYMLINK, LINK, UNLINK, RMDIR, RENAME, RENAME2, TMPFILE, READLINK: names in directories.

Rule 1. A name is used relative to its directory's descriptor, and C has checked that it is one: not empty, without a
        slash, not `.` or `..`. Nothing here follows a symlink, so nothing leaves the share.
Rule 2. With `replay`, an object that is there as asked for was made by this request, and one that is gone was removed
        by it. Exactly once this is not: another process of the host may have done it. What leaves no trace that it
        was done, and would be undone by a second time, is answered EIO.
"""

import errno
import os
from collections.abc import Callable
from stat import S_IFMT, S_IFREG, S_ISCHR, S_ISDIR
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
        try:
            # rdev has the layout of dev_t's low 32 bits: new_encode_dev() in the kernel, makedev(3) here.
            os.mknod(name, arg.mode & MODE, arg.rdev, dir_fd=parent)
        except FileExistsError:
            if not (request.replay and S_IFMT(_stat(parent, name).st_mode) == (S_IFMT(arg.mode) or S_IFREG)):
                raise
    return core.entry(request.nodeid, name)


@op("MKDIR", "fuse_mkdir_in", names=1)
def mkdir(core: Core, request: Request, arg: Any, name: bytes) -> bytes:
    with core.inode(request.nodeid) as parent:
        try:
            os.mkdir(name, arg.mode & MODE, dir_fd=parent)
        except FileExistsError:
            if not (request.replay and S_ISDIR(_stat(parent, name).st_mode)):
                raise
    return core.entry(request.nodeid, name)


@op("SYMLINK", names=2)
def symlink(core: Core, request: Request, name: bytes, target: bytes) -> bytes:
    with core.inode(request.nodeid) as parent:
        try:
            os.symlink(target, name, dir_fd=parent)
        except FileExistsError:
            if not (request.replay and _points(parent, name, target)):
                raise
    return core.entry(request.nodeid, name)


@op("LINK", "fuse_link_in", names=1)
def link(core: Core, request: Request, arg: Any, name: bytes) -> bytes:
    with core.inode(request.nodeid) as parent, core.inode(arg.oldnodeid) as old:
        try:
            # By the magic link of the descriptor: the inode itself, a symlink or a nameless file too.
            os.link(str(old), name, dst_dir_fd=parent, follow_symlinks=True)
        except FileExistsError:
            if not (request.replay and os.path.samestat(_stat(parent, name), os.fstat(old))):
                raise
    return core.entry(request.nodeid, name)


@op("UNLINK", names=1)
def unlink(core: Core, request: Request, name: bytes) -> bytes:
    return _remove(core, request, name, os.unlink)


@op("RMDIR", names=1)
def rmdir(core: Core, request: Request, name: bytes) -> bytes:
    return _remove(core, request, name, os.rmdir)


def _remove(core: Core, request: Request, name: bytes, call: Callable[..., None]) -> bytes:
    with core.inode(request.nodeid) as parent, core.moving(parent, name):
        try:
            call(name, dir_fd=parent)
        except FileNotFoundError:
            if not request.replay:
                raise
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
        if request.replay and flags & RENAME_EXCHANGE:
            # One that was done can't be told from one that wasn't. A second would undo the first and report success:
            # the guest had better know that it must look.
            raise OSError(errno.EIO, "an exchange that was in flight in a worker that died")
        if request.replay and flags & RENAME_WHITEOUT and _is_whiteout(_stat(parent, old)):
            return b""
        try:
            check(lib.sys_renameat2(parent, old, newparent, new, flags))
        except FileNotFoundError:
            if not request.replay:
                raise
            _stat(newparent, new)  # still ENOENT when the new name isn't there either
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
        return _target(fd, b"")


def _target(dir_fd: int, name: bytes) -> bytes:
    """Where a symlink points. An empty name: `dir_fd` is the symlink. EINVAL for what is none."""
    try:
        return os.readlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        if name:
            raise
        raise OSError(errno.EINVAL, "not a symlink") from None  # what readlinkat(2) says of another type by descriptor


def _is_whiteout(host: os.stat_result) -> bool:
    return S_ISCHR(host.st_mode) and host.st_rdev == 0


def _points(dir_fd: int, name: bytes, target: bytes) -> bool:
    """Whether the name is a symlink to `target`."""
    try:
        return _target(dir_fd, name) == target
    except OSError:
        return False


def _stat(dir_fd: int, name: bytes) -> os.stat_result:
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)

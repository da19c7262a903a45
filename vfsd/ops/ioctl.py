"""IOCTL: the inode flags of chattr(1) and lsattr(1), and no other ioctl.

Rule 1. A guest's ioctl number never reaches the host: it is looked up here, and what the host gets is ours. All others
        are ENOTTY, as a file system says of an ioctl it does not know.
Rule 2. The guest's kernel has judged its caller (fs/ioctl.c, vfs_fileattr_set: owner, CAP_LINUX_IMMUTABLE), the host's
        judges us: without --modcaps=+linux_immutable "immutable" and "append only" can't be changed. The caller is told
        EOPNOTSUPP: EPERM would say that it may not, and programs that ask whether a flag can be had would not take it
        for a no.
Rule 3. The project an inode is accounted to is the host's: with it a guest would leave the quota it was given.
"""

import errno
import fcntl
import struct
from collections.abc import Callable
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.core import Core, packed
from vfsd.door import Request, op

#: <linux/fs.h>. The 64-bit numbers of GETFLAGS and SETFLAGS; both carry an int, whatever the number says.
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
#: What 32-bit programs use (FS_IOC32_GETFLAGS); newer kernels turn them into the others themselves.
COMPAT = {0x80046601: GETFLAGS, 0x40046602: SETFLAGS}

#: FS_PROJINHERIT_FL and FS_XFLAG_PROJINHERIT.
PROJINHERIT_FL, PROJINHERIT_XFLAG = 0x20000000, 0x00000200
#: FS_IMMUTABLE_FL | FS_APPEND_FL, and the same as FS_XFLAG.
LINUX_IMMUTABLE_FL, LINUX_IMMUTABLE_XFLAG = 0x00000030, 0x00000018

FLAGS = struct.Struct("=I")
#: struct fsxattr: xflags, extsize, nextents, projid, cowextsize, padding.
FSXATTR = struct.Struct("=IIIII8s")


@op("IOCTL", "fuse_ioctl_in", tail=True)
def ioctl(core: Core, request: Request, arg: Any, given: bytes) -> bytes:
    command = COMPAT.get(arg.cmd, arg.cmd)
    if command not in SERVE or arg.flags & lib.FUSE_IOCTL_UNRESTRICTED:
        raise OSError(errno.ENOTTY, "no such ioctl")
    layout, serve = SERVE[command]
    sets = command in (SETFLAGS, FSSETXATTR)
    if sets and core.settings.readonly:
        raise OSError(errno.EROFS, "read-only share")
    if (arg.in_size if sets else arg.out_size) < layout.size or (sets and len(given) < layout.size):
        raise OSError(errno.EINVAL, "no room for the argument")
    with core.handle(arg.fh) as fd:
        value = serve(fd, layout, given[: layout.size])
    return packed(ffi.new("struct fuse_ioctl_out *")) + value


def _get(command: int) -> Callable[[int, struct.Struct, bytes], bytes]:
    return lambda fd, layout, _: fcntl.ioctl(fd, command, bytes(layout.size))


def _set(fd: int, command: int, given: bytes, immutable: int) -> None:
    """`immutable`: what of the change takes CAP_LINUX_IMMUTABLE."""
    try:
        fcntl.ioctl(fd, command, given)
    except PermissionError:
        if immutable:
            raise OSError(errno.EOPNOTSUPP, "takes --modcaps=+linux_immutable") from None
        raise


def _set_flags(fd: int, layout: struct.Struct, given: bytes) -> bytes:
    (before,) = layout.unpack(fcntl.ioctl(fd, GETFLAGS, bytes(layout.size)))
    (after,) = layout.unpack(given)
    if (before ^ after) & PROJINHERIT_FL:
        raise OSError(errno.EPERM, "projects are the host's")
    _set(fd, SETFLAGS, given, (before ^ after) & LINUX_IMMUTABLE_FL)
    return b""


def _set_xattr(fd: int, layout: struct.Struct, given: bytes) -> bytes:
    before = layout.unpack(fcntl.ioctl(fd, FSGETXATTR, bytes(layout.size)))
    after = layout.unpack(given)
    if (before[0] ^ after[0]) & PROJINHERIT_XFLAG or before[3] != after[3]:
        raise OSError(errno.EPERM, "projects are the host's")
    _set(fd, FSSETXATTR, given, (before[0] ^ after[0]) & LINUX_IMMUTABLE_XFLAG)
    return b""


SERVE: dict[int, tuple[struct.Struct, Callable[[int, struct.Struct, bytes], bytes]]] = {
    GETFLAGS: (FLAGS, _get(GETFLAGS)),
    SETFLAGS: (FLAGS, _set_flags),
    FSGETXATTR: (FSXATTR, _get(FSGETXATTR)),
    FSSETXATTR: (FSXATTR, _set_xattr),
}

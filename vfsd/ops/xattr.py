"""GETXATTR, SETXATTR, LISTXATTR, REMOVEXATTR.

Without --xattr each is answered ENOSYS, and the guest never asks again. An attribute is reached by its inode's entry in
/proc/self/fd, since no system call takes an O_PATH descriptor; that link leads to a symlink itself, not to its target.
"""

import errno
import os
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.core import Core, packed
from vfsd.door import Request, op

#: The guest enforces modes, and POSIX ACLs are not negotiated: what it would not enforce it can't set or see.
ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
FLAGS = os.XATTR_CREATE | os.XATTR_REPLACE


@op("GETXATTR", "fuse_getxattr_in", names=1)
def getxattr(core: Core, request: Request, arg: Any, name: bytes) -> bytes:
    _admit(core, name)
    with core.inode(request.nodeid) as fd:
        return _sized(os.getxattr(str(fd), name), arg.size)


@op("LISTXATTR", "fuse_getxattr_in")
def listxattr(core: Core, request: Request, arg: Any) -> bytes:
    _admit(core, b"")
    with core.inode(request.nodeid) as fd:
        names = map(os.fsencode, os.listxattr(str(fd)))
    return _sized(b"".join(name + b"\0" for name in names if name not in ACLS), arg.size)


@op("SETXATTR", tail=True)
def setxattr(core: Core, request: Request, body: bytes) -> bytes:
    extended = core.session.flags & lib.FUSE_SETXATTR_EXT
    size = ffi.sizeof("struct fuse_setxattr_in") if extended else lib.FUSE_COMPAT_SETXATTR_IN_SIZE
    if len(body) < size:
        raise OSError(errno.EINVAL, "arguments too short")
    arg = ffi.from_buffer("struct fuse_setxattr_in *", body[:size].ljust(ffi.sizeof("struct fuse_setxattr_in"), b"\0"))
    name, end, value = body[size:].partition(b"\0")
    if not end or not name or len(value) < arg.size or arg.flags & ~FLAGS:
        raise OSError(errno.EINVAL, "malformed SETXATTR")
    _admit(core, name)
    value = value[: arg.size]
    with core.inode(request.nodeid) as fd:
        try:
            os.setxattr(str(fd), name, value, arg.flags)
        except FileExistsError:
            # XATTR_CREATE. What is there as asked for was made by this request (namespace.py, rule 2).
            if not (request.replay and os.getxattr(str(fd), name) == value):
                raise
    return b""


@op("REMOVEXATTR", names=1)
def removexattr(core: Core, request: Request, name: bytes) -> bytes:
    _admit(core, name)
    with core.inode(request.nodeid) as fd:
        try:
            os.removexattr(str(fd), name)
        except OSError as error:
            if not (request.replay and error.errno == errno.ENODATA):
                raise
    return b""


def _admit(core: Core, name: bytes) -> None:
    if not core.settings.xattr:
        raise OSError(errno.ENOSYS, "extended attributes are off: --xattr")
    if name in ACLS:
        raise OSError(errno.EOPNOTSUPP, "POSIX ACLs are off")


def _sized(value: bytes, room: int) -> bytes:
    """The value, or its size when the guest only asks for that (room 0)."""
    if room == 0:
        return packed(ffi.new("struct fuse_getxattr_out *", {"size": len(value)}))
    if len(value) > room:
        raise OSError(errno.ERANGE, "value larger than the buffer")
    return value

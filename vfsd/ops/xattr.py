"""GETXATTR, SETXATTR, LISTXATTR, REMOVEXATTR.

Where attributes are off each is answered ENOSYS, and the guest never asks again. An attribute is reached by its inode's
entry in /proc/self/fd, since no system call takes an O_PATH descriptor; that link leads to a symlink itself, not to its
target. Names pass through the rules of --xattrmap (vfsd/xattrmap.py), the ids in values
through vfsd/acl.py.
"""

import errno
import os
from stat import S_IMODE, S_ISGID
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.acl import to_guest, to_host
from vfsd.core import Core, packed
from vfsd.door import Request, op
from vfsd.xattrmap import ACLS

FLAGS = os.XATTR_CREATE | os.XATTR_REPLACE


@op("GETXATTR", "fuse_getxattr_in", names=1)
def getxattr(core: Core, request: Request, arg: Any, name: bytes) -> bytes:
    host_name = _host_name(core, name)
    with core.inode(request.nodeid) as fd:
        return _sized(to_guest(core, name, os.getxattr(str(fd), host_name)), arg.size)


@op("LISTXATTR", "fuse_getxattr_in")
def listxattr(core: Core, request: Request, arg: Any) -> bytes:
    _check_on(core)
    with core.inode(request.nodeid) as fd:
        names = [os.fsencode(name) for name in os.listxattr(str(fd))]
    if core.settings.xattrmap:
        names = core.settings.xattrmap.guest_names(names)
    return _sized(b"".join(name + b"\0" for name in names if name not in ACLS or _acls(core)), arg.size)


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
    host_name = _host_name(core, name)
    value = to_host(core, name, value[: arg.size])
    with core.inode(request.nodeid) as fd:
        if not (arg.flags & os.XATTR_CREATE and _is_done(request, fd, host_name, True)):
            os.setxattr(str(fd), host_name, value, arg.flags)
        if name == ACLS[0] and arg.setxattr_flags & lib.FUSE_SETXATTR_ACL_KILL_SGID:
            _clear_sgid(fd)
    return b""


@op("REMOVEXATTR", names=1)
def removexattr(core: Core, request: Request, name: bytes) -> bytes:
    host_name = _host_name(core, name)
    with core.inode(request.nodeid) as fd:
        if not _is_done(request, fd, host_name, False):
            os.removexattr(str(fd), host_name)
    return b""


def _is_done(request: Request, fd: int, host_name: bytes, wanted: bool) -> bool:
    """Whether a worker that died has done this request, by which there is an attribute, or is none any more."""
    begun = request.begun
    was = request.before(lambda: _has(fd, host_name))
    return begun and was != wanted and _has(fd, host_name) == wanted


def _has(fd: int, host_name: bytes) -> bool:
    try:
        os.getxattr(str(fd), host_name)
    except OSError:
        return False
    return True


def _check_on(core: Core) -> None:
    if not core.settings.xattr:
        raise OSError(errno.ENOSYS, "extended attributes are off: --xattr")


def _host_name(core: Core, name: bytes) -> bytes:
    """What the host calls the guest's attribute `name`. OSError when it is not for the guest."""
    _check_on(core)
    # The guest enforces them once they are negotiated. What it would not enforce it can't set or see.
    if name in ACLS and not _acls(core):
        raise OSError(errno.EOPNOTSUPP, "POSIX ACLs are off")
    return core.settings.xattrmap.host_name(name) if core.settings.xattrmap else name


def _acls(core: Core) -> bool:
    """Whether the guest enforces POSIX ACLs."""
    return bool(core.session.flags & lib.FUSE_POSIX_ACL)


def _clear_sgid(fd: int) -> None:
    """The caller is not of the file's group, and may not keep its sgid bit (fs/posix_acl.c, posix_acl_update_mode).

    By hand: the host would judge by our groups, of which root's is one.
    """
    mode = os.fstat(fd).st_mode
    if mode & S_ISGID:
        os.chmod(str(fd), S_IMODE(mode) & ~S_ISGID)


def _sized(value: bytes, room: int) -> bytes:
    """The value, or its size when the guest only asks for that (room 0)."""
    if room == 0:
        return packed(ffi.new("struct fuse_getxattr_out *", {"size": len(value)}))
    if len(value) > room:
        raise OSError(errno.ERANGE, "value larger than the buffer")
    return value

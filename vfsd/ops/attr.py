"""SETATTR, ACCESS: what stat(2) shows, set and asked."""

import errno
import os
from stat import S_IMODE, S_ISDIR, S_ISGID, S_ISLNK, S_ISUID
from typing import Any

from vfsd._fuse import lib
from vfsd.core import NO_HANDLE, UNCHANGED, Core, check
from vfsd.door import Request, op

UTIME_NOW = (1 << 30) - 1  # <linux/stat.h>
UTIME_OMIT = (1 << 30) - 2
NSEC = 1_000_000_000
SIZE_MAX = (1 << 63) - 1
#: FUSE_INVALID_UIDGID (Linux 6.12, <linux/fuse.h>).
NOBODY = 0xFFFFFFFF
#: What a SETATTR sets, the ctime apart.
CHANGES = lib.FATTR_SIZE | lib.FATTR_UID | lib.FATTR_GID | lib.FATTR_MODE | lib.FATTR_ATIME | lib.FATTR_MTIME


@op("SETATTR", "fuse_setattr_in")
def setattr(core: Core, request: Request, arg: Any) -> bytes:
    valid = arg.valid
    with core.inode(request.nodeid) as fd:
        # A new size or owner strips suid and sgid, and a new size sets mtime: each comes before what it would undo.
        if valid & lib.FATTR_SIZE:
            _resize(core, request, arg, fd)
        if valid & (lib.FATTR_UID | lib.FATTR_GID):
            uid = core.id_to_set(lib.CORE_UID, arg.uid) if valid & lib.FATTR_UID else UNCHANGED
            gid = core.id_to_set(lib.CORE_GID, arg.gid) if valid & lib.FATTR_GID else UNCHANGED
            _chown(core, request, fd, uid, gid)
        if valid & lib.FATTR_MODE:
            if S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.EOPNOTSUPP, "a symlink has no mode of its own")
            os.chmod(str(fd), S_IMODE(arg.mode))
        if valid & (lib.FATTR_ATIME | lib.FATTR_MTIME):
            atime = _time(valid, lib.FATTR_ATIME, lib.FATTR_ATIME_NOW, arg.atime, arg.atimensec)
            mtime = _time(valid, lib.FATTR_MTIME, lib.FATTR_MTIME_NOW, arg.mtime, arg.mtimensec)
            check(lib.sys_utimens(fd, *atime, *mtime))
        if not valid & CHANGES and _is_done(core, request, fd):
            _chown(core, request, fd, UNCHANGED, UNCHANGED)
        # FATTR_CTIME comes with the write-back cache only. The host's ctime is the host's.
    return core.attr(request.nodeid, arg.fh if valid & lib.FATTR_FH else NO_HANDLE)


def _is_done(core: Core, request: Request, fd: int) -> bool:
    """Whether a SETATTR of nothing is done on the host. It is chown(-1, -1), and sets the ctime and takes set-id bits.

    The bits not for everybody: what a kernel would refuse (fs/attr.c, setattr_prepare) the guest lets through
    (fs/fuse/dir.c, fuse_setattr), and a guest with FUSE_ALLOW_IDMAP does not even tell who asks. Somebody else's may
    also be the first half of a modification (fs/inode.c, file_remove_privs), whose second half suffices.
    """
    host = os.fstat(fd)
    if S_ISDIR(host.st_mode) or not host.st_mode & (S_ISUID | S_ISGID):
        return True
    if not core.session.flags & lib.FUSE_HANDLE_KILLPRIV_V2:
        return False
    return request.uid in (0, core.id_to_guest(lib.CORE_UID, host.st_uid))


def _chown(core: Core, request: Request, fd: int, uid: int, gid: int) -> None:
    with core.modifying(fd, lib.PRIV_KILL_OWNER, request.uid, request.gid, request.memo):
        os.chown(str(fd), uid, gid)


def _resize(core: Core, request: Request, arg: Any, fd: int) -> None:
    if arg.size > SIZE_MAX:
        raise OSError(errno.EFBIG, "size beyond loff_t")
    kill = lib.PRIV_KILL if arg.valid & lib.FATTR_KILL_SUIDGID else lib.PRIV_KEEP
    with core.modifying(fd, kill, request.uid, request.gid, request.memo):
        if arg.valid & lib.FATTR_FH:
            with core.handle(arg.fh) as handle:
                os.ftruncate(handle, arg.size)
        else:
            os.truncate(str(fd), arg.size)


def _time(valid: int, given: int, now: int, seconds: int, nsec: int) -> tuple[int, int]:
    """One timestamp as sys_utimens takes it. FUSE carries signed seconds in an unsigned field."""
    if valid & now:
        return 0, UTIME_NOW
    if not valid & given:
        return 0, UTIME_OMIT
    if nsec >= NSEC:
        raise OSError(errno.EINVAL, "nanoseconds beyond a second")
    return seconds - (1 << 64) if seconds >> 63 else seconds, nsec


@op("ACCESS", "fuse_access_in")
def access(core: Core, request: Request, arg: Any) -> bytes:
    """Judges by owner, group and mode: a virtiofs guest checks by itself (default_permissions) and sends none.

    On an idmapped mount (FUSE_ALLOW_IDMAP) the caller is not told: then the guest's own check is all there is.
    """
    mask = arg.mask
    if mask & ~(os.R_OK | os.W_OK | os.X_OK):
        raise OSError(errno.EINVAL, "unknown access mode")
    with core.inode(request.nodeid) as fd:
        host = os.fstat(fd)
    if mask & os.W_OK and core.settings.readonly:
        raise OSError(errno.EROFS, "read-only share")
    if NOBODY in (request.uid, request.gid):
        return b""
    if request.uid == 0:
        allowed = os.R_OK | os.W_OK | (os.X_OK if host.st_mode & 0o111 or S_ISDIR(host.st_mode) else 0)
    elif request.uid == core.id_to_guest(lib.CORE_UID, host.st_uid):
        allowed = host.st_mode >> 6
    elif request.gid == core.id_to_guest(lib.CORE_GID, host.st_gid):
        allowed = host.st_mode >> 3
    else:
        allowed = host.st_mode
    if mask & ~allowed:
        raise OSError(errno.EACCES, "not permitted by the mode")
    return b""

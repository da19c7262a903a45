"""ACCESS: what a caller may do with an inode, by its mode."""

import errno
import os
from stat import S_ISDIR
from typing import Any

from vfsd._fuse import lib
from vfsd.core import Core
from vfsd.door import Request, op

#: FUSE_INVALID_UIDGID (Linux 6.12, <linux/fuse.h>).
NOBODY = 0xFFFFFFFF


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

"""STATX (Linux 6.6): GETATTR's answer as struct statx, for the birth time."""

from stat import S_ISGID, S_ISREG, S_ISUID
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.core import Core, check, packed
from vfsd.door import Request, op

#: AT_STATX_SYNC_TYPE of <linux/stat.h>: the flags a guest passes on.
SYNC_TYPE = 0x6000
NSEC = 1_000_000_000


@op("STATX", "wire_statx_in")
def statx(core: Core, request: Request, arg: Any) -> bytes:
    seconds, nsec = divmod(core.settings.attr_ns, NSEC)
    out = ffi.new("struct wire_statx_out *", {"attr_valid": seconds, "attr_valid_nsec": nsec})
    pin = core.handle(arg.fh) if arg.getattr_flags & lib.FUSE_GETATTR_FH else core.inode(request.nodeid)
    with pin as fd:
        check(lib.sys_statx(fd, arg.sx_flags & SYNC_TYPE, arg.sx_mask, ffi.addressof(out, "stat")))
    if S_ISREG(out.stat.mode) and out.stat.mode & (S_ISUID | S_ISGID):
        # As GETATTR has it: what takes them away tells the guest nothing.
        out.attr_valid = out.attr_valid_nsec = 0
    out.stat.uid = core.id_to_guest(lib.CORE_UID, out.stat.uid)
    out.stat.gid = core.id_to_guest(lib.CORE_GID, out.stat.gid)
    return packed(out)

"""FALLOCATE, LSEEK, COPY_FILE_RANGE, COPY_FILE_RANGE_64: what is done with open files besides I/O.

FALLOCATE and COPY_FILE_RANGE change data, so suid and sgid have to go; see `_kills` for whose.
"""

import errno
import os
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.core import Core, check, packed
from vfsd.door import Request, op

OFFSET_MAX = (1 << 63) - 1
#: KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE of <linux/falloc.h>: what a guest's kernel passes on (fuse_file_fallocate in
#: fs/fuse/file.c). All may be done twice; COLLAPSE_RANGE and INSERT_RANGE would shift a file twice when replayed.
FALLOCATE_MODES = 0x1 | 0x2 | 0x10
#: The FUSE minor from which on a guest tells beforehand whether set-id bits have to go.
MINOR_TELLS = 38
#: A copy may be shorter than asked for. This much at once, 1 GiB: a reply that fits 32 bits, page-aligned.
COPY_MAX = 1 << 30


@op("FALLOCATE", "fuse_fallocate_in", blocking=True)
def fallocate(core: Core, request: Request, arg: Any) -> bytes:
    if arg.mode & ~FALLOCATE_MODES:
        raise OSError(errno.EOPNOTSUPP, "unknown fallocate mode")
    with core.handle(arg.fh) as fd, core.modifying(fd, _kills(core, request), request.uid, request.gid, request.memo):
        check(lib.sys_fallocate(fd, arg.mode, arg.offset, arg.length))
    return b""


@op("LSEEK", "fuse_lseek_in")
def lseek(core: Core, request: Request, arg: Any) -> bytes:
    if core.session.flags & lib.FUSE_WRITEBACK_CACHE:
        # The guest asks without writing back what it has gathered (fs/fuse/file.c, fuse_lseek), so that we would call
        # data a hole. Without us it takes everything for data.
        raise OSError(errno.ENOSYS, "only the guest knows where its data is")
    # The guest keeps file positions. It asks only where data and holes are.
    if arg.whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise OSError(errno.EINVAL, "neither SEEK_DATA nor SEEK_HOLE")
    with core.handle(arg.fh) as fd:
        if arg.offset > OFFSET_MAX:
            # Negative: the guest asks all the same, and file systems say that no data is there (fs/ext4/file.c).
            raise OSError(errno.ENXIO, "offset outside the file")
        offset = os.lseek(fd, arg.offset, arg.whence)
    return packed(ffi.new("struct fuse_lseek_out *", {"offset": offset}))


@op("COPY_FILE_RANGE", "fuse_copy_file_range_in", blocking=True)
def copy_file_range(core: Core, request: Request, arg: Any) -> bytes:
    return packed(ffi.new("struct fuse_write_out *", {"size": _copy(core, request, arg)}))


@op("COPY_FILE_RANGE_64", "fuse_copy_file_range_in", blocking=True)
def copy_file_range_64(core: Core, request: Request, arg: Any) -> bytes:
    return packed(ffi.new("struct wire_copy_file_range_out *", {"bytes_copied": _copy(core, request, arg)}))


def _copy(core: Core, request: Request, arg: Any) -> int:
    if arg.flags:
        raise OSError(errno.EINVAL, "unknown copy flags")
    source, target = _offset(arg.off_in), _offset(arg.off_out)
    with (
        core.handle(arg.fh_in) as fd_in,
        core.handle(arg.fh_out) as fd_out,
        core.modifying(fd_out, _kills(core, request), request.uid, request.gid, request.memo),
    ):
        # A copy that makes its own source longer copies no more of it than there was.
        length = request.before(lambda: min(arg.len, os.fstat(fd_in).st_size - source))
        return os.copy_file_range(fd_in, fd_out, max(0, min(length, COPY_MAX)), source, target)


def _offset(value: int) -> int:
    if value > OFFSET_MAX:
        raise OSError(errno.EINVAL, "offset beyond loff_t")
    return value


def _kills(core: Core, request: Request) -> int:
    """PRIV_* of an op that carries no flag about its caller's CAP_FSETID: the bits go.

    Except for root, from the first kernels on that surely send a SETATTR beforehand where root lacks it (Linux 6.1,
    which is FUSE 7.38; fs/fuse/file.c, fuse_file_fallocate: file_modified).
    """
    told = core.session.minor >= MINOR_TELLS
    return lib.PRIV_KEEP if told and request.uid == 0 else lib.PRIV_KILL  # type: ignore[no-any-return]

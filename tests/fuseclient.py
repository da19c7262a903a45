"""A FUSE client in plain Python: what a guest's kernel sends, one method per opcode.

It speaks through a transport, a function (request bytes, room for the reply) -> reply bytes, so that the same client
drives the core with two buffers (tests/direct.py), or a whole daemon through a ring. Structs are those of
<linux/fuse.h>, taken from vfsd._fuse; replies come back as such structs.

Every method takes `expect`, the errno that the reply must carry: 0 for success. With an errno the method returns None.
An error that was not expected is raised as OSError, a success that was not is an AssertionError.
"""

import itertools
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tests.fusestructs import Dirent, dirents, pack, unpack
from vfsd._fuse import ffi, lib

ROOT: int = lib.FUSE_ROOT_ID
NO_HANDLE = 0xFFFFFFFF_FFFFFFFF
HEADER: int = ffi.sizeof("struct fuse_in_header")
REPLY_HEADER: int = ffi.sizeof("struct fuse_out_header")
#: Room of a reply whose size the request does not say.
ROOM = 4096

#: Request bytes and room for the reply, its header included, to reply bytes.
Transport = Callable[[bytes, int], bytes]

SETATTR_BITS = {
    "mode": "FATTR_MODE", "uid": "FATTR_UID", "gid": "FATTR_GID", "size": "FATTR_SIZE", "fh": "FATTR_FH",
    "atime": "FATTR_ATIME", "mtime": "FATTR_MTIME", "ctime": "FATTR_CTIME",
}  # fmt: skip


def _lock(fh: int, owner: int, kind: int, start: int, end: int, flags: int = 0, pid: int = 1) -> bytes:
    lock = {"start": start, "end": end, "type": kind, "pid": pid}
    return pack("fuse_lk_in", fh=fh, owner=owner, lk=lock, lk_flags=flags)


class FuseClient:
    """One guest's kernel, as far as the daemon can tell. `uid`, `gid` and `groups` are the caller's, free to set."""

    def __init__(self, transport: Transport, uid: int = 0, gid: int = 0) -> None:
        self.transport = transport
        self.uid = uid
        self.gid = gid
        #: Supplementary groups sent with what creates; None: no extension.
        self.groups: Sequence[int] | None = None
        #: Security labels, (name, value), sent with what creates; None: not even that there is none.
        self.labels: Sequence[tuple[bytes, bytes]] | None = None
        #: Send them as guests before Linux 6.3 do.
        self.old_labels = False
        #: SETXATTR in its long form (FUSE_SETXATTR_EXT); init() sets it to what was agreed.
        self.setxattr_ext = False
        #: Numbers of requests, even as Linux's; several threads may share a client.
        self.uniques: Iterator[int] = itertools.count(2, 2)
        #: That of the last one.
        self.unique = 0

    def exchange(
        self, opcode: int, nodeid: int, body: bytes, room: int, extension: bytes = b"", unique: int | None = None
    ) -> bytes:
        """The reply's bytes, its header included; nothing is checked."""
        self.unique = unique = next(self.uniques) if unique is None else unique
        header = pack(
            "fuse_in_header", len=HEADER + len(body) + len(extension), opcode=opcode, unique=unique, nodeid=nodeid,
            uid=self.uid, gid=self.gid, pid=1, total_extlen=len(extension) // 8,
        )  # fmt: skip
        return self.transport(header + body + extension, room)

    def call(
        self, opcode: int, nodeid: int, *parts: bytes, room: int = ROOM, expect: int = 0, creates: bool = False
    ) -> bytes | None:
        """Sends one request and checks the reply's header. `room`: bytes after that header."""
        extension = self._extension() if creates else b""
        if creates and self.labels is not None and self.old_labels:
            parts = (*parts, self._labels())
        unique = next(self.uniques)
        reply = self.exchange(opcode, nodeid, b"".join(parts), REPLY_HEADER + room, extension, unique)
        header = unpack("fuse_out_header", reply)
        name = ffi.string(lib.fuse_row_name(opcode)).decode() if lib.fuse_row_name(opcode) else opcode
        assert header.len == len(reply), f"{name}: header says {header.len} bytes, {len(reply)} came"
        assert header.unique == unique, f"{name}: answers {header.unique}, not {unique}"
        if header.error and header.error != -expect:
            raise OSError(-header.error, f"{name}: {os.strerror(-header.error)}")
        if header.error:
            assert len(reply) == REPLY_HEADER, f"{name}: an error with {len(reply)} bytes"
            return None
        assert not expect, f"{name}: success, not {os.strerror(expect)}"
        return reply[REPLY_HEADER:]

    def _labels(self) -> bytes:
        """struct fuse_secctx_header and what follows it; as an extension, its type is their number."""
        body = b"".join(struct.pack("=II", len(value), 0) + name + b"\0" + value for name, value in self.labels or ())
        size = (8 + len(body) + 7) // 8 * 8
        return (struct.pack("=II", size, len(self.labels or ())) + body).ljust(size, b"\0")

    def _extension(self) -> bytes:
        labels = b"" if self.labels is None or self.old_labels else self._labels()
        if self.groups is None:
            return labels
        body = struct.pack(f"=I{len(self.groups)}I", len(self.groups), *self.groups)
        size = (8 + len(body) + 7) // 8 * 8
        return labels + (struct.pack("=II", size, lib.EXT_GROUPS) + body).ljust(size, b"\0")

    def _struct(self, ctype: str, reply: bytes | None) -> Any:
        return None if reply is None else unpack(ctype, reply)

    # The mount.

    def init(self, major: int = 7, minor: int = 38, flags: int = 0, expect: int = 0, **fields: int) -> Any:
        """struct fuse_init_out. `flags` is flags2 << 32 | flags; FUSE_INIT_EXT is set when the upper half is not 0."""
        if flags >> 32:
            flags |= lib.FUSE_INIT_EXT
        body = pack("fuse_init_in", major=major, minor=minor, max_readahead=fields.get("max_readahead", 1 << 17),
                    flags=flags & 0xFFFFFFFF, flags2=flags >> 32)  # fmt: skip
        out = self._struct("fuse_init_out", self.call(
            lib.FUSE_INIT, 0, body if minor >= 36 else body[:16], room=ffi.sizeof("struct fuse_init_out"), expect=expect
        ))  # fmt: skip
        if out is not None:
            self.setxattr_ext = bool(out.flags & lib.FUSE_SETXATTR_EXT)
        return out

    def destroy(self, expect: int = 0) -> Any:
        return self.call(lib.FUSE_DESTROY, 0, room=0, expect=expect)

    def statfs(self, nodeid: int = ROOT, expect: int = 0) -> Any:
        return self._struct("fuse_statfs_out", self.call(lib.FUSE_STATFS, nodeid, room=80, expect=expect))

    def syncfs(self, nodeid: int = ROOT, expect: int = 0) -> Any:
        return self.call(lib.FUSE_SYNCFS, nodeid, pack("fuse_syncfs_in"), room=0, expect=expect)

    # Names.

    def _entry(self, opcode: int, nodeid: int, *parts: bytes, expect: int, creates: bool = False) -> Any:
        room = ffi.sizeof("struct fuse_entry_out")
        return self._struct(
            "fuse_entry_out", self.call(opcode, nodeid, *parts, room=room, expect=expect, creates=creates)
        )

    def lookup(self, parent: int, name: bytes, expect: int = 0) -> Any:
        """struct fuse_entry_out."""
        return self._entry(lib.FUSE_LOOKUP, parent, name, b"\0", expect=expect)

    def forget(self, nodeid: int, nlookup: int = 1) -> None:
        reply = self.exchange(lib.FUSE_FORGET, nodeid, pack("fuse_forget_in", nlookup=nlookup), 0)
        assert reply == b"", "an answer to FORGET"

    def batch_forget(self, forgets: Sequence[tuple[int, int]]) -> None:
        body = pack("fuse_batch_forget_in", count=len(forgets))
        body += b"".join(pack("fuse_forget_one", nodeid=nodeid, nlookup=nlookup) for nodeid, nlookup in forgets)
        assert self.exchange(lib.FUSE_BATCH_FORGET, 0, body, 0) == b"", "an answer to BATCH_FORGET"

    def mkdir(self, parent: int, name: bytes, mode: int = 0o755, umask: int = 0, expect: int = 0) -> Any:
        body = pack("fuse_mkdir_in", mode=mode, umask=umask)
        return self._entry(lib.FUSE_MKDIR, parent, body, name, b"\0", expect=expect, creates=True)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0, umask: int = 0, expect: int = 0) -> Any:
        body = pack("fuse_mknod_in", mode=mode, rdev=rdev, umask=umask)
        return self._entry(lib.FUSE_MKNOD, parent, body, name, b"\0", expect=expect, creates=True)

    def symlink(self, parent: int, name: bytes, target: bytes, expect: int = 0) -> Any:
        return self._entry(lib.FUSE_SYMLINK, parent, name, b"\0", target, b"\0", expect=expect, creates=True)

    def link(self, nodeid: int, parent: int, name: bytes, expect: int = 0) -> Any:
        return self._entry(lib.FUSE_LINK, parent, pack("fuse_link_in", oldnodeid=nodeid), name, b"\0", expect=expect)

    def unlink(self, parent: int, name: bytes, expect: int = 0) -> Any:
        return self.call(lib.FUSE_UNLINK, parent, name, b"\0", room=0, expect=expect)

    def rmdir(self, parent: int, name: bytes, expect: int = 0) -> Any:
        return self.call(lib.FUSE_RMDIR, parent, name, b"\0", room=0, expect=expect)

    def rename(self, parent: int, name: bytes, newparent: int, newname: bytes, expect: int = 0) -> Any:
        body = pack("fuse_rename_in", newdir=newparent)
        return self.call(lib.FUSE_RENAME, parent, body, name, b"\0", newname, b"\0", room=0, expect=expect)

    def rename2(self, parent: int, name: bytes, newparent: int, newname: bytes, flags: int = 0, expect: int = 0) -> Any:
        body = pack("fuse_rename2_in", newdir=newparent, flags=flags)
        return self.call(lib.FUSE_RENAME2, parent, body, name, b"\0", newname, b"\0", room=0, expect=expect)

    def readlink(self, nodeid: int, expect: int = 0) -> Any:
        """The target, bytes."""
        return self.call(lib.FUSE_READLINK, nodeid, expect=expect)

    # Attributes.

    def getattr(self, nodeid: int, fh: int | None = None, expect: int = 0) -> Any:
        """struct fuse_attr_out."""
        body = pack("fuse_getattr_in", getattr_flags=0 if fh is None else lib.FUSE_GETATTR_FH, fh=fh or 0)
        room = ffi.sizeof("struct fuse_attr_out")
        return self._struct("fuse_attr_out", self.call(lib.FUSE_GETATTR, nodeid, body, room=room, expect=expect))

    def setattr(self, nodeid: int, valid: int = 0, expect: int = 0, **fields: int) -> Any:
        """struct fuse_attr_out. Fields of struct fuse_setattr_in; their FATTR_* bits are added to `valid`."""
        for field in fields:
            if field in SETATTR_BITS:
                valid |= getattr(lib, SETATTR_BITS[field])
        body = pack("fuse_setattr_in", valid=valid, **fields)
        room = ffi.sizeof("struct fuse_attr_out")
        return self._struct("fuse_attr_out", self.call(lib.FUSE_SETATTR, nodeid, body, room=room, expect=expect))

    def statx(self, nodeid: int, mask: int = 0xFFF, flags: int = 0, fh: int | None = None, expect: int = 0) -> Any:
        """struct wire_statx_out."""
        body = pack("wire_statx_in", getattr_flags=0 if fh is None else lib.FUSE_GETATTR_FH, fh=fh or 0,
                    sx_flags=flags, sx_mask=mask)  # fmt: skip
        room = ffi.sizeof("struct wire_statx_out")
        return self._struct("wire_statx_out", self.call(lib.OP_STATX, nodeid, body, room=room, expect=expect))

    def access(self, nodeid: int, mask: int, expect: int = 0) -> Any:
        return self.call(lib.FUSE_ACCESS, nodeid, pack("fuse_access_in", mask=mask), room=0, expect=expect)

    def setxattr(
        self, nodeid: int, name: bytes, value: bytes, flags: int = 0, setxattr_flags: int = 0, expect: int = 0
    ) -> Any:
        body = pack("fuse_setxattr_in", size=len(value), flags=flags, setxattr_flags=setxattr_flags)
        body = body if self.setxattr_ext else body[: lib.FUSE_COMPAT_SETXATTR_IN_SIZE]
        return self.call(lib.FUSE_SETXATTR, nodeid, body, name, b"\0", value, room=0, expect=expect)

    def getxattr(self, nodeid: int, name: bytes, size: int = 65536, expect: int = 0) -> Any:
        """The value; with size 0 its length."""
        body = pack("fuse_getxattr_in", size=size)
        reply = self.call(lib.FUSE_GETXATTR, nodeid, body, name, b"\0", room=max(size, 8), expect=expect)
        return self._sized(reply, size)

    def listxattr(self, nodeid: int, size: int = 65536, expect: int = 0) -> Any:
        """The names, each with its NUL; with size 0 their length."""
        body = pack("fuse_getxattr_in", size=size)
        return self._sized(self.call(lib.FUSE_LISTXATTR, nodeid, body, room=max(size, 8), expect=expect), size)

    def _sized(self, reply: bytes | None, size: int) -> Any:
        return unpack("fuse_getxattr_out", reply).size if reply is not None and size == 0 else reply

    def removexattr(self, nodeid: int, name: bytes, expect: int = 0) -> Any:
        return self.call(lib.FUSE_REMOVEXATTR, nodeid, name, b"\0", room=0, expect=expect)

    # Open files.

    def open(self, nodeid: int, flags: int = os.O_RDONLY, open_flags: int = 0, expect: int = 0) -> Any:
        """struct fuse_open_out."""
        body = pack("fuse_open_in", flags=flags, open_flags=open_flags)
        return self._struct("fuse_open_out", self.call(lib.FUSE_OPEN, nodeid, body, room=16, expect=expect))

    def _created(self, opcode: int, parent: int, name: bytes, expect: int, **fields: int) -> Any:
        size = ffi.sizeof("struct fuse_entry_out")
        body = pack("fuse_create_in", **fields)
        reply = self.call(opcode, parent, body, name, b"\0", room=size + 16, expect=expect, creates=True)
        return reply and (unpack("fuse_entry_out", reply), unpack("fuse_open_out", reply[size:]))

    def create(
        self, parent: int, name: bytes, flags: int = os.O_RDWR | os.O_EXCL, mode: int = 0o644, umask: int = 0,
        open_flags: int = 0, expect: int = 0,
    ) -> Any:  # fmt: skip
        """(struct fuse_entry_out, struct fuse_open_out)."""
        return self._created(lib.FUSE_CREATE, parent, name, expect, flags=flags | os.O_CREAT, mode=mode | 0o100000,
                             umask=umask, open_flags=open_flags)  # fmt: skip

    def tmpfile(self, parent: int, flags: int = os.O_RDWR, mode: int = 0o644, umask: int = 0, expect: int = 0) -> Any:
        """(struct fuse_entry_out, struct fuse_open_out)."""
        return self._created(lib.FUSE_TMPFILE, parent, b"/", expect, flags=flags | os.O_TMPFILE, mode=mode | 0o100000,
                             umask=umask)  # fmt: skip

    def read(self, nodeid: int, fh: int, size: int, offset: int = 0, flags: int = 0, expect: int = 0) -> Any:
        body = pack("fuse_read_in", fh=fh, offset=offset, size=size, flags=flags)
        return self.call(lib.FUSE_READ, nodeid, body, room=size, expect=expect)

    def write(
        self, nodeid: int, fh: int, data: bytes, offset: int = 0, write_flags: int = 0, flags: int = 0, expect: int = 0
    ) -> Any:  # fmt: skip
        """Bytes written."""
        body = pack("fuse_write_in", fh=fh, offset=offset, size=len(data), write_flags=write_flags,
                    flags=flags)  # fmt: skip
        reply = self.call(lib.FUSE_WRITE, nodeid, body, data, room=8, expect=expect)
        return None if reply is None else unpack("fuse_write_out", reply).size

    def flush(self, nodeid: int, fh: int, owner: int = 0, expect: int = 0) -> Any:
        body = pack("fuse_flush_in", fh=fh, lock_owner=owner)
        return self.call(lib.FUSE_FLUSH, nodeid, body, room=0, expect=expect)

    def release(self, nodeid: int, fh: int, flags: int = 0, release_flags: int = 0, expect: int = 0) -> Any:
        body = pack("fuse_release_in", fh=fh, flags=flags, release_flags=release_flags)
        return self.call(lib.FUSE_RELEASE, nodeid, body, room=0, expect=expect)

    def fsync(self, nodeid: int, fh: int, datasync: bool = False, expect: int = 0) -> Any:
        body = pack("fuse_fsync_in", fh=fh, fsync_flags=datasync)
        return self.call(lib.FUSE_FSYNC, nodeid, body, room=0, expect=expect)

    def fallocate(self, nodeid: int, fh: int, offset: int, length: int, mode: int = 0, expect: int = 0) -> Any:
        body = pack("fuse_fallocate_in", fh=fh, offset=offset, length=length, mode=mode)
        return self.call(lib.FUSE_FALLOCATE, nodeid, body, room=0, expect=expect)

    def lseek(self, nodeid: int, fh: int, offset: int, whence: int, expect: int = 0) -> Any:
        """The offset found."""
        body = pack("fuse_lseek_in", fh=fh, offset=offset, whence=whence)
        out = self._struct("fuse_lseek_out", self.call(lib.FUSE_LSEEK, nodeid, body, room=8, expect=expect))
        return None if out is None else out.offset

    def copy_file_range(
        self, nodeid: int, fh: int, offset: int, to_nodeid: int, to_fh: int, to_offset: int, length: int,
        flags: int = 0, long: bool = False, expect: int = 0,
    ) -> Any:  # fmt: skip
        """Bytes copied. `long`: COPY_FILE_RANGE_64."""
        body = pack("fuse_copy_file_range_in", fh_in=fh, off_in=offset, nodeid_out=to_nodeid, fh_out=to_fh,
                    off_out=to_offset, len=length, flags=flags)  # fmt: skip
        opcode = lib.OP_COPY_FILE_RANGE_64 if long else lib.FUSE_COPY_FILE_RANGE
        reply = self.call(opcode, nodeid, body, room=8, expect=expect)
        if reply is None:
            return None
        return unpack("wire_copy_file_range_out", reply).bytes_copied if long else unpack("fuse_write_out", reply).size

    def ioctl(
        self, nodeid: int, fh: int, command: int, given: bytes = b"", room: int = 0, flags: int = 0, expect: int = 0
    ) -> Any:
        """What a restricted ioctl gives back. Room for it must be what the reply has."""
        body = pack("fuse_ioctl_in", fh=fh, flags=flags, cmd=command, in_size=len(given), out_size=room)
        reply = self.call(lib.FUSE_IOCTL, nodeid, body, given, room=16 + room, expect=expect)
        return None if reply is None else reply[16:]

    # The DAX window.

    def setupmapping(
        self, nodeid: int, file_offset: int, length: int, offset: int, write: bool = True, fh: int = NO_HANDLE,
        expect: int = 0,
    ) -> Any:  # fmt: skip
        """Maps a range of a file to `offset` of the window."""
        flags = lib.FUSE_SETUPMAPPING_FLAG_READ | (lib.FUSE_SETUPMAPPING_FLAG_WRITE if write else 0)
        body = pack("fuse_setupmapping_in", fh=fh, foffset=file_offset, len=length, moffset=offset, flags=flags)
        return self.call(lib.FUSE_SETUPMAPPING, nodeid, body, room=0, expect=expect)

    def removemapping(self, *ranges: tuple[int, int], nodeid: int = ROOT, expect: int = 0) -> Any:
        """Takes ranges of the window back, (offset, length) each."""
        body = pack("fuse_removemapping_in", count=len(ranges))
        body += b"".join(pack("fuse_removemapping_one", moffset=offset, len=length) for offset, length in ranges)
        return self.call(lib.FUSE_REMOVEMAPPING, nodeid, body, room=0, expect=expect)

    # Locks: `kind` is F_RDLCK, F_WRLCK or F_UNLCK; `end` is the last byte.

    def getlk(
        self, nodeid: int, fh: int, owner: int, kind: int, start: int = 0, end: int = lib.LOCK_END, expect: int = 0
    ) -> Any:
        """struct fuse_file_lock."""
        reply = self.call(lib.FUSE_GETLK, nodeid, _lock(fh, owner, kind, start, end), room=24, expect=expect)
        return self._struct("fuse_file_lock", reply)

    def setlk(
        self, nodeid: int, fh: int, owner: int, kind: int, start: int = 0, end: int = lib.LOCK_END,
        wait: bool = False, flock: bool = False, pid: int = 1, expect: int = 0,
    ) -> Any:  # fmt: skip
        opcode = lib.FUSE_SETLKW if wait else lib.FUSE_SETLK
        body = _lock(fh, owner, kind, start, end, lib.FUSE_LK_FLOCK if flock else 0, pid)
        return self.call(opcode, nodeid, body, room=0, expect=expect)

    # Directories.

    def opendir(self, nodeid: int, flags: int = 0, expect: int = 0) -> Any:
        """struct fuse_open_out."""
        body = pack("fuse_open_in", flags=flags)
        return self._struct("fuse_open_out", self.call(lib.FUSE_OPENDIR, nodeid, body, room=16, expect=expect))

    def readdir(self, nodeid: int, fh: int, offset: int = 0, size: int = 4096, expect: int = 0) -> Any:
        """list[Dirent] of one request; empty at the end."""
        body = pack("fuse_read_in", fh=fh, offset=offset, size=size)
        reply = self.call(lib.FUSE_READDIR, nodeid, body, room=size, expect=expect)
        return None if reply is None else dirents(reply)

    def readdirplus(self, nodeid: int, fh: int, offset: int = 0, size: int = 4096, expect: int = 0) -> Any:
        """list[Dirent] of one request, with entries; empty at the end."""
        body = pack("fuse_read_in", fh=fh, offset=offset, size=size)
        reply = self.call(lib.FUSE_READDIRPLUS, nodeid, body, room=size, expect=expect)
        return None if reply is None else dirents(reply, plus=True)

    def releasedir(self, nodeid: int, fh: int, expect: int = 0) -> Any:
        return self.call(lib.FUSE_RELEASEDIR, nodeid, pack("fuse_release_in", fh=fh), room=0, expect=expect)

    def fsyncdir(self, nodeid: int, fh: int, datasync: bool = False, expect: int = 0) -> Any:
        body = pack("fuse_fsync_in", fh=fh, fsync_flags=datasync)
        return self.call(lib.FUSE_FSYNCDIR, nodeid, body, room=0, expect=expect)

    # Several requests at once, as a program's call makes them.

    def walk(self, path: bytes, nodeid: int = ROOT) -> Any:
        """struct fuse_entry_out of a relative path, one LOOKUP per component; the steps between are forgotten."""
        first, entry = nodeid, None
        for name in path.split(b"/"):
            entry = self.lookup(nodeid, name)
            if nodeid != first:
                self.forget(nodeid)
            nodeid = entry.nodeid
        return entry

    def list(self, nodeid: int = ROOT, size: int = 4096, plus: bool = False) -> "list[Dirent]":
        """A whole directory: OPENDIR, READDIR until empty, RELEASEDIR."""
        fh, found = self.opendir(nodeid).fh, []
        read = self.readdirplus if plus else self.readdir
        while some := read(nodeid, fh, found[-1].off if found else 0, size):
            found += some
        self.releasedir(nodeid, fh)
        return found

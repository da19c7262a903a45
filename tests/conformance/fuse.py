"""The steps of the conformance list as FUSE requests: what a guest's kernel makes of the system calls, and no more.

It walks paths by LOOKUP and forgets what it looked up, so that after a case the daemon must know the root alone. It
asks afresh each time and checks no permission: a case that needs that has `kernel` among its needs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EISDIR
from typing import Any, NamedTuple

from tests.conformance.fuse_actors import FuseActor, FuseActors
from tests.conformance.syscalls import DIRENT_TYPES, FLAGS_SET, FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, TYPES, Syscalls
from tests.fuseclient import ROOT, FuseClient
from vfsd._fuse import lib

NSEC = 1_000_000_000
FMT = 0o170000


class Open(NamedTuple):
    nodeid: int
    fh: int
    #: O_*
    flags: int


class FuseExecutor(FuseActors):
    """Steps on a mount that `client` has made (INIT); cases get directories below `base`, a path in the share."""

    def __init__(self, client: FuseClient, base: str = ".") -> None:
        self.client = client
        self.base = base
        self.root = ROOT
        self.open_files: dict[str, Open] = {}
        self.actors: dict[str, FuseActor] = {}

    def enter(self, case: str) -> None:
        with self._node(self.base) as parent:
            self.root = self.client.mkdir(parent, case.encode()).nodeid

    def leave(self) -> None:
        self.become(0, 0)
        for who in list(self.actors):
            self.end(who)
        for name in list(self.open_files):
            self.close(name)
        self.client.forget(self.root)
        self.root = ROOT

    def _walk(self, path: str) -> int:
        """The nodeid of a path; one LOOKUP of it is to be forgotten."""
        nodeid = self.root
        for name in [] if path == "." else os.fsencode(path).split(b"/"):
            try:
                found = self.client.lookup(nodeid, name).nodeid
            finally:
                self._forget(nodeid)
            nodeid = found
        return nodeid

    def _forget(self, nodeid: int) -> None:
        if nodeid != self.root:
            self.client.forget(nodeid)

    @contextmanager
    def _node(self, path: str) -> Iterator[int]:
        """The nodeid of a path, for a while."""
        nodeid = self._walk(path)
        try:
            yield nodeid
        finally:
            self._forget(nodeid)

    @contextmanager
    def _name(self, path: str) -> Iterator[tuple[int, bytes]]:
        """The nodeid of the directory of a path, and the last name."""
        directory, _, name = path.rpartition("/")
        with self._node(directory or ".") as parent:
            yield parent, os.fsencode(name)

    def become(self, uid: int, gid: int, *groups: int) -> None:
        self.client.uid, self.client.gid = uid, gid
        # Linux names the one group that matters: the directory's (fs/fuse/dir.c, get_create_supp_group).
        self.client.groups = groups or None

    # Names

    def make(self, path: str, data: bytes, mode: int) -> None:
        self.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, into="")
        self.pwrite("", data, 0)
        self.close("")

    def read(self, path: str) -> bytes:
        self.open(path, os.O_RDONLY, into="")
        data = self.pread("", 1 << 20, 0)
        self.close("")
        return data

    def fill(self, path: str, count: int) -> None:
        with self._node(path) as parent:
            for number in range(count):
                name = f"name-{number:05}-{'x' * (number % 60)}"
                self.client.forget(self.client.mknod(parent, name.encode(), 0o100644).nodeid)

    def list_names(self, path: str) -> set[str]:
        with self._node(path) as nodeid:
            plain = {entry.name for entry in self.client.list(nodeid)}
            plus = self.client.list(nodeid, plus=True)
            for entry in plus:
                if entry.entry.nodeid:
                    self.client.forget(entry.entry.nodeid)
            assert plain == {entry.name for entry in plus}
            return {os.fsdecode(name) for name in plain - {b".", b".."}}

    def mkdir(self, path: str, mode: int) -> None:
        with self._name(path) as (parent, name):
            self.client.forget(self.client.mkdir(parent, name, mode).nodeid)

    def mknod(self, path: str, mode: int, device: int) -> None:
        with self._name(path) as (parent, name):
            self.client.forget(self.client.mknod(parent, name, mode, device).nodeid)

    def symlink(self, target: str, path: str) -> None:
        with self._name(path) as (parent, name):
            self.client.forget(self.client.symlink(parent, name, os.fsencode(target)).nodeid)

    def link(self, old: str, new: str) -> None:
        with self._node(old) as nodeid, self._name(new) as (parent, name):
            self.client.forget(self.client.link(nodeid, parent, name).nodeid)

    def linkfd(self, file: str, new: str) -> None:
        with self._name(new) as (parent, name):
            self.client.forget(self.client.link(self.open_files[file].nodeid, parent, name).nodeid)

    def unlink(self, path: str) -> None:
        with self._name(path) as (parent, name):
            self.client.unlink(parent, name)

    def rmdir(self, path: str) -> None:
        with self._name(path) as (parent, name):
            self.client.rmdir(parent, name)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        with self._name(old) as source, self._name(new) as target:
            if flags:
                self.client.rename2(*source, *target, flags)
            else:
                self.client.rename(*source, *target)

    def readlink(self, path: str) -> str:
        with self._node(path) as nodeid:
            return os.fsdecode(self.client.readlink(nodeid))

    def same(self, one: str, other: str) -> bool:
        with self._node(one) as first, self._node(other) as second:
            return first == second

    # Attributes

    def stat(self, path: str) -> dict[str, Any]:
        with self._node(path) as nodeid:
            return attributes(self.client.getattr(nodeid).attr)

    def statx(self, path: str) -> dict[str, int]:
        with self._node(path) as nodeid:
            got = self.client.statx(nodeid).stat
        return {"nlink": got.nlink, "mode": got.mode, "size": got.size, "btime": got.btime.tv_sec}

    def chmod(self, path: str, mode: int) -> None:
        with self._node(path) as nodeid:
            got = self.client.setattr(nodeid, mode=mode).attr.mode
            assert got & 0o7777 == mode

    def chown(self, path: str, uid: int, gid: int) -> None:
        given = {key: value for key, value in (("uid", uid), ("gid", gid)) if value >= 0}
        with self._node(path) as nodeid:
            self.client.setattr(nodeid, **given)

    def truncate(self, path: str, size: int) -> None:
        with self._node(path) as nodeid:
            self.client.setattr(nodeid, size=size)

    def utime(self, path: str, atime: int, mtime: int) -> None:
        valid, fields = 0, {}
        for name, time in (("atime", atime), ("mtime", mtime)):
            if time == -1:
                valid |= getattr(lib, f"FATTR_{name.upper()}") | getattr(lib, f"FATTR_{name.upper()}_NOW")
            elif time != -2:
                fields[name], fields[f"{name}nsec"] = time // NSEC % (1 << 64), time % NSEC
        with self._node(path) as nodeid:
            self.client.setattr(nodeid, valid, **fields)

    def access(self, path: str, mask: int) -> bool:
        with self._node(path) as nodeid:
            try:
                self.client.access(nodeid, mask)
            except OSError as error:
                if error.errno != EACCES:
                    raise
                return False
        return True

    def getxattr(self, path: str, name: str, size: int = 65536) -> Any:
        with self._node(path) as nodeid:
            return self.client.getxattr(nodeid, name.encode(), size)

    def listxattr(self, path: str, size: int = 65536) -> set[str]:
        with self._node(path) as nodeid:
            names = self.client.listxattr(nodeid, size).decode().split("\0")
        return {name for name in names if name.startswith("user.")}

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        with self._node(path) as nodeid:
            self.client.setxattr(nodeid, name.encode(), value, flags)

    def removexattr(self, path: str, name: str) -> None:
        with self._node(path) as nodeid:
            self.client.removexattr(nodeid, name.encode())

    def list_types(self, path: str) -> dict[str, str]:
        with self._node(path) as nodeid:
            plain = {entry.name: entry.type for entry in self.client.list(nodeid)}
            plus = self.client.list(nodeid, plus=True)
            for entry in plus:
                if entry.entry.nodeid:
                    self.client.forget(entry.entry.nodeid)
            assert plain == {entry.name: entry.type for entry in plus}
            return {os.fsdecode(n): DIRENT_TYPES[kind] for n, kind in plain.items() if n not in (b".", b"..")}

    def inode_flags(self, path: str, flags: int) -> int:
        self.open(path, os.O_RDONLY, into="")
        nodeid, fh, _ = self.open_files[""]

        def get() -> int:
            return int.from_bytes(self.client.ioctl(nodeid, fh, FS_IOC_GETFLAGS, room=4), "little")

        self.client.ioctl(nodeid, fh, FS_IOC_SETFLAGS, (get() & ~FLAGS_SET | flags).to_bytes(4, "little"))
        after = get() & FLAGS_SET
        self.close("")
        return after

    def statfs(self, path: str) -> dict[str, int]:
        with self._node(path) as nodeid:
            fs = self.client.statfs(nodeid).st
        names = ("blocks", "bfree", "bavail", "files", "ffree", "bsize", "frsize", "namelen")
        return {name: getattr(fs, name) for name in names}

    # Open files

    def open(self, path: str, flags: int, mode: int = 0, into: str = "") -> None:
        if flags & os.O_CREAT:
            with self._name(path) as (parent, name):
                entry, opened = self.client.create(parent, name, flags, mode)
            self.open_files[into] = Open(entry.nodeid, opened.fh, flags)
            return
        nodeid = self._walk(path)
        try:
            # To open a directory for writing is refused by the kernel.
            directory = bool(self.client.getattr(nodeid).attr.mode & FMT == 0o040000)
            if directory and flags & os.O_ACCMODE:
                raise OSError(EISDIR, "is a directory")
            call = self.client.opendir if flags & os.O_DIRECTORY else self.client.open
            self.open_files[into] = Open(nodeid, call(nodeid, flags).fh, flags)
        except OSError:
            self._forget(nodeid)
            raise

    def tmpfile(self, path: str, flags: int, mode: int, into: str = "") -> None:
        with self._node(path) as parent:
            entry, opened = self.client.tmpfile(parent, flags, mode)
        self.open_files[into] = Open(entry.nodeid, opened.fh, flags)

    def close(self, file: str) -> None:
        nodeid, fh, flags = self.open_files.pop(file)
        if flags & os.O_DIRECTORY:
            self.client.releasedir(nodeid, fh)
        else:
            self.client.flush(nodeid, fh)
            self.client.release(nodeid, fh)
        self._forget(nodeid)

    def fstat(self, file: str) -> dict[str, Any]:
        nodeid, fh, _ = self.open_files[file]
        return attributes(self.client.getattr(nodeid, fh).attr)

    def pread(self, file: str, size: int, offset: int) -> bytes:
        nodeid, fh, _ = self.open_files[file]
        data: bytes = self.client.read(nodeid, fh, size, offset)
        return data

    def pwrite(self, file: str, data: bytes, offset: int) -> int:
        nodeid, fh, flags = self.open_files[file]
        written: int = self.client.write(nodeid, fh, data, offset, flags=flags)
        return written

    def write(self, file: str, data: bytes) -> int:
        """At the end: the one file position the list uses is that of O_APPEND."""
        return self.pwrite(file, data, self.fstat(file)["size"])

    def ftruncate(self, file: str, size: int) -> None:
        nodeid, fh, _ = self.open_files[file]
        self.client.setattr(nodeid, size=size, fh=fh)

    def fsync(self, file: str, datasync: bool = False) -> None:
        nodeid, fh, flags = self.open_files[file]
        (self.client.fsyncdir if flags & os.O_DIRECTORY else self.client.fsync)(nodeid, fh, datasync)

    def fdatasync(self, file: str) -> None:
        self.fsync(file, datasync=True)

    def syncfs(self, file: str) -> None:
        self.client.syncfs()

    def lseek(self, file: str, offset: int, whence: int) -> int:
        nodeid, fh, _ = self.open_files[file]
        found: int = self.client.lseek(nodeid, fh, offset % (1 << 64), whence)
        return found

    def fallocate(self, file: str, mode: int, offset: int, size: int) -> None:
        nodeid, fh, _ = self.open_files[file]
        self.client.fallocate(nodeid, fh, offset, size, mode)

    def copy_file_range(self, source: str, target: str, size: int, source_at: int, target_at: int) -> int:
        nodeid, fh, _ = self.open_files[source]
        to_nodeid, to_fh, _ = self.open_files[target]
        arguments = (nodeid, fh, source_at, to_nodeid, to_fh, target_at, size)
        copied: int = self.client.copy_file_range(*arguments)
        assert self.client.copy_file_range(*arguments, long=True) == copied
        return copied

    # Made of the others.
    copied = Syscalls.copied
    zero_range = Syscalls.zero_range
    rewind = Syscalls.rewind

    def seekdir(self, file: str) -> bool:
        first = self._entries(file, 0)
        middle = len(first) // 2
        return self._entries(file, first[middle][0]) == first[middle + 1 :]

    def _entries(self, file: str, position: int) -> list[tuple[int, bytes]]:
        nodeid, fh, _ = self.open_files[file]
        entries: list[tuple[int, bytes]] = []
        while some := self.client.readdir(nodeid, fh, position):
            entries += ((entry.off, entry.name) for entry in some)
            position = some[-1].off
        return entries


def attributes(attr: Any) -> dict[str, Any]:
    """A struct fuse_attr as the cases name its fields; times in nanoseconds."""
    return {
        "type": TYPES[attr.mode & FMT],
        "mode": attr.mode & 0o7777,
        "nlink": attr.nlink,
        "size": attr.size,
        "uid": attr.uid,
        "gid": attr.gid,
        "rdev": attr.rdev,
        "atime": _signed(attr.atime) * NSEC + attr.atimensec,
        "mtime": _signed(attr.mtime) * NSEC + attr.mtimensec,
    }


def _signed(seconds: int) -> int:
    return seconds - (1 << 64) if seconds >> 63 else seconds

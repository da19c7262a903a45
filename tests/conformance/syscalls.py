"""The steps of the conformance list as system calls."""

import ctypes
import errno
import fcntl
import os
import platform
import stat
import struct
from collections.abc import Callable
from typing import Any

from tests.conformance.acl import ACCESS
from tests.conformance.actors import Actor, Actors

TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}
#: DT_* of <dirent.h>.
DIRENT_TYPES = {kind >> 12: name for kind, name in TYPES.items()}
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW = -100, 0x100, 0x400
STATX_BASIC, STATX_BTIME = 0x7FF, 0x800
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
#: What inode flags a case sets; the file system has some of its own.
FLAGS_SET = 0x70
ZERO_RANGE = 0x10
GETDENTS64 = {"x86_64": 217, "aarch64": 61, "riscv64": 61}
NSEC = 1_000_000_000


def has_acls(path: str) -> bool:
    """Whether a directory's file system has POSIX ACLs."""
    try:
        os.getxattr(path, ACCESS)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def has_flags(directory: str) -> bool:
    """Whether its file system knows inode flags."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4))
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


class Syscalls(Actors):
    """Steps as system calls on the directory `root`."""

    def __init__(self, root: str, privileged: bool) -> None:
        self.root = root
        self.privileged = privileged
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.open_files: dict[str, int] = {}
        self.actors: dict[str, Actor] = {}
        #: This process's own, once it has become somebody else.
        self.groups: list[int] | None = None

    def enter(self, case: str) -> None:
        os.chdir(self.root)
        os.mkdir(case, 0o755)
        os.chdir(case)

    def leave(self) -> None:
        if self.groups is not None:
            self.become(0, 0, *self.groups)
        for who in list(self.actors):
            self.end(who)
        for fd in self.open_files.values():
            os.close(fd)
        self.open_files.clear()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Where os has the call under the name and in the form of the step."""
        return getattr(os, name)  # type: ignore[no-any-return]

    def _libc(self, name: str, *args: Any) -> int:
        result: int = getattr(self.libc, name)(*args)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def become(self, uid: int, gid: int, *groups: int) -> None:
        os.seteuid(0)
        if self.groups is None:
            self.groups = os.getgroups()
        os.setgroups(groups)
        os.setegid(gid)
        os.seteuid(uid)

    def make(self, path: str, data: bytes, mode: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def read(self, path: str) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    def fill(self, path: str, count: int) -> None:
        for number in range(count):
            self.make(f"{path}/name-{number:05}-{'x' * (number % 60)}", b"", 0o644)

    def list_names(self, path: str) -> set[str]:
        return set(os.listdir(path))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        self._libc("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)

    def link(self, old: str, new: str) -> None:
        os.link(old, new, follow_symlinks=False)

    def linkfd(self, file: str, new: str) -> None:
        self._libc(
            "linkat",
            AT_FDCWD,
            b"/proc/self/fd/%d" % self.open_files[file],
            AT_FDCWD,
            os.fsencode(new),
            AT_SYMLINK_FOLLOW,
        )

    def same(self, one: str, other: str) -> bool:
        return os.path.samefile(one, other)

    def stat(self, path: str) -> dict[str, Any]:
        return attributes(os.lstat(path))

    def statx(self, path: str) -> dict[str, int]:
        """struct statx of <linux/stat.h>; btime is 0 where there is none."""
        buffer = ctypes.create_string_buffer(256)
        self._libc("statx", AT_FDCWD, os.fsencode(path), AT_SYMLINK_NOFOLLOW, STATX_BASIC | STATX_BTIME, buffer)
        mask, nlink, mode, size = struct.unpack_from("=I12xI8xH10xQ", buffer)
        (btime,) = struct.unpack_from("=q", buffer, 80)
        return {"nlink": nlink, "mode": mode, "size": size, "btime": btime if mask & STATX_BTIME else 0}

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.lchown(path, uid, gid)

    def utime(self, path: str, atime: int, mtime: int) -> None:
        pairs = [{-1: (0, UTIME_NOW), -2: (0, UTIME_OMIT)}.get(time) or divmod(time, NSEC) for time in (atime, mtime)]
        times = (ctypes.c_long * 4)(*pairs[0], *pairs[1])
        self._libc("utimensat", AT_FDCWD, os.fsencode(path), times, AT_SYMLINK_NOFOLLOW)

    def access(self, path: str, mask: int) -> bool:
        return os.access(path, mask, effective_ids=True)

    def getxattr(self, path: str, name: str, size: int | None = None) -> bytes | int:
        if size is None:
            return os.getxattr(path, name, follow_symlinks=False)
        return self._libc("lgetxattr", os.fsencode(path), name.encode(), ctypes.create_string_buffer(size or 1), size)

    def listxattr(self, path: str, size: int | None = None) -> set[str] | int:
        if size is None:
            return {name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")}
        return self._libc("llistxattr", os.fsencode(path), ctypes.create_string_buffer(size or 1), size)

    def setxattr(self, path: str, name: str, value: bytes, flags: int) -> None:
        os.setxattr(path, name, value, flags, follow_symlinks=False)

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(path, name, follow_symlinks=False)

    def statfs(self, path: str) -> dict[str, int]:
        fs = os.statvfs(path)
        names = ("blocks", "bfree", "bavail", "files", "ffree", "bsize", "frsize")
        return {name: getattr(fs, f"f_{name}") for name in names} | {"namelen": fs.f_namemax}

    def list_types(self, path: str) -> dict[str, str]:
        """Types as the listing tells them, not stat."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            found = {os.fsdecode(name): DIRENT_TYPES[kind] for _, kind, name in self._dirents(fd, 0)}
            assert found.pop(".") == found.pop("..") == "dir"
            return found
        finally:
            os.close(fd)

    def inode_flags(self, path: str, flags: int) -> int:
        """Sets those of FLAGS_SET; returns them as they are then."""
        fd = os.open(path, os.O_RDONLY)
        try:
            (before,) = struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))
            fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("=I", before & ~FLAGS_SET | flags))
            (after,) = struct.unpack("=I", fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(4)))
        finally:
            os.close(fd)
        return int(after & FLAGS_SET)

    # Open files, by the name a step gave them

    def open(self, path: str, flags: int, mode: int = 0, into: str = "") -> None:
        fd = os.open(path, flags, mode)
        self.open_files[into] = fd

    def tmpfile(self, path: str, flags: int, mode: int, into: str = "") -> None:
        self.open(path, flags | os.O_TMPFILE, mode, into)

    def close(self, file: str) -> None:
        os.close(self.open_files.pop(file))

    def fstat(self, file: str) -> dict[str, Any]:
        return attributes(os.fstat(self.open_files[file]))

    def pread(self, file: str, size: int, offset: int) -> bytes:
        return os.pread(self.open_files[file], size, offset)

    def pwrite(self, file: str, data: bytes, offset: int) -> int:
        return os.pwrite(self.open_files[file], data, offset)

    def write(self, file: str, data: bytes) -> int:
        return os.write(self.open_files[file], data)

    def ftruncate(self, file: str, size: int) -> None:
        os.ftruncate(self.open_files[file], size)

    def fsync(self, file: str) -> None:
        os.fsync(self.open_files[file])

    def fdatasync(self, file: str) -> None:
        os.fdatasync(self.open_files[file])

    def syncfs(self, file: str) -> None:
        self._libc("syncfs", self.open_files[file])

    def lseek(self, file: str, offset: int, whence: int) -> int:
        return os.lseek(self.open_files[file], offset, whence)

    def fallocate(self, file: str, mode: int, offset: int, size: int) -> None:
        self._libc("fallocate", self.open_files[file], mode, ctypes.c_long(offset), ctypes.c_long(size))

    def copy_file_range(self, source: str, target: str, size: int, source_at: int, target_at: int) -> int:
        return os.copy_file_range(self.open_files[source], self.open_files[target], size, source_at, target_at)

    def copied(self, source: str, target: str, size: int) -> int:
        """copy_file_range(2) until all is copied, as cp does."""
        done = 0
        while some := self.copy_file_range(source, target, size - done, done, done):
            done += some
        return done

    def zero_range(self, file: str, offset: int, size: int) -> None:
        try:
            self.fallocate(file, ZERO_RANGE, offset, size)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self.pwrite(file, bytes(size), offset)

    def rewind(self, file: str) -> set[str]:
        """The names of an open directory, from its start on."""
        return {os.fsdecode(name) for _, name in self._entries(file, 0)} - {".", ".."}

    def seekdir(self, file: str) -> bool:
        """Whether reading on from the position of a middle entry gives what came after it the first time."""
        first = self._entries(file, 0)
        middle = len(first) // 2
        return self._entries(file, first[middle][0]) == first[middle + 1 :]

    def _entries(self, file: str, position: int) -> list[tuple[int, bytes]]:
        """(position behind it, name) of each entry of a directory from a position on."""
        return [(behind, name) for behind, _, name in self._dirents(self.open_files[file], position)]

    def _dirents(self, fd: int, position: int) -> list[tuple[int, int, bytes]]:
        """(position behind it, type, name) of each entry."""
        os.lseek(fd, position, os.SEEK_SET)
        buffer = ctypes.create_string_buffer(4096)
        entries: list[tuple[int, int, bytes]] = []
        while size := self._libc("syscall", GETDENTS64[platform.machine()], fd, buffer, len(buffer)):
            offset = 0
            while offset < size:
                _, behind, length, kind = struct.unpack_from("=QqHB", buffer, offset)
                entries.append((behind, kind, buffer.raw[offset + 19 : offset + length].split(b"\0")[0]))
                offset += length
        return entries


def attributes(host: os.stat_result) -> dict[str, Any]:
    """A stat as the cases name its fields; times in nanoseconds."""
    return {
        "type": TYPES[stat.S_IFMT(host.st_mode)],
        "mode": stat.S_IMODE(host.st_mode),
        "nlink": host.st_nlink,
        "size": host.st_size,
        "uid": host.st_uid,
        "gid": host.st_gid,
        "rdev": host.st_rdev,
        "atime": host.st_atime_ns,
        "mtime": host.st_mtime_ns,
    }

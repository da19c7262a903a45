"""The requests that are disturbed: what each of them finds in a directory of its own, and the request."""

import fcntl
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuseclient import FuseClient
from vfsd._fuse import lib

F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, INSERT_RANGE = 1, 2, 0x10, 0x20
GETFLAGS, SETFLAGS, NODUMP = 0x80086601, 0x40086602, 0x40  # <linux/fs.h>
#: A user of the guest.
USER = 1000
TEN = b"0123456789"
LONG = bytes(range(256)) * 4096


@dataclass
class Place:
    """A directory of the share, empty at first, which the guest has looked up, and the guest."""

    path: Path
    #: Of the directory.
    nodeid: int
    client: FuseClient
    #: Who has what is in it.
    owner: int
    #: nodeid of each name that is `known`; fh of each that is `opened`.
    node: dict[str, int] = field(default_factory=dict)
    fh: dict[str, int] = field(default_factory=dict)

    def own(self) -> None:
        for path in (self.path, *self.path.rglob("*")):
            host = path.lstat()
            if host.st_uid != self.owner:
                os.chown(path, self.owner, self.owner, follow_symlinks=False)
                # It has taken set-id bits away; a symlink has none.
                if not path.is_symlink():
                    path.chmod(stat.S_IMODE(host.st_mode))


Step = Callable[[Place], object]


class Case(NamedTuple):
    steps: tuple[Step, ...]
    request: Callable[[Place], Any]

    def prepare(self, place: Place) -> None:
        for step in self.steps:
            step(place)
            place.own()


# What a request finds.


def file(name: str, data: bytes = b"", mode: int = 0o644) -> Step:
    def make(at: Place) -> None:
        (at.path / name).write_bytes(data)
        (at.path / name).chmod(mode)

    return make


def directory(name: str) -> Step:
    return lambda at: (at.path / name).mkdir()


def link(name: str, of: str) -> Step:
    return lambda at: os.link(at.path / of, at.path / name)


def attribute(name: str) -> Step:
    return lambda at: os.setxattr(at.path / name, "user.a", b"before")


def known(*names: str) -> Step:
    def look_up(at: Place) -> None:
        for name in names:
            at.node[name] = at.client.lookup(at.nodeid, name.encode()).nodeid

    return look_up


def opened(name: str, flags: int = os.O_RDWR) -> Step:
    def open_file(at: Place) -> None:
        known(name)(at)
        at.fh[name] = at.client.open(at.node[name], flags).fh

    return open_file


def listed(at: Place) -> None:
    """An open directory with some entries, one of them known."""
    for name in "abc":
        file(name)(at)
    directory("d")(at)
    known("b")(at)
    at.fh["."] = at.client.opendir(at.nodeid).fh


def locked(*, flock: bool = False) -> Step:
    return lambda at: at.client.setlk(at.node["f"], at.fh["f"], 1, F_WRLCK, 0, 9, flock=flock)


def as_user(at: Place) -> None:
    at.path.chmod(0o777)
    at.client.uid = at.client.gid = USER


# Requests.


def mknod(mode: int) -> Callable[[Place], Any]:
    return lambda at: at.client.mknod(at.nodeid, b"f", mode)


def create(flags: int, mode: int = 0o644) -> Callable[[Place], Any]:
    return lambda at: at.client.create(at.nodeid, b"f", flags, mode)


def unlink(at: Place) -> Any:
    return at.client.unlink(at.nodeid, b"f")


def rmdir(at: Place) -> Any:
    return at.client.rmdir(at.nodeid, b"d")


def rename(at: Place) -> Any:
    return at.client.rename(at.nodeid, b"old", at.nodeid, b"new")


def rename2(flags: int) -> Callable[[Place], Any]:
    return lambda at: at.client.rename2(at.nodeid, b"old", at.nodeid, b"new", flags)


def setattr(valid: int = 0, handle: bool = False, **values: int) -> Callable[[Place], Any]:
    def ask(at: Place) -> Any:
        return at.client.setattr(at.node["f"], valid, **values, **({"fh": at.fh["f"]} if handle else {}))

    return ask


def setxattr(flags: int) -> Callable[[Place], Any]:
    return lambda at: at.client.setxattr(at.node["f"], b"user.a", b"after", flags)


def removexattr(at: Place) -> Any:
    return at.client.removexattr(at.node["f"], b"user.a")


def append(data: bytes) -> Callable[[Place], Any]:
    # Where the guest takes the end to be counts for nothing.
    return lambda at: at.client.write(at.node["f"], at.fh["f"], data, 3, flags=os.O_APPEND)


def copy(offset: int, target: str, to_offset: int, length: int, long: bool = False) -> Callable[[Place], Any]:
    return lambda at: at.client.copy_file_range(
        at.node["f"], at.fh["f"], offset, at.node[target], at.fh[target], to_offset, length, long=long
    )


def quickly(request: Callable[[Place], Any]) -> Step:
    """So often that the next one is taken for one that the ring need not be spared."""

    def often(at: Place) -> None:
        for _ in range(12):
            request(at)

    return often


def fallocate(mode: int) -> Callable[[Place], Any]:
    return lambda at: at.client.fallocate(at.node["f"], at.fh["f"], 5, 100, mode)


def no_dump(at: Place) -> Any:
    with open(at.path / "f") as host:
        flags = int.from_bytes(fcntl.ioctl(host, GETFLAGS, bytes(4)), "little")
    return at.client.ioctl(at.node["f"], at.fh["f"], SETFLAGS, (flags | NODUMP).to_bytes(4, "little"))


def setlk(owner: int, kind: int, start: int, end: int, **options: bool) -> Callable[[Place], Any]:
    return lambda at: at.client.setlk(at.node["f"], at.fh["f"], owner, kind, start, end, **options)


EXCL = os.O_RDWR | os.O_EXCL
A_FILE = (file("f", TEN), opened("f"))
A_LOCKED_FILE = (*A_FILE, locked())
OLD = file("old", b"old")
TWO = (OLD, file("new", b"and new"))
SET_ID = file("f", TEN, 0o6777)
ONTO_SET_ID = (*A_FILE, file("g", b"abc", 0o6777), opened("g"))

#: By opcode, and what is particular.
CASES = {
    "LOOKUP": Case((file("f"),), lambda at: at.client.lookup(at.nodeid, b"f")),
    "LOOKUP, known": Case((file("f"), known("f")), lambda at: at.client.lookup(at.nodeid, b"f")),
    "LOOKUP, not there": Case((), lambda at: at.client.lookup(at.nodeid, b"f")),
    "FORGET, all": Case((file("f"), known("f", "f")), lambda at: at.client.forget(at.node["f"], 2)),
    "FORGET, some": Case((file("f"), known(*"fffff")), lambda at: at.client.forget(at.node["f"], 2)),
    "BATCH_FORGET": Case(
        (file("a"), file("b"), file("c"), known(*"abcb")),
        lambda at: at.client.batch_forget([(at.node[name], 1) for name in "abcb"[:3]]),
    ),
    "READDIR": Case((listed,), lambda at: at.client.readdir(at.nodeid, at.fh["."])),
    "READDIRPLUS": Case((listed,), lambda at: at.client.readdirplus(at.nodeid, at.fh["."])),
    # Names that are made.
    "MKDIR": Case((), lambda at: at.client.mkdir(at.nodeid, b"d", 0o750)),
    "MKDIR, user": Case((as_user,), lambda at: at.client.mkdir(at.nodeid, b"d", 0o700)),
    "MKDIR, there": Case((directory("d"),), lambda at: at.client.mkdir(at.nodeid, b"d")),
    "MKNOD, FIFO": Case((), mknod(stat.S_IFIFO | 0o600)),
    "MKNOD, file": Case((), mknod(stat.S_IFREG | 0o400)),
    "MKNOD, there": Case((file("f"),), mknod(stat.S_IFREG | 0o400)),
    "SYMLINK": Case((), lambda at: at.client.symlink(at.nodeid, b"l", b"target")),
    "SYMLINK, there": Case(
        (lambda at: (at.path / "l").symlink_to("target"),), lambda at: at.client.symlink(at.nodeid, b"l", b"target")
    ),
    "LINK": Case((file("f"), known("f")), lambda at: at.client.link(at.node["f"], at.nodeid, b"g")),
    "LINK, there": Case(
        (file("f"), link("g", of="f"), known("f")), lambda at: at.client.link(at.node["f"], at.nodeid, b"g")
    ),
    "CREATE, EXCL": Case((), create(EXCL)),
    "CREATE, EXCL, user, mode 0": Case((as_user,), create(EXCL, 0)),
    "CREATE, EXCL, there": Case((file("f", TEN),), create(EXCL)),
    "CREATE": Case((), create(os.O_RDWR, 0o400)),
    "CREATE, TRUNC, there": Case((file("f", TEN, 0o640),), create(os.O_RDWR | os.O_TRUNC)),
    "TMPFILE": Case((), lambda at: at.client.tmpfile(at.nodeid)),
    # Names that are taken away.
    "UNLINK": Case((file("f"),), unlink),
    "UNLINK, open": Case(A_FILE, unlink),
    "UNLINK, one of two": Case((file("f"), link("g", of="f")), unlink),
    "UNLINK, not there": Case((), unlink),
    "RMDIR": Case((directory("d"), known("d")), rmdir),
    "RMDIR, not empty": Case((directory("d"), directory("d/e")), rmdir),
    "RMDIR, not there": Case((), rmdir),
    # Names that move.
    "RENAME": Case((OLD, known("old")), rename),
    "RENAME, over a file": Case(TWO, rename),
    "RENAME, a directory": Case((directory("old"), directory("old/d"), known("old")), rename),
    "RENAME, into another": Case(
        (OLD, directory("d"), known("d")), lambda at: at.client.rename(at.nodeid, b"old", at.node["d"], b"new")
    ),
    "RENAME, links of one": Case((OLD, link("new", of="old")), rename),
    "RENAME, not there": Case((file("new"),), rename),
    "RENAME2": Case((OLD,), rename2(0)),
    "RENAME2, NOREPLACE": Case((OLD,), rename2(NOREPLACE)),
    "RENAME2, NOREPLACE, there": Case(TWO, rename2(NOREPLACE)),
    "RENAME2, EXCHANGE": Case(TWO, rename2(EXCHANGE)),
    "RENAME2, EXCHANGE, file and directory": Case((OLD, directory("new")), rename2(EXCHANGE)),
    "RENAME2, EXCHANGE, links of one": Case((OLD, link("new", of="old")), rename2(EXCHANGE)),
    "RENAME2, EXCHANGE, not there": Case((OLD,), rename2(EXCHANGE)),
    # Which only root makes: another one gets the same answer each time.
    "RENAME2, WHITEOUT": Case((OLD,), rename2(WHITEOUT)),
    "RENAME2, WHITEOUT, over a file": Case(TWO, rename2(WHITEOUT)),
    # Attributes.
    "SETATTR, size": Case((file("f", TEN), known("f")), setattr(size=5)),
    "SETATTR, all": Case(
        (file("f", TEN, 0o6755), opened("f")),
        setattr(lib.FATTR_KILL_SUIDGID, True, size=5, uid=USER, gid=USER, mode=0o600, atime=1, mtime=2),
    ),
    "SETATTR, owner, set-id": Case((SET_ID, known("f")), setattr(uid=USER)),
    "SETATTR, owner, sgid as a mark": Case((file("f", TEN, 0o2745), known("f")), setattr(uid=USER)),
    "SETATTR, size, set-id, user": Case((SET_ID, known("f"), as_user), setattr(lib.FATTR_KILL_SUIDGID, size=5)),
    "SETATTR, size, set-id": Case((SET_ID, known("f")), setattr(size=5)),
    "SETXATTR": Case((file("f"), known("f")), setxattr(0)),
    "SETXATTR, there": Case((file("f"), attribute("f"), known("f")), setxattr(0)),
    "SETXATTR, CREATE": Case((file("f"), known("f")), setxattr(os.XATTR_CREATE)),
    "SETXATTR, CREATE, there": Case((file("f"), attribute("f"), known("f")), setxattr(os.XATTR_CREATE)),
    "SETXATTR, REPLACE": Case((file("f"), attribute("f"), known("f")), setxattr(os.XATTR_REPLACE)),
    "SETXATTR, REPLACE, not there": Case((file("f"), known("f")), setxattr(os.XATTR_REPLACE)),
    "REMOVEXATTR": Case((file("f"), attribute("f"), known("f")), removexattr),
    "REMOVEXATTR, not there": Case((file("f"), known("f")), removexattr),
    # Open files.
    "OPEN": Case((file("f"), known("f")), lambda at: at.client.open(at.node["f"])),
    "OPEN, TRUNC, set-id": Case(
        (SET_ID, known("f")),
        lambda at: at.client.open(at.node["f"], os.O_RDWR | os.O_TRUNC, lib.FUSE_OPEN_KILL_SUIDGID),
    ),
    "OPENDIR": Case((), lambda at: at.client.opendir(at.nodeid)),
    "RELEASE": Case(A_FILE, lambda at: at.client.release(at.node["f"], at.fh["f"])),
    "RELEASE, locks": Case(
        (*A_LOCKED_FILE, locked(flock=True)),
        lambda at: at.client.release(at.node["f"], at.fh["f"], release_flags=lib.FUSE_RELEASE_FLOCK_UNLOCK),
    ),
    "RELEASEDIR": Case((listed,), lambda at: at.client.releasedir(at.nodeid, at.fh["."])),
    "FLUSH, locks": Case(A_LOCKED_FILE, lambda at: at.client.flush(at.node["f"], at.fh["f"], 1)),
    "FSYNC": Case(A_FILE, lambda at: at.client.fsync(at.node["f"], at.fh["f"])),
    "FSYNCDIR": Case((listed,), lambda at: at.client.fsyncdir(at.nodeid, at.fh["."])),
    "SYNCFS": Case((), lambda at: at.client.syncfs()),
    "WRITE": Case(A_FILE, lambda at: at.client.write(at.node["f"], at.fh["f"], b"data", 3)),
    "WRITE, set-id, user": Case(
        (SET_ID, opened("f"), as_user),
        lambda at: at.client.write(at.node["f"], at.fh["f"], b"data", 3, lib.FUSE_WRITE_KILL_SUIDGID),
    ),
    "WRITE, APPEND": Case((file("f", TEN), opened("f", os.O_RDWR | os.O_APPEND)), append(b"data")),
    "WRITE, APPEND, write-only": Case((file("f", TEN), opened("f", os.O_WRONLY | os.O_APPEND)), append(b"data")),
    "WRITE, APPEND, 1 MiB": Case((file("f", TEN), opened("f", os.O_RDWR | os.O_APPEND)), append(LONG)),
    "COPY_FILE_RANGE": Case((*A_FILE, file("g", b"abc"), opened("g")), copy(2, "g", 1, 100)),
    "COPY_FILE_RANGE, behind its source": Case(A_FILE, copy(0, "f", 10, 100)),
    "COPY_FILE_RANGE, overlapping": Case(A_FILE, copy(0, "f", 4, 8)),
    "COPY_FILE_RANGE_64, beyond its source": Case(A_FILE, copy(0, "f", 15, 18, long=True)),
    "COPY_FILE_RANGE, quick": Case((*A_FILE, quickly(copy(0, "f", 20, 10))), copy(0, "f", 30, 10)),
    "COPY_FILE_RANGE, long": Case(
        (file("f", LONG), opened("f"), file("g"), opened("g")), copy(1, "g", 1, len(LONG), long=True)
    ),
    "COPY_FILE_RANGE, set-id, user": Case((*ONTO_SET_ID, as_user), copy(0, "g", 1, 10)),
    "FALLOCATE": Case(A_FILE, fallocate(0)),
    "FALLOCATE, quick": Case((*A_FILE, quickly(fallocate(ZERO_RANGE))), fallocate(0)),
    "FALLOCATE, set-id, user": Case((SET_ID, opened("f"), as_user), fallocate(0)),
    "FALLOCATE, PUNCH_HOLE": Case(A_FILE, fallocate(KEEP_SIZE | PUNCH_HOLE)),
    "FALLOCATE, ZERO_RANGE": Case(A_FILE, fallocate(ZERO_RANGE)),
    "FALLOCATE, INSERT_RANGE": Case(A_FILE, fallocate(INSERT_RANGE)),
    "IOCTL": Case(A_FILE, no_dump),
    # Locks.
    "SETLK": Case(A_FILE, setlk(1, F_WRLCK, 0, 9)),
    "SETLK, downgrade of a part": Case(A_LOCKED_FILE, setlk(1, F_RDLCK, 3, 5)),
    "SETLK, refused": Case(A_LOCKED_FILE, setlk(2, F_WRLCK, 5, 5)),
    "SETLK, unlock a part": Case(A_LOCKED_FILE, setlk(1, F_UNLCK, 3, 5)),
    "SETLK, unlock all": Case(A_LOCKED_FILE, setlk(1, F_UNLCK, 0, lib.LOCK_END)),
    "SETLKW": Case(A_FILE, setlk(1, F_WRLCK, 0, 9, wait=True)),
    "SETLKW, flock": Case(A_FILE, setlk(1, F_WRLCK, 0, 9, wait=True, flock=True)),
    # What only looks.
    "GETATTR": Case((file("f", TEN), known("f")), lambda at: at.client.getattr(at.node["f"])),
    "GETXATTR": Case((file("f"), attribute("f"), known("f")), lambda at: at.client.getxattr(at.node["f"], b"user.a")),
    "READ": Case(A_FILE, lambda at: at.client.read(at.node["f"], at.fh["f"], 5, 3)),
    "LSEEK": Case(A_FILE, lambda at: at.client.lseek(at.node["f"], at.fh["f"], 3, os.SEEK_HOLE)),
}

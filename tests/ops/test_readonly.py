"""--readonly: every op of the table, on a share that nothing may change."""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fuseclient import ROOT, FuseClient
from tests.ops.mount import ALL_FLAGS, Mount, share
from vfsd._fuse import ffi, lib
from vfsd.ops.ioctl import FSSETXATTR, GETFLAGS, SETFLAGS
from vfsd.settings import Settings


class Place(NamedTuple):
    client: FuseClient
    file: int
    fh: int
    directory: int
    dir_fh: int
    link: int


NAMES = ("", "f", "g", "d", "d/inside", "empty", "l")


def snapshot(root: Path) -> list[tuple[int, ...]]:
    """What would tell of a change: stat(2), times of access too, but for the symlink's, which readlink(2) sets."""
    found = []
    for name in NAMES:
        status = (root / name).lstat()
        atime = 0 if name == "l" else status.st_atime_ns
        found.append((status.st_mode, status.st_nlink, status.st_uid, status.st_size, status.st_mtime_ns, atime))
    return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Mount, Place]]:
    (tmp_path / "f").write_bytes(b"contents")
    (tmp_path / "g").write_bytes(b"other")
    os.setxattr(tmp_path / "f", "user.a", b"value")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "inside").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "l").symlink_to("f")
    # Old enough for relatime to note the next access.
    for name in NAMES:
        os.utime(tmp_path / name, (0, 1_000_000_000), follow_symlinks=False)
    before = snapshot(tmp_path)
    settings = Settings(readonly=True, xattr=True, privileged=os.geteuid() == 0)
    with share(tmp_path, settings) as mount:
        client = mount.client
        file, directory = client.lookup(ROOT, b"f").nodeid, client.lookup(ROOT, b"d").nodeid
        link = client.lookup(ROOT, b"l").nodeid
        place = Place(client, file, client.open(file).fh, directory, client.opendir(directory).fh, link)
        yield mount, place
    assert snapshot(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["d", "empty", "f", "g", "l"]
    assert (tmp_path / "f").read_bytes() == b"contents" and os.listxattr(tmp_path / "f") == ["user.a"]


#: What a guest may ask. Each returns normally.
ALLOWED: dict[str, Callable[[Place], Any]] = {
    "LOOKUP": lambda at: at.client.lookup(ROOT, b"f"),
    "FORGET": lambda at: at.client.forget(at.link),
    "BATCH_FORGET": lambda at: at.client.batch_forget([(at.link, 1)]),
    "GETATTR": lambda at: at.client.getattr(at.file),
    "STATX": lambda at: at.client.statx(at.file),
    "READLINK": lambda at: at.client.readlink(at.link),
    "OPEN": lambda at: at.client.open(at.file, os.O_RDONLY),
    "READ": lambda at: at.client.read(at.file, at.fh, 100),
    "STATFS": lambda at: at.client.statfs(),
    "RELEASE": lambda at: at.client.release(at.file, at.fh),
    "FSYNC": lambda at: at.client.fsync(at.file, at.fh),
    "GETXATTR": lambda at: at.client.getxattr(at.file, b"user.a"),
    "LISTXATTR": lambda at: at.client.listxattr(at.file),
    "FLUSH": lambda at: at.client.flush(at.file, at.fh),
    "INIT": lambda at: at.client.init(minor=45, flags=ALL_FLAGS),
    "OPENDIR": lambda at: at.client.opendir(at.directory),
    "READDIR": lambda at: at.client.readdir(at.directory, at.dir_fh),
    "READDIRPLUS": lambda at: at.client.readdirplus(at.directory, at.dir_fh),
    "RELEASEDIR": lambda at: at.client.releasedir(at.directory, at.dir_fh),
    "FSYNCDIR": lambda at: at.client.fsyncdir(at.directory, at.dir_fh),
    "ACCESS": lambda at: at.client.access(at.file, os.R_OK),
    "DESTROY": lambda at: at.client.destroy(),
    "LSEEK": lambda at: at.client.lseek(at.file, at.fh, 0, os.SEEK_DATA),
    "SYNCFS": lambda at: at.client.syncfs(),
    "IOCTL": lambda at: at.client.ioctl(at.file, at.fh, GETFLAGS, room=4),
}

#: What it may not. Each is sent with `expect`.
REFUSED: dict[str, list[Callable[[Place, int], Any]]] = {
    "SETATTR": [
        lambda at, e: at.client.setattr(at.file, size=0, expect=e),
        lambda at, e: at.client.setattr(at.file, size=0, fh=at.fh, expect=e),
        lambda at, e: at.client.setattr(at.file, mode=0o777, expect=e),
        lambda at, e: at.client.setattr(at.file, uid=1, expect=e),
        lambda at, e: at.client.setattr(at.link, gid=1, expect=e),
        lambda at, e: at.client.setattr(at.file, atime=1, expect=e),
        lambda at, e: at.client.setattr(at.file, lib.FATTR_MTIME | lib.FATTR_MTIME_NOW, expect=e),
        lambda at, e: at.client.setattr(at.file, expect=e),
    ],
    "SYMLINK": [lambda at, e: at.client.symlink(ROOT, b"new", b"target", expect=e)],
    "MKNOD": [
        lambda at, e: at.client.mknod(ROOT, b"new", 0o100644, expect=e),
        lambda at, e: at.client.mknod(ROOT, b"new", 0o010644, expect=e),
        lambda at, e: at.client.mknod(ROOT, b"f", 0o100644, expect=e),
    ],
    "MKDIR": [lambda at, e: at.client.mkdir(ROOT, b"new", expect=e)],
    "UNLINK": [lambda at, e: at.client.unlink(ROOT, b"f", expect=e)],
    "RMDIR": [lambda at, e: at.client.rmdir(ROOT, b"empty", expect=e)],
    "RENAME": [
        lambda at, e: at.client.rename(ROOT, b"f", ROOT, b"new", expect=e),
        lambda at, e: at.client.rename(ROOT, b"f", ROOT, b"g", expect=e),
    ],
    "RENAME2": [
        lambda at, e: at.client.rename2(ROOT, b"f", ROOT, b"new", 1, expect=e),
        lambda at, e: at.client.rename2(ROOT, b"f", ROOT, b"g", 2, expect=e),
        lambda at, e: at.client.rename2(ROOT, b"f", ROOT, b"new", 4, expect=e),
    ],
    "LINK": [lambda at, e: at.client.link(at.file, ROOT, b"new", expect=e)],
    "OPEN": [
        lambda at, e: at.client.open(at.file, os.O_WRONLY, expect=e),
        lambda at, e: at.client.open(at.file, os.O_RDWR, expect=e),
        lambda at, e: at.client.open(at.file, os.O_RDONLY | os.O_TRUNC, expect=e),
    ],
    "WRITE": [
        lambda at, e: at.client.write(at.file, at.fh, b"x", expect=e),
        lambda at, e: at.client.write(at.file, at.fh, b"x", write_flags=lib.FUSE_WRITE_CACHE, expect=e),
    ],
    "SETXATTR": [lambda at, e: at.client.setxattr(at.file, b"user.b", b"x", expect=e)],
    "REMOVEXATTR": [lambda at, e: at.client.removexattr(at.file, b"user.a", expect=e)],
    "ACCESS": [lambda at, e: at.client.access(at.file, os.W_OK, expect=e)],
    "CREATE": [
        lambda at, e: at.client.create(ROOT, b"new", expect=e),
        lambda at, e: at.client.create(ROOT, b"f", os.O_RDONLY, expect=e),
        lambda at, e: at.client.create(ROOT, b"f", os.O_WRONLY | os.O_TRUNC, expect=e),
    ],
    "FALLOCATE": [
        lambda at, e: at.client.fallocate(at.file, at.fh, 0, 4096, expect=e),
        lambda at, e: at.client.fallocate(at.file, at.fh, 0, 4096, 3, expect=e),
    ],
    "COPY_FILE_RANGE": [lambda at, e: at.client.copy_file_range(at.file, at.fh, 0, at.file, at.fh, 0, 4, expect=e)],
    "SETUPMAPPING": [lambda at, e: at.client.call(lib.FUSE_SETUPMAPPING, at.file, bytes(40), expect=e)],
    "COPY_FILE_RANGE_64": [
        lambda at, e: at.client.copy_file_range(at.file, at.fh, 0, at.file, at.fh, 0, 4, long=True, expect=e)
    ],
    "TMPFILE": [lambda at, e: at.client.tmpfile(ROOT, expect=e)],
    "IOCTL": [
        lambda at, e: at.client.ioctl(at.file, at.fh, SETFLAGS, struct.pack("=I", 0x40), expect=e),
        lambda at, e: at.client.ioctl(at.file, at.fh, FSSETXATTR, bytes(28), expect=e),
    ],
}

#: Locks change nothing that lasts, and are tested with the locks; there is no DAX window to take anything from.
NOT_HERE = {"GETLK", "SETLK", "SETLKW", "REMOVEMAPPING"}


def test_every_op_of_the_table_is_here() -> None:
    names = {lib.fuse_row_name(opcode) for opcode in range(4096)} - {ffi.NULL}
    assert {ffi.string(name).decode() for name in names} - NOT_HERE == ALLOWED.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", ALLOWED)
def test_allowed(place: tuple[Mount, Place], name: str) -> None:
    if name == "IOCTL":
        try:
            ALLOWED[name](place[1])
        except OSError as error:
            assert error.errno in (errno.ENOTTY, errno.EOPNOTSUPP), "a file system without inode flags"
    else:
        ALLOWED[name](place[1])


@pytest.mark.parametrize("name", REFUSED)
def test_refused(place: tuple[Mount, Place], name: str) -> None:
    mount, at = place
    mount.replayed.setxattr_ext = True
    for send in REFUSED[name]:
        send(at, errno.EROFS)
        send(at._replace(client=mount.replayed), errno.EROFS)

"""The files that workloads need, and where in them each lane works."""

import array
import errno
import fcntl
import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.bench.build import lib
from tests.bench.guest import Guest
from tests.bench.layout import PAGE
from tests.frontend import MIB
from tests.fuseclient import ROOT

#: Of the files that are read and written.
FILE_SIZE = 32 * MIB
#: Of the file that is not in the page cache, if there is one.
COLD_SIZE = 256 * MIB
#: Of the file that each lane has for itself.
OWN_SIZE = MIB
#: Files in the directory that is listed. Their names have 10 bytes.
MANY = 1000

#: FS_IOC_GETFLAGS and SETFLAGS of <linux/fs.h>, and of their flags FS_TOPDIR_FL.
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
TOPDIR = 0x00020000


class Place(NamedTuple):
    """Where a lane works: a directory of its own, as only one process at a time changes a directory of a guest."""

    number: int
    depth: int
    path: Path
    nodeid: int

    @property
    def file(self) -> Path:
        return self.path / "known"

    def part(self, size: int) -> tuple[int, int]:
        """The bytes that this lane has to itself of a file of that size: where they begin, where they end."""
        part = size // self.depth // MIB * MIB
        return self.number * part, (self.number + 1) * part


def stamp(page: int) -> bytes:
    return struct.pack("=Q", lib.driver_stamp(page, 0))


def stamped(first: int, size: int) -> bytearray:
    """Random bytes, each page of which begins with its number; the first one has the number `first`."""
    data = bytearray(random.Random(first).randbytes(size))
    for page in range(size // PAGE):
        data[page * PAGE : page * PAGE + 8] = stamp(first + page)
    return data


def content() -> bytes:
    """Of the file that is read."""
    return bytes(stamped(0, FILE_SIZE))


class Files(NamedTuple):
    """What shares are made of."""

    #: What the function of this name gave.
    content: bytes
    #: What is not in the page cache, on the same file system as the share.
    cold: Path | None = None


def prepare(share: Path, depth: int, files: Files) -> None:
    """Makes all that any workload needs."""
    data = files.content
    share.mkdir(parents=True)
    _spread(share)
    for number in range(depth):
        place = share / f"lane-{number}"
        place.mkdir()
        (place / "known").write_bytes(b"known")
        (place / "link").symlink_to("known")
        (place / "own").write_bytes(data[:OWN_SIZE])
    (share / "many").mkdir()
    for number in range(MANY):
        (share / "many" / f"file-{number:05}").touch()
    (share / "read").write_bytes(data)
    (share / "written").write_bytes(data)
    if files.cold:
        (share / "cold").hardlink_to(files.cold)


def _spread(directory: Path) -> None:
    """Has ext4 put what is made in it far apart, as chattr +T does: it makes no inode that has just been one, and looks
    for another one ever longer where many were, so that a share's figures would tell what others did beside it."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        flags = array.array("i", [0])
        fcntl.ioctl(fd, GETFLAGS, flags)
        flags[0] |= TOPDIR
        fcntl.ioctl(fd, SETFLAGS, flags)
    except OSError as error:  # another file system
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
    finally:
        os.close(fd)


def places(guest: Guest, depth: int) -> list[Place]:
    share = guest.daemon.share
    return [
        Place(number, depth, share / f"lane-{number}", guest.client.lookup(ROOT, b"lane-%d" % number).nodeid)
        for number in range(depth)
    ]


# A file that is read from a disk.


def file_system(path: Path) -> str:
    """What kind it lies on, as mountinfo calls it."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for mount in Path("/proc/self/mountinfo").read_text().splitlines():
        if mount.split()[2] == number:
            return mount.partition(" - ")[2].split()[0]
    return "unknown"


def has_disk(where: Path) -> bool:
    """Whether what is not in the page cache is read from somewhere."""
    return file_system(where) not in ("tmpfs", "ramfs")


@contextmanager
def cold_file(where: Path) -> Iterator[Path]:
    """A file of COLD_SIZE bytes that is on the disk, for as long as it is measured."""
    path = where / f"bench-cold-{os.getpid()}"
    try:
        with open(path, "wb") as file:
            for first in range(0, COLD_SIZE, MIB):
                file.write(stamped(first // PAGE, MIB))
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        path.unlink(missing_ok=True)


def drop(path: Path) -> None:
    """Takes a file out of the host's page cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

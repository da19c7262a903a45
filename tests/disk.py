"""Files that are on a disk and not in memory."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PAGE = 4096


@contextmanager
def ext4(beside: Path, *options: str) -> Iterator[Path]:
    """An empty directory on an ext4 of its own, made with these options and kept in `beside`."""
    if not shutil.which("mkfs.ext4"):
        pytest.skip("no mkfs.ext4")
    image, path = beside / "image", beside / "ext4"
    path.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", *options, image], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", image, path], capture_output=True).returncode:
        pytest.skip("no loop device to mount, or no privilege")
    try:
        (path / "share").mkdir()
        yield path / "share"
    finally:
        _unmount(path)


def _unmount(path: Path) -> None:
    # The workers of a daemon that was killed end a moment later.
    for _ in range(1000):
        if subprocess.run(["umount", path], capture_output=True).returncode == 0:
            return
        time.sleep(0.01)
    subprocess.run(["umount", path], check=True)


def forget_names(place: Path) -> None:
    """What the kernel knows of the names on the file system that `ext4` has made goes, as when memory is short, but for
    what is in use."""
    # reconfigure_super (fs/super.c) shrinks it.
    subprocess.run(["mount", "-o", "remount", place.parent], check=True)


def cool(path: Path) -> None:
    """Takes a file out of the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        # What was just read is let go of a moment later.
        for _ in range(100):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            try:
                os.preadv(file.fileno(), [bytearray(PAGE)], 0, os.RWF_NOWAIT)
            except OSError as error:
                if error.errno == errno.EAGAIN:
                    return
                pytest.skip(f"{path} is on a file system that has no disk to wait for")
            time.sleep(0.01)
        raise AssertionError("the file stays in the page cache")


#: Where version 1 of control groups limits disks; version 2 limits no single thread.
BLKIO = Path("/sys/fs/cgroup/blkio")


@contextmanager
def stalled(path: Path) -> Iterator[Callable[[int, bool], None]]:
    """Threads that are put there, by what this gives (thread id, whether), read a byte a second from a file's disk.
    What they have begun goes on at the end.
    """
    device = os.stat(path).st_dev
    group, limit = BLKIO / f"vfsd-test-{os.getpid()}", "blkio.throttle.read_bps_device"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    try:
        try:
            (group / limit).write_text(f"{os.major(device)}:{os.minor(device)} 1")
        except OSError as error:
            pytest.skip(f"{path} is on no disk that can be slowed down: {error}")
        yield lambda thread, there: _write((group if there else BLKIO) / "tasks", str(thread))
    finally:
        with suppress(OSError):
            (group / limit).write_text(f"{os.major(device)}:{os.minor(device)} 0")
        for thread in (group / "tasks").read_text().split():
            (BLKIO / "tasks").write_text(thread)
        group.rmdir()


def _write(path: Path, text: str) -> None:
    path.write_text(text)

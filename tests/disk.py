"""Files that are on a disk and not in memory."""

import errno
import os
import time
from pathlib import Path

import pytest

PAGE = 4096


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

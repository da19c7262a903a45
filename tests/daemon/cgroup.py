"""Control groups that tests put processes into, of either version of the kernel's interface."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.daemon.daemon import until

ROOT = Path("/sys/fs/cgroup")
#: What limits memory without swap, and what limits processes: version 1 and 2.
FILES = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}


class Group:
    """A control group with one limit."""

    def __init__(self, path: Path, limit: str) -> None:
        self._path, self._limit = path, limit

    def limit(self, value: int | str) -> None:
        (self._path / self._limit).write_text(str(value))

    def add(self, pid: int) -> None:
        (self._path / "cgroup.procs").write_text(str(pid))


@contextmanager
def group(controller: str) -> Iterator[Group]:
    """A new group of one of FILES; what is in it at the end goes back where all are."""
    first = (ROOT / controller).is_dir()
    parent = ROOT / controller if first else ROOT
    try:
        if not first:
            (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
        (parent / f"vfsd-test-{os.getpid()}").mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    path = parent / f"vfsd-test-{os.getpid()}"
    try:
        yield Group(path, FILES[controller][0 if first else 1])
    finally:
        for pid in (path / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (parent / "cgroup.procs").write_text(pid)
        # What has ended leaves a moment later.
        until(lambda: _removed(path))


def _removed(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    return not path.exists()

"""What is found out about the share's file system."""

import os
from pathlib import Path

from vfsd import facts


def test_facts(tmp_path: Path) -> None:
    before = tmp_path.stat()
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        found = facts.find(fd, b"user.label")
        assert found.xattr and found.label
        assert not facts.find(fd).label
        assert not facts.find(fd, b"nonsense.label").label
    finally:
        os.close(fd)
    # Asking leaves nothing behind.
    assert os.listdir(tmp_path) == os.listxattr(tmp_path) == []
    assert tmp_path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_file_system_without_attributes() -> None:
    fd = os.open("/proc/self", os.O_RDONLY)
    try:
        assert facts.find(fd, b"user.label") == facts.NOTHING
    finally:
        os.close(fd)

"""Which files the guest maps, and what is taken from a file that it may write through a mapping."""

import os
import struct
import time

import pytest

from tests.guest.dax.windowed import Windowed, digest

#: Reads a file by call and through a mapping.
READ = "print(hashlib.md5(os.pread(fd, size, 0)).hexdigest(), hashlib.md5(mapped).hexdigest())"
#: security.capability with CAP_NET_RAW permitted and effective (linux/capability.h, VFS_CAP_REVISION_2).
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


def read_travels(share: Windowed, name: str, size: int, mode: int = 0o644) -> bool:
    """Whether a new file's content comes in requests when the guest reads it."""
    data = share.fill(name, size)
    os.chmod(share.host / name, mode)
    before, mapped = share.served(), share.statistics().setups if share.share.dax_window else 0
    assert share.run(READ, name).split() == [digest(data)] * 2
    served = share.served() - before
    if share.share.dax_window:
        # Either, or.
        assert (served["READ"] == 0) == (share.statistics().setups > mapped)
    return served["READ"] > 0


def test_auto(auto: Windowed) -> None:
    # Python lists the directory, and with that all that is there is offered.
    for other in auto.host.iterdir():
        other.unlink()
    assert not read_travels(auto, "medium", 2 << 20)
    assert read_travels(auto, "small", (1 << 20) - 1)
    assert not read_travels(auto, "not-small", 1 << 20)
    assert read_travels(auto, "executable", 2 << 20, 0o755)
    # Four fifths of the window, of which what was offered takes some for up to two seconds.
    time.sleep(2.1)
    assert not read_travels(auto, "not-large", 40 << 20)
    assert read_travels(auto, "large", 52 << 20)


def test_always(always: Windowed) -> None:
    assert not read_travels(always, "tiny", 10)
    assert not read_travels(always, "executable", 1 << 20, 0o755)
    assert not read_travels(always, "large", (17 << 20) + 1)


def test_never(never: Windowed) -> None:
    for size in (10, 1 << 20, 9 << 20):
        assert read_travels(never, f"read-{size}", size)


def test_without_a_window(plain: Windowed) -> None:
    assert read_travels(plain, "read", 1 << 20)


def test_mount_options(auto: Windowed) -> None:
    """The guest's own choice goes first."""
    try:
        auto.remount("dax=never")
        assert read_travels(auto, "unwanted", 1 << 20)
        auto.remount("dax=always")
        assert not read_travels(auto, "wanted", 5000)
        auto.remount("dax=inode")
        assert not read_travels(auto, "as-told", 1 << 20)
        assert read_travels(auto, "as-told-small", 5000)
    finally:
        auto.remount()


@pytest.mark.parametrize("write", ["mapped[0] = 1", "os.pwrite(fd, b'x', 0)"])
def test_a_mapping_to_write_through_takes_privileges(always: Windowed, write: str) -> None:
    """Programs keep them as long as they are only read."""
    path = always.host / f"privileged-{len(write)}"
    path.write_bytes(bytes(10000))
    os.chown(path, 1000, 1000)
    os.chmod(path, 0o6755)
    os.setxattr(path, "security.capability", CAPABILITY)
    reading = "os.seteuid(65534); assert mapped[:] == bytes(size) and os.pread(fd, 3, 9000) == bytes(3)"
    always.run(reading, path.name)
    assert path.stat().st_mode & 0o7777 == 0o6755 and os.getxattr(path, "security.capability") == CAPABILITY
    transfers = always.transfers()
    # Not root, which may keep them.
    always.run(f"os.setuid(65534); {write}", path.name)
    assert always.transfers() == transfers
    assert path.stat().st_mode & 0o7777 == 0o755
    assert os.listxattr(path) == []

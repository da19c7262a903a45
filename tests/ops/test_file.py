"""FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE: what the conformance list can't say."""

import errno
import os
import stat

import pytest

from tests.fuseclient import ROOT
from tests.ops.mount import Mount


@pytest.fixture
def opened(mount: Mount) -> tuple[int, int]:
    """nodeid and fh of a file of 8192 bytes."""
    (mount.root / "f").write_bytes(b"x" * 8192)
    nodeid = mount.client.lookup(ROOT, b"f").nodeid
    return nodeid, mount.client.open(nodeid, os.O_RDWR).fh


def test_handles_that_are_none(mount: Mount, opened: tuple[int, int]) -> None:
    client, (nodeid, fh) = mount.client, opened
    for bad in (0, 99, fh + 1, (1 << 64) - 1):
        client.fsync(nodeid, bad, expect=errno.EBADF)
        client.fsyncdir(nodeid, bad, expect=errno.EBADF)
        client.fallocate(nodeid, bad, 0, 1, expect=errno.EBADF)
        client.lseek(nodeid, bad, 0, os.SEEK_DATA, expect=errno.EBADF)
        client.copy_file_range(nodeid, bad, 0, nodeid, fh, 0, 1, expect=errno.EBADF)
        client.copy_file_range(nodeid, fh, 0, nodeid, bad, 0, 1, long=True, expect=errno.EBADF)


def test_offsets_beyond_any_file(mount: Mount, opened: tuple[int, int]) -> None:
    client, (nodeid, fh) = mount.client, opened
    far = (1 << 64) - 1
    client.lseek(nodeid, fh, far, os.SEEK_DATA, expect=errno.EINVAL)
    client.lseek(nodeid, fh, 0, os.SEEK_CUR, expect=errno.EINVAL)
    client.lseek(nodeid, fh, 0, 0xFFFFFFFF, expect=errno.EINVAL)
    client.fallocate(nodeid, fh, far, far, expect=errno.EINVAL)
    client.fallocate(nodeid, fh, 0, 1, mode=0x80000000, expect=errno.EOPNOTSUPP)
    client.copy_file_range(nodeid, fh, far, nodeid, fh, 0, 1, expect=errno.EINVAL)
    client.copy_file_range(nodeid, fh, 0, nodeid, fh, far, 1, expect=errno.EINVAL)
    client.copy_file_range(nodeid, fh, 0, nodeid, fh, 4096, 1, flags=1, expect=errno.EINVAL)


@pytest.mark.parametrize("mode", [0x8, 0x20])
def test_a_file_is_not_shifted(mount: Mount, opened: tuple[int, int], mode: int) -> None:
    """COLLAPSE_RANGE and INSERT_RANGE: no guest's kernel asks, and a request that is replayed would shift twice."""
    mount.client.fallocate(*opened, 0, 4096, mode=mode, expect=errno.EOPNOTSUPP)
    assert (mount.root / "f").stat().st_size == 8192


def test_copies_of_any_length(mount: Mount, opened: tuple[int, int]) -> None:
    client, (nodeid, fh) = mount.client, opened
    entry, to = client.create(ROOT, b"g")
    for long in (False, True):
        assert client.copy_file_range(nodeid, fh, 0, entry.nodeid, to.fh, 0, (1 << 64) - 1, long=long) == 8192
        assert client.copy_file_range(nodeid, fh, 0, entry.nodeid, to.fh, 0, 0, long=long) == 0
    assert (mount.root / "g").read_bytes() == b"x" * 8192


@pytest.mark.skipif(os.geteuid() != 0, reason="only root keeps suid when it writes")
def test_what_changes_data_kills_suid(mount: Mount, opened: tuple[int, int]) -> None:
    client, (nodeid, fh) = mount.client, opened
    entry, to = client.create(ROOT, b"g", mode=0o6755)
    path = mount.root / "g"
    path.chmod(0o6755)
    client.fallocate(entry.nodeid, to.fh, 0, 4096)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    path.chmod(0o6755)
    client.copy_file_range(nodeid, fh, 0, entry.nodeid, to.fh, 0, 4096)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_directories(mount: Mount) -> None:
    client = mount.client
    fh = client.opendir(ROOT).fh
    client.fsyncdir(ROOT, fh)
    client.fsyncdir(ROOT, fh, datasync=True)
    client.fallocate(ROOT, fh, 0, 1, expect=errno.EBADF)
    client.releasedir(ROOT, fh)

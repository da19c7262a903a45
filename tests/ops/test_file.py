"""FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE: what the conformance list can't say."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.fuseclient import ROOT
from tests.ops.mount import ALL_FLAGS, Mount, share
from vfsd._fuse import lib
from vfsd.settings import Settings
from vfsd.xattrmap import XattrMap


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


def test_the_host_does_not_know_where_data_is_that_the_guest_keeps(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    with share(tmp_path, Settings(writeback=True), init=False) as mount:
        client = mount.client
        client.init(minor=45, flags=ALL_FLAGS)
        nodeid = client.lookup(ROOT, b"f").nodeid
        fh = client.open(nodeid, os.O_RDWR).fh
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            client.lseek(nodeid, fh, 0, whence, expect=errno.ENOSYS)
        # A guest that does not gather writes, under the same option.
        client.init(minor=45, flags=ALL_FLAGS & ~lib.FUSE_WRITEBACK_CACHE)
        nodeid = client.lookup(ROOT, b"f").nodeid
        fh = client.open(nodeid, os.O_RDWR).fh
        assert client.lseek(nodeid, fh, 0, os.SEEK_DATA) == 0


def test_offsets_beyond_any_file(mount: Mount, opened: tuple[int, int]) -> None:
    client, (nodeid, fh) = mount.client, opened
    far = (1 << 64) - 1
    client.lseek(nodeid, fh, far, os.SEEK_DATA, expect=errno.ENXIO)
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
@pytest.mark.parametrize(
    ("flags", "minor", "uid", "expected"),
    [
        # A guest from Linux 6.1 on tells beforehand when root has no CAP_FSETID.
        (ALL_FLAGS, 38, 0, 0o6755),
        (ALL_FLAGS, 38, 1234, 0o755),
        (ALL_FLAGS, 38, 0xFFFFFFFF, 0o755),
        (ALL_FLAGS, 36, 0, 0o755),
        (ALL_FLAGS & ~lib.FUSE_HANDLE_KILLPRIV_V2, 38, 0, 0o6755),
        (ALL_FLAGS & ~lib.FUSE_HANDLE_KILLPRIV_V2, 38, 1234, 0o755),
        (0, 31, 0, 0o755),
    ],
)
def test_what_changes_data_kills_suid(tmp_path: Path, flags: int, minor: int, uid: int, expected: int) -> None:
    with share(tmp_path, Settings(), init=False) as mount:
        client, path = mount.client, mount.root / "g"
        client.init(minor=minor, flags=flags)
        source, source_fh = client.create(ROOT, b"f")
        client.write(source.nodeid, source_fh.fh, bytes(8192))
        entry, to = client.create(ROOT, b"g")
        client.uid = uid
        for change in (
            lambda: client.fallocate(entry.nodeid, to.fh, 0, 4096),
            lambda: client.fallocate(entry.nodeid, to.fh, 0, 4096, mode=3),
            lambda: client.copy_file_range(source.nodeid, source_fh.fh, 0, entry.nodeid, to.fh, 0, 4096),
            lambda: client.copy_file_range(source.nodeid, source_fh.fh, 0, entry.nodeid, to.fh, 0, 4096, long=True),
        ):
            path.chmod(0o6755)
            change()
            assert stat.S_IMODE(path.stat().st_mode) == expected


def test_a_capability_of_another_name_goes(tmp_path: Path) -> None:
    name = "user.virtiofs.security.capability"
    with share(tmp_path, Settings(xattrmap=XattrMap.parse(":map:security.:user.virtiofs.:"))) as mount:
        client, path = mount.client, mount.root / "g"
        source, source_fh = client.create(ROOT, b"f")
        client.write(source.nodeid, source_fh.fh, bytes(8192))
        entry, to = client.create(ROOT, b"g")
        for change in (
            lambda: client.fallocate(entry.nodeid, to.fh, 0, 4096),
            lambda: client.copy_file_range(source.nodeid, source_fh.fh, 0, entry.nodeid, to.fh, 0, 4096),
            lambda: client.setattr(entry.nodeid, size=5),
            lambda: client.setattr(entry.nodeid, size=5, fh=to.fh),
            lambda: client.setattr(entry.nodeid, uid=os.geteuid()),
            lambda: client.setattr(entry.nodeid, gid=os.getegid()),
            lambda: client.setattr(entry.nodeid),
        ):
            os.setxattr(path, name, b"value")
            change()
            assert name not in os.listxattr(path)
        os.setxattr(path, name, b"value")
        client.setattr(entry.nodeid, mode=0o600)
        client.setattr(entry.nodeid, atime=1, mtime=1)
        assert name in os.listxattr(path)


def test_directories(mount: Mount) -> None:
    client = mount.client
    fh = client.opendir(ROOT).fh
    client.fsyncdir(ROOT, fh)
    client.fsyncdir(ROOT, fh, datasync=True)
    client.fallocate(ROOT, fh, 0, 1, expect=errno.EBADF)
    client.releasedir(ROOT, fh)

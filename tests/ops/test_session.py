"""INIT, DESTROY, STATFS, SYNCFS."""

import errno
import os
from pathlib import Path

import pytest

from tests.fuseclient import ROOT, pack, unpack
from tests.ops.mount import ALL_FLAGS, Mount, share
from vfsd._fuse import ffi, lib
from vfsd.settings import Settings


def agreed(out: object) -> int:
    return out.flags | out.flags2 << 32  # type: ignore[attr-defined,no-any-return]


def test_everything_offered(tmp_path: Path) -> None:
    with share(tmp_path, Settings(), init=False) as mount:
        out = mount.client.init(minor=45, flags=ALL_FLAGS)
        session = mount.core.session
        assert (out.major, out.minor, out.time_gran) == (7, 45, 1)
        assert out.max_readahead == 1 << 17
        assert (out.max_pages, out.max_write) == (1020, 1020 * 4096)
        assert 0 < out.congestion_threshold < out.max_background
        assert agreed(out) == session.flags
        assert (session.mounted, session.minor) == (1, 45)
        assert (session.max_pages, session.max_write) == (1020, 1020 * 4096)
        for flag in (
            "INIT_EXT",
            "POSIX_LOCKS",
            "FLOCK_LOCKS",
            "CACHE_SYMLINKS",
            "DIRECT_IO_ALLOW_MMAP",
            "CREATE_SUPP_GROUP",
            "DO_READDIRPLUS",
            "SUBMOUNTS",
            "SETXATTR_EXT",
            "MAX_PAGES",
            "HANDLE_KILLPRIV_V2",
            "ATOMIC_O_TRUNC",
            "EXPORT_SUPPORT",
        ):
            assert session.flags & getattr(lib, f"FUSE_{flag}"), flag
        for flag in (
            "POSIX_ACL", "DONT_MASK", "HANDLE_KILLPRIV",
            "WRITEBACK_CACHE", "NO_OPEN_SUPPORT", "MAP_ALIGNMENT",
            "SECURITY_CTX", "HAS_INODE_DAX",
        ):  # fmt: skip
            assert not session.flags & getattr(lib, f"FUSE_{flag}"), flag


def test_nothing_is_agreed_that_was_not_offered(tmp_path: Path) -> None:
    with share(tmp_path, Settings(writeback=True, allow_mmap=True), init=False) as mount:
        out = mount.client.init(minor=38, flags=lib.FUSE_BIG_WRITES | lib.FUSE_INIT_EXT)
        assert agreed(out) == lib.FUSE_BIG_WRITES | lib.FUSE_INIT_EXT
        assert (out.max_pages, out.max_write) == (32, 32 * 4096)


def test_a_guest_that_kills_privileges_itself_truncates_itself(tmp_path: Path) -> None:
    """Its OPEN would not tell whether its caller has CAP_FSETID."""
    with share(tmp_path, Settings(), init=False) as mount:
        out = mount.client.init(minor=31, flags=lib.FUSE_ATOMIC_O_TRUNC | lib.FUSE_HANDLE_KILLPRIV)
        assert agreed(out) == 0


def test_linux_5_4(tmp_path: Path) -> None:
    with share(tmp_path, Settings(), init=False) as mount:
        out = mount.client.init(minor=31, flags=lib.FUSE_MAX_PAGES | lib.FUSE_PARALLEL_DIROPS)
        assert (out.minor, out.flags2, mount.core.session.minor) == (31, 0, 31)
        # The short form of SETXATTR is its.
        assert not mount.client.setxattr_ext


def test_upper_flags_need_init_ext(tmp_path: Path) -> None:
    body = pack("fuse_init_in", major=7, minor=45, flags=0, flags2=0xFFFFFFFF)
    with share(tmp_path, Settings(), init=False) as mount:
        out = unpack("fuse_init_out", mount.client.call(lib.FUSE_INIT, 0, body))
        assert agreed(out) == 0


@pytest.mark.parametrize(
    ("option", "flag"),
    [
        ("writeback", "WRITEBACK_CACHE"),
        ("allow_mmap", "DIRECT_IO_ALLOW_MMAP"),
        ("announce_submounts", "SUBMOUNTS"),
        ("killpriv", "HANDLE_KILLPRIV_V2"),
        ("killpriv", "ATOMIC_O_TRUNC"),
        ("posix_lock", "POSIX_LOCKS"),
        ("flock", "FLOCK_LOCKS"),
        ("allow_idmap", "ALLOW_IDMAP"),
    ],
)
@pytest.mark.parametrize("value", [True, False])
def test_flags_by_option(tmp_path: Path, option: str, flag: str, value: bool) -> None:
    with share(tmp_path, Settings(**{option: value}), init=False) as mount:
        out = mount.client.init(minor=45, flags=ALL_FLAGS)
        assert bool(agreed(out) & getattr(lib, f"FUSE_{flag}")) is value


@pytest.mark.parametrize(
    ("mode", "flags"),
    [
        ("never", 0),
        ("auto", lib.FUSE_DO_READDIRPLUS | lib.FUSE_READDIRPLUS_AUTO),
        ("always", lib.FUSE_DO_READDIRPLUS),
    ],
)
def test_readdirplus(tmp_path: Path, mode: str, flags: int) -> None:
    with share(tmp_path, Settings(readdirplus=mode), init=False) as mount:
        out = mount.client.init(minor=45, flags=ALL_FLAGS)
        assert agreed(out) & (lib.FUSE_DO_READDIRPLUS | lib.FUSE_READDIRPLUS_AUTO) == flags


@pytest.mark.parametrize("cache", ["never", "metadata", "auto", "always"])
def test_symlinks_are_cached_unless_nothing_is(tmp_path: Path, cache: str) -> None:
    with share(tmp_path, Settings(cache=cache), init=False) as mount:
        out = mount.client.init(minor=45, flags=ALL_FLAGS)
        assert bool(agreed(out) & lib.FUSE_CACHE_SYMLINKS) is (cache != "never")


def test_pages_follow_the_ring(tmp_path: Path) -> None:
    with share(tmp_path, Settings(queue_size=128), init=False) as mount:
        out = mount.client.init(minor=45, flags=ALL_FLAGS)
        assert (out.max_pages, out.max_write) == (124, 124 * 4096)
        assert out.max_background == 128


def test_versions(tmp_path: Path) -> None:
    with share(tmp_path, Settings(), init=False) as mount:
        newer = mount.client.init(major=8, minor=0)
        assert (newer.major, newer.minor, mount.core.session.mounted) == (7, 45, 0)
        mount.client.init(major=6, expect=errno.EPROTO)
        mount.client.init(minor=30, expect=errno.EPROTO)
        mount.client.lookup(ROOT, b"x", expect=errno.EIO)
        later = mount.client.init(minor=99)
        assert (later.minor, mount.core.session.mounted) == (45, 1)


def test_mounts_one_after_the_other_leak_nothing(mount: Mount) -> None:
    (mount.root / "f").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    for end in (mount.client.destroy, lambda: None):  # unmounted; rebooted
        for _ in range(3):
            entry = mount.client.lookup(ROOT, b"f")
            fh = mount.client.open(entry.nodeid).fh
            assert (mount.core.inodes, mount.core.handles) == (2, 1)
            assert len(mount.descriptors()) >= 2
            end()
            mount.client.init(minor=45, flags=ALL_FLAGS)
            assert (mount.core.inodes, mount.core.handles) == (1, 0)
            mount.client.getattr(entry.nodeid, expect=errno.ESTALE)
            mount.client.read(entry.nodeid, fh, 1, expect=errno.EBADF)
    assert len(os.listdir("/proc/self/fd")) == before


def test_destroy_unmounts(mount: Mount) -> None:
    mount.client.destroy()
    assert mount.core.session.mounted == 0
    mount.client.getattr(ROOT, expect=errno.EIO)
    mount.client.destroy()


def test_statfs(mount: Mount) -> None:
    host, st = os.statvfs(mount.root), mount.client.statfs().st
    assert (st.blocks, st.bsize, st.frsize, st.files) == (host.f_blocks, host.f_bsize, host.f_frsize, host.f_files)
    assert st.namelen == 255
    mount.client.statfs(12345, expect=errno.ESTALE)


def test_syncfs(mount: Mount) -> None:
    mount.client.syncfs()
    mount.client.syncfs(12345, expect=errno.ESTALE)


def test_init_is_padded_like_the_kernels() -> None:
    assert ffi.sizeof("struct fuse_init_in") == ffi.sizeof("struct fuse_init_out") == 64

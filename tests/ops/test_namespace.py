"""Names: what the conformance list can't say. Bad names, stale directories, requests served twice."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.fuseclient import ROOT
from tests.ops.mount import Mount, share
from vfsd.settings import Settings

STALE = 7 << 32 | 99


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"../x"])
def test_names_that_are_none(mount: Mount, name: bytes) -> None:
    client = mount.client
    client.mkdir(ROOT, name, expect=errno.EINVAL)
    client.mknod(ROOT, name, stat.S_IFREG, expect=errno.EINVAL)
    client.symlink(ROOT, name, b"x", expect=errno.EINVAL)
    client.link(ROOT, ROOT, name, expect=errno.EINVAL)
    client.unlink(ROOT, name, expect=errno.EINVAL)
    client.rmdir(ROOT, name, expect=errno.EINVAL)
    client.rename(ROOT, name, ROOT, b"x", expect=errno.EINVAL)
    client.rename2(ROOT, b"x", ROOT, name, expect=errno.EINVAL)


def test_stale_directories(mount: Mount) -> None:
    client = mount.client
    client.mkdir(STALE, b"x", expect=errno.ESTALE)
    client.rename(ROOT, b"x", STALE, b"x", expect=errno.ESTALE)
    client.link(STALE, ROOT, b"x", expect=errno.ESTALE)
    client.readlink(STALE, expect=errno.ESTALE)
    client.tmpfile(STALE, expect=errno.ESTALE)


def test_unknown_rename_flags(mount: Mount) -> None:
    (mount.root / "a").touch()
    mount.client.rename2(ROOT, b"a", ROOT, b"b", flags=8, expect=errno.EINVAL)


def test_high_bits_of_a_mode_are_not_one(mount: Mount) -> None:
    mount.client.mkdir(ROOT, b"d", mode=0xFFFF0000 | 0o755)
    mount.client.mknod(ROOT, b"f", 0xFFFF0000 | stat.S_IFREG | 0o600)
    mount.client.tmpfile(ROOT, mode=0xFFFF0000 | 0o600)
    assert stat.S_IMODE((mount.root / "d").stat().st_mode) == 0o755


def test_symlinks_are_not_followed(mount: Mount) -> None:
    outside = mount.root.parent
    (mount.root / "l").symlink_to(outside)
    nodeid = mount.client.lookup(ROOT, b"l").nodeid
    mount.client.mkdir(nodeid, b"x", expect=errno.ENOTDIR)
    mount.client.symlink(nodeid, b"x", b"y", expect=errno.ENOTDIR)
    mount.client.tmpfile(nodeid, expect=errno.ENOTDIR)
    mount.client.rename(ROOT, b"l", nodeid, b"x", expect=errno.ENOTDIR)


def test_target_of_a_symlink_is_anything(mount: Mount) -> None:
    for name, target in ((b"a", b".."), (b"b", b"/"), (b"c", b"x/../y"), (b"d", b"\xff")):
        assert mount.client.readlink(mount.client.symlink(ROOT, name, target).nodeid) == target


def test_tmpfile_is_a_handle_of_the_table(mount: Mount) -> None:
    entry, opened = mount.client.tmpfile(ROOT, os.O_RDWR, 0o600)
    assert (mount.core.inodes, mount.core.handles) == (2, 1)
    assert mount.client.write(entry.nodeid, opened.fh, b"data") == 4
    mount.client.release(entry.nodeid, opened.fh)
    mount.client.forget(entry.nodeid)
    assert (mount.core.inodes, mount.core.handles) == (1, 0)


def test_tmpfile_without_room_for_a_handle(tmp_path: Path) -> None:
    with share(tmp_path, Settings(), handles=4096) as mount:
        made = []
        with pytest.raises(OSError, match="memory"):
            while len(made) < 4096:
                made.append(mount.client.tmpfile(ROOT))
        assert mount.core.inodes == len(made) + 1
        assert mount.core.handles == len(made)


def test_made_twice(mount: Mount) -> None:
    """A request in flight in a worker that died may have been served. It must not fail the second time."""
    client, again = mount.client, mount.replayed
    first = client.mkdir(ROOT, b"d").nodeid
    assert again.mkdir(ROOT, b"d").nodeid == first
    first = client.mknod(ROOT, b"f", stat.S_IFIFO | 0o600).nodeid
    assert again.mknod(ROOT, b"f", stat.S_IFIFO | 0o600).nodeid == first
    first = client.symlink(ROOT, b"l", b"target").nodeid
    assert again.symlink(ROOT, b"l", b"target").nodeid == first
    first = client.link(first, ROOT, b"h").nodeid
    assert again.link(first, ROOT, b"h").nodeid == first


def test_made_twice_but_by_somebody_else(mount: Mount) -> None:
    again = mount.replayed
    (mount.root / "f").touch()
    (mount.root / "l").symlink_to("elsewhere")
    again.mkdir(ROOT, b"f", expect=errno.EEXIST)
    again.mknod(ROOT, b"f", stat.S_IFIFO | 0o600, expect=errno.EEXIST)
    again.symlink(ROOT, b"l", b"target", expect=errno.EEXIST)
    again.symlink(ROOT, b"f", b"target", expect=errno.EEXIST)
    again.link(mount.client.lookup(ROOT, b"l").nodeid, ROOT, b"f", expect=errno.EEXIST)


def test_removed_twice(mount: Mount) -> None:
    again = mount.replayed
    again.unlink(ROOT, b"gone")
    again.rmdir(ROOT, b"gone")
    (mount.root / "new").touch()
    again.rename(ROOT, b"gone", ROOT, b"new")
    again.rename2(ROOT, b"gone", ROOT, b"new", flags=1)
    again.rename(ROOT, b"gone", ROOT, b"neither", expect=errno.ENOENT)


def test_an_exchange_is_not_undone_in_silence(mount: Mount) -> None:
    (mount.root / "old").write_bytes(b"1")
    (mount.root / "new").write_bytes(b"2")
    mount.client.rename2(ROOT, b"old", ROOT, b"new", flags=2)
    mount.replayed.rename2(ROOT, b"old", ROOT, b"new", flags=2, expect=errno.EIO)
    assert (mount.root / "old").read_bytes() == b"2"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a whiteout")
def test_whiteout_left_twice(mount: Mount) -> None:
    (mount.root / "old").write_bytes(b"data")
    for client in (mount.client, mount.replayed):
        client.rename2(ROOT, b"old", ROOT, b"new", flags=4)
        assert (mount.root / "new").read_bytes() == b"data"

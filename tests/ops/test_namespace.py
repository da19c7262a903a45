"""Names: what the conformance list can't say. Bad names, stale directories, requests served twice."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vfsd.refused  # noqa: F401  (which says what is refused)
from tests.direct import direct, follow
from tests.fuseclient import ROOT, FuseClient
from tests.ops.mount import Mount, share
from vfsd._fuse import lib
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


def test_a_target_longer_than_the_room(mount: Mount) -> None:
    nodeid = mount.client.symlink(ROOT, b"l", b"target").nodeid
    assert mount.client.call(lib.FUSE_READLINK, nodeid, room=6) == b"target"
    mount.client.call(lib.FUSE_READLINK, nodeid, room=5, expect=errno.EINVAL)


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


MAKERS = {
    "mkdir": lambda client, name: client.mkdir(ROOT, name),
    "mknod": lambda client, name: client.mknod(ROOT, name, stat.S_IFIFO | 0o600),
    "symlink": lambda client, name: client.symlink(ROOT, name, b"target"),
    "create": lambda client, name: client.create(ROOT, name)[0],
}


def maker(mount: Mount, kind: str) -> Callable[[FuseClient, bytes], Any]:
    """Makes a name by one request."""
    if kind != "link":
        return MAKERS[kind]
    (mount.root / "old").touch()
    old = mount.client.lookup(ROOT, b"old").nodeid
    return lambda client, name: client.link(old, ROOT, name)


@pytest.mark.parametrize("kind", [*MAKERS, "link"])
def test_made_twice(mount: Mount, kind: str) -> None:
    """A request in flight in a worker that died may have been served, and answered but for the last step."""
    make = maker(mount, kind)
    first = make(mount.client, b"new").nodeid
    assert make(mount.replayed, b"new").nodeid == first
    inodes, opened = mount.core.inodes, mount.core.handles
    again = make(mount.unfinished(), b"new")
    assert again.attr.ino == (mount.root / "new").lstat().st_ino
    assert (mount.core.inodes, mount.core.handles) == (inodes, opened)


@pytest.mark.parametrize("kind", [*MAKERS, "link"])
def test_there_already(mount: Mount, kind: str) -> None:
    """What was there before is not what a request made, though it looks the same."""
    make = maker(mount, kind)
    make(mount.client, b"new")
    inodes, opened = mount.core.inodes, mount.core.handles
    for client in (lambda: mount.client, lambda: mount.replayed, mount.unfinished):
        with pytest.raises(FileExistsError):
            make(client(), b"new")
    assert (mount.core.inodes, mount.core.handles) == (inodes, opened)


@pytest.mark.parametrize("kind", ["mkdir", "mknod", "symlink", "create"])
def test_made_by_somebody_else(mount: Mount, kind: str) -> None:
    """The worker died before it made anything. What is there meanwhile is of another type."""
    make = MAKERS[kind]
    make(mount.client, b"new")
    path = mount.root / "new"
    if kind == "mkdir":
        path.rmdir()
        path.touch()
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(FileExistsError):
        make(mount.unfinished(), b"new")


def test_removed_twice(mount: Mount) -> None:
    client, again = mount.client, mount.replayed
    (mount.root / "f").touch()
    client.unlink(ROOT, b"f")
    again.unlink(ROOT, b"f")
    mount.unfinished().unlink(ROOT, b"f")
    for each in (lambda: client, lambda: again, mount.unfinished):
        each().unlink(ROOT, b"f", expect=errno.ENOENT)
    (mount.root / "d").mkdir()
    client.rmdir(ROOT, b"d")
    again.rmdir(ROOT, b"d")
    mount.unfinished().rmdir(ROOT, b"d")
    for each in (lambda: client, lambda: again, mount.unfinished):
        each().rmdir(ROOT, b"d", expect=errno.ENOENT)


def test_what_came_in_the_place_of_a_removed_file_stays(mount: Mount) -> None:
    (mount.root / "f").touch()
    mount.client.unlink(ROOT, b"f")
    (mount.root / "f").touch()
    mount.unfinished().unlink(ROOT, b"f")
    assert (mount.root / "f").exists()


def test_removed_by_nobody_yet(mount: Mount) -> None:
    """The worker died between its look and the system call."""
    (mount.root / "f").touch()
    (mount.root / "g").hardlink_to(mount.root / "f")
    mount.client.unlink(ROOT, b"f")
    (mount.root / "f").hardlink_to(mount.root / "g")
    mount.unfinished().unlink(ROOT, b"f")
    assert not (mount.root / "f").exists()


def test_a_request_that_was_not_begun(mount: Mount) -> None:
    """The worker died before it had written anything of it: what is there is of another request."""
    (mount.root / "new").touch()
    for each in (mount.replayed, mount.unfinished()):
        each.mkdir(ROOT, b"new", expect=errno.EEXIST)
        each.unlink(ROOT, b"gone", expect=errno.ENOENT)
        each.rename(ROOT, b"gone", ROOT, b"new", expect=errno.ENOENT)


@pytest.mark.parametrize("flags", [0, 1, 2, 4])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a whiteout")
def test_moved_twice(mount: Mount, flags: int) -> None:
    (mount.root / "old").write_bytes(b"1")
    if flags == 2:
        (mount.root / "new").write_bytes(b"2")
    mount.client.rename2(ROOT, b"old", ROOT, b"new", flags=flags)
    for each in (mount.replayed, mount.unfinished()):
        each.rename2(ROOT, b"old", ROOT, b"new", flags=flags)
        assert (mount.root / "new").read_bytes() == b"1"
        assert flags != 2 or (mount.root / "old").read_bytes() == b"2"


def test_moved_by_nobody_yet(mount: Mount) -> None:
    (mount.root / "old").write_bytes(b"1")
    (mount.root / "new").write_bytes(b"2")
    mount.client.rename2(ROOT, b"old", ROOT, b"new", flags=2)
    os.rename(mount.root / "old", mount.root / "between")
    os.rename(mount.root / "new", mount.root / "old")
    os.rename(mount.root / "between", mount.root / "new")
    mount.unfinished().rename2(ROOT, b"old", ROOT, b"new", flags=2)
    assert (mount.root / "old").read_bytes() == b"2"


def test_refused(mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
    """A request that has killed workers is not served. But what was done is not denied, and of the rest nothing is
    left."""
    refused = follow(FuseClient(direct(mount.core.pointer, memo=mount.memo, serve=lib.fuse_refuse)), mount.client)
    first = mount.client.mkdir(ROOT, b"d")
    assert refused.mkdir(ROOT, b"d").nodeid == first.nodeid
    mount.client.mkdir(ROOT, b"d", expect=errno.EEXIST)
    refused.mkdir(ROOT, b"d", expect=errno.EEXIST)
    inodes = mount.core.inodes
    mount.client.create(ROOT, b"f")
    mount.unfinished()
    refused.create(ROOT, b"f", expect=errno.EIO)
    assert (mount.core.inodes, mount.core.handles) == (inodes, 0)
    assert [record.message.partition("EIO: ")[2].partition(" ")[0] for record in caplog.records] == ["CREATE"]
    caplog.clear()


def test_a_new_mount_numbers_anew(mount: Mount) -> None:
    """A request of the last mount is none of this one, though it has its number."""
    mount.client.mkdir(ROOT, b"d")
    number = mount.client.unique
    mount.core.reset()
    mount.client.uniques = iter([number + 2])
    mount.client.init(minor=45)
    mount.client.unique = number
    mount.replayed.mkdir(ROOT, b"d", expect=errno.EEXIST)

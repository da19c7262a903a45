"""File systems mounted below the share: each says of itself how full it is, and copies share blocks where it can."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuseclient import ROOT
from tests.ops.mount import Mount


def mounted(*command: str | Path) -> bool:
    return subprocess.run(["mount", *command], capture_output=True, check=False).returncode == 0


@pytest.fixture
def tmpfs(mount: Mount) -> Iterator[Path]:
    place = mount.root / "tmpfs"
    place.mkdir()
    if not mounted("-t", "tmpfs", "-o", "size=5m,nr_inodes=77", "tmpfs", place):
        pytest.skip("mounting takes privilege")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def xfs(mount: Mount, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system whose files can share blocks."""
    image, place = tmp_path_factory.mktemp("image") / "xfs", mount.root / "xfs"
    place.mkdir()
    if not shutil.which("mkfs.xfs"):
        pytest.skip("no mkfs.xfs")
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    if not mounted("-o", "loop", image, place):
        pytest.skip("no loop devices, or no privilege")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_statfs_is_of_the_mount(mount: Mount, tmpfs: Path) -> None:
    nodeid = mount.client.lookup(ROOT, b"tmpfs").nodeid
    inner, outer = mount.client.statfs(nodeid), mount.client.statfs(ROOT)
    assert inner.st.files == 77
    assert inner.st.blocks * inner.st.frsize == 5 << 20
    host = os.statvfs(mount.root)
    assert (outer.st.blocks, outer.st.files) == (host.f_blocks, host.f_files)
    mount.client.syncfs(nodeid)


@pytest.mark.parametrize("long", [False, True])
def test_a_copy_shares_blocks(mount: Mount, xfs: Path, long: bool) -> None:
    size = 64 << 20
    with (xfs / "a").open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    client = mount.client
    directory = client.lookup(ROOT, b"xfs").nodeid
    source = client.lookup(directory, b"a").nodeid
    fh = client.open(source).fh
    entry, opened = client.create(directory, b"b")
    before = os.statvfs(xfs).f_bfree
    assert client.copy_file_range(source, fh, 0, entry.nodeid, opened.fh, 0, size, long=long) == size
    client.fsync(entry.nodeid, opened.fh)
    used = (before - os.statvfs(xfs).f_bfree) * os.statvfs(xfs).f_frsize
    assert used < size // 16
    assert (xfs / "b").read_bytes() == (xfs / "a").read_bytes()
    # Handles would keep the file system in use.
    client.release(source, fh)
    client.release(entry.nodeid, opened.fh)
    for nodeid in (source, entry.nodeid, directory):
        client.forget(nodeid)


@pytest.fixture
def overlay(mount: Mount, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One whose directories tell inode numbers that its files do not have: they lie on two file systems."""
    layers, place = tmp_path_factory.mktemp("layers"), mount.root / "overlay"
    lower, upper, work = layers / "lower", layers / "upper", layers / "work"
    for path in (lower, upper, work, place):
        path.mkdir()
    if not mounted("-t", "tmpfs", "tmpfs", lower):
        pytest.skip("mounting takes privilege")
    for number in range(20):
        (lower / f"lower-{number}").touch()
        (upper / f"upper-{number}").touch()
    option = f"lowerdir={lower},upperdir={upper},workdir={work},xino=off"
    made = mounted("-t", "overlay", "-o", option, "overlay", place)
    if made:
        yield place
        subprocess.run(["umount", "-l", place], check=True)
    subprocess.run(["umount", "-l", lower], check=True)
    if not made:
        pytest.skip("no overlayfs, or none on this file system")


def test_a_list_of_an_overlay_names_what_lookup_finds(mount: Mount, overlay: Path) -> None:
    client = mount.client
    directory = client.lookup(ROOT, b"overlay").nodeid
    first, second = ({e.name: e.entry.nodeid for e in client.list(directory, plus=True)} for _ in range(2))
    assert first == second
    names = set(first) - {b".", b".."}
    assert len(names) == 40
    for name in names:
        assert client.lookup(directory, name).nodeid == first[name] != 0
    assert len(mount.descriptors()) == len(names) + 1
    for name in names:
        client.forget(first[name], 3)
    client.forget(directory)
    assert not mount.descriptors()


def test_a_list_of_an_overlay_follows_a_copy_up(mount: Mount, overlay: Path) -> None:
    """By it the birth time changes of a file that has another number than its directory tells."""
    client = mount.client
    directory = client.lookup(ROOT, b"overlay").nodeid
    nodeid = client.lookup(directory, b"lower-0").nodeid
    (overlay / "lower-0").chmod(0o600)
    listed = {e.name: e.entry.nodeid for e in client.list(directory, plus=True) if e.entry.nodeid}
    assert listed[b"lower-0"] == nodeid
    assert len(mount.descriptors()) == len(listed) + 1
    client.forget(nodeid)
    for listed_nodeid in (*listed.values(), directory):
        client.forget(listed_nodeid)
    assert not mount.descriptors()

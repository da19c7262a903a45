"""Mounts of the host below the share: a guest sees each as a file system of its own, comes and goes with it, and does
not hold it."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfsd.guest import Guest, Share
from vfsd.guest.machine import Settings

DEVICE = "stat -c %d"


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A shared directory with mounts in it. It is one itself, whose later mounts the daemon's namespace gets too."""
    if os.geteuid():
        pytest.skip("only root can mount")
    path = tmp_path_factory.mktemp("share")
    if subprocess.run(["mount", "--bind", path, path], capture_output=True).returncode:
        pytest.skip("not allowed to mount")
    try:
        mount("--make-shared", path)
        for name in ("sub", "tree", "bind", "later", "leaving"):
            (path / name).mkdir()
        (path / "tree/f").write_text("one file\n")
        (path / "leaving/below").touch()
        mount("-t", "tmpfs", "none", path / "sub")
        (path / "sub/nested").mkdir()
        mount("-t", "tmpfs", "none", path / "sub/nested")
        for directory in (path / "sub", path / "sub/nested"):
            (directory / "f").write_text(f"{directory.name}\n")
        mount("--bind", path / "tree", path / "bind")
        mount("-t", "tmpfs", "none", path / "leaving")
        (path / "leaving/above").touch()
        yield path
    finally:
        subprocess.run(["umount", "-R", "-l", path], check=True)


@pytest.fixture(scope="module")
def mounted(mounts: Path) -> Iterator[Guest]:
    shares = [
        Share(mounts, daemon=os.environ.get("VFSD_TEST_DAEMON"), daemon_options=["--cache=auto"]),
        Share(mounts, "plain", daemon_options=["--no-announce-submounts"]),
    ]
    settings = Settings(qemu=os.environ.get("VFSD_TEST_QEMU", Settings.qemu))
    with Guest(*shares, settings=settings, kernel_name=os.environ.get("VFSD_TEST_KERNEL")) as guest:
        yield guest


def lines(guest: Guest, command: str, cwd: str = "/mnt/share") -> list[str]:
    result = guest.run(f"exec 2>&1; {command}", 120, cwd=cwd)
    assert result.status == 0, f"{command}: status {result.status}\n{result.text}"
    return result.text.splitlines()


def unmount(path: Path, patience: float = 30) -> None:
    """As soon as nothing of the daemon's is on it."""
    deadline = time.monotonic() + patience
    while subprocess.run(["umount", path], capture_output=True).returncode:
        assert time.monotonic() < deadline, f"{path} is still busy"
        time.sleep(0.2)


def test_devices(mounted: Guest) -> None:
    names = [".", "tree", "sub", "sub/nested", "bind", "leaving"]
    devices = lines(mounted, f"ls -R >/dev/null; {DEVICE} {' '.join(names)}")
    assert devices[0] == devices[1]
    assert len(set(devices)) == 5, dict(zip(names, devices, strict=True))
    # From within, and by name; in a listing with attributes, and without.
    assert lines(mounted, f"cd sub/nested; {DEVICE} . .. ../.. f") == [devices[3], devices[2], devices[0], devices[3]]
    assert lines(mounted, "cat sub/f sub/nested/f bind/f") == ["sub", "nested", "one file"]
    assert lines(mounted, f"echo 2 >/proc/sys/vm/drop_caches; {DEVICE} {' '.join(names)}") == devices


def test_one_file_by_two_mounts(mounted: Guest) -> None:
    """The host has one inode; the guest two, on two file systems, as any mount namespace would show them."""
    tree, bind = lines(mounted, "stat -c '%d %i %s' tree/f bind/f")
    assert tree.split()[1:] == bind.split()[1:] and tree.split()[0] != bind.split()[0]
    # Held by the one, changed by the other.
    assert lines(
        mounted, "exec 3<tree/f; echo changed >bind/f; sleep 2; cat <&3; mv tree/f tree/g; cat bind/g; mv bind/g bind/f"
    ) == ["changed", "changed"]


def test_without_announcement(mounted: Guest) -> None:
    names = [".", "tree", "sub", "sub/nested", "bind"]
    assert len(set(lines(mounted, f"{DEVICE} {' '.join(names)}", "/mnt/plain"))) == 1
    assert lines(mounted, "cat sub/f sub/nested/f bind/f", "/mnt/plain") == ["sub", "nested", "changed"]


def test_one_that_comes_and_goes(mounted: Guest, mounts: Path) -> None:
    root, before = lines(mounted, f"{DEVICE} . later")
    assert root == before
    mount("-t", "tmpfs", "none", mounts / "later")
    (mounts / "later/f").write_text("new\n")
    lines(mounted, f"while [ $({DEVICE} later/.) = {root} ]; do sleep 0.2; done")
    assert lines(mounted, "cat later/f") == ["new"]
    # What the guest knows is busy on the host.
    assert subprocess.run(["umount", mounts / "later"], capture_output=True).returncode
    lines(mounted, "umount later; echo 2 >/proc/sys/vm/drop_caches")
    lines(mounted, "echo 2 >/proc/sys/vm/drop_caches", "/mnt/plain")
    unmount(mounts / "later")
    lines(mounted, f"while [ $({DEVICE} later/.) != {root} ]; do sleep 0.2; done")
    assert lines(mounted, "ls later") == []


def test_one_that_is_taken_away(mounted: Guest, mounts: Path) -> None:
    """Detached on the host while the guest has it mounted: the name leads to what was below it."""
    root = lines(mounted, f"{DEVICE} . ; ls leaving")
    assert root[1:] == ["above"]
    subprocess.run(["umount", "-l", mounts / "leaving"], check=True)
    lines(mounted, "while [ ! -e leaving/below ]; do sleep 0.2; done")
    assert lines(mounted, f"ls leaving; {DEVICE} leaving") == ["below", root[0]]

"""A nodeid stands for one inode for its whole life, also where the host uses inode numbers again.

VFSD_TEST_PAIRS sets how many objects are made and removed (2,000; the full count is 100,000).
"""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from errno import ESTALE
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import vfsd.ops  # noqa: F401  (fills OPS)
from tests.disk import ext4
from tests.fuseclient import ROOT
from tests.ops.mount import Mount, share
from vfsd.settings import Settings

PAIRS = int(os.environ.get("VFSD_TEST_PAIRS", "2000"))
#: Objects the guest goes on with after their end.
HELD = 12


#: ext4 with small inodes keeps no birth times.
FILE_SYSTEMS = {"tmpfs": [], "ext4": ["-I", "256"], "ext4 without birth times": ["-I", "128"]}


@pytest.fixture(params=FILE_SYSTEMS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty directory on this file system."""
    if request.param == "tmpfs":
        if not os.path.ismount("/dev/shm"):
            pytest.skip("no tmpfs on /dev/shm")
        path = Path(tempfile.mkdtemp(dir="/dev/shm"))
        yield path
        shutil.rmtree(path)
        return
    with ext4(tmp_path, *FILE_SYSTEMS[request.param]) as path:
        yield path


class Held(NamedTuple):
    """What the guest knows of an object: no two are alike in `mark`, their modification time."""

    nodeid: int
    ino: int
    type: int
    mark: int
    #: The guest's handle, or None; and the host's descriptor, or -1.
    fh: int | None
    fd: int


class Churn:
    """Objects of all types come and go under one name, made and removed by either side."""

    def __init__(self, mount: Mount, seed: int, others: list[int]) -> None:
        self.root, self.client, self.others = mount.root, mount.client, others
        self.dice = random.Random(seed)
        self.held: list[Held] = []
        #: Each nodeid that was ever given out.
        self.seen: set[int] = set()
        self.inos: set[int] = set()
        self.wrong: list[str] = []
        self.reused = self.stale = 0

    def make(self, mark: int) -> None:
        path, client = self.root / "name", self.client
        kind, by_guest = self.dice.choice(["file"] * 5 + ["dir", "symlink"]), self.dice.randrange(2)
        fh, fd = None, -1
        if by_guest:
            entry = self._guest_makes(kind)
        else:
            {"file": path.touch, "dir": path.mkdir, "symlink": lambda: path.symlink_to("to")}[kind]()
        os.utime(path, (mark, mark), follow_symlinks=False)
        found = client.lookup(ROOT, b"name")
        if by_guest and found.nodeid != entry.nodeid:
            self.wrong.append(f"{mark}: made as {entry.nodeid:#x}, looked up as {found.nodeid:#x}")
        if by_guest:
            client.forget(entry.nodeid)
        if found.nodeid in self.seen:
            self.wrong.append(f"{mark}: nodeid {found.nodeid:#x} was another object")
        host = path.lstat()
        self.seen.add(found.nodeid)
        self.reused += host.st_ino in self.inos
        self.inos.add(host.st_ino)
        if kind == "file" and self.dice.randrange(2):
            path.write_text(str(mark))
            os.utime(path, (mark, mark))
            fh = client.open(found.nodeid).fh
        if kind == "file" and self.dice.randrange(2):
            fd = os.open(path, os.O_RDONLY)
        self.held.append(Held(found.nodeid, host.st_ino, host.st_mode & 0o170000, mark, fh, fd))

    def _guest_makes(self, kind: str) -> Any:
        if kind == "dir":
            return self.client.mkdir(ROOT, b"name")
        if kind == "symlink":
            return self.client.symlink(ROOT, b"name", b"to")
        entry, opened = self.client.create(ROOT, b"name")
        self.client.release(entry.nodeid, opened.fh)
        return entry

    def remove(self) -> None:
        path = self.root / "name"
        directory = path.is_dir() and not path.is_symlink()
        if self.dice.randrange(2):
            (self.client.rmdir if directory else self.client.unlink)(ROOT, b"name")
        else:
            (os.rmdir if directory else os.unlink)(path)

    def look(self, held: Held) -> None:
        """It is what it was, or stale."""
        try:
            attr = self.client.getattr(held.nodeid, held.fh if self.dice.randrange(2) else None).attr
            if (attr.ino, attr.mode & 0o170000, attr.mtime) != (held.ino, held.type, held.mark):
                self.wrong.append(f"{held} is now inode {attr.ino}, mode {attr.mode:o}, mtime {attr.mtime}")
            if held.fh is not None and self.client.read(held.nodeid, held.fh, 20) != str(held.mark).encode():
                self.wrong.append(f"{held} reads otherwise")
        except OSError as error:
            if error.errno != ESTALE or held.fh is not None:
                self.wrong.append(f"{held}: {error}")
            self.stale += 1

    def drop(self) -> None:
        held = self.held.pop(self.dice.randrange(len(self.held)))
        if held.fh is not None:
            self.client.release(held.nodeid, held.fh)
        if held.fd >= 0:
            os.close(held.fd)
        self.client.forget(held.nodeid)

    def run(self, pairs: int) -> None:
        for mark in range(1, pairs + 1):
            self.make(mark)
            self.look(self.dice.choice(self.held))
            if mark % 6 == 0:
                for nodeid in self.others:
                    self.client.getattr(nodeid)
            self.remove()
            self.look(self.dice.choice(self.held))
            while len(self.held) > self.dice.randrange(HELD):
                self.drop()
        while self.held:
            self.drop()


def crowd(mount: Mount, count: int) -> list[int]:
    """Other inodes, whose use makes descriptors short."""
    (mount.root / "crowd").mkdir()
    at = mount.client.lookup(ROOT, b"crowd").nodeid
    nodeids = []
    for number in range(count):
        (mount.root / "crowd" / str(number)).touch()
        nodeids.append(mount.client.lookup(at, b"%d" % number).nodeid)
    return nodeids


@pytest.mark.timeout(120 + PAIRS // 100)
@pytest.mark.parametrize(("descriptors", "handles"), [(0, "prefer"), (40, "prefer"), (40, "never")])
def test_numbers_that_are_used_again(place: Path, descriptors: int, handles: str) -> None:
    with share(place, Settings(descriptors=descriptors, file_handles=handles)) as mount:
        churn = Churn(mount, descriptors, crowd(mount, 60) if descriptors else [])
        churn.run(PAIRS)
        print(f"{PAIRS} pairs, {churn.reused} inode numbers used again, {churn.stale} stale, {len(churn.wrong)} wrong")
        assert not churn.wrong, f"{len(churn.wrong)} wrong identities: {churn.wrong[:5]}"


@pytest.mark.parametrize("descriptors", [0, 8])
@pytest.mark.parametrize("handles", ["prefer", "never"])
def test_replaced_by_a_rename_on_the_host(place: Path, descriptors: int, handles: str) -> None:
    """What editors and package managers do: the old file stays what it was, or is stale; the name leads to the new."""
    with share(place, Settings(descriptors=descriptors, file_handles=handles)) as mount:
        client, others = mount.client, crowd(mount, 20)
        for number in range(100):
            (place / "f").write_text(f"old {number}")
            old = client.lookup(ROOT, b"f")
            fh = client.open(old.nodeid).fh if number % 2 else None
            if number % 3 == 0:
                for other in others:
                    client.getattr(other)
            (place / "new").write_text(f"the new {number}")
            (place / "new").rename(place / "f")
            new = client.lookup(ROOT, b"f")
            assert new.nodeid != old.nodeid and new.attr.size == len(f"the new {number}")
            try:
                assert client.getattr(old.nodeid).attr.size == len(f"old {number}")
            except OSError as error:
                assert error.errno == ESTALE and fh is None and descriptors
            if fh is not None:
                assert client.read(old.nodeid, fh, 99) == f"old {number}".encode()
                client.release(old.nodeid, fh)
            client.forget(old.nodeid)
            client.forget(new.nodeid)

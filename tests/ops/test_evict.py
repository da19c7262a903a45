"""Names that the guest changes while the inodes they lead to have no descriptor."""

import os
from collections.abc import Iterator
from errno import ENFILE, ESTALE
from pathlib import Path

import pytest

from tests.core.served import REAL_ROOT
from tests.fuseclient import ROOT
from tests.once.cases import EXCHANGE
from tests.ops.mount import Mount, share
from vfsd.settings import Settings


@pytest.fixture(params=["never", "prefer", "mandatory"])
def tight(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A guest that may hold eight descriptors."""
    if request.param == "mandatory" and not REAL_ROOT:
        pytest.skip("a file handle is opened by root only")
    with share(tmp_path, Settings(descriptors=8, file_handles=request.param)) as mount:
        yield mount


def crowd(mount: Mount) -> None:
    (mount.root / "crowd").mkdir(exist_ok=True)
    at = mount.client.lookup(ROOT, b"crowd").nodeid
    for number in range(30):
        (mount.root / "crowd" / str(number)).touch()
        mount.client.getattr(mount.client.lookup(at, b"%d" % number).nodeid)
    assert len(mount.descriptors()) <= 7


def test_unlinked(tight: Mount) -> None:
    client = tight.client
    (tight.root / "f").write_text("data")
    (tight.root / "d").mkdir()
    f, d = client.lookup(ROOT, b"f").nodeid, client.lookup(ROOT, b"d").nodeid
    crowd(tight)
    client.unlink(ROOT, b"f")
    client.rmdir(ROOT, b"d")
    crowd(tight)
    # A guest whose process has it as its directory, or open by O_PATH, can still look.
    assert (client.getattr(f).attr.nlink, client.getattr(f).attr.size) == (0, 4)
    assert client.getattr(d).attr.nlink == 0


def test_renamed(tight: Mount) -> None:
    client = tight.client
    for name in ("d", "e"):
        (tight.root / name).mkdir()
    (tight.root / "d/f").write_text("file")
    (tight.root / "e/over").write_text("target")
    d, e = client.lookup(ROOT, b"d").nodeid, client.lookup(ROOT, b"e").nodeid
    f, over = client.lookup(d, b"f").nodeid, client.lookup(e, b"over").nodeid
    crowd(tight)
    client.rename(d, b"f", e, b"over")
    crowd(tight)
    assert client.getattr(f).attr.size == 4
    assert client.lookup(e, b"over").nodeid == f
    assert client.getattr(over).attr.nlink == 0
    crowd(tight)
    client.rename(ROOT, b"e", d, b"below")
    crowd(tight)
    assert client.getattr(f).attr.size == 4
    assert client.lookup(d, b"below").nodeid == e


def test_exchanged(tight: Mount) -> None:
    client = tight.client
    (tight.root / "a").write_text("a")
    (tight.root / "b").write_text("bb")
    a, b = client.lookup(ROOT, b"a").nodeid, client.lookup(ROOT, b"b").nodeid
    crowd(tight)
    client.rename2(ROOT, b"a", ROOT, b"b", EXCHANGE)
    crowd(tight)
    assert (client.getattr(a).attr.size, client.getattr(b).attr.size) == (1, 2)
    assert client.lookup(ROOT, b"a").nodeid == b


def test_linked(tight: Mount) -> None:
    client = tight.client
    (tight.root / "a").write_text("a")
    nodeid = client.lookup(ROOT, b"a").nodeid
    crowd(tight)
    assert client.link(nodeid, ROOT, b"b").nodeid == nodeid
    client.unlink(ROOT, b"a")
    crowd(tight)
    assert client.getattr(nodeid).attr.nlink == 1
    assert client.lookup(ROOT, b"b").nodeid == nodeid
    crowd(tight)
    client.unlink(ROOT, b"b")
    assert client.getattr(nodeid).attr.nlink == 0


def test_made_in_a_directory_without_a_descriptor(tight: Mount) -> None:
    client = tight.client
    (tight.root / "d").mkdir(mode=0o777)
    os.chmod(tight.root / "d", 0o777)
    d = client.lookup(ROOT, b"d").nodeid
    client.uid = client.gid = 1000 if REAL_ROOT else os.getuid()
    for make in (
        lambda: client.mkdir(d, b"dir"),
        lambda: client.symlink(d, b"link", b"target"),
        lambda: client.mknod(d, b"fifo", 0o010644),
        lambda: client.create(d, b"file"),
        lambda: client.tmpfile(d),
    ):
        crowd(tight)
        made = make()
        if isinstance(made, tuple):
            client.release(made[0].nodeid, made[1].fh)
    crowd(tight)
    assert sorted(os.listdir(tight.root / "d")) == ["dir", "fifo", "file", "link"]
    names = [entry.name for entry in client.list(d, plus=True)]
    assert sorted(names) == [b".", b"..", b"dir", b"fifo", b"file", b"link"]


def test_nothing_is_made_that_cannot_be_held(tight: Mount) -> None:
    client = tight.client
    for number in range(7):
        (tight.root / str(number)).touch()
        client.open(client.lookup(ROOT, b"%d" % number).nodeid, expect=0 if number < 6 else ENFILE)
    before = os.listdir(tight.root)
    client.create(ROOT, b"new", expect=ENFILE)
    assert os.listdir(tight.root) == before


def test_removed_on_the_host(tight: Mount) -> None:
    client = tight.client
    (tight.root / "f").write_text("data")
    nodeid = client.lookup(ROOT, b"f").nodeid
    crowd(tight)
    (tight.root / "f").unlink()
    client.getattr(nodeid, expect=ESTALE)
    client.setattr(nodeid, size=0, expect=ESTALE)
    client.open(nodeid, expect=ESTALE)
    client.forget(nodeid)
    (tight.root / "f").write_text("new")
    assert client.getattr(client.lookup(ROOT, b"f").nodeid).attr.size == 3

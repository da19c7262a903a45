"""Descriptors never run out: those of idle inodes are closed, and opened again when they are needed."""

import itertools
import os
import random
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import ENFILE, ESTALE
from pathlib import Path

import pytest

from tests.core.conftest import MODES
from tests.core.served import Served, closed, crowd, records
from tests.fuseclient import ROOT
from vfsd._fuse import ffi, lib


@contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    """The process may open so many more."""
    free = (fd for fd in itertools.count() if not os.path.lexists(f"/proc/self/fd/{fd}"))
    limit = list(itertools.islice(free, more + 1))[-1]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_many_more_files_than_descriptors(tight: Served) -> None:
    known = {}
    for i in range(30):
        (tight.root / f"d{i}").mkdir()
        at = tight.client.lookup(ROOT, b"d%d" % i).nodeid
        known[f"d{i}"] = at
        for j in range(20):
            (tight.root / f"d{i}/{j}").touch()
            known[f"d{i}/{j}"] = tight.client.lookup(at, b"%d" % j).nodeid
        assert len(tight.descriptors()) <= 7
    assert len(set(known.values())) == 630 == lib.core_inode_count(tight.core) - 1
    for _ in range(2):
        for path, nodeid in known.items():
            assert tight.client.getattr(nodeid).attr.ino == (tight.root / path).stat().st_ino
            assert len(tight.descriptors()) <= 7
            directory, _, name = path.rpartition("/")
            parent = known[directory] if directory else ROOT
            assert tight.client.lookup(parent, name.encode()).nodeid == nodeid
        tight.restart()
    for nodeid in known.values():
        tight.client.forget(nodeid, 3)
    assert lib.core_inode_count(tight.core) == 1
    assert tight.descriptors() == set()
    assert not records(tight)


def test_what_is_used_stays(tight: Served) -> None:
    (tight.root / "hot").touch()
    hot = tight.client.lookup(ROOT, b"hot").nodeid
    for i in range(100):
        (tight.root / str(i)).touch()
        tight.client.lookup(ROOT, str(i).encode())
        tight.client.getattr(hot)
        assert hot not in closed(tight)


def test_a_pinned_inode_keeps_its_descriptor(tight: Served) -> None:
    (tight.root / "f").touch()
    nodeid = tight.client.lookup(ROOT, b"f").nodeid
    fd = lib.inode_get(tight.core, nodeid, ffi.NULL)
    crowd(tight)
    assert os.fstat(fd).st_ino == (tight.root / "f").stat().st_ino
    assert nodeid not in closed(tight)
    lib.inode_put(tight.core, nodeid)
    crowd(tight)
    assert nodeid in closed(tight)


@pytest.mark.parametrize("length", [1, 35, 36, 37, 108, 109, 180, 252, 253, 255])
def test_names_of_every_length(serve: Callable[..., Served], length: int) -> None:
    served = serve()
    served.limit(8)
    name = b"\xff" * length
    os.mkdir(os.fsencode(served.root) + b"/" + name)
    nodeid = served.client.lookup(ROOT, name).nodeid
    crowd(served)
    assert nodeid in closed(served)
    served.restart()
    assert nodeid in closed(served)
    assert served.client.getattr(nodeid).attr.ino == os.stat(os.fsencode(served.root) + b"/" + name).st_ino
    lib.core_reset(served.core)
    assert not records(served), "what a name needs goes with it"


def test_a_deep_path(tight: Served) -> None:
    at, path, chain = ROOT, tight.root, []
    for i in range(60):
        path = path / f"level{i}"
        path.mkdir()
        at = tight.client.lookup(at, path.name.encode()).nodeid
        chain.append(at)
    crowd(tight)
    for nodeid in (chain[-1], chain[30], chain[0]):
        tight.restart()
        assert tight.client.getattr(nodeid).attr.mode
        assert len(tight.descriptors()) <= 8
    # A kernel forgets what is below first. This guest does not.
    for nodeid in chain:
        tight.client.forget(nodeid)
    assert not set(chain) & {record[1] << 32 | slot for slot, record in records(tight).items()}


def test_moved_on_the_host(tight: Served, mode: str) -> None:
    (tight.root / "a").write_text("a")
    (tight.root / "d").mkdir()
    (tight.root / "d/b").write_text("bb")
    a, d = tight.client.lookup(ROOT, b"a").nodeid, tight.client.lookup(ROOT, b"d").nodeid
    b = tight.client.lookup(d, b"b").nodeid
    crowd(tight)
    assert closed(tight) >= {a, b, d}
    (tight.root / "a").rename(tight.root / "moved")
    (tight.root / "d").rename(tight.root / "e")
    if mode == "handles":
        assert tight.client.getattr(a).attr.size == 1
        assert tight.client.getattr(b).attr.size == 2
        assert tight.client.lookup(ROOT, b"moved").nodeid == a
    else:
        tight.client.getattr(a, expect=ESTALE)
        tight.client.getattr(b, expect=ESTALE)
        tight.client.lookup(d, b"b", expect=ESTALE)
        # Looked up anew it is the same inode, and has a descriptor again.
        assert tight.client.lookup(ROOT, b"moved").nodeid == a
        assert tight.client.lookup(ROOT, b"e").nodeid == d
    # What was moved while it was open is found where it is now.
    crowd(tight)
    assert tight.client.getattr(a).attr.size == 1
    assert tight.client.getattr(b).attr.size == 2


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "same"])
def test_replaced_on_the_host(tight: Served, kind: str) -> None:
    (tight.root / "f").write_text("old")
    old = tight.client.lookup(ROOT, b"f").nodeid
    crowd(tight)
    assert old in closed(tight)
    (tight.root / "f").unlink()
    if kind == "directory":
        (tight.root / "f").mkdir()
    elif kind == "symlink":
        (tight.root / "f").symlink_to("crowd")
    else:
        (tight.root / "f").write_text("new!" if kind == "file" else "old")
    tight.client.getattr(old, expect=ESTALE)
    new = tight.client.lookup(ROOT, b"f")
    assert new.nodeid != old
    tight.client.getattr(old, expect=ESTALE)
    assert tight.client.getattr(new.nodeid).attr.ino == (tight.root / "f").lstat().st_ino


def test_an_open_file_is_never_lost(tight: Served) -> None:
    (tight.root / "f").write_text("data")
    (tight.root / "gone").write_text("data")
    nodeid, gone = tight.client.lookup(ROOT, b"f").nodeid, tight.client.lookup(ROOT, b"gone").nodeid
    fh, gone_fh = tight.client.open(nodeid).fh, tight.client.open(gone).fh
    crowd(tight)
    (tight.root / "f").rename(tight.root / "moved")
    (tight.root / "f").write_text("another file")
    (tight.root / "gone").unlink()
    crowd(tight)
    for _ in range(2):
        assert tight.client.getattr(nodeid).attr.size == 4
        assert tight.client.getattr(gone).attr.nlink == 0
        assert tight.client.read(gone, gone_fh, 9) == tight.client.read(nodeid, fh, 9) == b"data"
        again = tight.client.open(nodeid).fh
        tight.client.release(nodeid, again)
        tight.restart()
        crowd(tight)


def test_an_unlinked_inode_keeps_its_descriptor(tight: Served) -> None:
    (tight.root / "f").write_text("data")
    nodeid = tight.client.lookup(ROOT, b"f").nodeid
    (tight.root / "f").unlink()
    crowd(tight)
    assert nodeid not in closed(tight)
    assert tight.client.getattr(nodeid).attr.nlink == 0


def test_hard_links(tight: Served) -> None:
    """A parent that the guest has forgotten is kept for the file that is found through it."""
    (tight.root / "a").mkdir()
    (tight.root / "b").mkdir()
    (tight.root / "a/f").write_text("data")
    os.link(tight.root / "a/f", tight.root / "b/f")
    a, b = tight.client.lookup(ROOT, b"a").nodeid, tight.client.lookup(ROOT, b"b").nodeid
    nodeid = tight.client.lookup(a, b"f").nodeid
    crowd(tight)
    tight.client.forget(a)
    assert tight.client.lookup(b, b"f").nodeid == nodeid
    tight.client.getattr(a, expect=ESTALE)
    for _ in range(2):
        assert tight.client.getattr(nodeid).attr.size == 4
        crowd(tight)
        tight.restart()
    tight.client.forget(nodeid, 2)
    tight.client.forget(b)
    lib.core_reset(tight.core)
    assert not records(tight)


def test_open_files_leave_room_for_inodes(tight: Served, serve: Callable[..., Served]) -> None:
    served = serve()
    served.limit(32)
    for i in range(40):
        (served.root / str(i)).touch()
    nodeids = [served.client.lookup(ROOT, str(i).encode()).nodeid for i in range(40)]
    opened = [served.client.open(nodeid).fh for nodeid in nodeids[:28]]
    served.client.open(nodeids[30], expect=ENFILE)
    served.client.create(ROOT, b"new", expect=ENFILE)
    assert not (served.root / "new").exists()
    for nodeid in nodeids:
        assert served.client.getattr(nodeid).attr.mode
    served.client.release(nodeids[0], opened[0])
    assert served.client.open(nodeids[30]).fh


def test_a_full_process_makes_room(serve: Callable[..., Served], mode: str) -> None:
    """EMFILE comes before the limit of the configuration: what else the process opens is not counted in it."""
    served = serve(core_flags=MODES[mode])
    for i in range(60):
        (served.root / str(i)).touch()
    with few_descriptors(10):
        nodeids = [served.client.lookup(ROOT, str(i).encode()).nodeid for i in range(60)]
        for nodeid in nodeids:
            assert served.client.getattr(nodeid).attr.mode
            served.client.release(nodeid, served.client.open(nodeid).fh)
        entry, opened = served.client.create(ROOT, b"new")
        served.client.flush(entry.nodeid, opened.fh)
        served.client.release(entry.nodeid, opened.fh)
        assert len(served.client.list(plus=True)) == 63


def test_threads_at_a_tight_table(tight: Served) -> None:
    for i in range(12):
        (tight.root / f"d{i}").mkdir()
        for j in range(4):
            (tight.root / f"d{i}/f{j}").write_text(f"{i}/{j}")
    failed: list[Exception] = []

    def work(seed: int) -> None:
        dice, client = random.Random(seed), tight.guest()
        try:
            for _ in range(300):
                i, j = dice.randrange(12), dice.randrange(4)
                directory = client.lookup(ROOT, b"d%d" % i)
                entry = client.lookup(directory.nodeid, b"f%d" % j)
                assert client.getattr(entry.nodeid).attr.ino == entry.attr.ino
                fh = client.open(entry.nodeid).fh
                assert client.read(entry.nodeid, fh, 9) == b"%d/%d" % (i, j)
                client.release(entry.nodeid, fh)
                if dice.randrange(3):
                    client.forget(entry.nodeid)
                    client.forget(directory.nodeid)
        except Exception as error:
            failed.append(error)

    tight.limit(20)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    lib.core_reset(tight.core)
    assert not records(tight)
    assert tight.descriptors() == set()


def test_a_share_of_many_files(serve: Callable[..., Served], mode: str) -> None:
    """VFSD_TEST_FILES sets how many: scripts/many-inodes does it through a real daemon."""
    count = int(os.environ.get("VFSD_TEST_FILES", "20000"))
    served = serve(core_flags=MODES[mode], records=count + 5000)
    served.limit(256)
    directory = served.root / "many"
    directory.mkdir()
    for i in range(count):
        os.mknod(directory / str(i))
    at = served.client.lookup(ROOT, b"many").nodeid
    nodeids = [served.client.lookup(at, str(i).encode()).nodeid for i in range(count)]
    assert len(set(nodeids)) == count
    assert len(served.descriptors()) <= 256
    for i in range(0, count, 97):
        assert served.client.getattr(nodeids[i]).attr.ino == (directory / str(i)).stat().st_ino


def test_the_directory_of_a_mount(tmp_path: Path) -> None:
    """Nothing is left of a mount that the guest has forgotten: it can be unmounted on the host."""
    from vfsd._process import lib as process

    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    if process.process_mount(b"none", os.fsencode(root / "sub"), b"tmpfs", 0, b"size=1m") < 0:
        pytest.skip("not allowed to mount")
    served = Served(root, core_flags=lib.CORE_FILE_HANDLES)
    try:
        served.limit(8)
        sub = served.client.lookup(ROOT, b"sub").nodeid
        known = []
        for i in range(50):
            (root / "sub" / str(i)).touch()
            known.append(served.client.lookup(sub, b"%d" % i).nodeid)
        crowd(served)
        for nodeid in known:
            assert served.client.getattr(nodeid).attr.mode
        assert process.process_umount(os.fsencode(root / "sub"), 0) == -16  # EBUSY
        served.restart()
        for nodeid in (sub, *known):
            assert served.client.getattr(nodeid).attr.mode
            served.client.forget(nodeid)
        assert process.process_umount(os.fsencode(root / "sub"), 0) == 0
    finally:
        process.process_umount(os.fsencode(root / "sub"), 2)
        served.close()

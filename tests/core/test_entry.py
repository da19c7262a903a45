"""LOOKUP, FORGET, BATCH_FORGET, GETATTR: names, attributes, and the life of a nodeid."""

import itertools
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from errno import EBADF, ENOENT, ENOMEM, ENOTDIR, EPERM, ESTALE
from pathlib import Path

import pytest

from tests.core.served import REAL_ROOT, Served, records
from tests.fuseclient import ROOT, FuseClient
from vfsd._fuse import ffi, lib
from vfsd._process import lib as process


def assert_attr(attr: object, host: os.stat_result) -> None:
    for field in ("ino", "size", "blocks", "mode", "nlink", "uid", "gid", "blksize"):
        assert getattr(attr, field) == getattr(host, f"st_{field}"), field
    for field in ("atime", "mtime", "ctime"):
        nsec = getattr(attr, field) * 1_000_000_000 + getattr(attr, f"{field}nsec")
        assert nsec == getattr(host, f"st_{field}_ns"), field


def test_lookup_tells_what_stat_tells(root: Path, client: FuseClient) -> None:
    (root / "f").write_bytes(b"hello")
    os.utime(root / "f", ns=(1_111_111_111, 2_222_222_222))
    entry = client.lookup(ROOT, b"f")
    assert_attr(entry.attr, os.stat(root / "f"))
    assert (entry.entry_valid, entry.entry_valid_nsec) == (1, 5)
    assert (entry.attr_valid, entry.attr_valid_nsec) == (2, 7)
    assert entry.attr.flags == 0


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6644])
def test_set_id_bits_are_not_kept(root: Path, client: FuseClient, mode: int) -> None:
    """What takes them away leaves the guest's copy of the mode as it is, so it has none."""
    (root / "f").touch()
    (root / "f").chmod(mode)
    entry = client.lookup(ROOT, b"f")
    assert stat.S_IMODE(entry.attr.mode) == mode
    assert (entry.entry_valid, entry.attr_valid, entry.attr_valid_nsec) == (1, 0, 0)
    (root / "d").mkdir()
    (root / "d").chmod(0o2755)
    entry = client.lookup(ROOT, b"d")
    assert (entry.attr_valid, entry.attr_valid_nsec) == (2, 7)


def test_lookup_does_not_follow_a_symlink(root: Path, client: FuseClient) -> None:
    (root / "l").symlink_to("/etc")
    entry = client.lookup(ROOT, b"l")
    assert stat.S_ISLNK(entry.attr.mode)
    client.lookup(entry.nodeid, b"passwd", expect=ENOTDIR)


def test_lookup_of_every_type(root: Path, client: FuseClient) -> None:
    os.mkfifo(root / "fifo")
    (root / "dir").mkdir()
    assert stat.S_ISFIFO(client.lookup(ROOT, b"fifo").attr.mode)
    assert stat.S_ISDIR(client.lookup(ROOT, b"dir").attr.mode)


@pytest.mark.skipif(not REAL_ROOT, reason="only root can make a device")
def test_device_numbers(root: Path, client: FuseClient) -> None:
    os.mknod(root / "dev", stat.S_IFCHR | 0o600, os.makedev(0x123, 0x45678))
    rdev = client.lookup(ROOT, b"dev").attr.rdev
    # The kernel's new_encode_dev.
    assert rdev == (0x78 | 0x123 << 8 | 0x45600 << 12)


def test_missing_name(client: FuseClient) -> None:
    client.lookup(ROOT, b"missing", expect=ENOENT)


def test_names_of_any_bytes(root: Path, client: FuseClient) -> None:
    for name in (b"\xff\xfe", b" ", b"\n", b"...", b"a" * 255, b"-rf"):
        (root / os.fsdecode(name)).touch()
        assert client.lookup(ROOT, name).nodeid > ROOT


def test_one_host_inode_is_one_nodeid(root: Path, client: FuseClient) -> None:
    (root / "a").touch()
    os.link(root / "a", root / "b")
    assert client.lookup(ROOT, b"a").nodeid == client.lookup(ROOT, b"b").nodeid


def test_forget_counts(served: Served, root: Path, client: FuseClient) -> None:
    (root / "f").touch()
    nodeid = client.lookup(ROOT, b"f").nodeid
    client.lookup(ROOT, b"f")
    client.forget(nodeid, 1)
    assert client.getattr(nodeid).attr.mode
    client.forget(nodeid, 1)
    client.getattr(nodeid, expect=ESTALE)
    assert served.descriptors() == set()


def test_forget_of_too_many_saturates(root: Path, client: FuseClient) -> None:
    (root / "f").touch()
    nodeid = client.lookup(ROOT, b"f").nodeid
    client.forget(nodeid, 2**64 - 1)
    client.forget(nodeid, 2**64 - 1)
    again = client.lookup(ROOT, b"f").nodeid
    assert again != nodeid
    client.getattr(nodeid, expect=ESTALE)
    assert client.getattr(again).attr.mode


def test_the_root_is_never_forgotten(client: FuseClient) -> None:
    client.forget(ROOT, 2**64 - 1)
    assert stat.S_ISDIR(client.getattr(ROOT).attr.mode)


def test_batch_forget(root: Path, served: Served, client: FuseClient) -> None:
    nodeids = []
    for i in range(20):
        (root / str(i)).touch()
        nodeids.append(client.lookup(ROOT, str(i).encode()).nodeid)
    client.batch_forget([(nodeid, 1) for nodeid in nodeids] + [(99 << 32 | 3, 1), (0, 1)])
    assert served.descriptors() == set()
    for nodeid in nodeids:
        client.getattr(nodeid, expect=ESTALE)


@pytest.mark.parametrize("nodeid", [0, 2, 3, 4095, 4096, 2**32 - 1, 1 << 32 | 1, 7 << 32 | 2, 2**64 - 1])
def test_invented_nodeids(client: FuseClient, nodeid: int) -> None:
    client.getattr(nodeid, expect=ESTALE)
    client.lookup(nodeid, b"f", expect=ESTALE)
    client.forget(nodeid)


def test_a_new_file_with_an_old_name_is_another_nodeid(root: Path, client: FuseClient) -> None:
    (root / "f").touch()
    old = client.lookup(ROOT, b"f")
    (root / "f").unlink()
    (root / "f").mkdir()
    new = client.lookup(ROOT, b"f")
    assert new.nodeid != old.nodeid
    assert stat.S_ISREG(client.getattr(old.nodeid).attr.mode)
    assert client.getattr(old.nodeid).attr.nlink == 0


def test_nodeid_follows_a_rename_on_the_host(root: Path, client: FuseClient) -> None:
    (root / "a").touch()
    (root / "d").mkdir()
    nodeid = client.lookup(ROOT, b"a").nodeid
    (root / "a").rename(root / "d" / "b")
    assert client.walk(b"d/b").nodeid == nodeid


def test_names_that_change_under_a_lookup(root: Path, served: Served, client: FuseClient) -> None:
    """Another guest swaps a directory and a symlink: a nodeid keeps its type, and no lookup follows the link."""
    (root / "d").mkdir()
    (root / "l").symlink_to("/etc")
    other = served.guest()
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            other.rename2(ROOT, b"d", ROOT, b"l", 2)  # RENAME_EXCHANGE

    thread = threading.Thread(target=swap)
    thread.start()
    types: dict[int, int] = {}
    for number in itertools.count():
        if number >= 2000 and len(types) > 1:
            break
        entry = client.lookup(ROOT, b"d")
        kind = stat.S_IFMT(entry.attr.mode)
        assert types.setdefault(entry.nodeid, kind) == kind
        assert stat.S_IFMT(client.getattr(entry.nodeid).attr.mode) == kind
        client.lookup(entry.nodeid, b"passwd", expect=ENOENT if kind == stat.S_IFDIR else ENOTDIR)
        client.forget(entry.nodeid)
    stop.set()
    thread.join()
    assert set(types.values()) == {stat.S_IFDIR, stat.S_IFLNK}


@pytest.fixture
def submount(tmp_path: Path) -> Iterator[Path]:
    """A directory of the share that is a mount of its own."""
    path = tmp_path / "root" / "sub"
    path.mkdir(parents=True)
    error = process.process_mount(b"none", os.fsencode(path), b"tmpfs", 0, b"size=64k")
    if error == -EPERM:
        pytest.skip("not allowed to mount")
    assert error == 0
    yield path
    assert process.process_umount(os.fsencode(path), 2) == 0  # MNT_DETACH: the core holds descriptors there


@pytest.mark.parametrize("announce", [True, False])
@pytest.mark.parametrize("agreed", [True, False])
def test_submounts(submount: Path, serve: Callable[..., Served], announce: bool, agreed: bool) -> None:
    served = serve(
        core_flags=lib.CORE_ANNOUNCE_SUBMOUNTS if announce else 0, session_flags=lib.FUSE_SUBMOUNTS if agreed else 0
    )
    (submount / "dir").mkdir()
    (submount / "file").touch()
    (served.root / "plain").mkdir()
    client, flag = served.client, lib.FUSE_ATTR_SUBMOUNT if announce and agreed else 0
    sub = client.lookup(ROOT, b"sub")
    assert sub.attr.flags == flag
    assert client.lookup(ROOT, b"sub").attr.flags == flag
    assert client.lookup(ROOT, b"plain").attr.flags == 0
    assert client.lookup(sub.nodeid, b"dir").attr.flags == 0
    assert client.lookup(sub.nodeid, b"file").attr.flags == 0
    assert {e.name: e.entry.attr.flags for e in client.list(plus=True)}[b"sub"] == flag
    assert all(e.entry.attr.flags == 0 for e in client.list(sub.nodeid, plus=True))


def test_getattr_by_handle(root: Path, client: FuseClient) -> None:
    (root / "f").write_bytes(b"12345")
    nodeid = client.lookup(ROOT, b"f").nodeid
    fh = client.open(nodeid).fh
    assert client.getattr(nodeid, fh).attr.size == 5
    client.release(nodeid, fh)
    client.getattr(nodeid, fh, expect=EBADF)
    assert client.getattr(nodeid).attr.size == 5


def test_a_full_table_is_enomem_and_can_be_emptied(serve: Callable[..., Served]) -> None:
    served = serve(records=6)
    client = served.client
    nodeids = []
    for i in range(4):
        (served.root / str(i)).touch()
        nodeids.append(client.lookup(ROOT, str(i).encode()).nodeid)
    (served.root / "one more").touch()
    client.lookup(ROOT, b"one more", expect=ENOMEM)
    client.forget(nodeids[2])
    assert client.lookup(ROOT, b"one more").nodeid & 0xFFFFFFFF == nodeids[2] & 0xFFFFFFFF


def test_many_inodes(serve: Callable[..., Served]) -> None:
    served = serve()
    for i in range(3000):
        (served.root / str(i)).touch()
    seen = {served.client.lookup(ROOT, str(i).encode()).nodeid for i in range(3000)}
    assert len(seen) == 3000
    assert {served.client.lookup(ROOT, str(i).encode()).nodeid for i in range(3000)} == seen


def test_a_forget_replayed_counts_once(served: Served, root: Path, client: FuseClient) -> None:
    (root / "f").touch()
    nodeid = client.lookup(ROOT, b"f").nodeid
    for _ in range(5):
        client.lookup(ROOT, b"f")
    client.forget(nodeid)
    served.again().forget(nodeid)
    client.batch_forget([(nodeid, 1), (nodeid, 1)])
    served.again().batch_forget([(nodeid, 1), (nodeid, 1)])
    assert [record[6] for record in records(served).values()] == [3]
    served.memo.steps = 1
    served.again().batch_forget([(nodeid, 1), (nodeid, 1)])
    assert [record[6] for record in records(served).values()] == [2]


def test_a_lookup_served_twice_counts_once(served: Served, root: Path, client: FuseClient) -> None:
    for name in ("f", "g"):
        (root / name).touch()
    client.lookup(ROOT, b"f")
    for again in (served.again(), served.again()):
        again.lookup(ROOT, b"f")
    assert [record[6] for record in records(served).values()] == [1]
    client.lookup(ROOT, b"f")
    (root / "f").unlink()
    served.again().lookup(ROOT, b"f", expect=ENOENT)
    assert [record[6] for record in records(served).values()] == [1]


def test_a_listing_served_twice_counts_once(served: Served, root: Path, client: FuseClient) -> None:
    for number in range(300):
        (root / str(number)).touch()
    fh = client.opendir(ROOT).fh
    entries = client.readdirplus(ROOT, fh, size=1 << 16)
    assert len(entries) > 200
    for name in ("17", "170"):
        (root / name).unlink()
    left = served.again().readdirplus(ROOT, fh, size=1 << 16)
    assert sorted(record[6] for record in records(served).values()) == [1] * len([e for e in left if e.entry.nodeid])


def test_nothing_outlives_an_unmount(served: Served, root: Path, client: FuseClient) -> None:
    """A request that was let in before DESTROY, and gets to the tables after it."""
    (root / "f").touch()
    out = ffi.new("struct fuse_entry_out *")
    served.session.mounted = 0
    lib.core_reset(served.core)
    with open(root / "f") as file:
        assert lib.entry_from_fd(served.core, file.fileno(), out) < 0
    assert served.descriptors() == set()


@pytest.mark.skipif(not REAL_ROOT, reason="only root can mount")
def test_a_copy_up_leaves_the_nodeid(tmp_path: Path) -> None:
    """On overlayfs the birth time of a file changes when it is first opened for writing."""
    layers = tmp_path / "layers"
    layers.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", layers], check=True)
    try:
        lower, upper, work, merged = (layers / name for name in ("lower", "upper", "work", "merged"))
        for directory in (lower, upper, work, merged):
            directory.mkdir()
        (lower / "f").write_bytes(b"below")
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
        served = Served(merged)
        client = served.client
        nodeid = client.lookup(ROOT, b"f").nodeid
        fh = client.open(nodeid, os.O_RDWR).fh
        client.write(nodeid, fh, b"above")
        assert client.lookup(ROOT, b"f").nodeid == nodeid
        client.lookup(ROOT, b"f")
        os.chmod(merged / "f", 0o600)
        served.restart()
        assert client.read(nodeid, fh, 5) == b"above"
        assert client.getattr(nodeid).attr.size == 5
        served.close()
    finally:
        subprocess.run(["umount", "-R", "-l", layers], check=True)


@pytest.mark.skipif(not REAL_ROOT, reason="only root can mount")
def test_one_inode_on_two_mounts(serve: Callable[..., Served]) -> None:
    """A bind mount has the device of what it binds; its own number tells it apart."""
    served = serve(core_flags=lib.CORE_ANNOUNCE_SUBMOUNTS, session_flags=lib.FUSE_SUBMOUNTS)
    client = served.client
    for name in ("tree", "bind"):
        (served.root / name).mkdir()
    (served.root / "tree/f").write_text("data")
    subprocess.run(["mount", "--bind", served.root / "tree", served.root / "bind"], check=True)
    try:
        tree, bind = client.lookup(ROOT, b"tree"), client.lookup(ROOT, b"bind")
        assert tree.attr.ino == bind.attr.ino and tree.nodeid != bind.nodeid
        assert (tree.attr.flags, bind.attr.flags) == (0, lib.FUSE_ATTR_SUBMOUNT)
        one, other = client.lookup(tree.nodeid, b"f"), client.lookup(bind.nodeid, b"f")
        assert one.attr.ino == other.attr.ino and one.nodeid != other.nodeid
        assert client.getattr(one.nodeid).attr.ino == client.getattr(other.nodeid).attr.ino
        fh = client.open(one.nodeid, os.O_RDWR).fh
        client.write(one.nodeid, fh, b"changed")
        client.release(one.nodeid, fh)
        assert client.getattr(other.nodeid).attr.size == 7
        served.restart()
        assert client.lookup(ROOT, b"bind").nodeid == bind.nodeid
        for entry in client.list(plus=True):
            if entry.name == b"bind":
                assert (entry.entry.nodeid, entry.entry.attr.flags) == (bind.nodeid, lib.FUSE_ATTR_SUBMOUNT)
    finally:
        subprocess.run(["umount", "-l", served.root / "bind"], check=True)
    below = client.lookup(ROOT, b"bind")
    assert below.nodeid not in (bind.nodeid, tree.nodeid) and below.attr.flags == 0
    assert client.getattr(other.nodeid).attr.size == 7, "what the guest holds of a detached mount goes on"


@pytest.mark.skipif(not REAL_ROOT, reason="only root can mount")
def test_a_mount_that_comes_and_goes(serve: Callable[..., Served]) -> None:
    served = serve(core_flags=lib.CORE_ANNOUNCE_SUBMOUNTS, session_flags=lib.FUSE_SUBMOUNTS)
    client, sub = served.client, served.root / "sub"
    sub.mkdir()
    nodeids = [client.lookup(ROOT, b"sub").nodeid]
    for _ in range(3):
        subprocess.run(["mount", "-t", "tmpfs", "none", sub], check=True)
        (sub / "f").touch()
        mounted = client.lookup(ROOT, b"sub")
        file = client.lookup(mounted.nodeid, b"f")
        assert mounted.nodeid not in nodeids and mounted.attr.flags == lib.FUSE_ATTR_SUBMOUNT
        nodeids.append(mounted.nodeid)
        assert subprocess.run(["umount", sub], capture_output=True).returncode, "the guest holds it"
        client.forget(file.nodeid)
        client.forget(mounted.nodeid)
        subprocess.run(["umount", sub], check=True)
        assert client.lookup(ROOT, b"sub").nodeid == nodeids[0]

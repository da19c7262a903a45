"""A guest that moves from one daemon to another, and what becomes of all it has open."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.core.served import REAL_ROOT
from tests.daemon.daemon import Daemon, guest, kinds, open_files, settled_files, until
from tests.daemon.moving import Journey, load, move, save
from tests.disk import ext4, forget_names
from tests.fuseclient import ROOT
from vfsd._fuse import lib

Daemons = Callable[..., Daemon]


def test_all_that_is_open_goes_along(daemons: Daemons, share: Path) -> None:
    (share / "deep/er").mkdir(parents=True)
    (share / "deep/er/file").write_bytes(b"0123456789")
    os.symlink("deep/er", share / "link")
    os.mkfifo(share / "fifo")
    for number in range(40):
        (share / "deep" / str(number)).touch()
    source, target = daemons(), daemons()
    with guest(source, init=False) as (frontend, client):
        client.init(flags=lib.FUSE_ASYNC_READ | lib.FUSE_SUBMOUNTS | lib.FUSE_HANDLE_KILLPRIV_V2)
        deep = client.lookup(ROOT, b"deep").nodeid
        deeper = client.lookup(deep, b"er").nodeid
        file = client.lookup(deeper, b"file").nodeid
        others = {name: client.lookup(ROOT, name).nodeid for name in (b"link", b"fifo", b"hello")}
        reading, writing = client.open(file).fh, client.open(file, os.O_WRONLY | os.O_APPEND).fh
        listing = client.opendir(deep).fh
        seen = client.readdir(deep, listing, size=512)
        attributes = {nodeid: client.getattr(nodeid).attr.ino for nodeid in (deep, deeper, file, *others.values())}

        move(frontend, target)
        assert source.wait() == 0

        for nodeid, ino in attributes.items():
            assert client.getattr(nodeid).attr.ino == ino
        assert stat.S_ISFIFO(client.getattr(others[b"fifo"]).attr.mode)
        assert client.readlink(others[b"link"]) == b"deep/er"
        assert client.lookup(deeper, b"file").nodeid == file
        assert client.read(file, reading, 4, 3) == b"3456"
        client.write(file, writing, b"end", 0, flags=os.O_APPEND)
        assert (share / "deep/er/file").read_bytes() == b"0123456789end"
        client.write(file, reading, b"x", expect=errno.EBADF)
        while more := client.readdir(deep, listing, seen[-1].off, size=512):
            seen += more
        assert sorted(entry.name for entry in seen) == sorted([b".", b"..", b"er", *(b"%d" % n for n in range(40))])

        # What it makes anew gets ids it never had.
        made, opened = client.create(ROOT, b"new")
        assert made.nodeid not in attributes and opened.fh not in (reading, writing, listing)
        for fh in (reading, writing, listing, opened.fh):
            client.releasedir(ROOT, fh)
        client.forget(file, 2)
        client.getattr(file, expect=errno.ESTALE)
    assert "ERROR" not in source.log + target.log and "WARNING" not in target.log


def test_a_listing_that_is_at_its_end(daemons: Daemons, share: Path) -> None:
    """The next request is for nothing more, and the one after for everything again."""
    (share / "many").mkdir()
    for number in range(300):
        (share / "many" / str(number)).touch()
    source, target = daemons(), daemons()
    with guest(source) as (frontend, client):
        many = client.lookup(ROOT, b"many").nodeid
        fh, end = client.opendir(many).fh, 0
        while more := client.readdir(many, fh, end):
            end = more[-1].off
        move(frontend, target)
        assert client.readdir(many, fh, end) == []
        assert client.readdir(many, fh, 0)


def test_there_and_back(daemons: Daemons, share: Path) -> None:
    """A second migration in a row is as good as the first, and none leaves anything behind."""
    first = daemons("--keep-listening")
    with guest(first) as (frontend, client):
        file = client.lookup(ROOT, b"hello").nodeid
        client.lookup(ROOT, b"hello")
        fh = client.open(file).fh
        before = kinds(settled_files(first))
        hosts = [daemons("--keep-listening"), first]
        for turn in range(6):
            move(frontend, hosts[turn % 2])
            assert client.read(file, fh, 100) == b"hi there\n"
            until(lambda turn=turn: hosts[1 - turn % 2].log.count("Client disconnected") > turn // 2)
        assert sorted(kinds(settled_files(first))) == sorted(before)
        client.forget(file)
        assert client.getattr(file).attr.size == 9
        client.forget(file)
        client.getattr(file, expect=errno.ESTALE)
    assert "ERROR" not in first.log


def test_a_guest_that_has_not_mounted(daemons: Daemons) -> None:
    source, target = daemons(), daemons()
    with guest(source, init=False) as (frontend, client):
        move(frontend, target)
        client.init()
        assert client.lookup(ROOT, b"hello").attr.size == 9


@pytest.mark.parametrize("sandbox", ["namespace", "chroot"])
@pytest.mark.parametrize("mode", ["find-paths", "file-handles"])
def test_in_a_sandbox(daemons: Daemons, share: Path, sandbox: str, mode: str) -> None:
    """A daemon can't name its files as the host does. Paths begin at the share's root, wherever that is."""
    if (sandbox == "chroot" or mode == "file-handles") and not REAL_ROOT:
        pytest.skip("root only")
    (share / "sub").mkdir()
    (share / "sub/file").write_bytes(b"in there")
    (share / "beyond").mkdir()
    source, target = daemons(f"--sandbox={sandbox}", f"--migration-mode={mode}"), daemons("--sandbox=namespace")
    with guest(source) as (frontend, client):
        nodeid = client.walk(b"sub/file").nodeid
        fh = client.open(nodeid).fh
        (share / "sub/file").rename(share / "beyond/file")
        move(frontend, target)
        assert client.read(nodeid, fh, 100) == b"in there"
        assert client.getattr(nodeid).attr.ino == (share / "beyond/file").stat().st_ino


def test_more_inodes_than_descriptors(daemons: Daemons, share: Path) -> None:
    for number in range(1000):
        (share / str(number)).touch()
    source, target = daemons("--rlimit-nofile=400"), daemons("--rlimit-nofile=300")
    with guest(source) as (frontend, client):
        known = [client.lookup(ROOT, b"%d" % number).nodeid for number in range(1000)]
        fh = client.open(known[500]).fh
        move(frontend, target)
        for number, nodeid in enumerate(known):
            assert client.getattr(nodeid).attr.ino == (share / str(number)).stat().st_ino
        assert client.read(known[500], fh, 1) == b""
        assert len(open_files(target.control)) < 300


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A directory to share, on an ext4 of its own."""
    with ext4(tmp_path) as path:
        yield path


@pytest.mark.skipif(not REAL_ROOT, reason="a file handle is opened by root only")
def test_names_that_the_host_has_forgotten(disk: Path, daemons: Daemons) -> None:
    """Of files without a descriptor, since its memory was short."""
    source = daemons("--rlimit-nofile=400", directory=disk)
    target = daemons("--rlimit-nofile=300", directory=disk)
    known = {}
    with guest(source) as (frontend, client):
        for directory in range(10):
            (disk / str(directory)).mkdir()
            at = client.lookup(ROOT, b"%d" % directory).nodeid
            for number in range(100):
                path = disk / str(directory) / str(number)
                path.touch()
                known[path] = client.lookup(at, b"%d" % number).nodeid
        forget_names(disk)
        move(frontend, target)
        for path, nodeid in known.items():
            assert client.getattr(nodeid).attr.ino == path.stat().st_ino


def test_unlinked_files_are_refused(daemons: Daemons, share: Path) -> None:
    """There is no path to one. The guest goes on where it was, and has it still."""
    source, target = daemons(), daemons()
    with guest(source) as (frontend, client):
        made, opened = client.create(ROOT, b"passing")
        client.write(made.nodeid, opened.fh, b"contents")
        client.unlink(ROOT, b"passing")
        journey = Journey(frontend)
        source.logged("passing (deleted) (No such file or directory)")
        assert not journey.arrive(target)
        target.logged("passing (deleted) (No such file or directory)")
        target.logged("ERROR vfsd.migration] the guest's state can't be loaded: some of what the guest uses")
        journey.turn_back()
        assert client.read(made.nodeid, opened.fh, 100) == b"contents"
        assert client.create(ROOT, b"another")[0].nodeid


def test_unlinked_files_become_errors(daemons: Daemons, share: Path) -> None:
    source, target = daemons(), daemons("--migration-on-error=guest-error")
    with guest(source) as (frontend, client):
        made, opened = client.create(ROOT, b"passing")
        client.unlink(ROOT, b"passing")
        hello = client.lookup(ROOT, b"hello").nodeid
        move(frontend, target)
        client.getattr(made.nodeid, expect=errno.ESTALE)
        client.read(made.nodeid, opened.fh, 1, expect=errno.EBADF)
        client.forget(made.nodeid)
        assert client.getattr(hello).attr.size == 9
        assert "2 inodes, open files or locks are missing" in target.log


@pytest.mark.skipif(not REAL_ROOT, reason="a file handle is opened by root only")
def test_unlinked_files_by_handle(daemons: Daemons, share: Path) -> None:
    source, target = daemons("--migration-mode=file-handles"), daemons()
    with guest(source) as (frontend, client):
        made, opened = client.create(ROOT, b"passing")
        client.write(made.nodeid, opened.fh, b"contents")
        client.unlink(ROOT, b"passing")
        move(frontend, target)
        assert client.read(made.nodeid, opened.fh, 100) == b"contents"
        client.write(made.nodeid, opened.fh, b"!", 8)
        assert client.getattr(made.nodeid).attr.size == 9


def test_another_directory(daemons: Daemons, share: Path, tmp_path: Path) -> None:
    """A share that lacks the guest's files refuses it, and says which."""
    empty = tmp_path / "empty"
    empty.mkdir()
    source, target = daemons(), daemons(directory=empty)
    with guest(source) as (frontend, client):
        hello = client.lookup(ROOT, b"hello").nodeid
        fh = client.open(hello).fh
        journey = Journey(frontend)
        assert not journey.arrive(target)
        assert f"not found: {empty}/hello (No such file or directory)" in target.log
        journey.turn_back()
        assert client.read(hello, fh, 100) == b"hi there\n"


@pytest.mark.parametrize("verify", [False, True])
def test_a_copy(daemons: Daemons, share: Path, tmp_path: Path, verify: bool) -> None:
    """Will do, unless file handles are compared."""
    copy = tmp_path / "copy"
    shutil.copytree(share, copy)
    source = daemons(*["--migration-verify-handles"] * verify)
    target = daemons(directory=copy)
    with guest(source) as (frontend, client):
        hello = client.lookup(ROOT, b"hello").nodeid
        fh = client.open(hello, os.O_RDWR).fh
        journey = Journey(frontend)
        assert journey.arrive(target) != verify
        if verify:
            assert f"not found: {copy}/hello (Stale file handle)" in target.log
            return
        journey.go_on()
        client.write(hello, fh, b"HI")
        assert (copy / "hello").read_bytes() == b"HI there\n" != (share / "hello").read_bytes()


def test_verified_on_the_same_directory(daemons: Daemons, share: Path) -> None:
    source, target = daemons("--migration-verify-handles", "--migration-confirm-paths"), daemons()
    with guest(source) as (frontend, client):
        hello = client.lookup(ROOT, b"hello").nodeid
        move(frontend, target)
        assert client.getattr(hello).attr.size == 9


DIFFERENT = {
    "--writeback": ("--writeback", ""),
    "--killpriv-v2": ("", "--no-killpriv-v2"),
    "--posix-lock, --flock": ("", "--no-posix-lock --no-flock"),
    "--announce-submounts": ("", "--no-announce-submounts"),
}


@pytest.mark.parametrize("named", DIFFERENT)
def test_options_that_a_mount_depends_on(daemons: Daemons, named: str) -> None:
    here, there = DIFFERENT[named]
    source, target = daemons(*here.split()), daemons(*there.split())
    with guest(source, init=False) as (frontend, client):
        client.init(minor=45, flags=(1 << 64) - 1)
        journey = Journey(frontend)
        assert not journey.arrive(target)
        assert f"not set to: give both the same {named}\n" in target.log
        journey.turn_back()
        client.lookup(ROOT, b"hello")


def test_a_running_guest_is_not_moved(daemons: Daemons) -> None:
    daemon = daemons()
    with guest(daemon) as (frontend, client):
        with pytest.raises(AssertionError, match="refused"):
            save(frontend)
        assert "ring 0 runs: a device's state is moved while its rings are stopped" in daemon.log
        client.lookup(ROOT, b"hello")
        frontend.stop()
        with pytest.raises(AssertionError, match="refused"):
            frontend.start_ring(frontend.rings[0])
            load(frontend, b"")

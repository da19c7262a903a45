"""OPENDIR, READDIR, READDIRPLUS, RELEASEDIR."""

import os
import stat
import threading
from errno import EINVAL, EISDIR, ENOTDIR
from pathlib import Path

import pytest

from tests.core.served import Served
from tests.fuseclient import ROOT, FuseClient

NAMES = [b"f%03d" % i + b"x" * (i % 200) for i in range(300)]


@pytest.fixture
def full(root: Path) -> Path:
    for name in NAMES:
        (root / os.fsdecode(name)).touch()
    return root


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [512, 4096, 32768, 1 << 20, 0xFFFFFFFF])
def test_every_entry_once(full: Path, client: FuseClient, size: int, plus: bool) -> None:
    size = min(size, 1 << 20)
    found = client.list(size=size, plus=plus)
    assert sorted(entry.name for entry in found) == sorted([b".", b"..", *NAMES])
    for entry in found:
        assert entry.type == (stat.S_IFDIR if entry.name in (b".", b"..") else stat.S_IFREG) >> 12
        assert entry.ino


def test_plus_raises_nlookup_of_what_it_gives(full: Path, served: Served, client: FuseClient) -> None:
    found = client.list(plus=True)
    for entry in found:
        if entry.name in (b".", b".."):
            assert entry.entry.nodeid == 0
        else:
            assert entry.entry.attr.ino == entry.ino
            assert client.getattr(entry.entry.nodeid).attr.ino == entry.ino
            client.forget(entry.entry.nodeid)
    assert served.descriptors() == set()


def test_plus_and_lookup_agree(full: Path, client: FuseClient) -> None:
    for entry in client.list(plus=True)[:20]:
        if entry.entry.nodeid:
            assert client.lookup(ROOT, entry.name).nodeid == entry.entry.nodeid


def test_reading_goes_on_from_any_offset(full: Path, client: FuseClient) -> None:
    fh = client.opendir(ROOT).fh
    everything = client.list(size=1 << 20)
    for at in (0, 1, 57, 200):
        rest = client.readdir(ROOT, fh, everything[at].off, 1 << 16)
        assert rest[0].name == everything[at + 1].name
    assert client.readdir(ROOT, fh, everything[-1].off) == []


def position(directory: Path) -> int:
    """Of the one handle that is open for reading it, in the host."""
    for link in Path("/proc/self/fd").iterdir():
        if link.exists() and link.samefile(directory):
            info = dict(line.split(":") for line in Path(f"/proc/self/fdinfo/{link.name}").read_text().splitlines())
            if not int(info["flags"], 8) & os.O_PATH:
                return int(info["pos"])
    raise AssertionError("there is none")


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("size", [1024, 4096, 32768])
def test_no_entry_is_read_twice(root: Path, client: FuseClient, size: int, plus: bool) -> None:
    """ext4 sorts a block of a large directory anew for who goes back."""
    for number in range(300):
        (root / (f"{number}" * (1 + number % 5))).touch()
    fh, offset = client.opendir(ROOT).fh, 0
    read = client.readdirplus if plus else client.readdir
    while some := read(ROOT, fh, offset, size):
        offset = some[-1].off
        assert position(root) == offset


@pytest.mark.parametrize("plus", [False, True])
def test_replies_are_full(root: Path, client: FuseClient, plus: bool) -> None:
    for number in range(300):
        (root / f"a-name-{number:04}").touch()
    read, length = (client.readdirplus, 168) if plus else (client.readdir, 40)
    some = read(ROOT, client.opendir(ROOT).fh, 0, 4096)
    assert len(some) * length > 4096 * 7 / 8


def test_a_reply_too_small_for_one_entry(root: Path, client: FuseClient) -> None:
    (root / ("n" * 255)).touch()
    fh = client.opendir(ROOT).fh
    for size in (0, 1, 23, 24, 31):
        client.readdir(ROOT, fh, 0, size, expect=EINVAL)
    client.readdirplus(ROOT, fh, 0, 100, expect=EINVAL)
    assert [len(entry.name) for entry in client.list(size=280)] and client.list(size=408, plus=True)


@pytest.mark.parametrize("offset", [2**63, 2**64 - 1])
def test_hostile_offsets(full: Path, client: FuseClient, offset: int) -> None:
    client.readdir(ROOT, client.opendir(ROOT).fh, offset, expect=EINVAL)


def test_odd_offsets_do_no_harm(full: Path, client: FuseClient) -> None:
    fh = client.opendir(ROOT).fh
    for offset in (3, 12345, 2**31, 2**62, 2**63 - 1):
        try:
            client.readdir(ROOT, fh, offset)
        except OSError as error:
            assert error.errno in (EINVAL, ENOTDIR)


def test_what_is_no_directory(root: Path, client: FuseClient) -> None:
    (root / "f").touch()
    os.mkfifo(root / "p")
    nodeid = client.lookup(ROOT, b"f").nodeid
    client.opendir(nodeid, expect=ENOTDIR)
    client.opendir(client.lookup(ROOT, b"p").nodeid, expect=ENOTDIR)
    client.readdir(nodeid, client.open(nodeid).fh, expect=ENOTDIR)


def test_open_of_a_directory(root: Path, client: FuseClient) -> None:
    (root / "d").mkdir()
    nodeid = client.lookup(ROOT, b"d").nodeid
    fh = client.open(nodeid).fh
    assert len(client.readdir(nodeid, fh)) == 2
    client.read(nodeid, fh, 10, expect=EISDIR)
    client.open(nodeid, os.O_RDWR, expect=EISDIR)


def test_an_entry_that_went_is_still_a_dirent(root: Path, client: FuseClient) -> None:
    """The directory a handle reads is emptied while its entries are given."""
    for i in range(2000):
        (root / str(i)).touch()
    fh = client.opendir(ROOT).fh
    stop = threading.Event()

    def remove() -> None:
        for i in range(2000):
            (root / str(i)).unlink()
        stop.set()

    thread = threading.Thread(target=remove)
    thread.start()
    while not stop.is_set():
        for entry in client.readdirplus(ROOT, fh, 0, 1 << 17):
            assert entry.entry.nodeid == 0 or entry.entry.attr.ino == entry.ino
    thread.join()


def test_many_handles_in_turns(full: Path, client: FuseClient) -> None:
    """More than there are places to remember where a descriptor stands."""
    handles = [client.opendir(ROOT).fh for _ in range(150)]
    whole = client.list(size=1 << 20)
    for at in (0, 40, 41, 41, 200, 3, 4):
        for fh in handles:
            some = client.readdir(ROOT, fh, whole[at].off, 1024)
            assert [entry.name for entry in some] == [entry.name for entry in whole[at + 1 : at + 1 + len(some)]]
            if fh in (handles[5], handles[69]):
                assert client.readdir(ROOT, fh, some[-1].off, 1024)[0].name == whole[at + 1 + len(some)].name


def test_two_readers_of_one_handle(full: Path, client: FuseClient) -> None:
    """Every request names its offset, so requests at once on one handle do not move each other."""
    fh = client.opendir(ROOT).fh
    whole = client.list(size=1 << 20)
    wrong = []

    def read(at: int) -> None:
        for _ in range(200):
            got = client.readdir(ROOT, fh, whole[at].off, 2048)
            if [e.name for e in got] != [e.name for e in whole[at + 1 : at + 1 + len(got)]]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(at,)) for at in (0, 100, 250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

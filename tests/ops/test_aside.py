"""What would have its ring wait for a disk is served aside from it, by whatever the kernel lets us use."""

import errno
import os
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.disk import PAGE, cool, stalled
from tests.fuseclient import REPLY_HEADER, ROOT, FuseClient
from tests.fusestructs import pack, unpack
from tests.ops.mount import ALL_FLAGS, Mount
from tests.ring.ring import Ring, wait_for
from vfsd._fuse import lib
from vhost._virtq import lib as virtq

#: Pages of the file, and what its last one lacks.
PAGES, LACKING = 300, 1000

Ringed = tuple[Mount, Ring, FuseClient]


@pytest.fixture
def file(ringed: Ringed) -> tuple[bytes, Any, Any]:
    """A file that is not in the page cache: its content, and it, open."""
    mount, _, client = ringed
    content = random.Random(5).randbytes(PAGES * PAGE - LACKING)
    (mount.root / "f").write_bytes(content)
    entry = client.lookup(ROOT, b"f")
    opened = client.open(entry.nodeid, os.O_RDONLY)
    cool(mount.root / "f")
    return content, entry, opened


def asking(ring: Ring) -> FuseClient:
    """A guest that waits for nothing: what `exchange` returns is the head of its request."""
    return FuseClient(lambda request, room: ring.driver.add([request], [room]))  # type: ignore[arg-type,return-value]


def begin_reads(ringed: Ringed, entry: Any, opened: Any, places: list[tuple[int, int]], flags: int = 0) -> list[int]:
    """The heads of READs of (offset, size), all in flight at once."""
    _, ring, _ = ringed
    guest = asking(ring)
    with ring.driver.at_once():
        heads = [
            guest.exchange(lib.FUSE_READ, entry.nodeid, pack("fuse_read_in", fh=opened.fh, offset=offset, size=size,
                                                             flags=flags), REPLY_HEADER + size)
            for offset, size in places
        ]  # fmt: skip
    ring.driver.kick()
    return heads  # type: ignore[return-value]


def compare(ring: Ring, heads: list[int], places: list[tuple[int, int]], content: bytes) -> None:
    for head, (offset, size) in zip(heads, places, strict=True):
        data = ring.driver.wait(head).data
        assert unpack("fuse_out_header", data).error == 0
        assert data[REPLY_HEADER:] == content[offset : offset + size]


def places(seed: int = 0) -> list[tuple[int, int]]:
    """Within the file, across its end, at its end and beyond it; whole pages and parts."""
    source = random.Random(seed)
    somewhere = [(source.randrange(PAGES) * PAGE + source.choice([0, 0, 77]), source.choice([PAGE, 5, 9 * PAGE]))
                 for _ in range(16)]  # fmt: skip
    return [*somewhere, ((PAGES - 2) * PAGE, 4 * PAGE), (PAGES * PAGE, PAGE), (PAGES * PAGE - LACKING, PAGE)]


def attempts(ringed: Ringed) -> Iterator[None]:
    """Times to read what is not cached, until a READ was served aside. Linux begins to read ahead even where it may not
    wait, which can bring a whole file before the thread that asked has looked again.
    """
    mount, _, _ = ringed
    before = mount.core.session.aside
    for _ in range(50):
        cool(mount.root / "f")
        yield
        if mount.core.session.aside > before:
            return
    raise AssertionError("each READ was served by its ring")


def test_what_is_not_cached_is_read_aside(ringed: Ringed, file: tuple[bytes, Any, Any]) -> None:
    mount, ring, client = ringed
    content, *opened = file
    for _ in attempts(ringed):
        heads = begin_reads(ringed, *opened, places())
        # The ring goes on meanwhile.
        assert client.getattr(ROOT).attr.ino
        compare(ring, heads, places(), content)

    def stays() -> bool:
        aside = mount.core.session.aside
        compare(ring, begin_reads(ringed, *opened, places()), places(), content)
        return bool(mount.core.session.aside == aside)

    # Now that it is in the cache nothing has to wait; unless the host wants the memory for something else.
    wait_for(stays)


def test_what_is_cached_in_part(ringed: Ringed, file: tuple[bytes, Any, Any]) -> None:
    mount, ring, _ = ringed
    content, *opened = file
    whole = [(start * PAGE, 32 * PAGE) for start in range(0, PAGES, 32)]
    for _ in attempts(ringed):
        with open(mount.root / "f", "rb", buffering=0) as host:
            os.posix_fadvise(host.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for page in range(0, PAGES, 7):
                host.seek(page * PAGE)
                host.read(PAGE)
        compare(ring, begin_reads(ringed, *opened, whole), whole, content)


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's, by its release."""
    names = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*names[:2], request.param, *names[3:])))


@pytest.mark.parametrize(
    ("kernel", "asked"),
    [("5.8.18", True), ("5.9.0-rc1", False), ("5.10.0-28-amd64", False), ("5.11.22", True), ("5.100.1", True)],
    indirect=["kernel"],
)
def test_a_kernel_that_ends_files_early(
    kernel: None, ringed: Ringed, file: tuple[bytes, Any, Any], asked: bool
) -> None:
    """It says that a file ends where its page cache does, when it is asked not to wait (preadv2(2))."""
    mount, ring, _ = ringed
    content, *opened = file
    for _ in attempts(ringed) if asked else [None]:
        compare(ring, begin_reads(ringed, *opened, places()), places(), content)
    assert (mount.core.session.aside > 0) == asked


def bytes_read() -> int:
    """What this process has asked disks for."""
    with open("/proc/self/io") as io:
        return next(int(line.split()[1]) for line in io if line.startswith("read_bytes"))


@contextmanager
def slow_read(ringed: Ringed, file: tuple[bytes, Any, Any], place: tuple[int, int]) -> Iterator[int]:
    """The head of a READ that is under way, and goes on only after this."""
    mount, ring, _ = ringed
    content, *opened = file
    # For the thread that will do it.
    for _ in attempts(ringed):
        compare(ring, begin_reads(ringed, *opened, [(9 * PAGE, PAGE)] * 2), [(9 * PAGE, PAGE)] * 2, content)
    (reader,) = [thread for thread in threading.enumerate() if thread.name.startswith("lent")]
    cool(mount.root / "f")
    with stalled(mount.root / "f") as stall:
        # Either may be the one that asks.
        threads = [thread.native_id or 0 for thread in (reader, *ring.threads)]
        for thread in threads:
            stall(thread, True)
        before, aside = bytes_read(), mount.core.session.aside
        # Two: for one that comes alone its ring waits, if the disk was quick lately.
        head, empty = begin_reads(ringed, *opened, [place, (0, 0)])
        ring.driver.wait(empty)
        wait_for(lambda: bytes_read() > before and mount.core.session.aside > aside)
        for thread in threads:
            stall(thread, False)
        yield head


def test_more_reads_than_the_io_uring_has_room_for(ringed: Ringed, file: tuple[bytes, Any, Any]) -> None:
    _, ring, _ = ringed
    content, *opened = file
    many = [(page * PAGE, PAGE) for page in random.Random(2).choices(range(PAGES), k=400)]
    for _ in attempts(ringed):
        compare(ring, begin_reads(ringed, *opened, many), many, content)


def test_a_slow_read_holds_no_other_up(ringed: Ringed, file: tuple[bytes, Any, Any]) -> None:
    mount, ring, client = ringed
    content, slow, quick = file[0], (99 * PAGE, PAGE), [(7 * PAGE, PAGE), (77 * PAGE, PAGE)]
    (mount.root / "other").write_bytes(content)
    other = client.lookup(ROOT, b"other")
    opened = client.open(other.nodeid, os.O_RDONLY)
    cool(mount.root / "other")
    with slow_read(ringed, file, slow) as head:
        compare(ring, begin_reads(ringed, other, opened, quick), quick, content)
        assert ring.driver.poll() == []
    compare(ring, [head], [slow], content)


def test_a_mount_that_ends_while_a_read_is_under_way(ringed: Ringed, file: tuple[bytes, Any, Any]) -> None:
    mount, ring, client = ringed
    content, slow = file[0], (99 * PAGE, PAGE)
    with slow_read(ringed, file, slow) as head:
        client.destroy()
        client.init(minor=45, flags=ALL_FLAGS)
        assert mount.descriptors() == set()
        client.open(client.lookup(ROOT, b"f").nodeid, os.O_RDONLY)
        held = len(os.listdir("/proc/self/fd"))
        assert ring.driver.poll() == []
    compare(ring, [head], [slow], content)
    wait_for(lambda: virtq.virtq_pending(ring.queue) == 0)
    assert len(os.listdir("/proc/self/fd")) == held - 1
    assert mount.core.handles == 1


def test_a_kernel_without_io_uring(ringed: Ringed, file: tuple[bytes, Any, Any]) -> None:
    _, ring, _ = ringed
    content, *opened = file
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    free = os.open("/", os.O_PATH)
    os.close(free)
    # Room for what is open, and for the eventfd only.
    blocked = [os.open("/", os.O_PATH) for _ in range(highest - len(os.listdir("/proc/self/fd")) + 2)]
    os.close(blocked.pop())
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
    try:
        for _ in attempts(ringed):
            compare(ring, begin_reads(ringed, *opened, places()), places(), content)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in blocked:
            os.close(fd)


@pytest.mark.parametrize("flags", [os.O_SYNC, os.O_DSYNC, os.O_DIRECT])
def test_writes_to_the_disk_itself(ringed: Ringed, flags: int) -> None:
    mount, _, client = ringed
    # With O_DIRECT the host would want the guest's buffers to be aligned.
    entry, opened = client.create(ROOT, b"f", flags=os.O_RDWR | flags & ~os.O_DIRECT)
    for number in range(8):
        assert client.write(entry.nodeid, opened.fh, bytes([number]) * PAGE, number * PAGE, flags=flags) == PAGE
    assert client.write(entry.nodeid, opened.fh, b"e" * PAGE, 0, flags=flags | os.O_APPEND) == PAGE
    assert mount.core.session.aside == 9
    expected = b"".join(bytes([number]) * PAGE for number in range(8)) + b"e" * PAGE
    assert (mount.root / "f").read_bytes() == expected
    assert client.write(entry.nodeid, 99, b"x", flags=flags, expect=errno.EBADF) is None


def test_reads_past_the_page_cache(ringed: Ringed, file: tuple[bytes, Any, Any]) -> None:
    mount, ring, client = ringed
    content, entry, _ = file
    compare(ring, begin_reads(ringed, entry, file[2], places(), os.O_DIRECT), places(), content)
    assert mount.core.session.aside == len(places())
    # The guest cleared the flag; the host's open file has it still.
    opened = client.open(entry.nodeid, os.O_RDONLY | os.O_DIRECT)
    for _ in attempts(ringed):
        compare(ring, begin_reads(ringed, entry, opened, places(), 0), places(), content)


def test_what_is_under_way_is_finished(ringed: Ringed, file: tuple[bytes, Any, Any]) -> None:
    """The ring ends while reads are under way."""
    _, ring, _ = ringed
    content, *opened = file
    heads = begin_reads(ringed, *opened, places())
    asked = dict(zip(heads, places(), strict=True))
    compare(ring, heads[:1], places()[:1], content)
    ring.stop()
    deadline = time.monotonic() + 20
    while virtq.virtq_pending(ring.queue):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    for used in ring.driver.poll():
        offset, size = asked[used.head]
        assert used.data[REPLY_HEADER:] == content[offset : offset + size]


@pytest.fixture
def copied(ringed: Ringed, file: tuple[bytes, Any, Any]) -> tuple[Any, ...]:
    """What a copy of that file takes: nodeid and fh of both."""
    _, _, client = ringed
    _, entry, opened = file
    target, to = client.create(ROOT, b"g")
    return entry.nodeid, opened.fh, target.nodeid, to.fh


def begin_copy(ring: Ring, nodeid: int, fh: int, target: int, to: int, size: int) -> int:
    """The head of a copy from start to start."""
    arguments = pack("fuse_copy_file_range_in", fh_in=fh, nodeid_out=target, fh_out=to, len=size)
    head = asking(ring).exchange(lib.FUSE_COPY_FILE_RANGE, nodeid, arguments, REPLY_HEADER + 8)
    ring.driver.kick()
    return head  # type: ignore[return-value]


@pytest.mark.parametrize("size", [9 * PAGE, 200 * PAGE])
def test_a_slow_copy_holds_no_other_up(
    ringed: Ringed, file: tuple[bytes, Any, Any], copied: tuple[Any, ...], size: int
) -> None:
    """Whether it is for its length, or since nobody knows yet how long short ones take here."""
    mount, ring, client = ringed
    # For the thread that will do it.
    assert client.copy_file_range(*copied[:2], 0, *copied[2:], 0, PAGES * PAGE) == len(file[0])
    cool(mount.root / "f")
    with stalled(mount.root / "f") as stall:
        lent = [thread for thread in threading.enumerate() if thread.name.startswith("lent")]
        threads = [thread.native_id or 0 for thread in (*lent, *ring.threads)]
        for thread in threads:
            stall(thread, True)
        before, aside = bytes_read(), mount.core.session.aside
        head = begin_copy(ring, *copied, size)
        wait_for(lambda: bytes_read() > before and mount.core.session.aside > aside)
        assert client.getattr(ROOT).attr.ino
        assert ring.driver.poll() == []
        for thread in threads:
            stall(thread, False)
    data = ring.driver.wait(head).data
    assert (unpack("fuse_out_header", data).error, unpack("fuse_write_out", data[REPLY_HEADER:]).size) == (0, size)
    assert (mount.root / "g").read_bytes() == file[0]


def test_what_is_long_is_done_aside(ringed: Ringed, copied: tuple[Any, ...]) -> None:
    mount, _, client = ringed
    for number, size in enumerate((128 << 10, PAGES * PAGE, 1 << 40)):
        assert client.copy_file_range(*copied[:2], 0, *copied[2:], 0, size, long=number == 1) > 0
        client.fallocate(*copied[2:], 0, (number + 1) << 20)
        assert mount.core.session.aside == 2 * (number + 1)
    assert (mount.root / "g").stat().st_size == 3 << 20


def test_what_is_short_and_quick_is_not(ringed: Ringed, copied: tuple[Any, ...]) -> None:
    """Once it is known to be."""
    mount, _, client = ringed

    def stays(ask: Callable[[], object]) -> bool:
        aside = mount.core.session.aside
        ask()
        return bool(mount.core.session.aside == aside)

    for ask in (
        lambda: client.copy_file_range(*copied[:2], 0, *copied[2:], 0, PAGE),
        lambda: client.fallocate(*copied[2:], 0, PAGE),
    ):
        assert not stays(ask)
        wait_for(lambda ask=ask: stays(ask))  # type: ignore[misc]
    assert (mount.root / "g").stat().st_size == PAGE


def test_long_writes_do_not_hold_up_others(ringed: Ringed) -> None:
    mount, ring, client = ringed
    entry, opened = client.create(ROOT, b"long", flags=os.O_RDWR)
    size = 256 << 10
    guest = asking(ring)
    heads = []
    with ring.driver.at_once():
        for number in range(6):
            data = pack("fuse_write_in", fh=opened.fh, offset=number * size, size=size) + bytes([number]) * size
            heads.append(guest.exchange(lib.FUSE_WRITE, entry.nodeid, data, REPLY_HEADER + 8))
    ring.driver.kick()
    assert client.getattr(ROOT).attr.ino
    for head in heads:
        assert unpack("fuse_out_header", ring.driver.wait(head).data).error == 0  # type: ignore[arg-type]
    assert (mount.root / "long").read_bytes() == b"".join(bytes([number]) * size for number in range(6))
    # The last one may have come alone, when all others were done.
    assert mount.core.session.aside >= 5

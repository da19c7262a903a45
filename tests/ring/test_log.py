"""The dirty log: every page a chain changes is marked, and no other (vhost-user specification, "Migration")."""

import os
from collections.abc import Callable

import pytest

from tests.driver import Buffer
from tests.ring.ring import PAGE, USER, Chain, Ring
from vhost._virtq import ffi, lib

Make = Callable[..., Ring]
SIZE = 1 << 20
RING = 0x40000  # its parts lie in three pages


def spread(ring: Make, **options: object) -> Ring:
    """A ring whose used part has pages of its own."""
    return ring(1024, regions=((0, SIZE),), base=RING, log=True, **options)


def changed(before: bytes, after: bytes) -> set[int]:
    return {i for i in range(len(before) // PAGE) if before[i * PAGE : (i + 1) * PAGE] != after[i * PAGE :][:PAGE]}


def pages(addr: int, length: int) -> set[int]:
    return set(range(addr // PAGE, (addr + length - 1) // PAGE + 1)) if length else set()


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("log_used", [False, True])
@pytest.mark.parametrize(
    ("buffers", "length"),
    [
        ([Buffer(0x1000, PAGE)], PAGE),
        ([Buffer(0x1000, PAGE)], 1),
        ([Buffer(0x1FFF, 2)], 2),
        ([Buffer(0x1FFF, 2)], 1),
        ([Buffer(0x1800, 0x2000), Buffer(0x9000, 0x3000)], 0x2000),
        ([Buffer(0x1800, 0x2000), Buffer(0x9000, 0x3000)], 0x3001),
        ([Buffer(0x1800, 0x2000), Buffer(0x9000, 0), Buffer(0x9800, 0x3000)], 0x5000),
        ([Buffer(0x1000, PAGE)], 0),
        ([Buffer(SIZE - 1, 1)], 1),
        ([], 0),
    ],
)
def test_exact(ring: Make, buffers: list[Buffer], length: int, log_used: bool, event_idx: bool) -> None:
    r = spread(ring, log_used=log_used, event_idx=event_idx)
    reply = b"\x5a" * length

    def handler(chain: Chain) -> bytes:
        return reply

    head = r.driver.add_buffers([Buffer(0x80000, 8)], buffers)
    before = r.memory.read(0, SIZE)
    r.start(handler)
    r.driver.kick()
    assert r.driver.wait(head).data == reply
    r.park()
    written = changed(before, r.memory.read(0, SIZE))
    where = r.driver.where
    parts = [(where.used, 4), (where.used + 4, 8)] + [(where.used + 4 + 8 * 1024, 2)] * event_idx
    used = set().union(*(pages(*part) for part in parts))
    driver = pages(where.avail, 4 + 2 * 1024 + 2)
    assert written <= used | driver | r.marked()
    expected = set()
    for buffer in buffers:
        part = min(length, buffer.length)
        expected |= pages(buffer.addr, part)
        length -= part
    assert r.marked() == (expected | used if log_used else expected)


def test_all_of_a_long_run(ring: Make) -> None:
    """Random buffers over three regions, some deferred, some through indirect tables, while the ring goes round."""
    regions = ((0, 0x80000), (0x80000, 0x40000), (0x10_0000, 0x80000))
    r = ring(8, regions=regions, log=True, log_used=True, event_idx=True, index=65533)
    r.allocator.allocate(0x8000)
    before = [r.memory.read(*region) for region in regions]
    r.start(lambda chain: os.urandom(chain.room), threads=2)
    expected = pages(r.driver.where.used, r.driver.where.end - r.driver.where.used)
    for i in range(60):
        addr = 0x20000 + 7919 * i % 0x90000
        length = 1 + 977 * i % 9000
        head = r.driver.add_buffers(
            [], [Buffer(addr, length), Buffer(0x10_0000 + addr % 0x70000, 1)], indirect=i % 2 == 1
        )
        expected |= pages(addr, length) | pages(0x10_0000 + addr % 0x70000, 1)
        r.driver.kick()
        r.driver.wait(head)
    r.park()
    dirty = set()
    for (addr, size), old in zip(regions, before, strict=True):
        dirty |= {addr // PAGE + page for page in changed(old, r.memory.read(addr, size))}
    assert r.marked() == expected
    assert dirty - r.marked() <= pages(r.driver.where.desc, 0x10000)


def test_nothing_is_logged_without_a_log(ring: Make) -> None:
    r = ring(log_used=True)
    r.start()
    assert r.driver.request([b"x"], [1]) == b"x"


def test_pages_beyond_the_log_are_left_alone(ring: Make) -> None:
    r = ring(log=True)
    r.log = bytearray(2)
    assert r.open() == 0
    lib.memory_dirty(r.view, 15 * PAGE, 3 * PAGE)
    lib.memory_dirty(r.view, 1 << 60, PAGE)
    lib.memory_dirty(r.view, 0, 0)
    assert r.marked() == {15}


def test_dirty_by_host_address(ring: Make) -> None:
    r = ring(regions=((0, 0x10000), (0x20000, 0x10000)), log=True)
    assert r.open() == 0
    host = lib.memory_user(r.view, USER + 0x20000, 0x10000)
    lib.memory_dirty_host(r.view, host + 0x1FFF, 2)
    assert r.marked() == {0x21, 0x22}
    lib.memory_dirty_host(r.view, ffi.cast("char *", 0x1000), 1)
    assert r.marked() == {0x21, 0x22}


def test_recovery_marks_the_used_ring_again(ring: Make) -> None:
    """The dead worker may have died between a store and its mark."""
    r = spread(ring, log_used=True)
    assert r.open() == 0
    assert r.marked() == set()
    r.drop()
    assert r.open() == 0
    assert r.marked() == pages(r.driver.where.used, 4 + 8 * 1024)

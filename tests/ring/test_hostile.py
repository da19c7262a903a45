"""Rings that break the rules: each is marked broken, its error eventfd is written, and nothing else is touched."""

import os
from collections.abc import Callable
from errno import E2BIG, EBADF, EFAULT, EPROTO

import pytest

from tests.driver import INDIRECT, MAX, NEXT, WRITE
from tests.ring.ring import Chain, Ring, wait_for
from vhost._virtq import lib

Make = Callable[..., Ring]
Descriptor = tuple[int, int, int, int]  # addr, length, flags, next
SIZE = 1 << 18  # of guest memory, which begins at 0
A, B, TABLE = 0x8000, 0x9000, 0xA000  # guest addresses free for use

DIRECT: dict[str, tuple[list[Descriptor], int]] = {
    "next outside the table": ([(A, 16, NEXT, 8)], EPROTO),
    "next far outside the table": ([(A, 16, NEXT, 0xFFFF)], EPROTO),
    "loop of one": ([(A, 16, NEXT, 0)], EPROTO),
    "loop of two": ([(A, 16, NEXT, 1), (A, 16, NEXT, 0)], EPROTO),
    "loop of empty buffers": ([(A, 0, NEXT, 1), (A, 0, NEXT, 0)], EPROTO),
    "loop behind the head": ([(A, 16, NEXT, 1), (B, 16, WRITE | NEXT, 2), (B, 16, WRITE | NEXT, 1)], EPROTO),
    "readable after writable": ([(A, 16, WRITE | NEXT, 1), (B, 16, 0, 0)], EPROTO),
    "readable after empty writable": ([(A, 0, WRITE | NEXT, 1), (B, 16, 0, 0)], EPROTO),
    "indirect and next": ([(TABLE, 16, INDIRECT | NEXT, 1), (B, 16, 0, 0)], EPROTO),
    "indirect of no length": ([(TABLE, 0, INDIRECT, 0)], EPROTO),
    "indirect of half a descriptor": ([(TABLE, 24, INDIRECT, 0)], EPROTO),
    "indirect outside": ([(SIZE, 16, INDIRECT, 0)], EFAULT),
    "indirect ends outside": ([(SIZE - 16, 32, INDIRECT, 0)], EFAULT),
    "indirect wraps": ([(0xFFFF_FFFF_FFFF_FFF0, 32, INDIRECT, 0)], EFAULT),
}

#: Buffers outside of memory, and what is left of the chain: bytes to read and to write, and VIRTQ_FAULT_*.
OUTSIDE: dict[str, tuple[list[Descriptor], tuple[int, int, int]]] = {
    "address": ([(SIZE, 1, 0, 0)], (0, 0, lib.VIRTQ_FAULT_IN)),
    "last byte": ([(SIZE - 8, 9, 0, 0)], (0, 0, lib.VIRTQ_FAULT_IN)),
    "far address": ([(0xFFFF_0000_0000, 16, WRITE, 0)], (0, 0, lib.VIRTQ_FAULT_OUT)),
    "address wraps": ([(0xFFFF_FFFF_FFFF_FFF8, 16, 0, 0)], (0, 0, lib.VIRTQ_FAULT_IN)),
    "range wraps into memory": ([(0xFFFF_FFFF_FFFF_F000, 0x9000, 0, 0)], (0, 0, lib.VIRTQ_FAULT_IN)),
    "length of 4 GiB": ([(A, 0xFFFF_FFFF, WRITE, 0)], (0, 0, lib.VIRTQ_FAULT_OUT)),
    "what is read": (
        [(A, 16, NEXT, 1), (SIZE, 16, NEXT, 2), (B, 8, NEXT, 3), (B, 4, WRITE, 0)],
        (16, 4, lib.VIRTQ_FAULT_IN),
    ),
    "what is written": (
        [(A, 16, NEXT, 1), (B, 8, WRITE | NEXT, 2), (SIZE, 16, WRITE | NEXT, 3), (B, 4, WRITE, 0)],
        (16, 8, lib.VIRTQ_FAULT_OUT),
    ),
    "both": (
        [(SIZE, 16, NEXT, 1), (A, 16, NEXT, 2), (SIZE, 16, WRITE, 0)],
        (0, 0, lib.VIRTQ_FAULT_IN | lib.VIRTQ_FAULT_OUT),
    ),
}

INDIRECT_TABLES: dict[str, tuple[list[Descriptor], int]] = {
    "nested indirect": ([(TABLE + 64, 16, INDIRECT, 0)], EPROTO),
    "nested indirect at the end": ([(A, 16, NEXT, 1), (TABLE, 32, INDIRECT, 0)], EPROTO),
    "next outside the table": ([(A, 16, NEXT, 1)], EPROTO),
    "loop": ([(A, 16, NEXT, 1), (A, 16, NEXT, 0)], EPROTO),
    "readable after writable": ([(A, 16, WRITE | NEXT, 1), (B, 16, 0, 0)], EPROTO),
}


def breaks(r: Ring, errno: int) -> None:
    """Runs the ring: it breaks with this errno, serves nothing, and changes nothing but its wish for kicks."""
    before = bytes(r.file)
    assert r.broken() == errno
    assert r.state.popped == r.state.completed == r.state.interrupts == 0
    assert lib.virtq_pending(r.queue) == 0
    assert r.marks() == []
    r.driver.used[0] = r.driver.avail_event[0] = 0
    assert bytes(r.file) == before
    # It stays broken, for this worker and for the next.
    r.start()
    assert r.join() == [-errno]
    r.drop()
    r.start()
    assert r.join() == [-errno]


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("jump", [9, 0x7FFF, 0xFFFF])
def test_index_jump(ring: Make, jump: int, event_idx: bool) -> None:
    r = ring(event_idx=event_idx)
    r.driver.avail[1] = jump
    breaks(r, EPROTO)


def test_index_goes_back(ring: Make) -> None:
    r = ring(index=5)
    r.driver.avail[1] = 4
    breaks(r, EPROTO)


@pytest.mark.parametrize("head", [8, 9, 0xFFFF])
def test_head_outside_the_table(ring: Make, head: int) -> None:
    r = ring()
    r.driver.publish(head)
    breaks(r, EPROTO)


@pytest.mark.parametrize("name", DIRECT)
def test_direct(ring: Make, name: str) -> None:
    descriptors, errno = DIRECT[name]
    r = ring()
    for i, descriptor in enumerate(descriptors):
        r.driver.descriptor(i, *descriptor)
    r.driver.publish(0)
    breaks(r, errno)


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_buffer_outside_ends_its_chain_and_not_the_ring(ring: Make, name: str, indirect: bool) -> None:
    descriptors, expected = OUTSIDE[name]
    seen: list[tuple[int, int, int]] = []

    def handler(chain: Chain) -> bytes:
        seen.append((len(chain.input), chain.room, chain.chain.fault))
        return b""

    r = ring()
    r.memory.write(TABLE, b"".join(r.driver.pack(*descriptor) for descriptor in descriptors))
    r.driver.descriptor(7, TABLE, 16 * len(descriptors), INDIRECT, 0)
    for i, descriptor in enumerate(descriptors):
        r.driver.descriptor(i, *descriptor)
    r.start(handler)
    r.driver.publish(7 if indirect else 0)
    r.driver.kick()
    wait_for(lambda: r.state.completed == 1)
    r.park()
    assert seen == [expected]


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("name", INDIRECT_TABLES)
def test_indirect(ring: Make, name: str, prefix: bool) -> None:
    descriptors, errno = INDIRECT_TABLES[name]
    r = ring()
    r.memory.write(TABLE, b"".join(r.driver.pack(*descriptor) for descriptor in descriptors))
    r.driver.descriptor(0, A, 16, NEXT, 1)
    r.driver.descriptor(1, TABLE, 16 * len(descriptors), INDIRECT, 0)
    r.driver.publish(0 if prefix else 1)
    breaks(r, errno)


def test_indirect_not_negotiated(ring: Make) -> None:
    r = ring(indirect=False)
    r.driver.add([b"x"], [1], indirect=True)
    breaks(r, EPROTO)


def test_more_descriptors_than_a_chain_may_have(ring: Make) -> None:
    r = ring()
    r.driver.write_table(TABLE, [(A, 0, 0)] * 1025)
    r.driver.descriptor(0, TABLE, 16 * 1025, INDIRECT, 0)
    r.driver.publish(0)
    breaks(r, EPROTO)


def test_more_buffers_than_a_chain_may_have(ring: Make) -> None:
    """Each descriptor crosses regions, and counts for each piece."""
    r = ring(1024, regions=((0, 1 << 18), (1 << 18, 4096), ((1 << 18) + 4096, 4096)))
    r.driver.write_table(0x20000, [((1 << 18) - 1, 4098, WRITE)] * 400)
    r.driver.descriptor(0, 0x20000, 16 * 400, INDIRECT, 0)
    r.driver.publish(0)
    breaks(r, E2BIG)


def test_a_huge_table_of_empty_buffers_is_not_walked(ring: Make) -> None:
    r = ring(regions=((0, 1 << 26),))
    r.memory.write(TABLE, r.driver.pack(A, 0, NEXT, 0))
    r.driver.descriptor(0, TABLE, (1 << 26) - TABLE, INDIRECT, 0)
    r.driver.publish(0)
    breaks(r, EPROTO)


@pytest.mark.parametrize("threads", [1, 3])
def test_head_popped_twice(ring: Make, threads: int) -> None:
    """The first chain is served; while it is in flight its head comes again."""
    held: list[Chain] = []
    r = ring()
    r.start(lambda chain: held.append(chain), threads=threads)
    head = r.driver.add([b"once"], [4])
    r.driver.kick()
    wait_for(lambda: bool(held))
    r.driver.publish(head)
    r.driver.kick()
    assert r.join() == [-EPROTO] * threads
    assert os.eventfd_read(r.err) == 1
    assert lib.virtq_pending(r.queue) == 1
    before = bytes(r.file)
    held[0].complete(b"")
    assert bytes(r.file) == before, "a broken ring is left alone"
    assert lib.virtq_pending(r.queue) == 0


def test_breaks_while_running(ring: Make) -> None:
    r = ring()
    r.start(threads=2)
    assert r.driver.request([b"fine"], [4]) == b"fine"
    r.driver.publish(100)
    r.driver.kick()
    assert r.join() == [-EPROTO] * 2
    assert (r.state.popped, r.state.completed, r.state.broken) == (1, 1, EPROTO)


def test_rings_break_one_by_one(ring: Make) -> None:
    bad, good = ring(), ring()
    bad.driver.publish(100)
    bad.broken()
    good.start()
    assert good.driver.request([b"x"], [1]) == b"x"


def test_kick_that_cannot_be_waited_for(ring: Make) -> None:
    r = ring()
    reader, writer = os.pipe()
    os.close(writer)
    r.config.kick = reader
    assert r.broken() == EBADF
    os.close(reader)


def test_index_jump_after_wrap(ring: Make) -> None:
    r = ring(index=MAX)
    r.start()
    assert r.driver.request([b"x"], [1]) == b"x"
    r.driver.avail[1] = 9
    os.eventfd_write(r.kick, 1)
    assert r.join() == [-EPROTO]

"""The region table and translation."""

import threading
from collections.abc import Callable
from errno import E2BIG, EEXIST, EFAULT, EINVAL, ENOMEM, ENOSPC

import pytest

from tests.ring.ring import PAGE, USER, Ring
from vhost._virtq import ffi, lib

Make = Callable[..., Ring]
TOP = 1 << 64


def translate(r: Ring, addr: int, length: int, most: int = 8) -> int | list[bytes]:
    iov = ffi.new("struct iovec[]", 8)
    count = lib.memory_translate(r.view, addr, length, iov, most)
    if count < 0:
        return int(count)
    return [ffi.buffer(iov[i].iov_base, iov[i].iov_len)[:] for i in range(count)]


@pytest.fixture
def three(ring: Make) -> Ring:
    """Two adjacent regions, a hole, and one more, none of them page aligned in the file."""
    r = ring(regions=((0, 0x4000), (0x4000, 0x2000), (0x8000, 0x2800)))
    for addr, size in r.regions:
        r.memory.write(addr, bytes(addr // 0x1000 + i % 7 for i in range(size)))
    assert r.open() == 0
    return r


@pytest.mark.parametrize(
    ("addr", "length", "pieces"),
    [
        (0, 1, [1]),
        (0x3FFF, 1, [1]),
        (0x3FFF, 2, [1, 1]),
        (0x1000, 0x5000, [0x3000, 0x2000]),
        (0x8000, 0x2800, [0x2800]),
        (0xA7FF, 1, [1]),
        (0x4000, 0x2000, [0x2000]),
    ],
)
def test_translate(three: Ring, addr: int, length: int, pieces: list[int]) -> None:
    found = translate(three, addr, length)
    assert isinstance(found, list)
    assert [len(piece) for piece in found] == pieces
    assert b"".join(found) == three.memory.read(addr, length)


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        (0x6000, 1),
        (0x7FFF, 2),
        (0x5FFF, 2),
        (0x5000, 0x4000),
        (0xA800, 1),
        (0xA7FF, 2),
        (TOP - 1, 1),
        (TOP - 1, 2),
        (TOP - 0x1000, 0x2000),
        (1, TOP - 1),
        (0, TOP - 1),
    ],
)
def test_outside(three: Ring, addr: int, length: int) -> None:
    assert translate(three, addr, length) == -EFAULT


def test_no_bytes_are_nowhere(three: Ring) -> None:
    for addr in (0, 0x6000, TOP - 1):
        assert translate(three, addr, 0) == []


def test_room_for_pieces(three: Ring) -> None:
    assert translate(three, 0x3FFF, 2, most=1) == -E2BIG
    assert translate(three, 0, 1, most=0) == -E2BIG
    assert translate(three, 0x1000, 0x6000, most=2) == -EFAULT


def test_user_addresses(three: Ring) -> None:
    assert lib.memory_user(three.view, USER, 0x4000)
    assert lib.memory_user(three.view, USER + 0x3FFF, 1)
    for addr, length in [(USER, 0x4001), (USER + 0x3FFF, 2), (USER + 0x6000, 1), (0, 1), (USER + 1, TOP - 1)]:
        assert not lib.memory_user(three.view, addr, length)


def test_offset_into_the_file_need_not_be_aligned(ring: Make) -> None:
    r = ring(regions=((0, 0x1234), (0x10000, 0x4321)))
    assert r.offsets[1] % PAGE
    r.memory.write(0x10000, b"here")
    assert r.open() == 0
    assert translate(r, 0x10000, 4) == [b"here"]


def test_append_refuses(ring: Make) -> None:
    r = ring(regions=((0x1000, 0x1000), (0x3000, 0x1000)), base=0x1000, max_regions=3)
    for addr, size, error in [
        (0x1000, 0x1000, EEXIST),
        (0x1FFF, 1, EEXIST),
        (0, 0x1001, EEXIST),
        (0, 0x8000, EEXIST),
        (0x2000, 0x1001, EEXIST),
        (0x8000, 0, EINVAL),
        (TOP - USER - 0x1000, 0x2000, EINVAL),
    ]:
        assert r.append(addr, size, 0) == -error, (addr, size)
    region = ffi.new("struct memory_region *", {"guest_addr": TOP - 4096, "size": 8192})
    assert lib.memory_append(r.table, region) == -EINVAL
    region = ffi.new("struct memory_region *", {"guest_addr": 0x8000, "size": 8192, "mmap_offset": TOP - 4096})
    assert lib.memory_append(r.table, region) == -EINVAL
    assert r.append(0x2000, 0x1000, 0) == 0
    assert r.append(0x8000, 0x1000, 0) == -ENOSPC
    assert r.table.count == 3


def test_an_unused_region_goes_without_ado(three: Ring) -> None:
    assert lib.memory_retire(three.table, 2) == 0
    assert translate(three, 0x8000, 1) == -EFAULT
    assert three.append(0x8000, 0x1000, 0) == 0
    assert translate(three, 0x8000, 1) == [b"\xa5"]


def test_a_used_region_takes_its_worker_along(three: Ring) -> None:
    first = translate(three, 0x8000, 4)
    assert lib.memory_retire(three.table, 2) == 1
    assert translate(three, 0x8000, 4) == first, "it stays mapped for the worker's life"
    three.drop()
    assert three.open() == 0
    assert translate(three, 0x8000, 4) == -EFAULT


def test_a_region_that_cannot_be_mapped_is_not_there(ring: Make) -> None:
    r = ring()
    region = ffi.new("struct memory_region *", {"guest_addr": 1 << 40, "user_addr": 1 << 40, "size": PAGE, "fd": -1})
    assert lib.memory_append(r.table, region) == 0
    assert r.open() == 0
    assert translate(r, 1 << 40, 1) == -EFAULT
    assert not lib.memory_user(r.view, 1 << 40, 1)


def test_no_room_to_map_a_region_is_no_fault_of_the_ring(ring: Make) -> None:
    """Another worker may have it: nothing is broken, and nothing marked."""
    r = ring(max_regions=3)
    huge = {"guest_addr": 1 << 40, "user_addr": 1 << 40, "size": 1 << 60, "fd": r.memfd}
    assert lib.memory_append(r.table, ffi.new("struct memory_region *", huge)) == 0
    assert r.open() == 0
    assert translate(r, 1 << 20, 1) == -EFAULT
    assert translate(r, 1 << 40, 1) == -ENOMEM
    r.drop()
    r.start()
    r.driver.descriptor(r.driver.free[0], 1 << 40, 8, 0, 0)
    r.driver.publish(r.driver.free[0])
    r.driver.kick()
    assert r.join() == [-ENOMEM]
    assert (r.state.broken, r.marks(), r.state.started) == (0, [], 1)
    r.drop()
    r.config.used_addr = 1 << 40
    assert r.open() == -ENOMEM


def test_retire_races_with_first_use(ring: Make) -> None:
    """Either control learns that the region is used, or the worker does not get it."""
    r = ring(max_regions=400)
    assert r.open() == 0
    iov = ffi.new("struct iovec *")
    for i in range(300):
        addr = (1 << 32) + i * PAGE
        assert r.append(addr, PAGE, 0) == 0
        gate = threading.Barrier(2)
        results: list[int] = []

        def use(addr: int = addr, gate: threading.Barrier = gate, results: list[int] = results) -> None:
            gate.wait()
            results.append(lib.memory_translate(r.view, addr, 1, iov, 1))

        thread = threading.Thread(target=use)
        thread.start()
        gate.wait()
        retired = lib.memory_retire(r.table, r.table.count - 1)
        thread.join()
        assert retired == 1 or results == [-EFAULT]


def test_first_use_by_many_threads_maps_once(ring: Make) -> None:
    r = ring(regions=tuple((i * 0x10000, 0x10000) for i in range(8)))
    assert r.open() == 0
    hosts: list[list[int]] = []
    gate = threading.Barrier(4)

    def use() -> None:
        iov = ffi.new("struct iovec[]", 8)
        gate.wait()
        assert lib.memory_translate(r.view, 0, 0x80000, iov, 8) == 8
        hosts.append([int(ffi.cast("uintptr_t", iov[i].iov_base)) for i in range(8)])

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hosts) == 4
    assert all(each == hosts[0] for each in hosts)

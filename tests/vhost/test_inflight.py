"""In-flight regions: ours, and the front-end's."""

import os

import pytest

from tests.vhost.examples import is_open
from vhost._virtq import ffi
from vhost.inflight import InflightRegions, inflight_arena, region_size
from vhost.message import Inflight
from vhost.protocol import RemoteProtocolError, close_all


@pytest.fixture
def regions():
    regions = InflightRegions(inflight_arena(3), 3)
    yield regions
    regions.clear()


def region_file(size: int) -> int:
    fd = os.memfd_create("inflight", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def test_region_size() -> None:
    """16 bytes and 16 for each descriptor (struct QueueRegionSplit), rounded up to a cache line."""
    assert [region_size(num) for num in (1, 3, 4, 128, 1024)] == [64, 64, 128, 2112, 16448]


def test_our_own_region(regions: InflightRegions) -> None:
    for index in range(3):
        regions.map(index).desc[1023].counter = index + 1
    assert [regions.map(index).desc[1023].counter for index in range(3)] == [1, 2, 3]
    assert not regions.recovers(2, 1024) and regions.descriptors() == set()
    regions.clear()
    assert regions.map(2).desc[1023].counter == 0


def test_a_region_of_the_front_end(regions: InflightRegions) -> None:
    wire, fd = regions.create(Inflight(0, 0, 3, 128))
    assert wire == Inflight(3 * region_size(128), 0, 3, 128) and os.fstat(fd).st_size == wire.mmap_size
    assert regions.descriptors() == set(), "the region is the front-end's until it hands it over"
    fds = [fd]
    regions.adopt(wire, fds)
    assert fds == [] and regions.descriptors() == {fd}
    assert not regions.recovers(1, 128)
    region = regions.map(1)
    region.version = 1
    region.desc[127].inflight = 1
    assert [regions.recovers(index, 128) for index in range(3)] == [False, True, False]
    assert os.pread(fd, 1, region_size(128) + 16 + 127 * 16) == b"\1"
    regions.clear()
    assert not is_open(fd) and regions.map(1).version == 0


def test_an_offset_that_is_no_page(regions: InflightRegions) -> None:
    fd = region_file(1 << 16)
    regions.adopt(Inflight(region_size(64), 4096 + 64, 1, 64), [fd])
    regions.map(0).version = 1
    assert os.pread(fd, 2, 4096 + 64 + ffi.offsetof("struct virtq_inflight", "version")) == b"\1\0"


@pytest.mark.parametrize(
    "wire",
    [
        Inflight(4096, 0, 0, 128),
        Inflight(1 << 20, 0, 4, 128),
        Inflight(4096, 0, 1, 0),
        Inflight(1 << 20, 0, 1, 1025),
        Inflight(region_size(128) - 1, 0, 1, 128),
        Inflight(65537, 0, 1, 128),
        Inflight(4096, 65536, 1, 128),
        Inflight(4096, 12, 1, 128),
        Inflight(1 << 63, (1 << 64) - 8, 1, 128),
    ],
    ids=str,
)
def test_refused_regions(regions: InflightRegions, wire: Inflight) -> None:
    fds = [region_file(65536)]
    with pytest.raises(RemoteProtocolError):
        regions.adopt(wire, fds)
    assert len(fds) == 1 and regions.descriptors() == set()
    close_all(fds)


def test_a_ring_without_room(regions: InflightRegions) -> None:
    regions.adopt(Inflight(2 * region_size(64), 0, 2, 64), [region_file(2 * region_size(64))])
    for index, num in ((2, 64), (0, 128)):
        with pytest.raises(RemoteProtocolError, match="no room"):
            regions.recovers(index, num)


def test_a_truncated_region_hurts_nobody_here(regions: InflightRegions) -> None:
    fd = region_file(2 * region_size(64))
    regions.adopt(Inflight(2 * region_size(64), 0, 2, 64), [os.dup(fd)])
    os.ftruncate(fd, 0)
    assert not regions.recovers(1, 64)
    with pytest.raises(ValueError, match="mmap"):
        regions.map(1)
    os.close(fd)

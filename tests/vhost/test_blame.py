"""What the deaths of workers say against the chains that were in flight."""

import os

import pytest

from vhost._virtq import ffi, lib
from vhost.blame import OUTSIDE, OWN, blame
from vhost.inflight import InflightRegions, inflight_arena, region_size
from vhost.message import Inflight
from vhost.vring import Vring, state_arena

SUSPECT, CONDEMNED, UNREADABLE = lib.VIRTQ_SUSPECT, lib.VIRTQ_CONDEMNED, lib.VIRTQ_UNREADABLE


class Rings:
    """Two rings whose worker has died."""

    def __init__(self) -> None:
        states, arena = state_arena(2), inflight_arena(2)
        self.vrings = [Vring(index, states) for index in range(2)]
        self.regions = InflightRegions(arena, 2)
        for vring in self.vrings:
            vring.num, vring.state.started = 8, 1

    def mark(self, index: int, *heads: int) -> None:
        region = self.regions.map(index)
        for head in range(8):
            region.desc[head].inflight = head in heads

    def dies(self, weight: int, alone: tuple[int, int] | None = None) -> bool:
        if alone:
            self.vrings[alone[0]].state.alone = alone[1] + 1
        return blame(self.vrings, self.regions, weight)

    def suspicions(self) -> dict[tuple[int, int], int]:
        pairs = [(vring.index, head) for vring in self.vrings for head in range(lib.VIRTQ_MAX_SIZE)]
        return {pair: level for pair in pairs if (level := self.vrings[pair[0]].state.suspicion[pair[1]])}


@pytest.fixture
def rings() -> Rings:
    return Rings()


def test_all_in_flight_are_suspects_and_none_is_more(rings: Rings) -> None:
    rings.mark(0, 0, 7)
    rings.mark(1, 3)
    for _ in range(5):
        assert not rings.dies(OWN)
    assert rings.suspicions() == {(0, 0): SUSPECT, (0, 7): SUSPECT, (1, 3): SUSPECT}


def test_who_was_served_alone_is_the_one(rings: Rings) -> None:
    rings.mark(0, 0, 7)
    rings.mark(1, 3)
    rings.dies(OWN)
    assert rings.dies(OWN, alone=(0, 7))
    assert rings.suspicions() == {(0, 0): SUSPECT, (0, 7): CONDEMNED, (1, 3): SUSPECT}
    assert rings.vrings[0].state.alone == 0
    rings.dies(OWN, alone=(0, 7))
    assert rings.suspicions()[0, 7] == UNREADABLE
    # It does not run over.
    for _ in range(100):
        rings.dies(OWN, alone=(0, 7))
    assert rings.suspicions()[0, 7] == 0xFF


def test_a_kill_from_outside_says_little(rings: Rings) -> None:
    rings.mark(1, 3)
    for times in range(1, 5):
        rings.dies(OUTSIDE)
        assert rings.suspicions() == {(1, 3): times}
    rings.dies(OUTSIDE)
    assert rings.suspicions() == {(1, 3): SUSPECT}
    for times in range(1, 5):
        rings.dies(OUTSIDE, alone=(1, 3))
        assert rings.suspicions() == {(1, 3): SUSPECT + times}
    assert CONDEMNED == SUSPECT + 4


def test_a_ring_that_was_parked_has_none(rings: Rings) -> None:
    rings.mark(0, 1)
    rings.mark(1, 2)
    rings.vrings[1].state.started = 0
    rings.dies(OWN)
    assert rings.suspicions() == {(0, 1): SUSPECT}


@pytest.mark.parametrize("alone", [9, 1 << 31])
def test_a_record_that_makes_no_sense(rings: Rings, alone: int) -> None:
    """The worker may have died of writing where it should not."""
    rings.mark(0, 1)
    rings.vrings[0].state.alone = alone
    assert not rings.dies(OWN)
    assert rings.suspicions() == {(0, 1): SUSPECT}


@pytest.mark.parametrize("size", [2 * region_size(8), region_size(8) + 20, 0])
def test_the_front_end_s_region(rings: Rings, size: int) -> None:
    """It may have been truncated."""
    fd = os.memfd_create("region")
    os.ftruncate(fd, 2 * region_size(8))
    rings.regions.adopt(Inflight(2 * region_size(8), 0, 2, 8), [os.dup(fd)])
    rings.mark(0, 5)
    rings.mark(1, 0, 7)
    os.ftruncate(fd, size)
    os.close(fd)
    rings.dies(OWN)
    expected = {(0, 5): SUSPECT, (1, 0): SUSPECT, (1, 7): SUSPECT}
    readable = {0: (), region_size(8) + 20: ((0, 5), (1, 0))}.get(size, expected)
    assert rings.suspicions() == {pair: level for pair, level in expected.items() if pair in readable}


def test_the_record_has_room_for_every_head() -> None:
    assert ffi.sizeof(ffi.new("struct virtq_state *").suspicion) == lib.VIRTQ_MAX_SIZE

"""What is in flight on a ring that was suspended, as plain data: it moves to another back-end with a guest.

Rule 1. Only requests in our own in-flight region are told here. A front-end that has one takes it along itself.
"""

from typing import NamedTuple

from ._virtq import ffi, lib
from .inflight import InflightRegions
from .vring import Vring


class Suspended(NamedTuple):
    """Ring `ring` of `num` descriptors, and the heads in flight in the order in which they were taken."""

    ring: int
    num: int
    #: Where the ring goes on, and the used index; the heads lie between.
    last_avail_idx: int
    used_idx: int
    heads: tuple[int, ...]

    def check(self, queues: int) -> None:
        """Raises ValueError for what no ring of a device with so many can have in flight."""
        if not 0 <= self.ring < queues:
            raise ValueError(f"there is no ring {self.ring}")
        if not 1 <= self.num <= lib.VIRTQ_MAX_SIZE or self.num & (self.num - 1):
            raise ValueError(f"ring {self.ring} has {self.num} descriptors")
        if not self.heads or len(set(self.heads)) < len(self.heads) or max(self.heads) >= self.num:
            raise ValueError(f"ring {self.ring} has impossible requests in flight")
        if (self.used_idx + len(self.heads)) & 0xFFFF != self.last_avail_idx:
            raise ValueError(f"the indexes of ring {self.ring} do not fit what it has in flight")


def look(vring: Vring, inflight: InflightRegions) -> Suspended | None:
    """What a stopped ring has in flight on purpose; None: nothing, or it is not ours to tell."""
    if not vring.state.suspended or inflight.descriptors():
        return None
    region = inflight.map(vring.index)
    descs = ffi.cast("struct virtq_inflight_desc *", ffi.addressof(region[0], "desc"))
    marked = [(descs[head].counter, head) for head in range(vring.num) if descs[head].inflight]
    if not marked:
        return None
    heads = tuple(head for _, head in sorted(marked))
    return Suspended(vring.index, vring.num, vring.state.last_avail_idx, region.used_idx, heads)


def put(suspended: Suspended, vring: Vring, inflight: InflightRegions) -> None:
    """Leaves that in flight on a ring which has not been set up yet: its first worker finds it there."""
    region = inflight.map(vring.index)
    descs = ffi.cast("struct virtq_inflight_desc *", ffi.addressof(region[0], "desc"))
    region.desc_num, region.used_idx, region.version = suspended.num, suspended.used_idx, 1
    for counter, head in enumerate(suspended.heads):
        descs[head].inflight, descs[head].counter = 1, counter
    vring.state.last_avail_idx = suspended.last_avail_idx
    vring.state.started = vring.state.suspended = 1

"""What the ring engine should make of a chain, written a second time and for clarity only."""

from collections.abc import Sequence
from errno import EFAULT, EPROTO
from typing import NamedTuple

from tests.driver import DESCRIPTOR, INDIRECT, NEXT, WRITE


class BrokenRingError(Exception):
    """The ring breaks, with this errno."""


class ModelChain(NamedTuple):
    """Buffers as (offset into guest memory, length), one for each region they touch."""

    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]
    indirect: bool
    #: The buffers to read, to write, end before one that lies outside of memory.
    faults: tuple[bool, bool]


class Model:
    """`guest` is memory from physical address `base`, in adjacent regions of these sizes."""

    def __init__(self, guest: memoryview, base: int, sizes: Sequence[int]) -> None:
        self.guest, self.base = guest, base
        self.regions = [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]

    def translate(self, address: int, length: int) -> list[tuple[int, int]]:
        offset = address - self.base
        if length and not (offset >= 0 and offset + length <= len(self.guest)):
            raise BrokenRingError(EFAULT)
        pieces = []
        for start, size in self.regions:
            low, high = max(offset, start), min(offset + length, start + size)
            if low < high:
                pieces.append((low, high - low))
        return pieces

    def walk(self, table: int, count: int, head: int, may_be_indirect: bool) -> ModelChain:
        """A chain in the table of `count` descriptors at an offset (virtio 1.3, sections 2.7.4 and 2.7.5)."""
        sides: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        faults = [False, False]
        nested = written = False
        steps = 0
        following: int | None = head
        while following is not None:
            steps += 1
            if following >= count or steps > count:
                raise BrokenRingError(EPROTO)
            at = table + 16 * following
            address, length, flags, following = DESCRIPTOR.unpack(self.guest[at : at + 16])
            if flags & INDIRECT:
                if nested or flags & NEXT or not may_be_indirect or not length or length % 16:
                    raise BrokenRingError(EPROTO)
                self.translate(address, length)
                table, count, nested, steps, following = address - self.base, length // 16, True, 0, 0
                continue
            if not flags & WRITE and written:
                raise BrokenRingError(EPROTO)
            side = bool(flags & WRITE)
            written = written or side
            try:
                if not faults[side]:
                    sides[side].extend(self.translate(address, length))
            except BrokenRingError:
                faults[side] = True
            if not flags & NEXT:
                following = None
        return ModelChain(*sides, nested, (faults[False], faults[True]))

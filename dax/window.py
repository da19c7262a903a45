"""Which file range lies where in the window, and the steps that change it. Knows offsets: no descriptors, no sockets.

A front-end (QEMU 11.1, hw/virtio/vhost-user.c) maps only what is free, and unmaps only what one map made. A plan keeps
to that, as long as its steps are taken in order and the outcome of each is told:

Rule 1. A Map covers nothing that is, or may be, mapped.
Rule 2. An Unmap names offset and length of exactly one Map. It may be refused only if it is tolerant.
Rule 3. First all Unmaps, then Maps of what the unmapped pieces leave, last the wanted Map.
Rule 4. A planning method changes nothing. `done`, `refused` and `lost` do, step by step.
Rule 5. A mapping is sure or doubtful. A doubtful one may be gone: it is never relied on, and never mapped over.
"""

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

OFFSETS = 1 << 64
Range = tuple[int, int]  # offset and length


class WindowError(ValueError):
    """The guest asks for what no window has: misaligned, empty, or out of bounds."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """`length` bytes from `file_offset` of a file, at `offset` of the window. `file` is any number that names it."""

    offset: int
    length: int
    file: int
    file_offset: int
    writable: bool

    @property
    def end(self) -> int:
        return self.offset + self.length

    def part(self, offset: int, end: int) -> "Mapping":
        """What of it lies in the window from `offset` to `end`, which must be inside."""
        file_offset = self.file_offset + offset - self.offset
        return replace(self, offset=offset, length=end - offset, file_offset=file_offset)

    def serves(self, wanted: "Mapping") -> bool:
        """Whether who asks for `wanted` has it with this mapping."""
        return (
            self.offset <= wanted.offset
            and wanted.end <= self.end
            and self.file == wanted.file
            and self.file_offset - self.offset == wanted.file_offset - wanted.offset
            and self.writable >= wanted.writable
        )


@dataclass(frozen=True, slots=True)
class Map:
    """Make `mapping`, where nothing is mapped."""

    mapping: Mapping

    @property
    def offset(self) -> int:
        return self.mapping.offset

    @property
    def length(self) -> int:
        return self.mapping.length


@dataclass(frozen=True, slots=True)
class Unmap:
    """Undo the map of exactly this range. `tolerant`: it may be gone already, then a refusal is as good."""

    offset: int
    length: int
    tolerant: bool = False


Step = Map | Unmap


class Window:
    """What the front-end has mapped, as far as we know.

    `size` bytes; everything is aligned to `page` bytes, a power of two.
    """

    def __init__(self, size: int, page: int = 4096) -> None:
        if page <= 0 or page & (page - 1) or size <= 0 or size % page:
            raise ValueError(f"a window of {size} bytes in pages of {page} is not possible")
        self.size = size
        self.page = page
        #: Bytes of all mappings, the doubtful ones too.
        self.mapped = 0
        #: How many mappings each file has.
        self.files: Counter[int] = Counter()
        self._mappings: dict[int, Mapping] = {}  # by offset; none overlaps another
        self._offsets: list[int] = []  # their keys, sorted
        self._doubtful: set[int] = set()  # some of their keys

    def __len__(self) -> int:
        return len(self._mappings)

    @property
    def mappings(self) -> tuple[Mapping, ...]:
        """All of them, by offset."""
        return tuple(self._mappings[offset] for offset in self._offsets)

    def overlapping(self, offset: int, length: int) -> tuple[Mapping, ...]:
        """Mappings that have a byte in the range, by offset."""
        first = max(bisect_right(self._offsets, offset) - 1, 0)
        last = bisect_left(self._offsets, offset + length)
        found = (self._mappings[each] for each in self._offsets[first:last])
        return tuple(mapping for mapping in found if mapping.end > offset)

    def at(self, offset: int) -> Mapping | None:
        """The mapping that starts at `offset`."""
        return self._mappings.get(offset)

    def is_doubtful(self, offset: int) -> bool:
        """Whether a doubtful mapping starts at `offset`."""
        return offset in self._doubtful

    # Plans

    def setup(self, wanted: Mapping) -> list[Step]:
        """Steps after which `wanted` is mapped. It replaces what it overlaps. Raises WindowError."""
        self._check(wanted.offset, wanted.length)
        if wanted.file_offset < 0 or wanted.file_offset % self.page or wanted.file_offset + wanted.length > OFFSETS:
            raise WindowError(f"no file has a range of {wanted.length} bytes at {wanted.file_offset:#x} to map")
        found = self.overlapping(wanted.offset, wanted.length)
        if len(found) == 1 and found[0].serves(wanted):
            # A doubtful one is renewed whole: its remainder is the guest's too.
            return self._renew(found[0]) if self.is_doubtful(found[0].offset) else []
        return [*self._cut(found, [(wanted.offset, wanted.length)]), Map(wanted)]

    def remove(self, ranges: Iterable[Range]) -> list[Step]:
        """Steps after which nothing is mapped in `ranges`, and all else as before. Raises WindowError."""
        holes = sorted(ranges)
        for offset, length in holes:
            self._check(offset, length)
        found = {mapping.offset: mapping for hole in holes for mapping in self.overlapping(*hole)}
        return self._cut(list(found.values()), holes)

    def drop(self, file: int) -> list[Step]:
        """Steps after which nothing of `file` is mapped."""
        return [self._unmap(mapping) for mapping in self.mappings if mapping.file == file]

    def everything(self) -> list[Step]:
        """Steps after which nothing is mapped."""
        return [self._unmap(mapping) for mapping in self.mappings]

    # Outcomes

    def done(self, step: Step) -> None:
        """The front-end accepted the step."""
        if isinstance(step, Map):
            self._add(step.mapping)
        else:
            self._discard(step)

    def refused(self, step: Step) -> None:
        """The front-end refused the step: a Map left nothing, an Unmap shows that we may be wrong about its mapping."""
        if isinstance(step, Unmap):
            if step.tolerant:
                self._discard(step)
            elif step.offset in self._mappings:
                self._doubtful.add(step.offset)

    def lost(self, step: Step) -> None:
        """Nobody knows whether the front-end took the step: its mapping is doubtful."""
        if isinstance(step, Map):
            self._add(step.mapping)
        if step.offset in self._mappings:
            self._doubtful.add(step.offset)

    def doubt(self) -> None:
        """The rings stopped. A pause keeps the mappings and a reset drops them, and nobody tells which it was."""
        self._doubtful.update(self._offsets)

    def clear(self) -> None:
        """The front-end surely has no mapping any more: the connection is gone, or the device was reset."""
        self._mappings.clear()
        self._offsets.clear()
        self._doubtful.clear()
        self.files.clear()
        self.mapped = 0

    # Parts

    def _check(self, offset: int, length: int) -> None:
        if length <= 0 or offset < 0 or offset + length > self.size or (offset | length) % self.page:
            raise WindowError(f"a window of {self.size:#x} bytes has no range of {length:#x} at {offset:#x}")

    def _cut(self, found: Sequence[Mapping], holes: Sequence[Range]) -> list[Step]:
        """Takes the sorted `holes` out of the mappings `found`."""
        pieces = [Map(piece) for mapping in found for piece in _without(mapping, holes)]
        return [*(self._unmap(mapping) for mapping in found), *pieces]

    def _renew(self, mapping: Mapping) -> list[Step]:
        return [self._unmap(mapping), Map(mapping)]

    def _unmap(self, mapping: Mapping) -> Unmap:
        return Unmap(mapping.offset, mapping.length, tolerant=self.is_doubtful(mapping.offset))

    def _add(self, mapping: Mapping) -> None:
        if self.overlapping(mapping.offset, mapping.length):
            raise ValueError(f"{mapping} is over another mapping")
        self._mappings[mapping.offset] = mapping
        insort(self._offsets, mapping.offset)
        self.mapped += mapping.length
        self.files[mapping.file] += 1

    def _discard(self, step: Unmap) -> None:
        mapping = self._mappings.get(step.offset)
        # It may be gone: the window can be cleared while a step is under way.
        if mapping and mapping.length == step.length:
            del self._mappings[step.offset]
            del self._offsets[bisect_left(self._offsets, step.offset)]
            self._doubtful.discard(step.offset)
            self.mapped -= step.length
            self.files[mapping.file] -= 1
            if not self.files[mapping.file]:
                del self.files[mapping.file]


def _without(mapping: Mapping, holes: Sequence[Range]) -> list[Mapping]:
    """What the sorted `holes`, which may overlap, leave of a mapping."""
    pieces = []
    start = mapping.offset
    for offset, length in holes:
        if offset >= mapping.end:
            break
        if start < offset:
            pieces.append(mapping.part(start, offset))
        start = max(start, offset + length)
    if start < mapping.end:
        pieces.append(mapping.part(start, mapping.end))
    return pieces

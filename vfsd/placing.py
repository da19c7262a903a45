"""Where the DAX window lies in the guest's memory, and what of it the guest may name as memory.

A guest sends data straight from where it lies, or has it written there: a program that writes from one mapped file
beyond the end of another has its guest name an address in the window. The front-end tells of mappings as of any memory,
but QEMU tells of at most eight regions, or of the lowest one that was refused (vhost/memory.py). What it tells of one
is enough: the others are at the same distance from their offsets.

Rule 1. Nothing is guessed: a mapping told of is ours if it is the same part of the same file.
Rule 2. What is told while no worker runs may be of another boot of the guest: it holds from the next start on.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from dax.window import Mapping as Mapped
from vhost.memory import GuestMemory
from vhost.message import MemoryRegion
from vhost.saved import StateError, number

#: Added to a guest address for the front-end's address of it, which we don't know and which nothing here is named by.
USER = 1 << 63


class Placing:
    """For a window of `size` bytes. `files` are descriptors by the files' numbers."""

    def __init__(self, size: int, files: Mapping[int, int]) -> None:
        self._size, self._files = size, files
        #: Guest address of the window's beginning, and what it is from the next start on.
        self._base: int | None = None
        self._next: int | None = None
        #: What is shown, by offset in the window.
        self._shown: dict[int, tuple[Mapped, MemoryRegion]] = {}

    @property
    def known(self) -> bool:
        return self._base is not None

    def save(self) -> dict[str, Any]:
        """Where the window lies. What is shown goes with the memory it is shown in."""
        return {name: -1 if base is None else base for name, base in (("base", self._base), ("next", self._next))}

    def restore(self, data: Any) -> None:
        """Raises StateError."""
        self._base, self._next = (self._restore(data, name) for name in ("base", "next"))

    def _restore(self, data: Any, name: str) -> int | None:
        base = number(data, name, -1)
        if base >= 0 and not self._may_begin(base):
            raise StateError(f"no window of {self._size} bytes lies at {base:#x}")
        return base if base >= 0 else None

    def _may_begin(self, base: int) -> bool:
        """PCI has what it places lie at multiples of its size, and no machine has addresses of more than 52 bits."""
        return base % self._size == 0 and base + self._size <= USER

    def learn(self, region: MemoryRegion, fd: int, mappings: Iterable[Mapped], running: bool) -> None:
        """The front-end tells of a mapping in the file `fd`: perhaps it is one of ours. `running`: a worker runs."""
        if running and self.known:
            return
        for mapping in mappings:
            base = region.guest_addr - mapping.offset
            same_part = (mapping.file_offset, mapping.length) == (region.mmap_offset, region.size)
            if same_part and self._may_begin(base) and _same_file(fd, self._files[mapping.file]):
                if running:
                    self._base = base
                else:
                    self._next = base

    def start(self, memory: GuestMemory, mappings: Iterable[Mapped], stopped: bool) -> None:
        """A worker is about to start. `stopped`: the rings were, meanwhile."""
        base = self._next if stopped or self._next is not None else self._base
        self._next = None
        if base != self._base:
            for offset in list(self._shown):
                self.update(memory, offset, None)
            self._base = base
        for offset, (_, region) in list(self._shown.items()):
            if not memory.shows(region):
                del self._shown[offset]
        for mapping in mappings:
            self.update(memory, mapping.offset, mapping)

    def update(self, memory: GuestMemory, offset: int, mapping: Mapped | None) -> None:
        """`mapping` is what begins at `offset` of the window by now. The worker may end by this (GuestMemory.hide)."""
        before, region = self._shown.get(offset, (None, None))
        if self._base is None:
            mapping = None
        if mapping == before:
            return
        if region:
            del self._shown[offset]
            memory.hide(region)
        if mapping and self._base is not None:
            address = self._base + offset
            region = MemoryRegion(address, mapping.length, USER + address, mapping.file_offset)
            if memory.show(region, self._files[mapping.file]):
                self._shown[offset] = mapping, region


def _same_file(one: int, other: int) -> bool:
    """False when the process that opened them has ended: nobody can tell."""
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False

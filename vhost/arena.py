"""Arenas: zeroed memory that several processes see, and that outlives any of them but the one that made it.

Rule 1. An arena holds plain records: no pointers, no locks.
Rule 2. It is made before the fork and inherited with it: a memfd mapped shared, whose descriptor nobody else needs.
"""

import mmap
import os
from typing import Any


class Arena:
    """`size` bytes, zeroed, sparse: a page costs memory once it is written."""

    def __init__(self, name: str, size: int) -> None:
        """`name` shows in /proc/self/maps. Raises OSError when the host has no memory or descriptors left."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self.name = name
        self.size = size

    def pointer(self, ffi: Any, ctype: str, offset: int = 0) -> Any:
        """A C pointer of type `ctype` to the record at `offset` bytes, which keeps the arena alive.

        `ffi` is the one that knows the type: that of vhost._virtq, or of an extension that includes it.
        """
        if not 0 <= offset <= self.size - ffi.sizeof(ffi.typeof(ctype).item):
            raise IndexError(f"a {ctype} at offset {offset} is not inside arena {self.name}")
        return ffi.from_buffer(ctype, memoryview(self._map)[offset:])

    def clear(self) -> None:
        """Zeroes everything and gives the memory back. Pointers stay valid."""
        self._map.madvise(mmap.MADV_REMOVE)

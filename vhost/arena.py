"""Arenas: zeroed memory that several processes see, and that outlives any of them but the one that made it.

Rule 1. An arena holds plain records: no pointers, no locks.
Rule 2. It is made before the fork and inherited with it: a memfd mapped shared. Its descriptor is for a process that
        is to take the place of the one that made it.
"""

import mmap
import os
from collections.abc import Callable
from typing import Any, Self

from .saved import StateError

#: Makes or finds an arena, by name and size.
Maker = Callable[[str, int], "Arena"]


class Arena:
    """`size` bytes, zeroed, sparse: a page costs memory once it is written."""

    def __init__(self, name: str, size: int) -> None:
        """`name` shows in /proc/self/maps. Raises OSError when the host has no memory or descriptors left."""
        self._map_file(os.memfd_create(name, os.MFD_CLOEXEC), name, size, new=True)

    @classmethod
    def of(cls, fd: int, name: str, size: int) -> Self:
        """An arena that another process has made, with all it holds; `fd` is the arena's from now on.

        Raises OSError; StateError for a file of another size.
        """
        arena = cls.__new__(cls)
        arena._map_file(fd, name, size, new=False)
        return arena

    def _map_file(self, fd: int, name: str, size: int, new: bool) -> None:
        try:
            if new:
                os.ftruncate(fd, size)
            elif (found := os.fstat(fd).st_size) != size:
                raise StateError(f"arena {name} has {found} bytes, not {size}")
            self._map = mmap.mmap(fd, size)
        except BaseException:
            os.close(fd)
            raise
        #: Its file.
        self.fd = fd
        self.name = name
        self.size = size

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

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

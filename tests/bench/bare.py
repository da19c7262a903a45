"""The system calls that a workload can't do without, alone: with what the ring alone takes they are the limit."""

import errno
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench.build import ffi, lib
from tests.bench.data import Workload
from tests.bench.share import Place


class Repeated(NamedTuple):
    """What became of it."""

    units: int
    seconds: float
    #: Of CPU time.
    used: float


def repeat(share: Path, workload: Workload, depth: int, seconds: float) -> Repeated:
    """Repeats them in each lane's place for so long. Raises OSError."""
    with ExitStack() as stack:
        bare, kept = _opened(stack, share, workload, depth)
        bare.nanoseconds = int(seconds * 1e9)
        result = lib.bare_run(bare, workload.bare.encode())
        del kept
    if result < 0:
        raise OSError(-result, f"bare calls of {workload.title}: {errno.errorcode[-result]}")
    return Repeated(bare.units, bare.elapsed / 1e9, bare.used / 1e9)


def _opened(stack: ExitStack, share: Path, workload: Workload, depth: int) -> tuple[Any, Any]:
    """A struct bare, and what it points to."""

    def opened(path: Path, flags: int) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        return fd

    bare, places = ffi.new("struct bare *"), ffi.new("struct bare_place[]", depth)
    bare.places, bare.depth, bare.threads = places, depth, workload.blocks
    bare.size, bare.random = workload.size, workload.random
    bare.proc = opened(Path("/proc/self/fd"), os.O_RDONLY | os.O_DIRECTORY)
    bare.many = opened(share / "many", os.O_RDONLY | os.O_DIRECTORY)
    for number, place in enumerate(places):
        path = share / f"lane-{number}"
        where = Place(number, depth, path, 0)
        file = workload.file(where)
        place.directory, place.known = opened(path, os.O_PATH), opened(path / "known", os.O_PATH)
        place.link = opened(path / "link", os.O_PATH | os.O_NOFOLLOW)
        place.read = place.written = opened(file.path, os.O_RDONLY if workload.bare == "read" else os.O_RDWR)
        place.path = str(place.known).encode()
        place.first = place.offset = file.first
        place.end = file.end
    return bare, places

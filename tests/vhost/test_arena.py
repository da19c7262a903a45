"""Arenas outlive the process that wrote them, and give their memory back."""

import os
import resource

import pytest
from cffi import FFI

from vhost.arena import Arena

ffi = FFI()
ffi.cdef("struct pair { uint32_t low; uint32_t high; };")


def test_a_child_writes_what_its_parent_reads() -> None:
    arena = Arena("test", 8192)
    pair = arena.pointer(ffi, "struct pair *", 4096)
    if (child := os.fork()) == 0:
        pair.low, pair.high = 1, 2
        os._exit(0)
    os.waitpid(child, 0)
    assert (pair.low, pair.high) == (1, 2)
    assert arena.pointer(ffi, "struct pair *").low == 0


def test_clear() -> None:
    arena = Arena("test", 1 << 20)
    pair = arena.pointer(ffi, "struct pair *", 1 << 19)
    pair.low = 7
    arena.clear()
    assert pair.low == 0
    pair.low = 8
    assert arena.pointer(ffi, "struct pair *", 1 << 19).low == 8


def test_a_pointer_keeps_its_arena() -> None:
    pair = Arena("test", 4096).pointer(ffi, "struct pair *")
    pair.high = 5
    assert pair.high == 5


@pytest.mark.parametrize("offset", [-1, 4089, 4096, 1 << 40])
def test_bounds(offset: int) -> None:
    with pytest.raises(IndexError, match="arena test"):
        Arena("test", 4096).pointer(ffi, "struct pair *", offset)


def test_the_last_record() -> None:
    Arena("test", 4096).pointer(ffi, "struct pair *", 4088).high = 1


def test_no_descriptor_left() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
        with pytest.raises(OSError, match="Too many open files"):
            Arena("test", 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(free)

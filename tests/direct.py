"""The FUSE client's shortest transport: two arrays of buffers straight into fuse_serve, with no ring."""

from collections.abc import Iterable, Sequence
from typing import Any

from tests.fuseclient import Transport
from vfsd._fuse import ffi, lib


def cut(data: bytes, sizes: Iterable[int]) -> list[int]:
    """Lengths of the buffers to lay `data` out in: `sizes`, then the rest."""
    lengths, left = [], len(data)
    for size in sizes:
        lengths.append(min(size, left))
        left -= lengths[-1]
    return [*lengths, left] if left or not lengths else lengths


def direct(
    core: Any, in_sizes: Sequence[int] = (), out_sizes: Sequence[int] = (), replay: bool = False, fault: int = 0
) -> Transport:
    """A transport into fuse_serve itself, `core` being a struct core.

    The request and the room for the reply are laid out in buffers of the given sizes, the last one taking the rest.
    Each is its own allocation, so that a sanitizer sees the first byte beyond.
    """

    def call(request: bytes, room: int) -> bytes:
        keep, arrays = [], []
        for data, sizes in ((request, in_sizes), (bytes(room), out_sizes)):
            lengths = cut(data, sizes)
            iov = ffi.new("struct iovec[]", len(lengths))
            at = 0
            for i, length in enumerate(lengths):
                buffer = ffi.new("char[]", length) if length else ffi.NULL
                if length:
                    ffi.memmove(buffer, data[at : at + length], length)
                iov[i].iov_base, iov[i].iov_len = buffer, length
                keep.append(buffer)
                at += length
            arrays.append((iov, len(lengths)))
        (in_iov, in_count), (out_iov, out_count) = arrays
        chain = ffi.new("struct virtq_chain *")
        chain.replay, chain.fault = replay, fault
        setattr(chain, "in", in_iov)
        chain.out = out_iov
        chain.in_count, chain.out_count = in_count, out_count
        chain.in_len, chain.out_len = len(request), room
        used = lib.fuse_serve(core, chain)
        assert 0 <= used <= room, f"{used} bytes used of {room}"
        reply = b"".join(ffi.buffer(out_iov[i].iov_base, out_iov[i].iov_len)[:] for i in range(out_count) if room)
        return reply[:used]

    return call

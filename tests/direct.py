"""The FUSE client's shortest transport: two arrays of buffers straight into fuse_serve, with no ring."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tests.fuseclient import FuseClient, Transport
from vfsd._fuse import ffi, lib


def cut(data: bytes, sizes: Iterable[int]) -> list[int]:
    """Lengths of the buffers to lay `data` out in: `sizes`, then the rest."""
    lengths, left = [], len(data)
    for size in sizes:
        lengths.append(min(size, left))
        left -= lengths[-1]
    return [*lengths, left] if left or not lengths else lengths


def direct(
    core: Any,
    in_sizes: Sequence[int] = (),
    out_sizes: Sequence[int] = (),
    replay: bool = False,
    fault: int = 0,
    memo: Any = ffi.NULL,
    serve: Callable[[Any, Any], int] = lib.fuse_serve,
) -> Transport:
    """A transport into fuse_serve itself, or what takes its place. `core` is a struct core, `memo` the struct memo of
    each request.

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
        chain.replay, chain.fault, chain.memo = replay, fault, memo
        setattr(chain, "in", in_iov)
        chain.out = out_iov
        chain.in_count, chain.out_count = in_count, out_count
        chain.in_len, chain.out_len = len(request), room
        used = serve(core, chain)
        assert 0 <= used <= room, f"{used} bytes used of {room}"
        reply = b"".join(ffi.buffer(out_iov[i].iov_base, out_iov[i].iov_len)[:] for i in range(out_count) if room)
        return reply[:used]

    return call


def follow(again: FuseClient, first: FuseClient) -> FuseClient:
    """`again`, whose requests have the number of the last one of `first` from now on, as one that a next worker serves
    once more."""
    again.uniques = iter(lambda: first.unique, None)
    return again

"""Structs of <linux/fuse.h> as bytes, and replies that are lists of them."""

import struct
from collections import deque
from typing import Any, NamedTuple

from vfsd._fuse import ffi


class Dirent(NamedTuple):
    """One struct fuse_dirent."""

    ino: int
    #: Where to read on after this entry.
    off: int
    #: DT_*
    type: int
    name: bytes
    #: READDIRPLUS only: struct fuse_entry_out, whose nodeid may be 0.
    entry: Any = None


#: A struct in a struct does not keep it: `getattr(nodeid).attr.size` is to read what is still there.
_recent: deque[Any] = deque(maxlen=256)


def pack(ctype: str, **fields: Any) -> bytes:
    """A struct as bytes, other fields 0."""
    return bytes(ffi.buffer(ffi.new(f"struct {ctype} *", fields)))


def unpack(ctype: str, data: bytes) -> Any:
    """The struct at the start of `data`."""
    out = ffi.new(f"struct {ctype} *")
    assert len(data) >= ffi.sizeof(out[0]), f"reply too short for struct {ctype}: {len(data)} bytes"
    ffi.memmove(out, data, ffi.sizeof(out[0]))
    _recent.append(out)
    return out


def dirents(data: bytes, plus: bool = False) -> list[Dirent]:
    """The entries of a READDIR or READDIRPLUS reply."""
    found, at = [], 0
    head: int = ffi.sizeof("struct fuse_entry_out") if plus else 0
    name_at: int = head + ffi.offsetof("struct fuse_dirent", "name")
    while at < len(data):
        entry = unpack("fuse_entry_out", data[at:]) if plus else None
        ino, off, length, kind = struct.unpack_from("=QQII", data, at + head)
        end = at + name_at + length
        assert end <= len(data), "a name beyond the end of the reply"
        found.append(Dirent(ino, off, kind, data[at + name_at : end], entry))
        at = at + (name_at + length + 7) // 8 * 8
    assert at == len(data), "a record that is not padded to 8 bytes"
    return found

"""Records of inodes and handles on their way from one core to another (config.h, state_inode)."""

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from tests.core.served import Served
from tests.fuseclient import ROOT
from vfsd._fuse import ffi, lib

#: struct state_inode.
INODE = struct.Struct("=QQQQIiHHI")
BATCH = 2 * lib.STATE_ROOM


class Record(NamedTuple):
    nodeid: int
    nlookup: int
    base: int
    tag: int
    type: int
    handle_type: int
    how: int
    len: int
    error: int
    bytes: bytes

    def pack(self) -> bytes:
        size = -(-len(self.bytes) // 8) * 8
        return INODE.pack(*self[:-1]) + self.bytes.ljust(size, b"\0")


def unpack(data: bytes) -> Iterator[Record]:
    while data:
        fields = INODE.unpack_from(data)
        size = fields[7]
        yield Record(*fields, data[INODE.size : INODE.size + size])
        data = data[INODE.size + -(-size // 8) * 8 :]


def save(served: Served, flags: int = 0, *, paths: bool = False) -> list[Record]:
    """By file handle where the core closes inodes by them, unless by `paths`."""
    if served.config.flags & lib.CORE_FILE_HANDLES and not paths:
        flags |= lib.STATE_HANDLES
    walk = lib.state_walk_new(served.core, flags)
    buffer, progress, data = ffi.new("uint8_t[]", BATCH), ffi.new("struct state_progress *"), b""
    while True:
        lib.state_save(walk, buffer, BATCH, progress)
        if not progress.bytes:
            break
        data += ffi.buffer(buffer, progress.bytes)[:]
        (*_, last) = unpack(ffi.buffer(buffer, progress.bytes)[:])
        assert progress.error == -last.error
    lib.state_walk_free(walk)
    records = list(unpack(data))
    saved = [ROOT, *(record.nodeid for record in records)]
    assert len(set(saved)) == len(saved)
    for position, record in enumerate(records):
        assert record.base in saved[: position + 1] or record.how == lib.STATE_LOST, "found through what comes later"
    return records


def numbers(served: Served) -> Any:
    found = ffi.new("struct state_numbers *")
    lib.state_numbers(served.core, found)
    return found


def load(served: Served, data: bytes, flags: int = 0) -> list[int]:
    """The errno of each record that was not loaded. EBADMSG ends it."""
    buffer = ffi.new("uint8_t[]", data)
    progress, done, errors = ffi.new("struct state_progress *"), 0, []
    while done < len(data):
        lib.state_load(served.core, buffer + done, len(data) - done, flags, progress)
        assert done + progress.bytes <= len(data)
        if progress.error:
            errors.append(-progress.error)
        if progress.error == -errno.EBADMSG:
            break
        assert progress.bytes
        done += progress.bytes
    return errors


def handles(served: Served) -> list[Any]:
    found, fd, slot = [], ffi.new("int32_t *"), 1
    while True:
        handle = ffi.new("struct state_handle *")
        slot = lib.state_next_handle(served.core, slot, handle, fd)
        if not slot:
            return found
        assert fd[0] in served.descriptors()
        found.append(handle)
        slot += 1


def move(source: Served, target: Served, flags: int = 0, *, paths: bool = False) -> list[int]:
    assert lib.state_set_numbers(target.core, numbers(source)) == 0
    data = b"".join(record.pack() for record in save(source, flags, paths=paths))
    errors = load(target, data, flags & lib.STATE_TAGS)
    for handle in handles(source):
        if error := lib.state_load_handle(target.core, handle):
            errors.append(-error)
    begin(target)
    return errors


def begin(target: Served) -> None:
    """What the first worker finds, and the sweep leaves. Of an inode that nothing keeps the worker closes it itself."""
    before = target.descriptors()
    target.restart()
    for fd in before - target.descriptors():
        with suppress(OSError):
            os.close(fd)

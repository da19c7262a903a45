"""From what passed between a guest and a daemon to requests in registers (recorded.py)."""

import base64
import errno
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Any

from tests.bench.build import lib
from tests.bench.recorded import BEGIN, END, File, Macro, Request
from tests.bench.recorder import Exchange
from tests.fuseclient import HEADER, REPLY_HEADER
from tests.fusestructs import dirents, unpack
from vfsd._fuse import ffi
from vfsd._fuse import lib as fuse

NODEID_AT: int = ffi.offsetof("struct fuse_in_header", "nodeid")
ENTRY: int = ffi.sizeof("struct fuse_entry_out")
OPEN_FLAGS: int = ffi.offsetof("struct fuse_open_out", "open_flags")
U64 = struct.Struct("=Q")

ENTRIES = {fuse.FUSE_LOOKUP, fuse.FUSE_CREATE, fuse.FUSE_MKDIR, fuse.FUSE_MKNOD, fuse.FUSE_SYMLINK, fuse.FUSE_LINK}
OPENED = {fuse.FUSE_OPEN: 0, fuse.FUSE_OPENDIR: 0, fuse.FUSE_CREATE: ENTRY}
LISTED = {fuse.FUSE_READDIR, fuse.FUSE_READDIRPLUS}
DIRECTORIES = {fuse.FUSE_OPENDIR, fuse.FUSE_READDIR, fuse.FUSE_READDIRPLUS, fuse.FUSE_RELEASEDIR, fuse.FUSE_FSYNCDIR}
#: Where in the arguments a handle is, and another nodeid.
HANDLES = dict.fromkeys((
    fuse.FUSE_READ, fuse.FUSE_WRITE, fuse.FUSE_RELEASE, fuse.FUSE_FLUSH, fuse.FUSE_FSYNC, fuse.FUSE_READDIR,
    fuse.FUSE_READDIRPLUS, fuse.FUSE_RELEASEDIR, fuse.FUSE_FSYNCDIR, fuse.FUSE_FALLOCATE, fuse.FUSE_LSEEK,
    fuse.FUSE_COPY_FILE_RANGE,
), 0)  # fmt: skip
NODEIDS = {fuse.FUSE_RENAME: 0, fuse.FUSE_RENAME2: 0, fuse.FUSE_LINK: 0, fuse.FUSE_COPY_FILE_RANGE: 16}
#: Those that have one only if they say so.
SOMETIMES = {fuse.FUSE_GETATTR: fuse.FUSE_GETATTR_FH, fuse.FUSE_SETATTR: fuse.FATTR_FH}


def _kind(opcode: int) -> str:
    """Handles of directories may have the same numbers as those of files."""
    return "directory" if opcode in DIRECTORIES else "file"


def macro(exchanges: Iterable[Exchange], files: list[File]) -> Macro:
    """What lies between the marks."""
    maker = Maker()
    for exchange in _between(exchanges):
        maker.take(exchange)
    maker.forget_all()
    return Macro(files, maker.requests, len(maker.registers))


def _between(exchanges: Iterable[Exchange]) -> Iterator[Exchange]:
    begun = False
    for exchange in exchanges:
        name = exchange.request[HEADER:].rstrip(b"\0")
        if name == END:
            return
        if begun:
            yield exchange
        begun = begun or name == BEGIN
    raise ValueError("the recording has no end")


class Maker:
    def __init__(self) -> None:
        #: What a recorded number, or a name in a directory, is kept in.
        self.registers: dict[Any, int] = {("node", fuse.FUSE_ROOT_ID): 0}
        self.requests: list[Request] = []
        #: By handle: registers of the names in the directory that is read.
        self._listings: dict[int, dict[str, int]] = {}

    def _register(self, kind: str, number: Any) -> int:
        return self.registers.setdefault((kind, number), len(self.registers))

    def _known(self, kind: str, number: int) -> int:
        if (kind, number) not in self.registers:
            raise ValueError(f"{kind} {number:#x} was known before the recording began")
        return self.registers[kind, number]

    def take(self, exchange: Exchange) -> None:
        header = unpack("fuse_in_header", exchange.request)
        body = exchange.request[HEADER:]
        if header.opcode in (fuse.FUSE_FORGET, fuse.FUSE_BATCH_FORGET):
            self._forget(header, body)
        elif header.opcode in LISTED:
            self._listed(header, body, exchange.reply)
        elif header.opcode != fuse.FUSE_INTERRUPT:
            self._request(header, body, exchange)

    def _add(self, request: Request, arguments: bytes) -> None:
        self.requests.append(request._replace(arguments=base64.b64encode(arguments).decode()))

    def _forget(self, header: Any, body: bytes) -> None:
        """What the guest knew before is nobody's here."""
        if header.opcode == fuse.FUSE_BATCH_FORGET:
            nodeids = [nodeid for nodeid, _ in struct.iter_unpack("=QQ", body[8:])]
            self._forgotten([self.registers["node", each] for each in nodeids if ("node", each) in self.registers])
        elif ("node", header.nodeid) in self.registers:
            register = self.registers["node", header.nodeid]
            patches = [(lib.DRIVER_PUT, NODEID_AT, register), (lib.DRIVER_COUNT, HEADER, register)]
            self._add(Request(fuse.FUSE_FORGET, "", patches), body)

    def _forgotten(self, registers: list[int]) -> None:
        if not registers:
            return
        patches = []
        for number, register in enumerate(registers):
            at = HEADER + 8 + 16 * number
            patches += [(lib.DRIVER_PUT, at, register), (lib.DRIVER_COUNT, at + 8, register)]
        arguments = struct.pack("=II", len(registers), 0) + bytes(16 * len(registers))
        self._add(Request(fuse.FUSE_BATCH_FORGET, "", patches), arguments)

    def forget_all(self) -> None:
        """Also what other replies named than those of the recording."""
        nodeids = [register for (kind, _), register in self.registers.items() if kind == "node" and register]
        for first in range(0, len(nodeids), 200):
            self._forgotten(nodeids[first : first + 200])

    def _listed(self, header: Any, body: bytes, reply: bytes) -> None:
        """The first request for a directory stands for all."""
        asked = unpack("fuse_read_in", body)
        directory = self._known("node", header.nodeid)
        if asked.offset == 0:
            handle = self._known("directory", asked.fh)
            patches = [(lib.DRIVER_PUT, NODEID_AT, directory), (lib.DRIVER_PUT, HEADER, handle)]
            size = ffi.sizeof("struct fuse_read_in")
            self._listings[asked.fh] = names = {}
            self._add(Request(fuse.FUSE_READDIRPLUS, "", patches, names=names), body[:size])
        names = self._listings[asked.fh]
        plus = header.opcode == fuse.FUSE_READDIRPLUS
        for entry in dirents(reply[REPLY_HEADER:], plus):
            if entry.name in (b".", b".."):
                continue
            known = plus and entry.entry.nodeid
            number = entry.entry.nodeid if known else (directory, entry.name)
            names[os.fsdecode(entry.name)] = self._register("node", number)

    def _request(self, header: Any, body: bytes, exchange: Exchange) -> None:
        opcode, out = header.opcode, unpack("fuse_out_header", exchange.reply)
        if out.error == -errno.ENOSYS:  # asked once in the life of a mount
            return
        patches = [(lib.DRIVER_PUT, NODEID_AT, self._known("node", header.nodeid))]
        named = [("node", NODEIDS[opcode])] if opcode in NODEIDS else []
        named += [(_kind(opcode), at) for at in self._handles_at(opcode, body)]
        for kind, at in named:
            patches.append((lib.DRIVER_PUT, HEADER + at, self._known(kind, U64.unpack_from(body, at)[0])))
        answer = exchange.reply[REPLY_HEADER:]
        if not out.error:
            patches += self._taken(opcode, answer)
        read = written = flags = 0
        if opcode == fuse.FUSE_READ:
            read = unpack("fuse_read_in", body).size
        elif opcode == fuse.FUSE_WRITE:
            written = unpack("fuse_write_in", body).size
            body = body[: ffi.sizeof("struct fuse_write_in")]
        elif opcode == fuse.FUSE_FLUSH:
            flags = self.registers["flags", U64.unpack_from(body)[0]]
        room = exchange.room - REPLY_HEADER - read
        request = Request(opcode, "", patches, room, len(answer), -out.error, read, written, None, flags)
        self._add(request, body)

    def _handles_at(self, opcode: int, body: bytes) -> list[int]:
        if opcode in SOMETIMES:
            (flags,) = struct.unpack_from("=I", body)
            return [8] if flags & SOMETIMES[opcode] else []
        at = [HANDLES[opcode]] if opcode in HANDLES else []
        return [*at, 24] if opcode == fuse.FUSE_COPY_FILE_RANGE else at

    def _taken(self, opcode: int, answer: bytes) -> Iterator[tuple[int, int, int]]:
        """What of a reply other requests will name."""
        if opcode in ENTRIES:
            nodeid = unpack("fuse_entry_out", answer).nodeid
            if nodeid:
                yield lib.DRIVER_LOOK, REPLY_HEADER, self._register("node", nodeid)
        if opcode in OPENED:
            at = OPENED[opcode]
            (fh,) = U64.unpack_from(answer, at)
            yield lib.DRIVER_TAKE, REPLY_HEADER + at, self._register(_kind(opcode), fh)
            if opcode != fuse.FUSE_OPENDIR:
                yield lib.DRIVER_TAKE, REPLY_HEADER + at + OPEN_FLAGS, self._register("flags", fh)

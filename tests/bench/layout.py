"""Requests that lie ready in guest memory, and room for their replies.

They have the shape Linux's virtio_fs gives them: their header is a descriptor, all arguments that are no pages another
one, each page of data one more; and the reply's header, arguments and pages likewise. Pages lie in descending order,
since a guest's are seldom adjacent.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tests.bench.build import ffi, lib
from tests.driver import NEXT, WRITE, DriverQueue, GuestMemory
from tests.fuseclient import HEADER, REPLY_HEADER
from tests.fusestructs import pack

PAGE = 4096
#: Pages of a request that takes and gives what nobody looks at.
SCRATCH = 256


class Patch(NamedTuple):
    """A field of 64 bits, `at` bytes into the request or the reply, headers included."""

    kind: int
    at: int
    register: int


def put(at: int, register: int) -> Patch:
    return Patch(lib.DRIVER_PUT, at, register)


def take(at: int, register: int) -> Patch:
    """Of the reply."""
    return Patch(lib.DRIVER_TAKE, at, register)


def look(at: int, register: int) -> Patch:
    """Of the reply: a nodeid that was looked up once more."""
    return Patch(lib.DRIVER_LOOK, at, register)


def counted(at: int, register: int) -> Patch:
    """How often its nodeid was looked up since it was last said."""
    return Patch(lib.DRIVER_COUNT, at, register)


def match(at: int, register: int) -> Patch:
    """Of the reply."""
    return Patch(lib.DRIVER_MATCH, at, register)


class Step(NamedTuple):
    """A request to lie ready. Sizes are in bytes."""

    opcode: int
    nodeid: int = 0
    #: What follows the header, but for pages.
    arguments: bytes = b""
    #: Room for what follows the reply's header, but for pages.
    room: int = 0
    error: int = 0
    units: int = 0
    replied: bool = True
    patches: tuple[Patch, ...] = ()
    #: DRIVER_READ, WRITE, ENTRIES, or ANY_READ, ANY_WRITE; and how much.
    data: int = 0
    size: int = 0
    #: What follows the reply's header, where it is not all there is room for.
    answer: int | None = None
    #: Where in the arguments the offset is that the driver says.
    offset_at: int | None = None
    #: In the directory; and registers for what is looked up by its names.
    entries: int = 0
    names: Mapping[bytes, int] = {}
    #: It is repeated until there are no more of them.
    whole: bool = False
    #: A register and a mask: it is not sent when any of these bits is set there.
    unless: tuple[int, int] | None = None


class Piece(NamedTuple):
    """A descriptor to be."""

    addr: int
    length: int
    flags: int = 0


class Laid(NamedTuple):
    """Guest addresses of a request's parts, and of the room for its reply."""

    request: int
    arguments: int
    reply: int
    room: int
    pages: list[int]

    def field(self, patch: Patch) -> int:
        if patch.kind not in (lib.DRIVER_PUT, lib.DRIVER_COUNT):
            return self.room + patch.at - REPLY_HEADER
        return self.request + patch.at if patch.at < HEADER else self.arguments + patch.at - HEADER


def is_written(step: Step) -> bool:
    return step.data in (lib.DRIVER_WRITE, lib.DRIVER_ANY_WRITE)


def _buffers(laid: Laid, step: Step) -> list[Piece]:
    """As virtio_fs_enqueue_req makes them."""
    if not step.replied:
        return [Piece(laid.request, HEADER + len(step.arguments))]
    written = is_written(step)
    sizes = (min(PAGE, step.size - PAGE * number) for number in range(len(laid.pages)))
    pages = [Piece(page, size, 0 if written else WRITE) for page, size in zip(laid.pages, sizes, strict=True)]
    readable = [Piece(laid.request, HEADER), Piece(laid.arguments, len(step.arguments))]
    writable = [Piece(laid.reply, REPLY_HEADER, WRITE), Piece(laid.room, step.room, WRITE)]
    pieces = readable + pages + writable if written else readable + writable + pages
    return [piece for piece in pieces if piece.length]


class Lane(NamedTuple):
    """What one of the guest's processes repeats."""

    steps: Sequence[Step]
    registers: Sequence[int] = ()
    #: The part of the file its data are from.
    first: int = 0
    end: int = 0
    #: Where in it the first request begins.
    offset: int = 0
    random: bool = False
    #: Its requests count where latencies are asked for.
    timed: bool = True


class Layout:
    """`size` bytes from guest address `first` on, for requests. What is laid out stays until `clear`."""

    def __init__(self, memory: GuestMemory, first: int, size: int) -> None:
        self.memory = memory
        self.scratch = [-(-first // PAGE) * PAGE + PAGE * number for number in range(SCRATCH)][::-1]
        self._first = self.scratch[0] + PAGE
        self._end = first + size
        self.clear()

    def clear(self) -> None:
        self._next = self._first

    def allocate(self, size: int, align: int = 16) -> int:
        addr = -(-self._next // align) * align
        self._next = addr + size
        if self._next > self._end:
            raise MemoryError("the guest has too little memory for so many requests")
        return addr

    def lay(self, out: Any, step: Step, kept: list[Any]) -> list[int]:
        """Writes a request to guest memory, and what the driver has to know of it to `out`, a struct driver_step, which
        points to what is added to `kept`.

        Returns its pages.
        """
        laid = self._room(step)
        self._write(laid, step)
        buffers = _buffers(laid, step)
        out.table, out.descriptors = self._table(buffers), len(buffers)
        if laid.pages:
            out.first_page = next(i for i, buffer in enumerate(buffers) if buffer.addr == laid.pages[0])
        out.request, out.reply = laid.request, laid.reply if step.replied else 0
        wanted = step.room + (0 if is_written(step) else step.size)
        answer = wanted if step.answer is None else step.answer
        out.length = REPLY_HEADER + (0 if step.error else answer)
        out.error, out.units = -step.error, step.units
        out.data, out.size, out.entries = step.data, step.size, step.entries
        out.whole = step.whole
        out.offset = laid.arguments + step.offset_at if step.offset_at is not None else 0
        if step.unless:
            out.unless_reg, out.unless_mask = step.unless
        patches = [(laid.field(patch), patch.kind, patch.register) for patch in step.patches]
        texts = {name: ffi.new("char[]", name) for name in sorted(step.names)}
        names = [(text, len(name), step.names[name]) for name, text in texts.items()]
        arrays = ffi.new("struct driver_patch[]", patches), ffi.new("struct driver_name[]", names)
        out.patches, out.names = arrays
        out.patch_count, out.name_count = len(patches), len(names)
        kept += [*arrays, *texts.values()]
        return laid.pages

    def _room(self, step: Step) -> Laid:
        """Pages lie in descending order."""
        count = -(-step.size // PAGE)
        if step.data in (lib.DRIVER_ANY_READ, lib.DRIVER_ANY_WRITE):
            pages = self.scratch[:count]
        else:
            pages = [self.allocate(PAGE, PAGE) for _ in range(count)][::-1]
        request = self.allocate(HEADER + len(step.arguments))
        # What has no reply is one buffer (struct virtio_fs_forget).
        arguments = self.allocate(len(step.arguments)) if step.replied else request + HEADER
        return Laid(request, arguments, self.allocate(REPLY_HEADER), self.allocate(step.room), pages)

    def _write(self, laid: Laid, step: Step) -> None:
        memory, written = self.memory, is_written(step)
        size = HEADER + len(step.arguments) + (step.size if written else 0)
        memory.write(laid.request, pack("fuse_in_header", len=size, opcode=step.opcode, nodeid=step.nodeid, pid=1))
        memory.write(laid.arguments, step.arguments)
        for page in laid.pages if written else ():
            memory.write(page, os.urandom(PAGE))

    def _table(self, buffers: Sequence[Piece]) -> int:
        addr = self.allocate(16 * len(buffers))
        last = len(buffers) - 1
        entries = [
            DriverQueue.pack(
                piece.addr, piece.length, piece.flags | (NEXT if i < last else 0), i + 1 if i < last else 0
            )
            for i, piece in enumerate(buffers)
        ]
        self.memory.write(addr, b"".join(entries))
        return addr

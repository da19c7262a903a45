"""One good message for every row, and the ways to spoil it: what the negative tests are generated from."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from vhost.message import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    ROWS,
    U64,
    VERSION,
    Config,
    Fds,
    Inflight,
    Log,
    MemoryRegion,
    MemoryTable,
    Payload,
    ProtocolFeature,
    Row,
    SharedMapping,
    SharedMemory,
    SingleRegion,
    StateTransfer,
    VringAddr,
    VringFile,
    VringState,
)

REGION = MemoryRegion(0, 0x10000, 0x7F00_0000_0000, 0)
SECOND = MemoryRegion(0x10000, 0x1000, 0x7F00_0001_0000, 0)

PAYLOADS: dict[type[Payload] | None, Payload | None] = {
    None: None,
    U64: U64(1),
    VringState: VringState(1, 1),
    VringAddr: VringAddr(1, 0, 0x7F00_0000_1000, 0x7F00_0000_3000, 0x7F00_0000_2000, 0x3000),
    VringFile: VringFile(1, True),
    MemoryTable: MemoryTable((REGION, SECOND)),
    SingleRegion: SingleRegion(REGION),
    Log: Log(4096, 0),
    Config: Config(0, 0, b"configuration"),
    Inflight: Inflight(65536, 0, 2, 128),
    StateTransfer: StateTransfer(0, 0),
    SharedMemory: SharedMemory((1 << 21, *[0] * 255)),
    SharedMapping: SharedMapping(0, 4096, 1 << 21, 8192, 1),
}

ALL_FEATURES = sum(ProtocolFeature)


@dataclass(frozen=True)
class Wire:
    """A message as it goes over the wire; `fds` is how many descriptors come along."""

    request: int
    payload: bytes
    fds: int
    flags: int = VERSION
    size: int | None = None  # announced, when it is not the payload's
    features: int = ALL_FEATURES  # negotiated
    spoiled: str = field(default="", compare=False)

    @property
    def data(self) -> bytes:
        size = len(self.payload) if self.size is None else self.size
        return HEADER.pack(self.request, self.flags, size) + self.payload


def good(row: Row) -> Wire:
    payload = PAYLOADS[row.payload]
    return Wire(row.request, payload.pack() if payload else b"", row.fds.allowed(payload)[-1])


def bad(row: Row) -> Iterator[Wire]:
    """Every way to break the rules of a row, each by itself."""
    wire = good(row)
    sizes = row.sizes()
    wrong = {0, 4, sizes[0] - 1, sizes[0] + 1, sizes[-1] + 1, sizes[-1] + sizes.step, 1 << 16, (1 << 32) - 1}
    for size in sorted(wrong - set(sizes) - {-1}):
        yield replace(wire, size=size, payload=bytes(min(size, 4096)), spoiled=f"size {size}")
    allowed = row.fds.allowed(PAYLOADS[row.payload])
    for fds in sorted({0, 1, 2, allowed[-1] + 1, 9} - set(allowed)):
        yield replace(wire, fds=fds, spoiled=f"{fds} descriptors")
    if row.feature:
        yield replace(wire, features=ALL_FEATURES & ~row.feature, spoiled=f"without {row.feature.name}")
    no_ack = ALL_FEATURES & ~ProtocolFeature.REPLY_ACK
    yield replace(wire, features=no_ack, flags=VERSION | FLAG_NEED_REPLY, spoiled="need_reply without REPLY_ACK")
    for flags in (0, 2, 3, VERSION | FLAG_REPLY, VERSION | 0x10, 1 << 31 | VERSION):
        yield replace(wire, flags=flags, spoiled=f"flags {flags:#x}")
    if row.fds is Fds.FLAGGED:
        yield replace(wire, payload=VringFile(1, False).pack(), spoiled="a descriptor that is said to be missing")
    if row.payload is MemoryTable:
        yield replace(wire, payload=b"\3" + wire.payload[1:], spoiled="a wrong count of regions")
    if row.payload is Config:
        yield replace(wire, payload=wire.payload[:4] + b"\7" + wire.payload[5:], spoiled="a wrong inner size")


GOOD = [good(row) for row in ROWS.values()]
BAD = [wire for row in ROWS.values() for wire in bad(row)]


def name(wire: Wire) -> str:
    """The test's id."""
    row = ROWS[wire.request]
    return f"{row.name}: {wire.spoiled}" if wire.spoiled else row.name


def open_fds(count: int) -> list[int]:
    return [os.memfd_create("test", os.MFD_CLOEXEC) for _ in range(count)]


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

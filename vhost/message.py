"""The vhost-user messages as data: every request is one row.

Rule 1. What a request looks like on the wire is said here and nowhere else. Validation (protocol.py), dispatch and
        trace names (backend.py) and the negative tests are computed from the rows.
Rule 2. Numbers and layouts are those of the vhost-user specification (QEMU, docs/interop/vhost-user), in the machine's
        byte order. Requests that are not for a file-system device have no row.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from struct import Struct
from typing import ClassVar, Self

HEADER = Struct("=III")  # request, flags, payload size in bytes
VERSION = 1
VERSION_MASK = 0x3
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8

MAX_REGIONS = 32  # The specification draws 8 and QEMU sends at most 8; rust-vmm's front-ends send up to 32.
MAX_CONFIG_SIZE = 256  # bytes of device configuration space in one message (QEMU's VHOST_USER_MAX_CONFIG_SIZE)
SHARED_REGIONS = 256  # a region's number is a byte
SHARED_WRITABLE = 0x1  # SharedMapping.flags
NO_FD = 0x100  # SET_VRING_KICK, CALL and ERR: no descriptor comes with this message
STATE_SAVE, STATE_LOAD = 0, 1  # StateTransfer.direction
STATE_STOPPED = 0  # StateTransfer.phase: every ring is stopped, and stays so
STATE_FAILED = 1  # the reply to SET_DEVICE_STATE_FD and CHECK_DEVICE_STATE, any value but 0 in the low byte
VRING_F_LOG = 0x1  # VringAddr.flags: writes to the used ring are logged

SHARE_ON = (
    "add share=on to the memory backend (for example "
    "-object memory-backend-memfd,id=mem,size=...,share=on -machine memory-backend=mem)"
)
NOT_SHARED = f"guest memory is not shared: {SHARE_ON}"


class Feature(IntFlag):
    """Virtio and vhost feature bits of GET_FEATURES that this package knows what to do with."""

    LOG_ALL = 1 << 26
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30
    VERSION_1 = 1 << 32


class ProtocolFeature(IntFlag):
    """Protocol feature bits that gate a request below, and REPLY_ACK."""

    NONE = 0
    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    DEVICE_STATE = 1 << 19
    SHMEM = 1 << 22


@dataclass(frozen=True, slots=True)
class Payload:
    """What follows the header. A subclass's fields are its wire layout, unless it says otherwise."""

    layout: ClassVar[Struct]

    @classmethod
    def sizes(cls) -> range:
        """The payload sizes a message may announce, in bytes."""
        return range(cls.layout.size, cls.layout.size + 1)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Raises ValueError, with a plain sentence, for bytes that contradict themselves."""
        return cls(*cls.layout.unpack(data))

    def pack(self) -> bytes:
        # dataclasses.astuple copies deeply, which takes longer than all the rest.
        names: tuple[str, ...] = self.__slots__
        return self.layout.pack(*[getattr(self, name) for name in names])


@dataclass(frozen=True, slots=True)
class U64(Payload):
    layout = Struct("=Q")
    value: int


@dataclass(frozen=True, slots=True)
class VringState(Payload):
    layout = Struct("=II")
    index: int
    num: int


@dataclass(frozen=True, slots=True)
class VringAddr(Payload):
    """Ring addresses are the front-end's virtual ones; `log` is guest physical."""

    layout = Struct("=IIQQQQ")
    index: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int


@dataclass(frozen=True, slots=True)
class VringFile(Payload):
    """Bits 0 to 7 are the ring's index, bit 8 says that no descriptor comes along."""

    layout = Struct("=Q")
    index: int
    has_fd: bool

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        (value,) = cls.layout.unpack(data)
        return cls(value & 0xFF, not value & NO_FD)

    def pack(self) -> bytes:
        return self.layout.pack(self.index | (0 if self.has_fd else NO_FD))


@dataclass(frozen=True, slots=True)
class MemoryRegion(Payload):
    layout = Struct("=QQQQ")
    guest_addr: int
    size: int
    user_addr: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class SingleRegion(Payload):
    """ADD_MEM_REG and REM_MEM_REG: eight bytes of padding, then one region."""

    layout = Struct("=8x32s")
    region: MemoryRegion

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        return cls(MemoryRegion.unpack(cls.layout.unpack(data)[0]))

    def pack(self) -> bytes:
        return self.layout.pack(self.region.pack())


@dataclass(frozen=True, slots=True)
class MemoryTable(Payload):
    """SET_MEM_TABLE: a count, four bytes of padding, then the regions."""

    layout = Struct("=I4x")
    regions: tuple[MemoryRegion, ...]

    @classmethod
    def sizes(cls) -> range:
        step = MemoryRegion.layout.size
        return range(cls.layout.size, cls.layout.size + MAX_REGIONS * step + 1, step)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        (count,) = cls.layout.unpack_from(data)
        regions = data[cls.layout.size :]
        if len(regions) != count * MemoryRegion.layout.size:
            raise ValueError(f"it announces {count} memory regions and holds {len(regions)} bytes of them")
        return cls(tuple(MemoryRegion(*fields) for fields in MemoryRegion.layout.iter_unpack(regions)))

    def pack(self) -> bytes:
        return self.layout.pack(len(self.regions)) + b"".join(region.pack() for region in self.regions)


@dataclass(frozen=True, slots=True)
class Log(Payload):
    layout = Struct("=QQ")
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class Config(Payload):
    """A piece of the device's configuration space."""

    layout = Struct("=III")
    offset: int
    flags: int
    data: bytes

    @classmethod
    def sizes(cls) -> range:
        return range(cls.layout.size, cls.layout.size + MAX_CONFIG_SIZE + 1)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        offset, size, flags = cls.layout.unpack_from(data)
        content = data[cls.layout.size :]
        if size != len(content):
            raise ValueError(f"it announces {size} bytes of configuration space and holds {len(content)}")
        return cls(offset, flags, content)

    def pack(self) -> bytes:
        return self.layout.pack(self.offset, len(self.data), self.flags) + self.data


@dataclass(frozen=True, slots=True)
class Inflight(Payload):
    """The specification draws 20 bytes; QEMU's and rust-vmm's C structure has 24, the last four padding."""

    layout = Struct("=QQHH4x")
    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int


@dataclass(frozen=True, slots=True)
class StateTransfer(Payload):
    layout = Struct("=II")
    direction: int
    phase: int


@dataclass(frozen=True, slots=True)
class SharedMemory(Payload):
    """The device's regions of shared memory: how many there are, four bytes of padding, and the size of each that could
    be, 0 where there is none."""

    layout = Struct(f"=I4x{SHARED_REGIONS}Q")
    regions: tuple[int, ...]

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        count, *sizes = cls.layout.unpack(data)
        if count != sum(map(bool, sizes)):
            raise ValueError(f"it announces {count} regions of shared memory and has others")
        return cls(tuple(sizes))

    def pack(self) -> bytes:
        return self.layout.pack(sum(map(bool, self.regions)), *self.regions)


@dataclass(frozen=True, slots=True)
class SharedMapping(Payload):
    """A range of a region of shared memory, and what file is mapped there."""

    layout = Struct("=B7xQQQQ")
    region: int
    file_offset: int
    offset: int
    length: int
    flags: int  # SHARED_WRITABLE


class Fds(Enum):
    """How many descriptors come with a request."""

    NONE = "none"
    ONE = "one"
    OPTIONAL = "none or one"  # accepted, and closed unused
    FLAGGED = "one, unless bit 8 of the payload says none"
    PER_REGION = "one for each memory region"

    def allowed(self, payload: Payload | None) -> range:
        """The numbers of descriptors that may come with this payload."""
        match self, payload:
            case Fds.OPTIONAL, _:
                return range(2)
            case Fds.FLAGGED, VringFile(has_fd=False):
                return range(1)
            case Fds.PER_REGION, MemoryTable(regions):
                return range(len(regions), len(regions) + 1)
            case Fds.NONE, _:
                return range(1)
        return range(1, 2)


class Request(IntEnum):
    """What a front-end asks of a file-system device."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class BackendRequest(IntEnum):
    """What a back-end asks of the front-end, on the channel of SET_BACKEND_REQ_FD."""

    CONFIG_CHANGE_MSG = 2
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


@dataclass(frozen=True, slots=True)
class Row:
    """One request. `quiesces`: it changes what a worker was forked with, so no ring may run while it is served.
    Requests that do so only at times quiesce by themselves."""

    request: Request | BackendRequest
    payload: type[Payload] | None = None
    reply: type[Payload] | None = None
    fds: Fds = Fds.NONE
    feature: ProtocolFeature = ProtocolFeature.NONE
    quiesces: bool = False
    without_fd: str = ""  # the sentence for a front-end that sent too few descriptors

    @property
    def name(self) -> str:
        return self.request.name

    @property
    def method(self) -> str:
        """The name of the method of `Backend` that serves it."""
        return self.request.name.lower()

    def sizes(self) -> range:
        """The payload sizes it may announce, in bytes."""
        return self.payload.sizes() if self.payload else range(1)


def _table(*rows: Row) -> dict[int, Row]:
    return {row.request: row for row in rows}


ROWS = _table(
    Row(Request.GET_FEATURES, reply=U64),
    Row(Request.SET_FEATURES, U64, quiesces=True),
    Row(Request.SET_OWNER),
    Row(Request.RESET_OWNER, quiesces=True),
    Row(Request.SET_MEM_TABLE, MemoryTable, fds=Fds.PER_REGION, without_fd=NOT_SHARED),
    Row(Request.SET_LOG_BASE, Log, U64, Fds.ONE, ProtocolFeature.LOG_SHMFD, quiesces=True),
    Row(Request.SET_LOG_FD, fds=Fds.ONE),
    Row(Request.SET_VRING_NUM, VringState, quiesces=True),
    Row(Request.SET_VRING_ADDR, VringAddr, quiesces=True),
    Row(Request.SET_VRING_BASE, VringState, quiesces=True),
    Row(Request.GET_VRING_BASE, VringState, VringState, quiesces=True),
    Row(Request.SET_VRING_KICK, VringFile, fds=Fds.FLAGGED, quiesces=True),
    Row(Request.SET_VRING_CALL, VringFile, fds=Fds.FLAGGED),
    Row(Request.SET_VRING_ERR, VringFile, fds=Fds.FLAGGED),
    Row(Request.GET_PROTOCOL_FEATURES, reply=U64),
    Row(Request.SET_PROTOCOL_FEATURES, U64),
    Row(Request.GET_QUEUE_NUM, reply=U64, feature=ProtocolFeature.MQ),
    Row(Request.SET_VRING_ENABLE, VringState, quiesces=True),
    Row(Request.SET_BACKEND_REQ_FD, fds=Fds.ONE, feature=ProtocolFeature.BACKEND_REQ),
    Row(Request.GET_CONFIG, Config, Config, feature=ProtocolFeature.CONFIG),
    Row(Request.SET_CONFIG, Config, feature=ProtocolFeature.CONFIG),
    Row(Request.GET_INFLIGHT_FD, Inflight, Inflight, feature=ProtocolFeature.INFLIGHT_SHMFD),
    Row(Request.SET_INFLIGHT_FD, Inflight, fds=Fds.ONE, feature=ProtocolFeature.INFLIGHT_SHMFD, quiesces=True),
    Row(Request.RESET_DEVICE, feature=ProtocolFeature.RESET_DEVICE, quiesces=True),
    Row(Request.GET_MAX_MEM_SLOTS, reply=U64, feature=ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Row(Request.ADD_MEM_REG, SingleRegion, None, Fds.ONE, ProtocolFeature.CONFIGURE_MEM_SLOTS, False, NOT_SHARED),
    Row(Request.REM_MEM_REG, SingleRegion, fds=Fds.OPTIONAL, feature=ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Row(Request.SET_STATUS, U64, feature=ProtocolFeature.STATUS),
    Row(Request.GET_STATUS, reply=U64, feature=ProtocolFeature.STATUS),
    Row(Request.SET_DEVICE_STATE_FD, StateTransfer, U64, Fds.ONE, ProtocolFeature.DEVICE_STATE),
    Row(Request.CHECK_DEVICE_STATE, reply=U64, feature=ProtocolFeature.DEVICE_STATE),
    Row(Request.GET_SHMEM_CONFIG, reply=SharedMemory, feature=ProtocolFeature.SHMEM),
)

BACKEND_ROWS = _table(
    Row(BackendRequest.CONFIG_CHANGE_MSG, feature=ProtocolFeature.CONFIG),
    Row(BackendRequest.SHMEM_MAP, SharedMapping, fds=Fds.ONE, feature=ProtocolFeature.SHMEM),
    Row(BackendRequest.SHMEM_UNMAP, SharedMapping, feature=ProtocolFeature.SHMEM),
)

"""The rows are consistent with each other, and every payload survives the wire."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vhost.examples import PAYLOADS
from vhost.backend import Backend
from vhost.message import (
    BACKEND_ROWS,
    HEADER,
    MAX_CONFIG_SIZE,
    MAX_REGIONS,
    ROWS,
    U64,
    BackendRequest,
    Config,
    Fds,
    Inflight,
    MemoryRegion,
    MemoryTable,
    Payload,
    Request,
    Row,
    SharedMapping,
    SharedMemory,
    SingleRegion,
    VringAddr,
    VringFile,
)

u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))


def test_every_request_has_a_row() -> None:
    assert set(ROWS) == set(Request)
    assert set(BACKEND_ROWS) == set(BackendRequest)


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_every_row_has_its_method(row: Row) -> None:
    """Rule 1 of backend.py: payload if the row has one, then descriptors if any may come."""
    method = getattr(Backend, row.method)
    arguments = list(inspect.signature(method).parameters.values())[1:]
    expected = ([row.payload] if row.payload else []) + ([list[int]] if row.fds is not Fds.NONE else [])
    assert [argument.annotation for argument in arguments] == expected


@pytest.mark.parametrize("payload", [p for p in PAYLOADS.values() if p], ids=lambda payload: type(payload).__name__)
def test_round_trip(payload: Payload) -> None:
    data = payload.pack()
    assert len(data) in type(payload).sizes()
    assert type(payload).unpack(data) == payload


# The sizes QEMU sends (hw/virtio/vhost-user.c, the payload structures).
@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (U64, 8),
        (VringAddr, 40),
        (SingleRegion, 40),
        (Inflight, 24),
        (MemoryRegion, 32),
        (SharedMapping, 40),
        (SharedMemory, 2056),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_sizes_on_the_wire(kind: type[Payload], size: int) -> None:
    assert list(kind.sizes()) == [size]
    assert HEADER.size == 12


@given(u64, u32, u32)
def test_vring_addr_order(address: int, index: int, flags: int) -> None:
    """struct vhost_vring_addr has the used ring before the available one."""
    data = VringAddr(index, flags, 1, 2, address, 4).pack()
    assert data[24:32] == address.to_bytes(8, "little")


@given(st.lists(st.builds(MemoryRegion, u64, u64, u64, u64), max_size=MAX_REGIONS))
def test_memory_table(regions: list[MemoryRegion]) -> None:
    table = MemoryTable(tuple(regions))
    assert len(table.pack()) == 8 + 32 * len(regions)
    assert MemoryTable.unpack(table.pack()) == table


@given(u32, u32, st.binary(max_size=MAX_CONFIG_SIZE))
def test_config(offset: int, flags: int, data: bytes) -> None:
    config = Config(offset, flags, data)
    assert Config.unpack(config.pack()) == config


@given(u64)
def test_vring_file(value: int) -> None:
    file = VringFile.unpack(U64(value).pack())
    assert file.index == value & 0xFF
    assert file.has_fd == (not value & 0x100)
    assert VringFile.unpack(file.pack()) == file

"""The stream of a saved state: what is written is read, and what was tampered with is refused in one sentence."""

import io
import struct
import zlib
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfsd import state
from vfsd.state import MAGIC, PART_MAX, Owner, Part, Range, Session, Writer, read_parts
from vhost.saved import StateError
from vhost.suspended import Suspended

SESSION = Session(38, 256, 1 << 20, 1, 0x1234_5678_9ABC, bytes(range(16)))
OWNER = Owner(7 << 32 | 3, 0xABCDEF, 0, 4711, (Range(0, 99, 1), Range(200, (1 << 63) - 1, 0)))
RING = Suspended(1, 128, 5, 3, (17, 4))

u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (32, 64))


def written(*steps: Callable[[Writer], object]) -> bytes:
    stream = io.BytesIO()
    writer = Writer(stream.write)
    for step in steps:
        step(writer)
    assert writer.size == len(stream.getvalue())
    return stream.getvalue()


def whole() -> bytes:
    return written(
        lambda to: to.session(SESSION),
        lambda to: to.inodes(b"some"),
        lambda to: to.inodes(b"more"),
        lambda to: to.handles(bytes(state.HANDLE)),
        lambda to: to.owner(OWNER),
        lambda to: to.ring(RING),
        Writer.end,
    )


def parts(data: bytes) -> list[tuple[Part, bytes]]:
    return list(read_parts(io.BytesIO(data).read))


def refusal(data: bytes) -> str:
    with pytest.raises(StateError) as caught:
        parts(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sealed(frames: Iterable[tuple[int, bytes]], version: int = 1) -> bytes:
    """A stream of any parts, its checksum right."""
    data = MAGIC + struct.pack("=I", version)
    for kind, part in frames:
        data += struct.pack("=II", kind, len(part)) + part
    return data + struct.pack("=III", Part.END, 4, zlib.crc32(data))


def test_what_is_written_is_read() -> None:
    kinds = dict(parts(whole()))
    assert list(kinds) == [Part.SESSION, Part.INODES, Part.HANDLES, Part.LOCKS, Part.RINGS]
    assert state.read_session(kinds[Part.SESSION]) == SESSION
    assert kinds[Part.INODES] == b"more"
    assert len(list(state.read_handles(kinds[Part.HANDLES]))) == 1
    assert state.read_owner(kinds[Part.LOCKS]) == OWNER
    assert state.read_ring(kinds[Part.RINGS], 2) == RING


@given(u64, u64, u64, u32, st.lists(st.builds(Range, u64, u64, st.integers(0, 2)), max_size=5))
def test_any_owner(nodeid: int, owner: int, fh: int, pid: int, ranges: list[Range]) -> None:
    given = Owner(nodeid, owner, fh, pid, tuple(ranges))
    ((_, _), (_, data)) = parts(written(lambda to: to.session(SESSION), lambda to: to.owner(given), Writer.end))
    assert state.read_owner(data) == given


def test_it_may_come_in_any_pieces() -> None:
    stream = io.BytesIO(whole())
    assert list(read_parts(lambda size: stream.read(min(size, 3)))) == parts(whole())


def test_every_byte_counts() -> None:
    """No byte of a stream can be changed, left out or added unseen."""
    good = whole()
    for at in range(len(good)):
        refusal(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
        refusal(good[:at])
        refusal(good[:at] + good[at + 1 :])
    assert "something follows its end" in refusal(good + b"\0")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "ends before"),
        (b"QEVM" + bytes(100), "another program"),
        (sealed([(1, b"")], version=2), "version 2, and this vfsd reads version 1"),
        (sealed([(1, b"")], version=1 << 24), "version 16777216"),
        (sealed([(2, b"")]), "part 2 does not belong"),
        (sealed([(0, b"")]), "part 0 does not belong"),
        (sealed([]), "part 6 does not belong"),
        (sealed([(1, b""), (1, b"")]), "part 1 does not belong"),
        (sealed([(1, b""), (3, b""), (2, b"")]), "part 2 does not belong"),
        (sealed([(1, b""), (7, b"")]), "part 7 does not belong"),
        (sealed([(1, b""), (6, b"1234")]), "checksum is wrong"),
        (sealed([(1, b""), (6, b"123")]), "checksum is wrong"),
        (sealed([(1, b"")])[:-12] + struct.pack("=II", 2, PART_MAX + 1), "too large"),
    ],
)
def test_refused(data: bytes, says: str) -> None:
    assert says in refusal(data)


@pytest.mark.parametrize("size", [0, 1, 39, 41, 80])
def test_a_session_of_a_wrong_size(size: int) -> None:
    with pytest.raises(StateError, match="has a wrong size"):
        state.read_session(bytes(size))


@pytest.mark.parametrize("size", [1, 23, 25])
def test_handles_of_a_wrong_size(size: int) -> None:
    with pytest.raises(StateError, match="have a wrong size"):
        list(state.read_handles(bytes(size)))


@pytest.mark.parametrize("size", [0, 31, 33, 57])
def test_locks_of_a_wrong_size(size: int) -> None:
    with pytest.raises(StateError, match="have a wrong size"):
        state.read_owner(bytes(size))


def test_locks_that_are_missing() -> None:
    with pytest.raises(StateError, match="locks are missing"):
        state.read_owner(struct.pack("=QQQII", 1, 2, 3, 4, 1))


def test_more_locks_than_a_part_has_room_for() -> None:
    owner = OWNER._replace(ranges=(Range(0, 0, 1),) * (PART_MAX // 24 + 1))
    with pytest.raises(StateError, match="more locks on one file"):
        written(lambda to: to.owner(owner))


def ring(*fields: int, heads: tuple[int, ...] = (17, 4)) -> bytes:
    return struct.pack(f"=IIHHI{len(heads)}I", *fields, len(heads), *heads)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "wrong size"),
        (ring(1, 128, 5, 3)[:-1], "wrong size"),
        (ring(1, 128, 5, 3)[:-4], "are missing"),
        (ring(2, 128, 5, 3), "no ring 2"),
        (ring(1, 0, 5, 3), "0 descriptors"),
        (ring(1, 100, 5, 3), "100 descriptors"),
        (ring(1, 2048, 5, 3), "2048 descriptors"),
        (ring(1, 16, 5, 3), "impossible requests"),
        (ring(1, 128, 5, 3, heads=(4, 4)), "impossible requests"),
        (ring(1, 128, 5, 5, heads=()), "impossible requests"),
        (ring(1, 128, 6, 3), "do not fit"),
    ],
)
def test_a_ring_that_makes_no_sense(data: bytes, says: str) -> None:
    with pytest.raises(StateError, match=says):
        state.read_ring(data, 2)


def test_indexes_wrap() -> None:
    assert state.read_ring(ring(1, 128, 1, 0xFFFF), 2).last_avail_idx == 1


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    refusal(data)
    refusal(MAGIC + struct.pack("=I", 1) + data)

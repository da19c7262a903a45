"""Inodes without a descriptor in the arena: what a next worker makes of them, damaged or not."""

import os
import random
from collections.abc import Callable
from errno import ENOENT, ESTALE
from typing import Any

import pytest

from tests.core.conftest import MODES
from tests.core.served import FIELDS, HEADER, RECORD, Served, closed, crowd, records
from tests.fuseclient import ROOT
from vfsd._fuse import lib


def damage(served: Served, slot: int, **fields: Any) -> None:
    record = dict(zip(FIELDS, RECORD.unpack_from(served.inodes, slot * RECORD.size), strict=True))
    RECORD.pack_into(served.inodes, slot * RECORD.size, *{**record, **fields}.values())


@pytest.mark.parametrize(
    "fields",
    [
        {"base": 0}, {"base": 99 << 32 | 5}, {"how": 0}, {"how": 3}, {"len": 0}, {"len": 325}, {"len": 65535},
        {"tail": 3}, {"tail": 2**32 - 1}, {"generation": 0}, {"fd": -2},
    ],
    ids=str,
)  # fmt: skip
def test_a_closed_record_that_makes_no_sense_is_dropped(tight: Served, fields: dict[str, int]) -> None:
    (tight.root / "f").touch()
    (tight.root / ("n" * 200)).touch()
    nodeid, other = tight.client.lookup(ROOT, b"f").nodeid, tight.client.lookup(ROOT, b"n" * 200).nodeid
    crowd(tight)
    assert closed(tight) >= {nodeid, other}
    damage(tight, nodeid & 0xFFFFFFFF, **fields)
    tight.restart()
    tight.client.getattr(nodeid, expect=ESTALE)
    assert tight.client.getattr(other).attr.mode
    assert tight.client.lookup(ROOT, b"f").nodeid != nodeid


@pytest.mark.parametrize("fields", [{"ino": 1}, {"dev": 1}, {"mnt_id": 1}, {"btime": 1}, {"type": 0o40000}, {"tag": 1},
                                    {"bytes": b"g"}], ids=str)  # fmt: skip
def test_a_closed_record_that_lies_is_stale(serve: Callable[..., Served], fields: dict[str, Any]) -> None:
    tight = serve()
    tight.limit(8)
    (tight.root / "f").touch()
    (tight.root / "g").touch()
    nodeid = tight.client.lookup(ROOT, b"f").nodeid
    crowd(tight)
    damage(tight, nodeid & 0xFFFFFFFF, **fields)
    tight.restart()
    tight.client.getattr(nodeid, expect=ESTALE)


def test_circles_in_a_damaged_arena(serve: Callable[..., Served]) -> None:
    tight = serve()
    tight.limit(8)
    (tight.root / "a").mkdir()
    (tight.root / "b").mkdir()
    a, b = tight.client.lookup(ROOT, b"a").nodeid, tight.client.lookup(ROOT, b"b").nodeid
    crowd(tight)
    damage(tight, a & 0xFFFFFFFF, base=b)
    damage(tight, b & 0xFFFFFFFF, base=a)
    tight.restart()
    tight.client.getattr(a, expect=ESTALE)
    tight.client.forget(a)
    tight.client.forget(b)
    crowd(tight)


@pytest.mark.parametrize("seed", range(20))
def test_random_arenas_of_closed_records(serve: Callable[..., Served], mode: str, seed: int) -> None:
    dice = random.Random(seed)
    served = serve(records=96, core_flags=MODES[mode])
    served.limit(12)
    for i in range(30):
        served.client.release(ROOT, served.client.create(ROOT, str(i).encode() * dice.choice([1, 60]))[1].fh)
    keep = served.descriptors()
    for _ in range(200):
        at = dice.randrange(2 * RECORD.size // 4, len(served.inodes) // 4) * 4
        word = dice.choice([0, 1, 2, 5, 2**31, 2**32 - 1, dice.randrange(2**32)])
        served.inodes[at : at + 4] = word.to_bytes(4, "little")
    served.restart()
    assert served.descriptors() <= keep
    for slot, record in records(served).items():
        if record[8]:
            try:
                assert served.client.getattr(record[1] << 32 | slot).attr.ino == record[3]
            except OSError as error:
                assert error.errno in (ESTALE, ENOENT)
    crowd(served, 20)
    lib.core_reset(served.core)
    for fd in keep:
        try:
            os.close(fd)
        except OSError:
            continue


def test_the_arena_says_one_or_the_other(tight: Served, mode: str) -> None:
    """A worker that dies between the stores of an eviction: the descriptor is there, what was written is void."""
    (tight.root / ("n" * 200)).touch()
    nodeid = tight.client.lookup(ROOT, b"n" * 200).nodeid
    crowd(tight)
    before = set(records(tight))
    fd = os.open(tight.root / ("n" * 200), os.O_PATH)
    damage(tight, nodeid & 0xFFFFFFFF, fd=fd)
    tight.restart()
    assert tight.client.getattr(nodeid).attr.mode
    assert fd in tight.descriptors()
    gone = before - set(records(tight))
    assert bool(gone) is (mode != "handles"), "its name took records beside its own"
    assert all(tight.inodes[slot * RECORD.size] == 0 for slot in gone)
    assert HEADER.unpack_from(tight.inodes)[1] == RECORD.size

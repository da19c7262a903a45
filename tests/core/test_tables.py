"""The inode and handle tables: generations, pins, arenas taken over by the next worker, threads."""

import os
import random
import struct
import threading
from collections.abc import Callable
from errno import EBADF, EINVAL, ESTALE
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.core.served import FIELDS, HEADER, RECORD, Served, records
from tests.fuseclient import ROOT, FuseClient
from vfsd._fuse import ffi, lib

HANDLE = struct.Struct("=IIQi12x")  # valid generation nodeid fd


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_pinned_inode_outlives_its_forget(served: Served, client: FuseClient) -> None:
    (served.root / "f").touch()
    nodeid = client.lookup(ROOT, b"f").nodeid
    mode = ffi.new("uint32_t *")
    fd = lib.inode_get(served.core, nodeid, mode)
    assert mode[0] == 0o100000
    client.forget(nodeid)
    assert is_open(fd)
    assert lib.inode_get(served.core, nodeid, ffi.NULL) == -ESTALE
    again = client.lookup(ROOT, b"f").nodeid
    assert again == nodeid  # the record is still there, so it is still the same inode
    lib.inode_put(served.core, nodeid)
    assert is_open(fd)
    client.forget(nodeid)
    assert not is_open(fd)


def test_a_pinned_handle_outlives_its_release(served: Served, client: FuseClient) -> None:
    entry, opened = client.create(ROOT, b"f")
    fd = lib.handle_get(served.core, opened.fh)
    client.release(entry.nodeid, opened.fh)
    assert is_open(fd)
    assert lib.handle_get(served.core, opened.fh) == -EBADF
    other = client.open(entry.nodeid).fh
    assert other & 0xFFFFFFFF != opened.fh & 0xFFFFFFFF  # its slot is not free yet
    lib.handle_put(served.core, opened.fh)
    assert not is_open(fd)
    lib.handle_put(served.core, opened.fh)  # one put too many is no harm
    assert client.read(entry.nodeid, other, 1) == b""


def test_reset_leaves_the_root(served: Served, client: FuseClient) -> None:
    for i in range(50):
        client.create(ROOT, str(i).encode())
    assert lib.core_inode_count(served.core) == 51
    assert lib.core_handle_count(served.core) == 50
    assert len(served.descriptors()) == 100
    nodeid = client.lookup(ROOT, b"7").nodeid
    lib.core_reset(served.core)
    assert lib.core_inode_count(served.core) == 1
    assert lib.core_handle_count(served.core) == 0
    assert served.descriptors() == set()
    client.getattr(nodeid, expect=ESTALE)
    assert client.lookup(ROOT, b"7").nodeid != nodeid


def test_the_next_worker_finds_everything(served: Served, client: FuseClient) -> None:
    files = {}
    for i in range(100):
        entry, opened = client.create(ROOT, str(i).encode())
        client.write(entry.nodeid, opened.fh, str(i).encode())
        files[i] = (entry.nodeid, opened.fh)
    (served.root / "5").unlink()
    recorded = served.descriptors()
    served.restart()
    assert served.descriptors() == recorded
    for i, (nodeid, fh) in files.items():
        assert client.read(nodeid, fh, 10) == str(i).encode()
        assert client.getattr(nodeid).attr.nlink == (0 if i == 5 else 1)
        if i != 5:
            assert client.lookup(ROOT, str(i).encode()).nodeid == nodeid
            client.forget(nodeid, 2)
            client.getattr(nodeid, expect=ESTALE)


def test_generations_go_on_in_the_next_worker(served: Served, client: FuseClient) -> None:
    (served.root / "f").touch()
    seen = set()
    for _ in range(20):
        nodeid = client.lookup(ROOT, b"f").nodeid
        assert nodeid not in seen
        seen.add(nodeid)
        client.forget(nodeid)
        served.restart()


@pytest.mark.parametrize(
    "damage",
    [
        {"fd": -1}, {"fd": 2**31 - 1}, {"ino": 1}, {"dev": 1}, {"type": 0o40000}, {"nlookup": 0}, {"generation": 0},
        {"valid": 0}, {"valid": 2}, {"mnt_id": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_that_makes_no_sense_is_dropped(served: Served, client: FuseClient, damage: dict[str, int]) -> None:
    for name in (b"a", b"b", b"c"):
        (served.root / name.decode()).touch()
    nodeids = [client.lookup(ROOT, name).nodeid for name in (b"a", b"b", b"c")]
    slot = nodeids[1] & 0xFFFFFFFF
    fields = dict(zip(FIELDS, records(served)[slot], strict=True))
    fd = fields["fd"]
    RECORD.pack_into(served.inodes, slot * RECORD.size, *{**fields, **damage}.values())
    served.restart()
    client.getattr(nodeids[1], expect=ESTALE)
    assert client.getattr(nodeids[0]).attr.mode and client.getattr(nodeids[2]).attr.mode
    fresh = client.lookup(ROOT, b"b").nodeid
    assert fresh not in nodeids
    assert is_open(fd)  # whose it is, nobody knows: the sweep of unrecorded descriptors decides
    os.close(fd)


def test_two_records_of_one_inode(served: Served, client: FuseClient) -> None:
    (served.root / "a").touch()
    (served.root / "b").touch()
    a, b = client.lookup(ROOT, b"a").nodeid, client.lookup(ROOT, b"b").nodeid
    record = records(served)[a & 0xFFFFFFFF]
    lost = records(served)[b & 0xFFFFFFFF][7]
    RECORD.pack_into(served.inodes, (b & 0xFFFFFFFF) * RECORD.size, 1, b >> 32, *record[2:])
    served.restart()
    assert len(records(served)) == 1
    client.forget(a)
    client.forget(b)
    assert served.descriptors() == set()
    os.close(lost)


def test_damaged_handles_are_dropped(served: Served, client: FuseClient) -> None:
    opened = [client.create(ROOT, name)[1].fh for name in (b"a", b"b", b"c")]
    left = {}
    for fh, fd in zip(opened[:2], (2**31 - 1, -7), strict=True):
        slot = fh & 0xFFFFFFFF
        valid, generation, nodeid, left[fh] = HANDLE.unpack_from(served.handles, slot * HANDLE.size)
        HANDLE.pack_into(served.handles, slot * HANDLE.size, valid, generation, nodeid, fd)
    served.restart()
    assert client.read(ROOT, opened[2], 1) == b""
    for fh in opened[:2]:
        client.read(ROOT, fh, 1, expect=EBADF)
        os.close(left[fh])


@pytest.mark.parametrize("damage", [(1, 128, 0, 2), (None, 64, 0, 2), (None, 128, 0, 1), (None, 128, 0, 2**31)])
def test_an_arena_of_something_else_is_refused(served: Served, damage: tuple[Any, ...]) -> None:
    header = HEADER.unpack_from(served.inodes)
    HEADER.pack_into(served.inodes, 0, damage[0] or header[0], *damage[1:], 0)
    with pytest.raises(OSError) as caught:
        served.attach()
    assert caught.value.errno == EINVAL
    HEADER.pack_into(served.inodes, 0, *header)


@pytest.mark.parametrize("seed", range(20))
def test_random_arenas_are_survived(serve: Callable[..., Served], seed: int) -> None:
    """Random words in every record: nothing crashes, and what is kept is an inode or an open file of ours."""
    dice = random.Random(seed)
    served = serve(records=64)
    for i in range(30):
        served.client.create(ROOT, str(i).encode())
    keep = served.descriptors()
    for arena, first in ((served.inodes, 2 * RECORD.size), (served.handles, HANDLE.size)):
        for _ in range(200):
            at = dice.randrange(first // 4, len(arena) // 4) * 4
            struct.pack_into("=I", arena, at, dice.choice([0, 1, 2, 5, 2**31, 2**32 - 1, dice.randrange(2**32)]))
    served.restart()
    assert served.descriptors() <= keep
    for slot, record in records(served).items():
        assert served.client.getattr(record[1] << 32 | slot).attr.ino == record[3]
    lib.core_reset(served.core)
    for fd in filter(is_open, keep):
        os.close(fd)


class Handles(RuleBasedStateMachine):
    """The handle table against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        from pathlib import Path

        self.served = Served(Path("/"), records=9)
        self.live: dict[int, int] = {}
        self.pinned: list[tuple[int, int]] = []
        self.dead: set[int] = set()

    @rule()
    def add(self) -> None:
        fd, fh = os.open("/", os.O_RDONLY), ffi.new("uint64_t *")
        error = lib.handle_add(self.served.core, ROOT, fd, fh)
        full = len({*self.live, *(fh for fh, _ in self.pinned)}) == 8
        assert (error != 0) == full
        if error:
            os.close(fd)
            return
        assert fh[0] not in self.live and fh[0] not in self.dead
        self.live[fh[0]] = fd

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        fh = data.draw(st.sampled_from(sorted(self.live)))
        assert lib.handle_get(self.served.core, fh) == self.live[fh]
        self.pinned.append((fh, self.live[fh]))

    @precondition(lambda self: self.pinned)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        fh, fd = self.pinned.pop(data.draw(st.integers(0, len(self.pinned) - 1)))
        lib.handle_put(self.served.core, fh)
        if fh not in self.live and fh not in [other for other, _ in self.pinned]:
            assert not is_open(fd) or fd in self.live.values()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        fh = data.draw(st.sampled_from(sorted(self.live)))
        self.served.client.release(ROOT, fh)
        del self.live[fh]
        self.dead.add(fh)

    @precondition(lambda self: not self.pinned)
    @rule()
    def restart(self) -> None:
        self.served.restart()

    @invariant()
    def agrees(self) -> None:
        assert lib.core_handle_count(self.served.core) == len(self.live)
        assert self.served.descriptors() == set(self.live.values())
        for fh in self.dead:
            assert lib.handle_get(self.served.core, fh) == -EBADF
        for _, fd in self.pinned:
            assert is_open(fd)

    def teardown(self) -> None:
        for fh, _ in self.pinned:
            lib.handle_put(self.served.core, fh)
        self.served.close()


TestHandles = Handles.TestCase
TestHandles.settings = settings(max_examples=60, stateful_step_count=40)


def test_threads_at_one_table(served: Served) -> None:
    """Lookups, forgets, opens, reads and releases of the same few files at once: no wrong data, nothing left over."""
    names = [b"%d" % i for i in range(4)]
    for name in names:
        (served.root / name.decode()).write_bytes(name * 1000)
    failed = []

    def work(seed: int) -> None:
        dice, client = random.Random(seed), served.guest()
        try:
            for _ in range(400):
                name = dice.choice(names)
                nodeid = client.lookup(ROOT, name).nodeid
                fh = client.open(nodeid).fh
                assert client.read(nodeid, fh, 1000) == name * 1000
                client.release(nodeid, fh)
                for entry in client.list(plus=True):
                    if entry.entry.nodeid:
                        client.forget(entry.entry.nodeid)
                client.forget(nodeid)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert served.descriptors() == set()


def test_reset_under_load(served: Served) -> None:
    """DESTROY while other threads serve: they get errors, never another's descriptor."""
    (served.root / "f").write_bytes(b"data" * 100)
    stop, wrong = threading.Event(), []

    def work() -> None:
        client = served.guest()
        while not stop.is_set():
            try:
                nodeid = client.lookup(ROOT, b"f").nodeid
                fh = client.open(nodeid).fh
                if client.read(nodeid, fh, 400) != b"data" * 100:
                    wrong.append(fh)
            except OSError as error:
                if error.errno not in (EBADF, ESTALE):
                    wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        lib.core_reset(served.core)
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong

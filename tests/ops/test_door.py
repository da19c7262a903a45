"""The door: the registry, what an op may raise, and what is deferred."""

import errno
import itertools
import logging
import os
import random
import struct
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.fuseclient import ROOT, FuseClient
from tests.ops.mount import Mount, share
from tests.ring.ring import Ring
from vfsd import door
from vfsd._fuse import ffi, lib
from vfsd.core import Core
from vfsd.door import OPS, Op, Pool, Request
from vfsd.refused import ARGUMENTS
from vfsd.settings import Settings


def test_rows_without_a_function_are_pythons() -> None:
    rows = {opcode for opcode in range(4096) if lib.fuse_row_name(opcode)}
    assert {opcode for opcode in rows if not lib.fuse_row_in_c(opcode)} == set(OPS)
    for opcode, op in OPS.items():
        assert (op.opcode, op.name) == (opcode, ffi.string(lib.fuse_row_name(opcode)).decode())


def test_what_is_refused_is_told_of_whoever_serves_it() -> None:
    served = {opcode for opcode in range(4096) if lib.fuse_row_in_c(opcode)}
    assert {ffi.string(lib.fuse_row_name(opcode)).decode() for opcode in served} == set(ARGUMENTS)


def test_what_may_wait_for_a_disk_is_blocking() -> None:
    assert {op.name for op in OPS.values() if op.blocking} == {"SYNCFS"}


def replace(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., bytes]) -> None:
    opcode, op = next((opcode, op) for opcode, op in OPS.items() if op.name == name)
    fields = {field: getattr(op, field) for field in Op.__dataclass_fields__} | {"function": function}
    monkeypatch.setitem(OPS, opcode, Op(**fields))
    monkeypatch.setattr(door, "_failed", set())


def raises(error: Exception) -> Callable[..., bytes]:
    def op(*_: object) -> bytes:
        raise error

    return op


@pytest.mark.parametrize(
    ("error", "expect"),
    [
        (OSError(errno.ENOSPC, "x"), errno.ENOSPC),
        (FileNotFoundError(errno.ENOENT, "x"), errno.ENOENT),
        (OSError("no errno"), errno.EIO),
        (OSError(512, "ERESTARTSYS"), errno.EIO),
        (OSError(-1, "negative"), errno.EIO),
    ],
)
def test_an_oserror_is_a_reply(mount: Mount, monkeypatch: pytest.MonkeyPatch, error: OSError, expect: int) -> None:
    replace(monkeypatch, "ACCESS", raises(error))
    mount.client.access(ROOT, os.R_OK, expect=expect)


def test_other_exceptions_are_logged_once(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace(monkeypatch, "ACCESS", raises(ValueError("our fault")))
    for _ in range(3):
        mount.client.access(ROOT, os.R_OK, expect=errno.EIO)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "ACCESS" in caplog.text and "our fault" in caplog.text
    caplog.clear()


def test_replies_longer_than_the_room(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, "GETXATTR", lambda *_: b"x" * 4097)
    mount.client.getxattr(ROOT, b"user.a", size=4096, expect=errno.EINVAL)


def test_what_an_op_sees_of_the_request(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Request] = []

    def access(core: Core, request: Request, arg: object) -> bytes:
        seen.append(request)
        return b""

    replace(monkeypatch, "ACCESS", access)
    mount.client.uid, mount.client.gid = 12, 34
    mount.client.access(56, os.R_OK)
    assert (seen[-1].nodeid, seen[-1].uid, seen[-1].gid, seen[-1].room) == (56, 12, 34, 0)


def test_what_an_op_saw_before(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, int]] = []

    def look() -> int:
        return len(seen)

    def removexattr(core: Core, request: Request, name: bytes) -> bytes:
        seen.append((request.begun, request.before(look)))
        return b""

    replace(monkeypatch, "REMOVEXATTR", removexattr)
    for client in (mount.client, mount.unfinished(), mount.client):
        mount.memo.done = 0
        client.removexattr(ROOT, b"user.a")
    assert seen == [(False, 0), (True, 0), (False, 2)]


NAMES = (b"", b"f\0", b"user.a\0", b"f\0g\0", b"\xff\0\xfe\0", b"a\0\0b\0")


def test_hostile_arguments(tmp_path: Path) -> None:
    """Random and edge values in every op of ours: an errno or a reply, and never a traceback (see no_traceback)."""
    source = random.Random(1)
    words = [0, 1, 2, 3, 7, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63, (1 << 63) - 1, (1 << 64) - 1]
    with share(tmp_path, Settings(xattr=True)) as mount:
        client = mount.client
        (tmp_path / "f").write_bytes(b"x" * 10)
        nodes = [ROOT, client.lookup(ROOT, b"f").nodeid, 99]
        handles = [client.open(nodes[1], os.O_RDWR).fh, client.opendir(ROOT).fh]
        ours = [opcode for opcode, op in OPS.items() if op.name not in ("INIT", "DESTROY", "SYNCFS")]
        for opcode in itertools.chain.from_iterable(itertools.repeat(ours, 150)):
            fixed = b"".join(struct.pack("=Q", source.choice(words + nodes + handles)) for _ in range(11))
            names = source.choice(
                [b"", b"f\0", b"user.a\0", b"f\0g\0", b"\xff\0\xfe\0", b"a\0\0b\0", source.randbytes(20)]
            )
            size = OPS[opcode].size or source.choice([8, 16])
            body = (fixed[:size] if OPS[opcode].size or OPS[opcode].tail else b"") + names
            room = source.choice([0, 24, 100, 160, 160, 400, 400, 4096])
            client.exchange(opcode, source.choice(nodes), body, room)
        for _ in range(100):
            client.exchange(lib.FUSE_INIT, 0, struct.pack("=II", 7, 38) + source.randbytes(56), 80)


def test_deferred_ops_are_finished(ringed: tuple[Mount, Ring, FuseClient]) -> None:
    mount, _, client = ringed
    entry, opened = client.create(ROOT, b"f")
    client.write(entry.nodeid, opened.fh, b"x" * 5000)
    client.fsync(entry.nodeid, opened.fh)
    client.fsync(entry.nodeid, 99, expect=errno.EBADF)
    assert client.copy_file_range(entry.nodeid, opened.fh, 0, entry.nodeid, opened.fh, 5000, 5000) == 5000
    client.fallocate(entry.nodeid, opened.fh, 0, 20000)
    client.syncfs()
    assert (mount.root / "f").stat().st_size == 20000


def test_the_ring_goes_on_while_one_waits(
    ringed: tuple[Mount, Ring, FuseClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ring, client = ringed
    gate, names = threading.Event(), []

    def syncfs(core: Core, request: Request, arg: object) -> bytes:
        assert gate.wait(20)
        names.append(threading.current_thread().name)
        return b""

    replace(monkeypatch, "SYNCFS", syncfs)
    requests: list[bytes] = []
    waiting = FuseClient(lambda request, room: requests.append(request) or bytes(16))  # type: ignore[func-returns-value]
    with pytest.raises(AssertionError):
        waiting.syncfs()
    heads = [ring.driver.add([requests[0]], [16]) for _ in range(3)]  # one more than the pool has threads
    ring.driver.kick()
    client.statfs()
    assert not names
    gate.set()
    for head in heads:
        assert struct.unpack("=IiQ", ring.driver.wait(head).data)[:2] == (16, 0)
    assert all(name.startswith("blocking") for name in names) and len(names) == 3


def test_a_pool_grows_while_all_its_threads_are_held_up() -> None:
    """As far as it may. What comes after that waits for one of them."""
    pool = Pool(threads=1, most=3)
    pool.start()
    meeting, done, names = threading.Barrier(4, timeout=20), threading.Event(), set[str]()

    def held_up() -> None:
        names.add(threading.current_thread().name)
        meeting.wait()
        done.wait(20)

    for _ in range(3):
        pool.submit(held_up)
    meeting.wait()
    late = threading.Event()
    pool.submit(late.set)
    assert not late.is_set()
    done.set()
    assert late.wait(20)
    pool.close()
    assert names == {"blocking 0", "blocking 1", "blocking 2"}


def test_a_pool_that_can_not_grow_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(threads=1, most=3)
    pool.start()
    done: list[int] = []

    def none(_works: object) -> list[threading.Thread]:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("vfsd.door.begin", none)
    for number in range(10):
        pool.submit(partial(done.append, number))
    pool.close()
    assert done == list(range(10))

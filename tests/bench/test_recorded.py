"""What guests have done is sent again, and every reply is looked at."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.bench import recorded
from tests.bench.guest import BadReply, Guest, Script
from tests.bench.macro import macro
from tests.bench.measure import mounted
from tests.bench.recorded import BEGIN, END, WORKS, Macro
from tests.bench.recorder import Exchange
from tests.bench.share import Files
from tests.fuseclient import ROOT
from tests.fusestructs import pack
from vfsd._fuse import lib as fuse

#: Works whose recordings have these requests, among others.
PLAIN = {"git": "FUSE_READ", "untar": "FUSE_WRITE", "find": "FUSE_READDIRPLUS", "packages": "FUSE_RENAME2",
         "compile": "FUSE_CREATE", "sqlite": "FUSE_FSYNC"}  # fmt: skip


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    with ExitStack() as stack:
        yield mounted(stack, "vfsd, no sandbox", tmp_path, 1, Files(b""))


def sent(guest: Guest, found: Macro) -> int:
    root = guest.daemon.share / "work"
    recorded.make(root, found.files)
    script = Script(guest, [recorded.lane(found, guest.client.lookup(ROOT, b"work").nodeid)])
    return guest.run(script).units


@pytest.mark.parametrize("name", WORKS)
def test_what_is_kept(name: str) -> None:
    found = recorded.load(name)
    assert getattr(fuse, PLAIN[name]) in {request.opcode for request in found.requests}
    assert (recorded.KEPT / f"{name}.json.xz").stat().st_size < 20_000
    registers = {register for request in found.requests for _, _, register in request.patches}
    assert registers <= set(range(found.registers))


def _changed(found: Macro, opcode: int, **fields: int) -> Macro:
    number = next(number for number, each in enumerate(found.requests) if each.opcode == opcode and not each.error)
    found.requests[number] = found.requests[number]._replace(**fields)
    return found


def test_an_answer_of_another_length_is_found(guest: Guest) -> None:
    found = _changed(recorded.load("git"), fuse.FUSE_READ, answer=5)
    with pytest.raises(BadReply, match=r"READ in lane 0: \d+ bytes, not 21"):
        sent(guest, found)


def test_an_answer_that_is_an_error_is_found(guest: Guest) -> None:
    found = _changed(recorded.load("git"), fuse.FUSE_LOOKUP, error=2)
    with pytest.raises(BadReply, match="LOOKUP in lane 0: error 0, not -2"):
        sent(guest, found)


def test_a_directory_that_lacks_a_file_is_found(guest: Guest) -> None:
    found = recorded.load("find")
    lost = next(number for number, file in enumerate(found.files) if file.size)
    del found.files[lost]
    with pytest.raises(BadReply, match=r"READDIRPLUS in lane 0: the directory has \d+ entries, not \d+"):
        sent(guest, found)


# How they are made.


def exchange(opcode: int, nodeid: int, body: bytes, answer: bytes = b"", error: int = 0) -> Exchange:
    request = pack("fuse_in_header", len=40 + len(body), opcode=opcode, unique=2, nodeid=nodeid) + body
    reply = pack("fuse_out_header", len=16 + len(answer), unique=2, error=-error) + answer
    return Exchange(request, reply, len(reply))


MARKS = [exchange(fuse.FUSE_LOOKUP, 1, name + b"\0", error=2) for name in (BEGIN, END)]


def test_numbers_become_registers(guest: Guest) -> None:
    """A file is created, written, closed, removed and forgotten: that can be done as often as one likes."""
    header = pack("fuse_in_header", len=48, opcode=fuse.FUSE_FORGET, nodeid=77)
    created = pack("fuse_create_in", flags=1, mode=0o100644) + b"made\0"
    written = pack("fuse_write_in", fh=5, size=100) + bytes(100)
    found = macro([
        exchange(fuse.FUSE_GETATTR, 66, pack("fuse_getattr_in"), pack("fuse_attr_out")),
        MARKS[0],
        exchange(fuse.FUSE_CREATE, 1, created, pack("fuse_entry_out", nodeid=77) + pack("fuse_open_out", fh=5)),
        exchange(fuse.FUSE_WRITE, 77, written, pack("fuse_write_out", size=100)),
        exchange(fuse.FUSE_FLUSH, 77, pack("fuse_flush_in", fh=5)),
        exchange(fuse.FUSE_RELEASE, 77, pack("fuse_release_in", fh=5, flags=1)),
        exchange(fuse.FUSE_UNLINK, 1, b"made\0"),
        Exchange(header + pack("fuse_forget_in", nlookup=1), b""),
        Exchange(pack("fuse_in_header", len=48, opcode=fuse.FUSE_FORGET, nodeid=66) + bytes(8), b""),
        MARKS[1],
    ], [])  # fmt: skip
    opcodes = [request.opcode for request in found.requests]
    assert opcodes == [
        fuse.FUSE_CREATE, fuse.FUSE_WRITE, fuse.FUSE_FLUSH, fuse.FUSE_RELEASE, fuse.FUSE_UNLINK, fuse.FUSE_FORGET,
        fuse.FUSE_BATCH_FORGET,
    ]  # fmt: skip
    assert found.registers == 4  # the root, the file, its handle, and the flags of that
    known = guest.client.lookup(ROOT, b"many").nodeid
    for _ in range(2):
        guest.clear()
        assert sent(guest, found._replace(files=[])) == 1
    assert guest.client.lookup(ROOT, b"many").nodeid == known
    assert not list((guest.daemon.share / "work").iterdir())


def test_what_was_known_before_is_no_recording() -> None:
    getattr_ = exchange(fuse.FUSE_GETATTR, 66, pack("fuse_getattr_in"), pack("fuse_attr_out"))
    with pytest.raises(ValueError, match="node 0x42 was known before the recording began"):
        macro([MARKS[0], getattr_, MARKS[1]], [])
    with pytest.raises(ValueError, match="no end"):
        macro([MARKS[0]], [])


def test_files_are_made_as_they_were(tmp_path: Path) -> None:
    made = tmp_path / "made"
    recorded.make(made, recorded.load("git").files)
    assert recorded.manifest(made) == recorded.load("git").files

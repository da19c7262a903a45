"""fuse_serve itself: the table, the checks on a request, what gets which answer."""

import errno
import os
import struct
from collections.abc import Callable
from errno import E2BIG, EFAULT, EINVAL, EIO, ENAMETOOLONG, ENFILE, ENOSYS, EROFS
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.served import Served
from tests.direct import direct
from tests.fuseclient import HEADER, REPLY_HEADER, ROOT, FuseClient, pack, unpack
from vfsd._fuse import ffi, lib

NAMED = [lib.FUSE_LOOKUP, lib.FUSE_MKNOD, lib.FUSE_MKDIR, lib.FUSE_UNLINK, lib.FUSE_RMDIR, lib.FUSE_LINK,
         lib.FUSE_CREATE, lib.FUSE_SYMLINK, lib.FUSE_RENAME, lib.FUSE_RENAME2]  # fmt: skip
FIXED = {lib.FUSE_MKNOD: 16, lib.FUSE_MKDIR: 8, lib.FUSE_LINK: 8, lib.FUSE_CREATE: 16, lib.FUSE_RENAME: 8,
         lib.FUSE_RENAME2: 16}  # fmt: skip
#: Every op of the protocol that is served so far.
SERVED = set(
    """
    SETUPMAPPING REMOVEMAPPING
    INIT DESTROY STATFS SYNCFS LOOKUP FORGET BATCH_FORGET GETATTR SETATTR STATX ACCESS READLINK SYMLINK MKNOD MKDIR
    UNLINK RMDIR RENAME RENAME2 LINK SETXATTR GETXATTR LISTXATTR REMOVEXATTR OPEN CREATE TMPFILE READ WRITE FLUSH
    RELEASE FSYNC FALLOCATE LSEEK COPY_FILE_RANGE COPY_FILE_RANGE_64 OPENDIR READDIR READDIRPLUS RELEASEDIR FSYNCDIR
    IOCTL GETLK SETLK SETLKW
    """.split()  # noqa: SIM905
)
IN_C = set(
    """
    LOOKUP FORGET BATCH_FORGET GETATTR SETATTR READLINK SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME RENAME2 LINK
    OPEN CREATE READ WRITE FLUSH FSYNC RELEASE OPENDIR READDIR READDIRPLUS FSYNCDIR RELEASEDIR STATFS
    FALLOCATE LSEEK COPY_FILE_RANGE COPY_FILE_RANGE_64
    """.split()  # noqa: SIM905
)
MODIFYING = set(
    """
    SETATTR SYMLINK MKNOD MKDIR UNLINK RMDIR RENAME RENAME2 LINK WRITE SETXATTR REMOVEXATTR CREATE TMPFILE FALLOCATE
    COPY_FILE_RANGE COPY_FILE_RANGE_64 SETUPMAPPING
    """.split()  # noqa: SIM905
)
SILENT = (lib.FUSE_FORGET, lib.FUSE_BATCH_FORGET)


def header(opcode: int, length: int, nodeid: int = ROOT, **fields: int) -> bytes:
    return pack("fuse_in_header", len=length, opcode=opcode, unique=7, nodeid=nodeid, **fields)


def error_of(reply: bytes) -> int:
    out = unpack("fuse_out_header", reply)
    assert out.len == len(reply)
    return -out.error


def opcodes() -> list[int]:
    return [opcode for opcode in range(4200) if lib.fuse_row_name(opcode) != ffi.NULL]


def test_the_table_names_its_opcodes() -> None:
    named = {ffi.string(lib.fuse_row_name(opcode)).decode(): opcode for opcode in opcodes()}
    for name, opcode in named.items():
        assert opcode == (getattr(lib, f"FUSE_{name}", None) or getattr(lib, f"OP_{name}"))
    assert set(named) == SERVED
    assert {name for name, opcode in named.items() if lib.fuse_row_in_c(opcode)} == IN_C


@pytest.mark.parametrize("opcode", [0, 7, 19, 36, 37, 40, 41, 54, 55, 4096, 2**31, 2**32 - 1])
def test_no_row_is_enosys(served: Served, opcode: int) -> None:
    assert error_of(direct(served.core)(header(opcode, HEADER), 4096)) == ENOSYS


@pytest.mark.parametrize("opcode", opcodes())
def test_every_shorter_request_is_einval(served: Served, opcode: int) -> None:
    """From nothing at all to one byte less than the row wants, whatever the header says."""
    call = direct(served.core)
    for length in range(HEADER):
        reply = call(header(opcode, HEADER)[:length], 4096)
        assert error_of(reply) == EINVAL
        assert unpack("fuse_out_header", reply).unique == 0
    for said in (0, HEADER - 1, HEADER + 1, 2**31, 2**32 - 1):
        reply = call(header(opcode, said), 4096)
        assert reply == b"" if opcode in SILENT else error_of(reply) == EINVAL
    if opcode in FIXED or opcode in NAMED:
        for length in range(FIXED.get(opcode, 0) + 1):
            assert error_of(call(header(opcode, HEADER + length) + bytes(length), 4096)) == EINVAL


@pytest.mark.parametrize("opcode", NAMED)
def test_names_are_names(served: Served, opcode: int) -> None:
    call = direct(served.core)
    fixed, second = bytes(FIXED.get(opcode, 0)), b"fine\0"
    for names, expect in (
        (b"\0" + second, EINVAL),
        (b".\0" + second, EINVAL),
        (b"..\0" + second, EINVAL),
        (b"/\0" + second, EINVAL),
        (b"a/b\0" + second, EINVAL),
        (b"../x\0" + second, EINVAL),
        (b"n" * 1025 + b"\0" + second, ENAMETOOLONG),
        (b"n" * 5000 + b"\0" + second, ENAMETOOLONG),
        (b"unterminated", EINVAL),
    ):
        reply = call(header(opcode, HEADER + len(fixed + names)) + fixed + names, 4096)
        assert error_of(reply) == expect, names[:10]


@pytest.mark.parametrize("opcode", [lib.FUSE_RENAME, lib.FUSE_RENAME2])
def test_both_names_of_a_rename(served: Served, opcode: int) -> None:
    call, fixed = direct(served.core), bytes(FIXED[opcode])
    for names in (b"fine\0..\0", b"fine\0a/b\0", b"fine\0\0", b"fine\0", b"fine\0unterminated"):
        assert error_of(call(header(opcode, HEADER + len(fixed + names)) + fixed + names, 4096)) == EINVAL


def test_a_symlink_target_and_an_xattr_name_are_no_path_components(served: Served) -> None:
    served.client.symlink(ROOT, b"l", b"../../etc/passwd")
    assert os.readlink(served.root / "l") == "../../etc/passwd"
    served.client.getxattr(ROOT, b"user./..", expect=errno.ENOTSUP)
    served.client.tmpfile(ROOT, expect=errno.ENOTSUP)


def test_a_chain_longer_than_its_header_says(served: Served) -> None:
    """What follows header.len is not the request."""
    (served.root / "f").touch()
    call = direct(served.core)
    assert error_of(call(header(lib.FUSE_LOOKUP, HEADER + 2) + b"f\0oo\0", 4096)) == 0
    assert error_of(call(header(lib.FUSE_LOOKUP, HEADER + 1) + b"f\0oo\0", 4096)) == EINVAL


@pytest.mark.parametrize("room", range(REPLY_HEADER))
def test_no_room_for_a_reply(served: Served, room: int) -> None:
    call = direct(served.core)
    (served.root / "f").touch()
    assert call(header(lib.FUSE_LOOKUP, HEADER + 2) + b"f\0", room) == b""
    assert call(header(lib.FUSE_GETATTR, HEADER + 16) + bytes(16), room) == b""
    assert served.descriptors() == set()


def test_no_room_for_the_reply_does_nothing(served: Served) -> None:
    call = direct(served.core)
    (served.root / "f").touch()
    assert error_of(call(header(lib.FUSE_LOOKUP, HEADER + 2) + b"f\0", REPLY_HEADER + 127)) == EINVAL
    assert served.descriptors() == set()
    body = pack("fuse_create_in", flags=0o102, mode=0o644) + b"new\0"
    assert error_of(call(header(lib.FUSE_CREATE, HEADER + len(body)) + body, REPLY_HEADER + 143)) == EINVAL
    assert not (served.root / "new").exists()


@pytest.mark.parametrize("fault", [lib.VIRTQ_FAULT_IN, lib.VIRTQ_FAULT_OUT])
def test_what_lies_outside_of_guest_memory_fails_and_does_nothing(served: Served, fault: int) -> None:
    call = direct(served.core, fault=fault)
    body = pack("fuse_create_in", flags=0o102, mode=0o644) + b"new\0"
    assert error_of(call(header(lib.FUSE_CREATE, HEADER + len(body)) + body, 4096)) == EFAULT
    assert error_of(call(header(lib.FUSE_CREATE, HEADER + 5000) + body, 4096)) == EFAULT
    assert call(header(lib.FUSE_FORGET, HEADER + 8) + bytes(8), 0) == b""
    assert not (served.root / "new").exists()


@pytest.mark.parametrize("room", [0, 16, 4096])
def test_forget_is_never_answered(served: Served, room: int) -> None:
    call = direct(served.core)
    for opcode in SILENT:
        assert call(header(opcode, HEADER + 8) + bytes(8), room) == b""
        assert call(header(opcode, HEADER), room) == b""
    assert call(header(lib.FUSE_BATCH_FORGET, HEADER + 8) + pack("fuse_batch_forget_in", count=2**32 - 1), room) == b""


def test_too_long_a_request(served: Served) -> None:
    body = b"name\0" + bytes(300_000)
    reply = direct(served.core)(header(lib.FUSE_SYMLINK, HEADER + len(body)) + body, 4096)
    assert error_of(reply) == E2BIG


def test_before_init(serve: Callable[..., Served]) -> None:
    asked = []
    served = serve(door=lambda core, request: asked.append(request.header.opcode) or 0)
    served.session.mounted = 0
    served.client.lookup(ROOT, b"f", expect=EIO)
    served.client.getattr(ROOT, expect=EIO)
    served.client.forget(ROOT)
    served.client.statfs(expect=EIO)
    served.client.destroy()
    assert asked == [lib.FUSE_DESTROY]


def test_init_of_either_size_goes_to_python(serve: Callable[..., Served]) -> None:
    seen = []
    served = serve(door=lambda core, request: seen.append((request.header.opcode, request.arg_len)) or 0)
    for body in (bytes(16), bytes(64)):
        served.client.call(lib.FUSE_INIT, 0, body)
    assert seen == [(lib.FUSE_INIT, 16), (lib.FUSE_INIT, 64)]
    served.client.call(lib.FUSE_INIT, 0, bytes(15), expect=EINVAL)


def test_what_the_door_sees(serve: Callable[..., Served]) -> None:
    seen: dict[str, Any] = {}

    def door(core: Any, request: Any) -> int:
        seen.update(
            arg=bytes(ffi.buffer(request.arg, request.arg_len)), nodeid=request.header.nodeid,
            uid=request.header.uid, reply_max=request.reply_max, memo=request.memo,
        )  # fmt: skip
        ffi.memmove(request.reply, b"reply", 5)
        return 5

    served = serve(door=door)
    client = served.guest(in_sizes=(3, 50), out_sizes=(1, 17), memo=served.memo)
    assert client.call(lib.FUSE_REMOVEXATTR, 9, b"name\0", room=100) == b"reply"
    assert seen == {"arg": b"name\0", "nodeid": 9, "uid": 0, "reply_max": 100, "memo": served.memo}
    client.call(lib.FUSE_REMOVEXATTR, 9, b"name\0", room=1 << 20)
    assert seen["reply_max"] == 128 << 10


@pytest.mark.parametrize(
    ("result", "expect"),
    [(-1, 1), (-38, 38), (-511, 511), (-512, EIO), (-(2**31), EIO), (-(2**63) + 1, EIO), (101, EIO), (2**40, EIO),
     (-errno.EMFILE, ENFILE)],
)  # fmt: skip
def test_what_the_door_may_answer(serve: Callable[..., Served], result: int, expect: int) -> None:
    client = serve(door=lambda core, request: result).client
    client.call(lib.FUSE_REMOVEXATTR, 1, b"name\0", room=100, expect=expect)


def test_a_deferred_request_is_finished_later(serve: Callable[..., Served]) -> None:
    chains, completed = [], []

    def door(core: Any, request: Any) -> int:
        chains.append((request.chain, request.header.unique))
        return lib.VIRTQ_DEFERRED

    served = serve(door=door, complete=lambda chain, used: completed.append(used))
    request, out = header(lib.FUSE_SYNCFS, HEADER + 8) + bytes(8), ffi.new("char[]", 100)
    source = ffi.from_buffer(request)
    iov = ffi.new("struct iovec[2]", [{"iov_base": source, "iov_len": len(request)}, {"iov_base": out, "iov_len": 100}])
    chain = ffi.new("struct virtq_chain *", {"in": iov, "out": iov + 1, "in_count": 1, "out_count": 1,
                                             "in_len": len(request), "out_len": 100})  # fmt: skip
    results = ((b"abc", 3, (19, 0)), (b"", -5, (16, -5)), (b"", 0, (16, 0)), (bytes(99), 99, (16, -EIO)))
    for reply, result, expect in results:
        assert lib.fuse_serve(served.core, chain) == lib.VIRTQ_DEFERRED
        finished, unique = chains.pop()
        lib.fuse_finish(served.core, finished, unique, reply, result)
        answer = unpack("fuse_out_header", bytes(ffi.buffer(out)))
        assert (answer.len, answer.error, answer.unique) == (*expect, 7)
        assert completed.pop() == expect[0]
    assert bytes(ffi.buffer(out))[16:19] == b"abc"


def test_readonly_refuses_every_modifying_op(serve: Callable[..., Served]) -> None:
    asked = []
    served = serve(core_flags=lib.CORE_READONLY, door=lambda core, request: asked.append(request.header.opcode) or 0)
    call = direct(served.core)
    refused = set()
    for opcode in opcodes():
        body = {lib.FUSE_SYMLINK: b"", lib.FUSE_UNLINK: b"", lib.FUSE_RMDIR: b"", lib.FUSE_REMOVEXATTR: b""}.get(
            opcode, bytes(FIXED.get(opcode, 0))
        )
        for names in (bytes(100), b"a\0b\0" + bytes(100)):
            reply = call(header(opcode, HEADER + len(body + names)) + body + names, 4096)
            if reply and error_of(reply) == EROFS:
                refused.add(ffi.string(lib.fuse_row_name(opcode)).decode())
    assert refused - {"OPEN"} == MODIFYING  # an OPEN depends on its flags
    assert asked
    assert all(ffi.string(lib.fuse_row_name(opcode)).decode() not in MODIFYING for opcode in asked)


def test_setxattr_of_either_size(serve: Callable[..., Served]) -> None:
    seen = []
    served = serve(door=lambda core, request: seen.append(request.arg_len) or 0)
    served.client.setxattr(ROOT, b"user.a", b"value")
    served.session.flags = lib.FUSE_SETXATTR_EXT
    served.client.call(lib.FUSE_SETXATTR, ROOT, bytes(8) + b"user.a\0", expect=EINVAL)
    served.client.setxattr_ext = True
    served.client.setxattr(ROOT, b"user.a", bytes(65536))
    assert seen == [8 + 7 + 5, 16 + 7 + 65536]


SIZES = st.lists(st.integers(0, 64), max_size=12)
ROOM = st.integers(0, 300)


@settings(max_examples=300)
@given(st.sampled_from([*opcodes(), 7, 99]), st.binary(max_size=200), st.integers(-50, 50), SIZES, SIZES, ROOM)
def test_any_bytes_get_an_answer(
    served: Served, opcode: int, body: bytes, lie: int, in_sizes: list[int], out_sizes: list[int], room: int
) -> None:
    request = header(opcode, max(HEADER + len(body) + lie, 0)) + body
    reply = direct(served.core, in_sizes, out_sizes)(request, room)
    if opcode in SILENT or room < REPLY_HEADER:
        assert reply == b""
    else:
        assert struct.unpack_from("=I", reply)[0] == len(reply)
    FuseClient(direct(served.core)).getattr(ROOT)

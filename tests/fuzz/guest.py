"""A guest that knows the protocol and means no good: random requests, some of them mutated, and what it learns."""

import errno
import os
import random
import struct
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from vfsd._fuse import ffi, lib
from vfsd.ops.ioctl import COMPAT, SERVE

HEADER = struct.Struct("=IIQQIIIHH")
REPLY = struct.Struct("=IiQ")
ENTRY = 128  # bytes of struct fuse_entry_out
INO = 40  # where in it the inode number lies
SILENT = (lib.FUSE_FORGET, lib.FUSE_BATCH_FORGET)
#: Served, but seldom: they end the mount and all that is open on it, or wait for a disk.
SELDOM = (lib.FUSE_INIT, lib.FUSE_DESTROY, lib.FUSE_FSYNC, lib.FUSE_FSYNCDIR, lib.FUSE_SYNCFS)
#: What the others need to get anywhere.
OFTEN = [lib.FUSE_LOOKUP, lib.FUSE_CREATE, lib.FUSE_MKDIR, lib.FUSE_OPEN, lib.FUSE_OPENDIR] * 3
ODD = (0, 1, 2, 7, 8, 255, 256, 4095, 4096, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NAMES = [b"a", b"b", b"c", b"d", b"\xff\xfe", b"n" * 255, b".x", b"..."]
DOTS = [b".\0", b"..\0"]
BAD_NAMES = [b"", b".", b"..", b"/", b"a/b", b"../outside", b"n" * 256, b"n" * 9000]
TARGETS = [b"a", b"../outside", b"/etc/passwd", b"t" * 4095, b""]
XATTRS = [b"user.a", b"user.b", b"trusted.x", b"security.capability", b"system.posix_acl_access", b"", b"x" * 300]
FLAGS = (os.O_APPEND, os.O_TRUNC, os.O_DIRECTORY, os.O_EXCL, os.O_SYNC, os.O_DIRECT, os.O_NOFOLLOW, os.O_PATH, 1 << 31)


class Guest:
    """One hostile guest."""

    def __init__(self, core: Any, seed: int, forbidden: Collection[int], memo: Any) -> None:
        """`forbidden`: numbers of inodes that no answer may be about. `memo`: the struct memo of all its requests."""
        self.core, self.random, self.forbidden, self.memo = core, random.Random(seed), forbidden, memo
        self.nodeids, self.handles = [lib.FUSE_ROOT_ID], [0]
        self.answers: Counter[int] = Counter()
        self.bodies = self._bodies()
        self.opcodes = [opcode for opcode in self.bodies if opcode not in SELDOM] + OFTEN
        self.chain = ffi.new("struct virtq_chain *")

    # What requests are made of.

    def u32(self) -> int:
        dice = self.random.random()
        return self.random.choice(ODD) & 0xFFFFFFFF if dice < 0.5 else self.random.getrandbits(32 if dice < 0.6 else 5)

    def u64(self) -> int:
        return self.random.choice(ODD) if self.random.random() < 0.5 else self.random.getrandbits(12)

    def size(self) -> int:
        return self.u32() if self.random.random() < 0.2 else self.random.getrandbits(13)

    def nodeid(self) -> int:
        return self.u64() if self.random.random() < 0.05 else self.random.choice(self.nodeids)

    def fh(self) -> int:
        return self.u64() if self.random.random() < 0.05 else self.random.choice(self.handles)

    def name(self) -> bytes:
        return self.random.choice(BAD_NAMES if self.random.random() < 0.05 else NAMES) + b"\0"

    def flags(self) -> int:
        flags = self.random.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3))
        for flag in FLAGS:
            if self.random.random() < 0.1:
                flags |= flag
        return flags

    def mode(self) -> int:
        kind = self.random.choice((0o100000, 0o100000, 0o010000, 0o140000, 0o020000, 0o060000, 0o040000, 0))
        return kind | self.random.getrandbits(12) | 0o600

    def words(self, count: int) -> bytes:
        return struct.pack(f"={count}Q", *(self.u64() for _ in range(count)))

    def _bodies(self) -> dict[int, Callable[[], bytes]]:
        """What follows the header, by opcode."""
        pack, name, fh, u32, u64 = struct.pack, self.name, self.fh, self.u32, self.u64
        some = self.random.randbytes
        created = lambda: pack("=IIII", self.flags(), self.mode(), u32() & 0o77, u32() & 1)  # noqa: E731
        reading = lambda: pack("=QQI20x", fh(), u64(), self.size())  # noqa: E731
        return {
            lib.FUSE_LOOKUP: lambda: name() if self.random.random() < 0.8 else self.random.choice(DOTS),
            lib.FUSE_FORGET: lambda: pack("=Q", self.random.choice((1, 1, 2, 2**64 - 1))),
            lib.FUSE_GETATTR: lambda: pack("=IIQ", u32() & 1, 0, fh()),
            lib.FUSE_SETATTR: lambda: pack("=IIQQ", u32() & 0x7FF, 0, fh(), self.size()) + self.words(6)[:44]
            + pack("=IIIII", self.mode() | 0o700, 0, u32(), u32(), 0),
            lib.FUSE_READLINK: lambda: b"",
            lib.FUSE_SYMLINK: lambda: name() + self.random.choice(TARGETS) + b"\0",
            lib.FUSE_MKNOD: lambda: pack("=IIII", self.mode(), u32(), u32() & 0o77, 0) + name(),
            lib.FUSE_MKDIR: lambda: pack("=II", self.mode() | 0o700, u32() & 0o77) + name(),
            lib.FUSE_UNLINK: name,
            lib.FUSE_RMDIR: name,
            lib.FUSE_RENAME: lambda: pack("=Q", self.nodeid()) + name() + name(),
            lib.FUSE_RENAME2: lambda: pack("=QII", self.nodeid(), self.random.getrandbits(3), 0) + name() + name(),
            lib.FUSE_LINK: lambda: pack("=Q", self.nodeid()) + name(),
            lib.FUSE_OPEN: lambda: pack("=II", self.flags(), u32() & 1),
            lib.FUSE_READ: reading,
            lib.FUSE_WRITE: lambda: self._write(some(self.random.getrandbits(10))),
            lib.FUSE_STATFS: lambda: b"",
            lib.FUSE_RELEASE: lambda: pack("=QIIQ", fh(), 0, u32() & 3, 0),
            lib.FUSE_FSYNC: lambda: pack("=QII", fh(), u32() & 1, 0),
            lib.FUSE_SETXATTR: lambda: self._setxattr(some(self.random.getrandbits(7))),
            lib.FUSE_GETXATTR: lambda: pack("=II", self.size(), 0) + self.random.choice(XATTRS) + b"\0",
            lib.FUSE_LISTXATTR: lambda: pack("=II", self.size(), 0),
            lib.FUSE_REMOVEXATTR: lambda: self.random.choice(XATTRS) + b"\0",
            lib.FUSE_FLUSH: lambda: pack("=QQQ", fh(), 0, self.random.randrange(4)),
            lib.FUSE_INIT: lambda: pack("=IIIIQ40x", 7, self.random.choice((31, 38, 45)), u32(), u32(), u64()),
            lib.FUSE_OPENDIR: lambda: pack("=II", self.flags(), 0),
            lib.FUSE_READDIR: reading,
            lib.FUSE_READDIRPLUS: reading,
            lib.FUSE_RELEASEDIR: lambda: pack("=QIIQ", fh(), 0, 0, 0),
            lib.FUSE_FSYNCDIR: lambda: pack("=QII", fh(), 0, 0),
            lib.FUSE_ACCESS: lambda: pack("=II", u32(), 0),
            lib.FUSE_CREATE: lambda: created() + name(),
            lib.FUSE_DESTROY: lambda: b"",
            lib.FUSE_BATCH_FORGET: lambda: pack("=II", self.random.choice((2, 2**32 - 1)), 0) + self._forgets(),
            # Either small, or so large that no disk has it.
            lib.FUSE_FALLOCATE: lambda: pack("=QQQII", fh(), self.random.getrandbits(16),
                                             self.random.choice((4096, 100, 0, 2**62, 2**64 - 1)), u32(), 0),
            lib.FUSE_LSEEK: lambda: pack("=QQII", fh(), u64(), u32(), 0),
            **dict.fromkeys((lib.FUSE_GETLK, lib.FUSE_SETLK, lib.FUSE_SETLKW), self._lock),
            lib.FUSE_IOCTL: self._ioctl, lib.FUSE_COPY_FILE_RANGE: self._copy,
            lib.OP_COPY_FILE_RANGE_64: self._copy,
            lib.FUSE_SYNCFS: lambda: bytes(8), lib.FUSE_TMPFILE: lambda: created() + b"/\0",
            lib.OP_STATX: lambda: pack("=IIQII", u32() & 1, 0, fh(), u32(), u32()),
            lib.FUSE_SETUPMAPPING: self._mapping, lib.FUSE_REMOVEMAPPING: self._ranges,
        }  # fmt: skip

    def _lock(self) -> bytes:
        pick = self.random.choice
        lock = pick((0, 7, self.u64())), pick((lib.LOCK_END, 99, self.u64())), pick((0, 1, 1, 2, self.u32()))
        return struct.pack("=QQQQIIII", self.fh(), pick(range(4)), *lock, 1, pick((0, 1)), 0)

    def _ioctl(self) -> bytes:
        command = self.u32() if self.random.random() < 0.1 else self.random.choice([*SERVE, *COMPAT])
        sizes = self.random.choice((4, 28, 28, self.size())), self.random.choice((4, 28, 28, self.size()))
        # Neither immutable nor append only: nobody would get at the file any more.
        data = struct.pack("=IIIII8x", self.random.choice((0, self.u32() & ~0x38)), 0, 0, self.u32() & 1, 0)
        cut = 28 if self.random.random() < 0.9 else self.random.randrange(28)
        return struct.pack("=QIIQII", self.fh(), self.u32() & 1, command, 0, *sizes) + data[:cut]

    def _write(self, data: bytes) -> bytes:
        size = self.u32() if self.random.random() < 0.05 else len(data)
        return struct.pack("=QQIIQII", self.fh(), self.u64(), size, self.random.getrandbits(3), 0, 0, 0) + data

    def _setxattr(self, value: bytes) -> bytes:
        size = self.u32() if self.random.random() < 0.05 else len(value)
        extended = bytes(8) if self.random.random() < 0.5 else b""
        return struct.pack("=II", size, self.u32() & 3) + extended + self.random.choice(XATTRS) + b"\0" + value

    def _forgets(self) -> bytes:
        return struct.pack("=QQQQ", self.nodeid(), 1, self.nodeid(), self.u64())

    def _mapping(self) -> bytes:
        fh = self.fh() if self.random.random() < 0.5 else 2**64 - 1
        flags = self.random.choice((0, 1, 2, 3, self.u64()))
        return struct.pack("=QQQQQ", fh, self.u64(), self.u64(), flags, self.u64())

    def _ranges(self) -> bytes:
        count = self.random.choice((0, 1, 2, 300))
        return struct.pack("=I", count if self.random.random() < 0.8 else self.u32()) + self.words(2 * count)

    def _copy(self) -> bytes:
        return struct.pack("=QQQQQQQ", self.fh(), self.u64(), self.nodeid(), self.fh(), self.u64(), self.u64(), 0)

    # One request.

    def request(self) -> tuple[int, bytes]:
        """An opcode and a whole request, perhaps mutated."""
        dice = self.random.random()
        if dice < 0.002:
            opcode = self.random.choice(SELDOM)
        elif dice < 0.01:
            opcode = self.u32()
        else:
            opcode = self.random.choice(self.opcodes)
        body = self.bodies[opcode]() if opcode in self.bodies else self.random.randbytes(self.random.getrandbits(7))
        units = 0
        if dice > 0.95:  # extensions, true ones and others
            groups = struct.pack("=IIIIII", 24, lib.EXT_GROUPS, 1, self.u32(), 0, 0)
            label = struct.pack("=IIII32s", 48, 1, self.random.choice((4, self.u32())), 0, b"security.selinux\0label")
            body += (extension := self.random.choice((groups, label, groups + label, self.words(3))))
            units = len(extension) // 8 if dice > 0.96 else self.u32() & 0xFFFF
        caller = self.random.choice((0, 0, 1000, 4_000_000_000, 2**32 - 1))
        unique, nodeid, length = self.random.getrandbits(64), self.nodeid(), HEADER.size + len(body)
        request = HEADER.pack(length, opcode, unique, nodeid, caller, caller, 1, units, 0) + body
        return (opcode, request) if self.random.random() < 0.8 else self._mutated(opcode, request)

    def _mutated(self, opcode: int, request: bytes) -> tuple[int, bytes]:
        data = bytearray(request)
        match self.random.randrange(5):
            case 0:  # a lie about the length
                data[0:4] = struct.pack("=I", self.random.choice((len(data) - 1, len(data) + 1, 39, 40, self.u32())))
            case 1:  # cut, with or without the header knowing
                data = data[: self.random.randrange(len(data))]
                if len(data) >= 4 and self.random.random() < 0.5:
                    data[0:4] = struct.pack("=I", len(data))
            case 2:  # longer
                data += self.random.randbytes(self.random.choice((1, 100, 140_000)))
                data[0:4] = struct.pack("=I", len(data))
            case 3:  # an odd word
                at = self.random.randrange(8, len(data) - 7)
                data[at : at + 8] = struct.pack("=Q", self.u64())
            case _:  # a few odd bytes
                for _ in range(self.random.randrange(1, 6)):
                    data[self.random.randrange(8, len(data))] = self.random.getrandbits(8)
        return struct.unpack_from("=I", data, 4)[0] if len(data) >= 8 else 0, bytes(data)

    def room(self) -> int:
        dice = self.random.random()
        return self.random.choice((4096 + 16, 160, 65536 + 16)) if dice < 0.9 else self.random.getrandbits(9)

    def cuts(self, length: int) -> list[int]:
        """Lengths of buffers, now and then empty ones."""
        if self.random.random() < 0.4:
            return [length]
        found = []
        while length and len(found) < 12:
            found.append(min(length, self.random.choice((0, 1, 3, 8, 16, 40, 41, 1000, 4096))))
            length -= found[-1]
        return [*found, length]

    def layout(self, data: bytes, lengths: list[int], keep: list[Any]) -> Any:
        iov = ffi.new("struct iovec[]", len(lengths))
        at = 0
        for i, length in enumerate(lengths):
            buffer = ffi.new("char[]", length or 1)
            if data:
                ffi.memmove(buffer, data[at : at + length], length)
            iov[i].iov_base, iov[i].iov_len = buffer, length
            keep.append(buffer)
            at += length
        return iov

    def serve(self) -> None:
        """One request and its answer."""
        opcode, request = self.request()
        room, chain, inputs, outputs = self.room(), self.chain, [], []  # type: ignore[var-annotated]
        in_lengths, out_lengths = self.cuts(len(request)), self.cuts(room)
        in_iov, out_iov = self.layout(request, in_lengths, inputs), self.layout(b"", out_lengths, outputs)
        setattr(chain, "in", in_iov)
        chain.out, chain.in_count, chain.out_count = out_iov, len(in_lengths), len(out_lengths)
        chain.in_len, chain.out_len = len(request), room
        chain.replay, chain.memo = self.random.random() < 0.05, self.memo
        used = lib.fuse_serve(self.core, chain)
        if self.random.random() < 0.1:
            self.die()
            chain.replay = 1
            for buffer in outputs:
                ffi.buffer(buffer)[:] = bytes(len(ffi.buffer(buffer)))
            used = lib.fuse_serve(self.core, chain)
        reply = b"".join(ffi.buffer(b, n)[:] for b, n in zip(outputs, out_lengths, strict=True))
        self.check(opcode, request, reply, used)

    def die(self) -> None:
        """What a worker that dies before the request is answered leaves of it; or what makes no sense."""
        dice = self.random.random()
        if dice < 0.6:
            self.memo.done = 0
        elif dice < 0.7:
            record = ffi.buffer(self.memo)
            for _ in range(self.random.randrange(1, 20)):
                record[self.random.randrange(len(record))] = bytes([self.random.getrandbits(8)])

    def check(self, opcode: int, request: bytes, reply: bytes, used: int) -> None:
        known = len(request) >= HEADER.size
        if room := len(reply):
            assert 0 <= used <= room, f"opcode {opcode}: {used} bytes used of {room}"
        if (known and opcode in SILENT) or room < REPLY.size:
            assert used == 0, f"opcode {opcode}: {used} bytes where none were due"
            return
        length, error, unique = REPLY.unpack_from(reply)
        assert length == used, f"opcode {opcode}: header says {length} bytes of {used}"
        assert -512 < error <= 0, f"opcode {opcode}: error {error}"
        assert error == 0 or used == REPLY.size, f"opcode {opcode}: an error with a reply"
        assert unique == (HEADER.unpack_from(request)[2] if known else 0), f"opcode {opcode}: answers another request"
        assert not any(reply[used:]), f"opcode {opcode}: bytes written beyond what was used"
        self.answers[-error] += 1
        if error == 0:
            self.learn(opcode, reply[REPLY.size : used])
        elif error == -errno.ESTALE and self.random.random() < 0.9:
            self.nodeids = [nodeid for nodeid in self.nodeids if nodeid != HEADER.unpack_from(request)[3]] or [1]
        elif error == -errno.EBADF and self.random.random() < 0.9:
            self.handles = [fh for fh in self.handles if struct.pack("=Q", fh) not in request] or [0]

    def learn(self, opcode: int, body: bytes) -> None:
        """Keeps ids for later requests: some tens, a few of them stale by then."""
        if opcode in (lib.FUSE_INIT, lib.FUSE_DESTROY):
            self.nodeids, self.handles = [lib.FUSE_ROOT_ID], [0]
        if len(body) >= ENTRY and opcode not in (lib.FUSE_READ, lib.FUSE_READDIR, lib.FUSE_GETXATTR, lib.OP_STATX):
            nodeid, number = struct.unpack_from("=Q", body)[0], struct.unpack_from("=Q", body, INO)[0]
            assert number not in self.forbidden, f"opcode {opcode}: an inode outside the share"
            self.nodeids.append(nodeid)
            body = body[ENTRY:]
        if len(body) >= 16 and opcode in (lib.FUSE_OPEN, lib.FUSE_OPENDIR, lib.FUSE_CREATE, lib.FUSE_TMPFILE):
            self.handles.append(struct.unpack_from("=Q", body)[0])
        if len(self.nodeids) > 40:
            del self.nodeids[1:20]
        if len(self.handles) > 40:
            del self.handles[:20]

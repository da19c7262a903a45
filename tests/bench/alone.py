"""The ring alone: a vhost-user back-end that answers every request at once, with our engine and alone.c.

python -m tests.bench.alone SOCKET [QUEUES]   # serves one front-end, which may have so many request queues, and ends
"""

import sys

from tests.bench.build import ffi, lib
from tests.fusestructs import pack
from tests.vhost.echo import EchoDevice
from vfsd._fuse import ffi as fuse
from vfsd._fuse import lib as opcodes
from vfsd.values import POLL_MAX
from vhost._virtq import ffi as virtq

PAGE = 4096
#: Of the names in the directory it pretends to have, bytes: as those of workloads.py.
NAME_LENGTH = 10


def entries() -> bytes:
    """As many struct fuse_direntplus as fit on a page."""
    head = fuse.sizeof("struct fuse_entry_out") + fuse.offsetof("struct fuse_dirent", "name")
    size = (head + NAME_LENGTH + 7) // 8 * 8
    found = b""
    for number in range(PAGE // size):
        entry = pack("fuse_entry_out", nodeid=2 + number)
        dirent = pack("fuse_dirent", ino=2 + number, off=1 + number, namelen=NAME_LENGTH, type=8)
        name = f"{number:0{NAME_LENGTH}}".encode()
        found += (entry + dirent[: fuse.offsetof("struct fuse_dirent", "name")] + name).ljust(size, b"\0")
    return found


class Alone(EchoDevice):
    """Its rings are watched as vfsd's are."""

    poll_ns = POLL_MAX * 1000


def serve(path: str, queues: int = 1) -> None:
    canned = {
        opcodes.FUSE_INIT: pack("fuse_init_out", major=7, minor=37, max_write=1 << 20, max_pages=256),
        opcodes.FUSE_READDIRPLUS: entries(),
    }
    alone = ffi.new("struct alone *")
    kept = {opcode: ffi.from_buffer(reply) for opcode, reply in canned.items()}
    for opcode, reply in kept.items():
        alone.replies[opcode].bytes, alone.replies[opcode].size = reply, len(reply)
    # Two extensions have a type for the same function.
    handler = virtq.cast("virtq_handler", int(ffi.cast("intptr_t", ffi.addressof(lib, "alone_serve"))))
    device = Alone(1 + queues, handler, virtq.cast("void *", int(ffi.cast("intptr_t", alone))))
    device.serve_at(path)


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))

"""A virtiofs daemon that passes each request on to another one, and notes it and its reply: what scripts/bench-record
gives a guest. One request at a time."""

import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tests.bench.daemons import PATIENCE, C
from tests.frontend import FrontEnd
from tests.fuseclient import REPLY_HEADER
from tests.fusestructs import pack, unpack
from tests.vhost.echo import EchoDevice
from vfsd._fuse import ffi as fuse_ffi
from vfsd._fuse import lib as fuse
from vhost._virtq import ffi

#: Before each request and its reply: their lengths, and the room there was for the reply.
LENGTHS = struct.Struct("=III")
#: What is agreed to. The rest would make requests that some daemon does not know, or leave some away.
AGREED = (
    fuse.FUSE_ASYNC_READ | fuse.FUSE_ATOMIC_O_TRUNC | fuse.FUSE_BIG_WRITES | fuse.FUSE_DO_READDIRPLUS
    | fuse.FUSE_READDIRPLUS_AUTO | fuse.FUSE_PARALLEL_DIROPS | fuse.FUSE_MAX_PAGES | fuse.FUSE_INIT_EXT
)  # fmt: skip


class Exchange(NamedTuple):
    """A request, its header included, and its reply, likewise; empty where there is none."""

    request: bytes
    reply: bytes
    #: Bytes there were for the reply.
    room: int = 0


def read(path: Path) -> Iterator[Exchange]:
    with open(path, "rb") as file:
        while lengths := file.read(LENGTHS.size):
            asked, answered, room = LENGTHS.unpack(lengths)
            yield Exchange(file.read(asked), file.read(answered), room)


def serve(share: str, path: str, output: Path) -> None:
    """Serves one guest until it leaves."""
    behind = f"{path}.behind"
    daemon = subprocess.Popen([str(C), f"--socket-path={behind}", "-o", f"source={share}"])
    try:
        _wait(daemon, behind)
        with FrontEnd(behind, num=1024) as frontend, open(output, "wb") as file:
            frontend.negotiate()
            frontend.start()
            relay = Relay(frontend, file)
            handler = ffi.callback("virtq_handler", relay)
            device = EchoDevice(2, handler)
            device.serve_at(path)
    finally:
        daemon.terminate()
        daemon.wait(PATIENCE)


def _wait(daemon: subprocess.Popen[bytes], path: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not Path(path).exists():
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{C} does not listen")
        time.sleep(0.01)


class Relay:
    """A virtq_handler for both rings."""

    def __init__(self, frontend: FrontEnd, file: BinaryIO) -> None:
        self.frontend, self.file = frontend, file
        self.lock = threading.Lock()

    def __call__(self, opaque: Any, chain: Any) -> int:
        chain_in = chain.__getattribute__("in")
        request = b"".join(ffi.buffer(chain_in[i].iov_base, chain_in[i].iov_len)[:] for i in range(chain.in_count))
        room = int(chain.out_len)
        with self.lock:
            reply = self.frontend.request(1 if room else 0, request, room)
            if reply and unpack("fuse_in_header", request).opcode == fuse.FUSE_INIT:
                reply = _agreed(reply)
            self.file.write(LENGTHS.pack(len(request), len(reply), room) + request + reply)
        at = 0
        for i in range(chain.out_count):
            part = reply[at : at + chain.out[i].iov_len]
            ffi.memmove(chain.out[i].iov_base, part, len(part))
            at += len(part)
        return len(reply)


def _agreed(reply: bytes) -> bytes:
    """The reply to INIT, with less agreed to."""
    size = fuse_ffi.sizeof("struct fuse_init_out")
    init = unpack("fuse_init_out", reply[REPLY_HEADER:].ljust(size, b"\0"))
    fields = {name: getattr(init, name) for name in (
        "major", "minor", "max_readahead", "max_background", "congestion_threshold", "max_write", "time_gran",
        "max_pages",
    )}  # fmt: skip
    body = pack("fuse_init_out", **fields, flags=init.flags & AGREED)
    return reply[:REPLY_HEADER] + body[: len(reply) - REPLY_HEADER]

"""A device whose rings run: each request is answered with its bytes in upper case, or by another handler. Its workers
are threads here, forked from nothing, but they come and go as real ones do."""

import os
import select
import socket
import threading
from typing import Any

from tests.frontend import FEATURES
from tests.vhost.examples import ALL_FEATURES
from vhost._virtq import ffi, lib
from vhost.backend import Backend, Refused
from vhost.connection import Disconnected
from vhost.inflight import inflight_arena
from vhost.memory import table_arena
from vhost.message import Feature, MemoryRegion
from vhost.protocol import RemoteProtocolError
from vhost.vring import state_arena


def shout(queue: Any, chain: Any) -> int:
    """The virtq_handler: one buffer in, one out."""
    chain_in, chain_out = chain.__getattribute__("in"), chain.out
    data = b"".join(ffi.buffer(chain_in[i].iov_base, chain_in[i].iov_len)[:] for i in range(chain.in_count)).upper()
    written = 0
    for i in range(chain.out_count):
        part = data[written : written + chain_out[i].iov_len]
        ffi.memmove(chain_out[i].iov_base, part, len(part))
        written += len(part)
    return written


class EchoDevice:
    """Serves one front-end after the other, from a thread; `sentences` is what their connections ended with.

    `handler`: a virtq_handler, and what it is handed; the caller keeps both.
    """

    features = int(FEATURES | Feature.LOG_ALL)
    protocol_features = ALL_FEATURES
    #: How long a dry ring is watched at most.
    poll_ns = 0

    def __init__(self, queues: int = 3, handler: Any = None, opaque: Any = ffi.NULL) -> None:
        self.queues = queues
        self.shared_memory: dict[int, int] = {}
        self.workers = 0
        self.sentences: list[str] = []
        self._arenas = table_arena(), state_arena(queues), inflight_arena(queues)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._running: list[tuple[Any, Any, threading.Thread]] = []
        self._memory: Any = ffi.NULL
        self._handler = handler or ffi.callback("virtq_handler", shout)
        self._opaque = opaque
        self._control: threading.Thread | None = None

    def connect(self) -> socket.socket:
        """A connection to this device, for a FrontEnd."""
        self.join()
        ours, theirs = socket.socketpair()
        self._control = threading.Thread(target=self.serve, args=(ours,))
        self._control.start()
        return theirs

    def join(self) -> None:
        """Returns when the front-end is gone and its connection closed."""
        if self._control:
            self._control.join()

    def serve_at(self, path: str) -> None:
        """Serves the first front-end that connects to a socket there, and closes."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            connection, _ = listening.accept()
        self.serve(connection)
        self.close()

    def close(self) -> None:
        self.join()
        os.close(self._stop)

    def serve(self, sock: socket.socket) -> None:
        """Serves the front-end at the other end of `sock` until it leaves."""
        backend = Backend(sock, self, *self._arenas)
        try:
            while True:
                select.select([backend], [], [])
                backend.handle()
                if not self._running and backend.runnable():
                    self._start(backend)
        except (Disconnected, RemoteProtocolError) as end:
            self.sentences.append(str(end))
        backend.close()

    # vhost.backend.Device

    def read_config(self, offset: int, size: int) -> bytes:
        raise Refused("there is no configuration space")

    def write_config(self, offset: int, data: bytes) -> None:
        raise Refused("there is no configuration space")

    def is_mapping(self, region: MemoryRegion, fd: int) -> bool:
        return False

    def quiesce(self) -> None:
        if not self._running:
            return
        os.eventfd_write(self._stop, 1)
        for queue, _, thread in self._running:
            thread.join()
            assert lib.virtq_pending(queue) == 0
            lib.virtq_park(queue)
            lib.virtq_free(queue)
        self._running.clear()
        lib.memory_free(self._memory)
        os.eventfd_read(self._stop)

    def reset(self) -> None:
        assert not self._running

    def transfer(self, load: bool, fd: int) -> None:
        raise Refused("there is no state")

    def transferred(self) -> bool:
        return False

    def _start(self, backend: Backend) -> None:
        self.workers += 1
        self._memory = backend.memory_view()
        for vring in backend.runnable():
            error = ffi.new("int *")
            inflight = backend.inflight.map(vring.index)
            config = vring.config(self._memory, inflight, backend.features, self._stop)
            config.threads, config.poll_ns = 1, self.poll_ns
            queue = lib.virtq_new(config, error)
            assert queue, os.strerror(-error[0])
            thread = threading.Thread(target=lib.virtq_run, args=(queue, self._handler, self._opaque))
            self._running.append((queue, (config, inflight), thread))
            thread.start()

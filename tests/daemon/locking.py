"""Guests that lock the file "hello", and requests that wait for a lock."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.daemon.daemon import Daemon, guest
from tests.frontend import FrontEnd
from tests.fuseclient import ROOT, FuseClient
from vfsd._fuse import lib

ONE, TWO, THREE = 0xF00D_0000_0000_0001, 0xF00D_0000_0000_0002, 0xF00D_0000_0000_0003
ALL_FLAGS = (1 << 64) - 1
END = lib.LOCK_END


class Guest(NamedTuple):
    """A guest that has the file "hello" open."""

    frontend: FrontEnd
    client: FuseClient
    nodeid: int
    fh: int

    def lock(self, owner: int, kind: int, start: int = 0, end: int = END, expect: int = 0, **how: bool) -> None:
        self.client.setlk(self.nodeid, self.fh, owner, kind, start, end, expect=expect, **how)

    def flush(self, owner: int) -> None:
        self.client.flush(self.nodeid, self.fh, owner)

    def open(self) -> "Guest":
        """The same with another handle."""
        return self._replace(fh=self.client.open(self.nodeid, os.O_RDWR).fh)

    def ask(self, owner: int, kind: int, start: int = 0, end: int = END, queue: int = 1, **how: bool) -> "Asked":
        """A SETLKW that is not waited for."""
        requests: list[bytes] = []
        aside = FuseClient(lambda request, room: requests.append(request) or struct.pack("=IiQ", 16, 0, 2))  # type: ignore[func-returns-value]
        aside.setlk(self.nodeid, self.fh, owner, kind, start, end, wait=True, **how)
        ring = self.frontend.queue(queue)
        head = ring.add(requests, [16])
        ring.kick()
        return Asked(self.frontend, queue, head)


class Asked(NamedTuple):
    frontend: FrontEnd
    queue: int
    head: int

    def answer(self) -> int:
        """The errno, waited for."""
        reply = self.frontend.queue(self.queue).wait(self.head).data
        return -int(struct.unpack_from("=i", reply, 4)[0])

    @property
    def answered(self) -> bool:
        queue = self.frontend.queue(self.queue)
        queue._collect()
        return self.head in queue.done


@contextmanager
def on(daemon: Daemon, flags: int = ALL_FLAGS, **options: Any) -> Iterator[Guest]:
    with guest(daemon, init=False, **options) as (frontend, client):
        client.init(minor=45, flags=flags)
        nodeid = client.lookup(ROOT, b"hello").nodeid
        yield Guest(frontend, client, nodeid, client.open(nodeid, os.O_RDWR).fh)

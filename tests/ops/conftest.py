"""Fixtures of the ops' tests."""

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuseclient import FuseClient
from tests.ops.mount import Mount, share
from tests.ops.windowed import Worker
from tests.ring.ring import Ring
from vfsd._fuse import ffi, lib
from vfsd.door import Pool, close_door, open_door
from vfsd.settings import Settings
from vhost._virtq import lib as virtq


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A mount of an empty directory, everything on; no op may fail in a way nobody foresaw."""
    with share(tmp_path, Settings(xattr=True, privileged=os.geteuid() == 0)) as mount:
        yield mount


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.message for record in caplog.get_records("call") if record.levelno >= logging.ERROR] == []


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.window.clear()
    assert worker.files() == []
    worker.padded.close()


@pytest.fixture
def ringed(tmp_path: Path) -> Iterator[tuple[Mount, Ring, FuseClient]]:
    """A share served on a real ring with a pool, and a client on that ring."""
    ring = Ring(num=1024, regions=((0, 8 << 20),))
    assert ring.open(threads=1) == 0
    with share(tmp_path, Settings(xattr=True, allow_direct_io=True)) as mount:
        close_door(mount.core)
        pool = Pool(threads=2)
        pool.start()
        open_door(mount.core, pool)
        serve = ffi.addressof(lib, "fuse_serve")
        ring.threads = [threading.Thread(target=lambda: virtq.virtq_run(ring.queue, serve, mount.core.pointer))]
        ring.threads[0].start()
        client = FuseClient(lambda request, room: ring.driver.request([request], [room] if room else []))
        client.setxattr_ext = True
        yield mount, ring, client
        ring.stop()
        # A request is pending for a moment after its reply is there (virtq_complete): until the pool is done with it.
        close_door(mount.core)
        assert virtq.virtq_pending(ring.queue) == 0
        open_door(mount.core)
    ring.close()

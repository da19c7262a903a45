"""Requests that wait for a disk, aside from their ring, while their worker dies."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

from tests.daemon.daemon import Daemon, guest, kinds, settled_files
from tests.daemon.test_poison import send
from tests.disk import PAGE, cool
from tests.fuseclient import ROOT, FuseClient

Start = Callable[..., Daemon]
PAGES = 512


def reading(nodeid: int, fh: int, page: int) -> Callable[[FuseClient], object]:
    return lambda client: client.read(nodeid, fh, PAGE, page * PAGE)


def writing(nodeid: int, fh: int, page: int, data: bytes) -> Callable[[FuseClient], object]:
    return lambda client: client.write(nodeid, fh, data, page * PAGE, flags=os.O_SYNC)


def test_what_waits_for_the_disk_outlives_its_worker(start: Start, share: Path) -> None:
    content = random.Random(1).randbytes(PAGES * PAGE)
    (share / "cold").write_bytes(content)
    daemon = start("--sandbox=none")
    with guest(daemon) as (frontend, client):
        cold = client.lookup(ROOT, b"cold").nodeid
        fh = client.open(cold, os.O_RDONLY).fh
        written, opened = client.create(ROOT, b"written", flags=os.O_RDWR | os.O_SYNC)
        before = kinds(settled_files(daemon))
        for number in range(8):
            cool(share / "cold")
            pages = random.Random(number).sample(range(PAGES), 24)
            data = os.urandom(PAGE)
            reads = [send(frontend, reading(cold, fh, page)) for page in pages]
            writes = [send(frontend, writing(written.nodeid, opened.fh, page, data)) for page in range(8)]
            daemon.kill_worker()
            for read, page in zip(reads, pages, strict=True):
                assert read.answer() == (0, content[page * PAGE : (page + 1) * PAGE])
            assert [write.answer()[0] for write in writes] == [0] * 8
            assert (share / "written").read_bytes() == data * 8
        daemon.kill_worker()
        client.getattr(ROOT)
        assert sorted(kinds(settled_files(daemon))) == sorted(before)
        daemon.process.send_signal(signal.SIGUSR1)
        daemon.logged("of them had to wait for a disk")

"""Pauses and resets of a guest that is busy with its window."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import KERNEL
from tests.guest.dax.conftest import SCALE
from tests.guest.dax.test_dax_pressure import prepare, sums
from tests.guest.dax.windowed import MODEL, Windowed
from tests.guest.waiting import until
from vfsd.guest import Guest, GuestError, Settings, Share

#: More than any load takes: it ends when it is told, or with its guest.
ENDLESS = 10**9


@pytest.fixture
def guest(settings: Settings, tmp_path: Path) -> Iterator[Guest]:
    """A guest of one test alone, which it may lose. Its window, two thirds of what it works with, is fought for."""
    share = Share(tmp_path, dax_window="32M", daemon_options=["--dax-policy=always"])
    with Guest(share, settings=settings, kernel_name=KERNEL) as booted:
        yield booted


@pytest.fixture
def share(guest: Guest) -> Windowed:
    return Windowed(guest, 0)


def test_pauses_under_load(share: Windowed) -> None:
    """The window lives through 20 of them, and no byte is lost. QEMU would crash over what we ask while it stops."""
    prepare(share)
    load = share.start(MODEL, ENDLESS, prelude="")
    share.wait_for_load()
    dice = random.Random(1)
    for _ in range(20 * SCALE):
        time.sleep(dice.uniform(0.05, 0.4))
        share.guest.qmp("stop")
        time.sleep(dice.uniform(0, 0.1))
        share.guest.qmp("cont")
    (share.host / "end").touch()
    assert share.finish(load).split() == sums(share)
    assert share.transfers() == 0


def test_resets_under_load(share: Windowed) -> None:
    """The guest boots anew, mounts, and finds what is on the host; 20 times."""
    for _ in range(20 * SCALE):
        prepare(share)
        share.start(MODEL, ENDLESS, prelude="")
        share.wait_for_load()
        time.sleep(0.5)
        share.guest.reset()
        until(lambda: share.statistics().mapped == 0)
        prepare(share)
        assert share.run(MODEL, 300, prelude="").split() == sums(share)


def test_a_reset_after_a_pause(share: Windowed) -> None:
    """At the start after a pause QEMU insists on slots for what is mapped by then. When a reset drops such a mapping,
    it looks for its memory in vain (hw/virtio/vhost-user.c, send_remove_regions), and crashes: a fault of its own that
    we can't keep from it. An unmount before the reset can."""
    share.fill("file", 8 << 20)
    share.shell(f"cat {share.path}/file >/dev/null")
    for unmount in (True, False):
        share.guest.qmp("stop")
        share.guest.qmp("cont")
        if unmount:
            share.shell(f"umount {share.path}")
        try:
            share.guest.reset()
        except GuestError:
            assert not unmount
            pytest.xfail("QEMU 11.1 crashes over a reset with a mapping that it had before a pause")
        share.shell(f"cat {share.path}/file >/dev/null")


def test_a_pause_with_many_mappings(settings: Settings, tmp_path: Path) -> None:
    """Without CONFIGURE_MEM_SLOTS QEMU starts no device beside more than 8 regions (hw/virtio/vhost-user.c,
    vhost_user_fill_set_mem_table_msg: ENOBUFS)."""
    for number in range(8):
        (tmp_path / f"file{number}").write_bytes(bytes(4 << 20))
    share = Share(tmp_path, dax_window="64M", daemon_options=["--dax-policy=always"])
    with Guest(share, settings=settings, kernel_name=KERNEL, host_root=False) as guest:
        guest.run("cat file* >/dev/null", 60).check()
        assert Windowed(guest, 0).statistics().mappings == 16
        guest.qmp("stop")
        guest.qmp("cont")
        assert guest.run("cat file* | wc -c", 20).text == str(32 << 20)


def test_data_out_of_many_mappings(settings: Settings, tmp_path: Path) -> None:
    """What extends a file goes straight from where it lies, which may be in the window."""
    (tmp_path / "source").write_bytes(os.urandom(32 << 20))
    share = Share(tmp_path, dax_window="64M", daemon_options=["--dax-policy=always"])
    program = """
out = os.open("grown", os.O_WRONLY | os.O_CREAT, 0o644)
pieces = [slice(offset, offset + 8192) for offset in range(0, size, 2 << 20)]
first = [mapped[piece] for piece in pieces]
for piece in pieces:
    assert os.write(out, memoryview(mapped)[piece]) == 8192
open("done", "x").close()
"""
    with Guest(share, settings=settings, kernel_name=KERNEL) as guest:
        windowed = Windowed(guest, 0)
        windowed.run(program, "source")
    source = (tmp_path / "source").read_bytes()
    pieces = [source[offset : offset + 8192] for offset in range(0, len(source), 2 << 20)]
    assert (tmp_path / "grown").read_bytes() == b"".join(pieces)

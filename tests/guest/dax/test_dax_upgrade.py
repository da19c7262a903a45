"""Upgrades of the daemon while programs of a real guest work on mapped files."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.upgrading import build, dies_when_ready, upgrade
from tests.guest.conftest import KERNEL
from tests.guest.dax.conftest import SCALE
from tests.guest.dax.test_dax_pressure import prepare, sums
from tests.guest.dax.test_dax_stops import ENDLESS
from tests.guest.dax.windowed import MODEL, Windowed
from tests.guest.waiting import until
from vfsd.guest import Guest, Settings, Share


@pytest.fixture(params=["none", "namespace"])
def guest(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Iterator[Guest]:
    """A guest of one test alone. Its window, two thirds of what it works with, is fought for."""
    options = ["--dax-policy=always", f"--sandbox={request.param}"]
    (tmp_path / "share").mkdir()
    share = Share(tmp_path / "share", dax_window="32M", daemon_options=options)
    with Guest(share, settings=settings, kernel_name=KERNEL) as booted:
        yield booted


@pytest.fixture
def share(guest: Guest) -> Windowed:
    return Windowed(guest, 0)


def test_upgrades_under_load(share: Windowed, tmp_path: Path) -> None:
    """Ranges come and go meanwhile. The third attempt fails, and while the sixth goes on the guest is paused. After
    them the share can be mounted anew, and the guest be reset."""
    prepare(share)
    broken = build(tmp_path, "8.3", dies_when_ready)
    load = share.start(MODEL, ENDLESS, prelude="")
    share.wait_for_load()
    before = share.statistics()
    for number in range(6 * SCALE):
        fails, paused = number % 6 == 2, number % 6 == 5
        time.sleep(0.5)
        if paused:
            share.guest.qmp("stop")
        done = upgrade(share.daemon.pid, *([f"--program={broken}"] if fails else []))
        assert done.returncode == fails, done.stderr
        if paused:
            share.guest.qmp("cont")
    after = share.statistics()
    assert after.setups > before.setups and after.removals >= before.removals and after.refusals == before.refusals
    (share.host / "end").touch()
    assert share.finish(load).split() == sums(share)
    assert share.transfers() == 0
    share.remount()
    (share.host / "end").unlink()
    assert share.run(MODEL, 300, prelude="").split() == sums(share)
    share.start(MODEL, ENDLESS, prelude="")
    share.wait_for_load()
    assert upgrade(share.daemon.pid).returncode == 0
    time.sleep(0.5)
    share.guest.reset()
    until(lambda: share.statistics().mapped == 0)
    prepare(share)
    assert share.run(MODEL, 300, prelude="").split() == sums(share)

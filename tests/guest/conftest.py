"""One booted guest with two shares for all tests of this directory. The environment chooses QEMU, kernel and daemon:
VFSD_TEST_QEMU, VFSD_TEST_KERNEL (scripts/test-newer sets them) and VFSD_TEST_DAEMON."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfsd.guest import Guest, Settings, Share

DAEMON = os.environ.get("VFSD_TEST_DAEMON")
KERNEL = os.environ.get("VFSD_TEST_KERNEL")
QEMU = os.environ.get("VFSD_TEST_QEMU", Settings.qemu)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Every test here that takes a guest boots one or waits for one; the others are as fast as any.
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != "test_guest_parts.py":
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest whose shares are two fresh directories: on /mnt/share, and read-write on /srv/second."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    shares = [Share(first, daemon=DAEMON), Share(second, "second", "/srv/second", daemon=DAEMON)]
    with Guest(*shares, settings=Settings(qemu=QEMU), kernel_name=KERNEL) as booted:
        yield booted


@pytest.fixture
def shared(guest: Guest) -> Path:
    """The first share's directory on the host."""
    return Path(guest.shares[0].directory)

"""One guest for all suites, and a directory of the share for each test.

The environment chooses what is tested: VFSD_TEST_QEMU and VFSD_TEST_KERNEL (scripts/test-newer sets them),
VFSD_TEST_DAEMON (another virtiofs daemon, to tell our faults from the guest kernel's), VFSD_TEST_SCALE, which
multiplies the sizes, and VFSD_TEST_LONG (scripts/suites sets it), which adds the tests marked `long`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.killpriv.compare import extra_modules
from vfsd.guest import Guest, Share
from vfsd.guest.channel import Result
from vfsd.guest.machine import Settings

#: In words that virtiofsd understands too; the rules are --xattrmap=overlay.
OPTIONS = ["--posix-acl=auto", "--xattrmap=/map/trusted.overlay./user.virtiofs./"]
SCALE = int(os.environ.get("VFSD_TEST_SCALE", "1"))
LONG = bool(os.environ.get("VFSD_TEST_LONG"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(900 * SCALE * (3 if LONG else 1)))
    if not LONG:
        deselected = [item for item in items if item.get_closest_marker("long")]
        items[:] = [item for item in items if item not in deselected]
        config.hook.pytest_deselected(items=deselected)


@pytest.fixture(scope="session")
def scale() -> int:
    return SCALE


@pytest.fixture(scope="package")
def suite_guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A booted guest whose only share is an empty directory."""
    directory = tmp_path_factory.mktemp("share")
    share = Share(directory, daemon=os.environ.get("VFSD_TEST_DAEMON"), daemon_options=OPTIONS)
    settings = Settings(qemu=os.environ.get("VFSD_TEST_QEMU", Settings.qemu), memory=2560 if LONG else 1536)
    kernel = os.environ.get("VFSD_TEST_KERNEL")
    with Guest(share, settings=settings, kernel_name=kernel, extra_modules=extra_modules(kernel)) as guest:
        yield guest


@pytest.fixture(scope="package")
def control(suite_guest: Guest) -> str:
    """A directory of the guest's own ext4, in an image on its tmpfs, for tests marked `long`: the native control."""
    script = "truncate -s 1G /dev/shm/control.img && mkfs.ext4 -q -F /dev/shm/control.img && mkdir -p /mnt/control"
    script += " && mount -o loop /dev/shm/control.img /mnt/control"
    suite_guest.run(script, 120, cwd="/").check()
    return "/mnt/control"


@dataclass(frozen=True)
class Place:
    """A directory of the share, as both sides see it."""

    guest: Guest
    #: On the host.
    host: Path
    #: In the guest.
    path: str

    def run(self, command: str, timeout: float = 600) -> Result:
        """Runs a shell script in the guest, in this directory. Fails the test if it fails, with what it printed."""
        result = self.guest.run("exec 2>&1; " + command, timeout, cwd=self.path)
        assert result.status == 0, f"{command}: status {result.status}\n{result.text[-8000:]}"
        return result


@pytest.fixture
def place(suite_guest: Guest, request: pytest.FixtureRequest) -> Place:
    name = request.node.name.replace("[", "-").replace("]", "").replace("/", "-")
    host = Path(suite_guest.shares[0].directory) / name
    host.mkdir()
    return Place(suite_guest, host, f"{suite_guest.mount_point}/{name}")

"""A guest that moves between QEMUs. It takes QEMU 8.2: what is missing skips the tests (scripts/test-newer has it)."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import DAEMON, KERNEL, QEMU
from vfsd.guest import Guest, Settings, Share

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="session")
def settings() -> Settings:
    settings = Settings(qemu=QEMU, memory=256)
    answer = subprocess.run([*settings.program(), "--version"], capture_output=True, text=True, check=True).stdout
    version = tuple(int(part) for part in re.findall(r"\d+", answer)[:2])
    if version < (8, 2):
        pytest.skip(f"QEMU {'.'.join(map(str, version))} can't move a guest with a share: scripts/test-newer has one")
    return settings


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """traveller.c, for a guest without libraries."""
    path = tmp_path_factory.mktemp("program") / "traveller"
    subprocess.run(["gcc", "-O1", "-static", "-Wall", "-o", path, HERE / "traveller.c"], check=True)
    return path.read_bytes()


@pytest.fixture
def share(tmp_path: Path, program: bytes) -> Path:
    path = tmp_path / "share"
    (path / "work").mkdir(parents=True)
    (path / "traveller").write_bytes(program)
    (path / "traveller").chmod(0o755)
    return path


@pytest.fixture
def guest(settings: Settings, share: Path) -> Iterator[Guest]:
    """Its root holds busybox only: the 9p device that shows the host's root can't be moved."""
    with Guest(Share(share, daemon=DAEMON), settings=settings, kernel_name=KERNEL, host_root=False) as booted:
        yield booted

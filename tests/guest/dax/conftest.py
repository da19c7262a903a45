"""Guests whose shares have DAX windows. They take QEMU 11.1, real root and Linux 6.9 here: what is missing skips them.

VFSD_TEST_QEMU and VFSD_TEST_KERNEL choose QEMU and kernel (scripts/test-newer sets them), VFSD_TEST_SCALE multiplies
how much is done.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.conftest import DAEMON, KERNEL, QEMU
from tests.guest.dax.windowed import Windowed
from vfsd.guest import Guest, GuestError, Settings, Share

SCALE = int(os.environ.get("VFSD_TEST_SCALE", "1"))
#: What Linux prints when something is wrong with it.
TROUBLE = re.compile(
    r"WARNING: |BUG: |kernel BUG|Oops|general protection|Call Trace|blocked for more than|soft lockup|detected stall"
)
#: A complaint from its first line to its last.
COMPLAINT = re.compile(r"^[^\n]*cut here.*?---\[ end trace[^\n]*$", re.MULTILINE | re.DOTALL)
#: What Linux 7.2 says once, and does no harm: when it learns that size or mtime have changed, it lets go of a file's
#: pages before it takes them out of page tables (mm/truncate.c, invalidate_inode_pages2_range), and finds them in use.
KNOWN = ("dax_disassociate_entry", "invalidate_inode_pages2_range", "fuse_change_attributes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.guest)
            item.add_marker(pytest.mark.timeout(600 * SCALE))


def missing() -> str:
    """What a window takes and is not here, or an empty string."""
    if DAEMON:
        return "other daemons have no DAX window"
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    if os.geteuid() or release < (6, 9):
        return "a DAX window takes root and Linux 6.9 on the host"
    try:
        Settings(qemu=QEMU).check_window()
    except GuestError as error:
        return f"{error}: scripts/test-newer has one"
    return ""


@pytest.fixture(scope="session")
def settings() -> Settings:
    if reason := missing():
        pytest.skip(reason)
    return Settings(qemu=QEMU)


@pytest.fixture(scope="package")
def guest(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Three shares with a window, whose names are their policies, and one without, `plain`. "always" has the smallest
    window that does the guest any good."""
    windows = {"auto": "64M", "always": "16M", "never": "16M", "plain": ""}
    shares = []
    for name, size in windows.items():
        policy = [f"--dax-policy={name}"] if size else []
        shares.append(Share(tmp_path_factory.mktemp(name), name, dax_window=size, daemon_options=policy))
    with Guest(*shares, settings=settings, kernel_name=KERNEL, slots=4) as booted:
        yield booted


@pytest.fixture
def auto(guest: Guest) -> Windowed:
    return Windowed(guest, 0)


@pytest.fixture
def always(guest: Guest) -> Windowed:
    return Windowed(guest, 1)


@pytest.fixture
def never(guest: Guest) -> Windowed:
    return Windowed(guest, 2)


@pytest.fixture
def plain(guest: Guest) -> Windowed:
    return Windowed(guest, 3)


def unknown(complaint: re.Match[str]) -> str:
    """The complaint, if it is none of Linux's known ones."""
    return "" if all(word in complaint[0] for word in KNOWN) else complaint[0]


@pytest.fixture(autouse=True)
def no_trouble(request: pytest.FixtureRequest) -> Iterator[None]:
    """The guest's kernel complains of nothing meanwhile."""
    guest: Guest = request.getfixturevalue("guest")
    said = len(guest.console)
    yield
    if guest.machine is not None:
        text = COMPLAINT.sub(unknown, guest.console[said:])
        assert not TROUBLE.search(text), text

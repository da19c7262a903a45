"""The conformance list at level 1, and natively, which is the control: what fails there is the list's fault."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import CASES, Case, run
from tests.conformance.fuse import FuseExecutor
from tests.conformance.syscalls import Syscalls, has_acls, has_flags
from tests.ops.mount import Mount

HERE = frozenset(
    {"xattr", "tmpfile"}
    | ({"flags"} if has_flags(tempfile.gettempdir()) else set())
    | ({"acl"} if has_acls(tempfile.gettempdir()) else set())
    | ({"root", "trusted"} if os.geteuid() == 0 else set())
)


def cases(level: str) -> list[Case]:
    return [case for case in CASES if case.needs <= HERE | {level}]


@pytest.mark.parametrize("case", cases("fuse"), ids=lambda case: case.name)
def test_over_fuse(mount: Mount, case: Case) -> None:
    assert run(FuseExecutor(mount.client), case, 1) == ""
    assert (mount.core.inodes, mount.core.handles) == (1, 0), "not everything was forgotten"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    before, umask = os.getcwd(), os.umask(0)
    os.chmod(tmp_path, 0o755)
    yield tmp_path
    os.chdir(before)
    os.umask(umask)


@pytest.mark.parametrize("case", cases("kernel"), ids=lambda case: case.name)
def test_as_system_calls(place: Path, case: Case) -> None:
    # Reached by its descriptor: another user may have no way through the directories above.
    os.chdir(place)
    assert run(Syscalls(".", os.geteuid() == 0), case, 1) == ""

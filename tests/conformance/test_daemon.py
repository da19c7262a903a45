"""The list at level 2: over a ring, against a daemon in its sandbox."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import CASES, Case, run
from tests.conformance.fuse import FuseExecutor
from tests.conformance.syscalls import has_flags
from tests.daemon.daemon import Daemon, guest, open_files, settled_files, until
from tests.fuseclient import FuseClient

ALL_FLAGS = (1 << 64) - 1
HAS = frozenset(
    {"xattr", "tmpfile", "fuse"}
    | ({"flags"} if has_flags(tempfile.gettempdir()) else set())
    | ({"root"} if os.geteuid() == 0 else set())
)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, FuseClient]]:
    directory = tmp_path_factory.mktemp("daemon")
    share: Path = directory / "share"
    share.mkdir(mode=0o755)
    with (
        Daemon(share, directory / "v.sock", "--xattr", "--log-level=debug") as daemon,
        guest(daemon, init=False) as (_, client),
    ):
        client.init(minor=45, flags=ALL_FLAGS)
        yield daemon, client


@pytest.mark.parametrize("case", [case for case in CASES if case.needs <= HAS], ids=lambda case: case.name)
def test_over_a_ring(mounted: tuple[Daemon, FuseClient], case: Case) -> None:
    daemon, client = mounted
    before = len(settled_files(daemon))
    assert run(FuseExecutor(client), case, CASES.index(case)) == ""
    # FORGET and RELEASE have closed what the case opened.
    until(lambda: len(open_files(daemon.control)) == before)

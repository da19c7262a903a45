"""Options that can't do what they say: the daemon starts, and its log tells."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, guest
from tests.ops.mount import ALL_FLAGS
from tests.sandbox.user import as_user
from vfsd._fuse import lib

#: Options, and what the log says of them on a share that has ACLs, on a host without SELinux.
TOLD = [
    (["--writeback", "--readonly"], "--writeback has no effect with --readonly"),
    (["--writeback", "--cache=never"], "--writeback has no effect with --cache=never"),
    (["--writeback", "--cache=metadata"], "--writeback has no effect with --cache=metadata"),
    (["--security-label", "--xattrmap=:map::nonsense.:"], "can't be given nonsense.security.selinux"),
]
SILENT = [
    ["--writeback"],
    ["--writeback", "--cache=always"],
    ["--readonly", "--cache=never"],
    ["--posix-acl"],
    ["--security-label", "--xattrmap=selinux"],
    ["--security-label", "--xattrmap=:map::nonsense.:", "--readonly"],
    ["--security-label=auto", "--xattrmap=:map::nonsense.:"],
    ["--modcaps=+sys_admin:-sys_admin:-mknod"],
]


def started(start: Callable[..., Daemon], options: list[str], prefix: list[str] | None = None) -> str:
    """The log of a daemon that listens."""
    daemon = start("--sandbox=none", *options, prefix=prefix or [])
    daemon.logged("Waiting for")
    return daemon.log


@pytest.mark.parametrize(("options", "sentence"), TOLD, ids=[" ".join(row[0]) for row in TOLD])
def test_told(start: Callable[..., Daemon], options: list[str], sentence: str) -> None:
    assert [sentence in line for line in started(start, options).splitlines() if "WARN" in line] == [True]


@pytest.mark.parametrize("options", SILENT, ids=" ".join)
def test_silent(start: Callable[..., Daemon], options: list[str]) -> None:
    assert "WARN" not in started(start, options)


def test_a_capability_that_the_user_does_not_have(start: Callable[..., Daemon], tmp_path: Path) -> None:
    log = started(start, ["--modcaps=+sys_admin:+mknod:-chown"], as_user(tmp_path))
    assert "--modcaps: vfsd was not given sys_admin, mknod, and can't keep it" in log


@pytest.mark.parametrize(
    ("options", "agreed"), [([], True), (["--cache=always"], True), *((row[0][1:], False) for row in TOLD[:3])]
)
def test_writes_are_gathered_where_there_are_any(
    start: Callable[..., Daemon], options: list[str], agreed: bool
) -> None:
    """A guest that has the flag believes in its own size of a file, also where it never writes."""
    with guest(start("--sandbox=none", "--writeback", *options), init=False) as (_, client):
        out = client.init(minor=45, flags=ALL_FLAGS)
        assert bool(out.flags & lib.FUSE_WRITEBACK_CACHE) is agreed

"""More inodes than descriptors, through the whole daemon; and what --inode-file-handles promises at the start."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon, guest, open_files
from tests.fuseclient import ROOT
from tests.sandbox.user import AS_ROOT, as_user

FILES = 2000
LIMIT = 300


def fill(share: Path) -> None:
    for number in range(FILES):
        (share / str(number)).touch()


def visit(daemon: Daemon, share: Path) -> None:
    """A guest knows every file, over the deaths of workers."""
    inodes = {entry.name: entry.inode() for entry in os.scandir(share)}
    with guest(daemon) as (_, client):
        known = {name: client.lookup(ROOT, name.encode()).nodeid for name in inodes}
        assert len(set(known.values())) == len(known)
        for _ in range(2):
            daemon.kill_worker()
            for name, nodeid in known.items():
                assert client.getattr(nodeid).attr.ino == inodes[name]
            assert len(open_files(daemon.control)) < LIMIT
        assert {entry.name for entry in client.list(plus=True)} >= {name.encode() for name in inodes}
        for name, nodeid in known.items():
            assert client.lookup(ROOT, name.encode()).nodeid == nodeid
    assert "ERROR" not in daemon.log


@pytest.mark.parametrize("mode", ["never", "prefer"])
def test_more_inodes_than_descriptors(start: Callable[..., Daemon], share: Path, mode: str) -> None:
    fill(share)
    visit(start("--sandbox=none", f"--rlimit-nofile={LIMIT}", f"--inode-file-handles={mode}"), share)


@pytest.mark.parametrize("sandbox", ["none", "namespace"])
def test_an_ordinary_user_has_more_inodes_than_descriptors(
    start: Callable[..., Daemon], share: Path, tmp_path: Path, sandbox: str
) -> None:
    fill(share)
    prefix = as_user(tmp_path)
    visit(start(f"--sandbox={sandbox}", f"--rlimit-nofile={LIMIT}", prefix=prefix), share)


@pytest.mark.skipif(not AS_ROOT, reason="a file handle is opened by root only")
@pytest.mark.parametrize("sandbox", ["none", "namespace", "chroot"])
def test_mandatory(start: Callable[..., Daemon], share: Path, sandbox: str) -> None:
    fill(share)
    visit(start(f"--sandbox={sandbox}", f"--rlimit-nofile={LIMIT}", "--inode-file-handles=mandatory"), share)


def test_mandatory_without_privilege(start: Callable[..., Daemon], share: Path, tmp_path: Path) -> None:
    daemon = start("--sandbox=none", "--inode-file-handles=mandatory", prefix=as_user(tmp_path))
    assert daemon.wait() == 1
    assert "--inode-file-handles=mandatory: opening one takes CAP_DAC_READ_SEARCH" in daemon.log
    assert "--modcaps=-dac_read_search" in daemon.log
    assert "use --inode-file-handles=prefer" in daemon.log


def test_mandatory_where_there_are_none(tmp_path: Path) -> None:
    daemon = Daemon(Path("/proc"), tmp_path / "vfsd.sock", "--sandbox=none", "--inode-file-handles=mandatory")
    with daemon:
        assert daemon.wait() == 1
        assert "the file system of /proc has no file handles that can be opened" in daemon.log


def test_the_help_teaches_it() -> None:
    text = subprocess.run([sys.executable, "-m", "vfsd", "--help"], capture_output=True, text=True, check=True).stdout
    assert "--inode-file-handles MODE" in text

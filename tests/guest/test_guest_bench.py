"""What scripts/bench-guest measures is done, and seen to be done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest.conftest import KERNEL, QEMU
from tests.guestbench.measure import KINDS, directories, measure, once, share
from tests.guestbench.table import table
from tests.guestbench.work import WORKS, Work, prepare
from vfsd.guest import Guest, Settings

ROOT = Path(__file__).resolve().parents[2]


def test_each_work_is_done_in_a_guest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    works = ["read-deep", "untar", "git", "find", "rm"]
    release, figures = measure(["vfsd"], works, 1, tmp_path, Settings(qemu=QEMU), KERNEL)
    assert release
    for name in works:
        assert figures[name]["vfsd"][0].value > 0, name
        assert 0 < figures[name]["vfsd"][0].busy < 1, name
    lines = table(figures).splitlines()
    assert len(lines) == 2 + len(works) and all(line.count("|") == 3 for line in lines)


def test_what_is_not_done_is_no_figure(tmp_path: Path) -> None:
    served = share("vfsd", *directories(1, tmp_path))
    with Guest(served, settings=Settings(qemu=QEMU), kernel_name=KERNEL) as guest:
        # There is no archive in this guest.
        with pytest.raises(RuntimeError, match="untar"):
            once(guest, WORKS["untar"])
        with pytest.raises(subprocess.CalledProcessError):
            once(guest, WORKS["untar"]._replace(script="mkdir untarred; echo 1"))
        assert once(guest, Work("nothing", "echo 2500000")).value == 2.5


def test_all_shares_have_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        prepare(tmp_path / name)
    subprocess.run(["diff", "-rq", tmp_path / "a/tree", tmp_path / "b/tree"], check=True)


def test_its_help_names_all_there_is() -> None:
    words = subprocess.run(
        [sys.executable, ROOT / "scripts/bench-guest", "--help"], capture_output=True, text=True, check=True,
        env={**os.environ, "COLUMNS": "120"},
    ).stdout  # fmt: skip
    assert all(f"  {name}" in words for name in (*WORKS, *KINDS))

"""Where what makes inodes is measured."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bench import measure
from tests.bench.measure import Plan, Results, Setting, measure_all
from tests.bench.share import file_system
from tests.bench.volume import has_journal, is_fair, journalled
from tests.frontend import MIB


def loops() -> bool:
    found = shutil.which("losetup") and shutil.which("mkfs.ext4") and os.geteuid() == 0
    return bool(found) and subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not loops(), reason="no loop devices, no mkfs.ext4, or no privilege")
def test_a_file_system_of_its_own(tmp_path: Path) -> None:
    before = subprocess.check_output(["losetup", "--all"])
    with journalled(tmp_path, 1, 64 * MIB) as place:
        assert file_system(place) == "ext4" and has_journal(place) and is_fair(place)
        (place / "file").write_bytes(bytes(64 * MIB))
        [device] = {line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if str(place) in line}
        subprocess.run(["umount", place], check=True)
        subprocess.run(["tune2fs", "-O", "^has_journal", device], check=True, capture_output=True)
        subprocess.run(["mount", device, place], check=True)
        assert not has_journal(place) and not is_fair(place)
    assert not list(tmp_path.iterdir()) and subprocess.check_output(["losetup", "--all"]) == before


def test_what_can_not_be_made_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"mkfs\.ext4"), journalled(tmp_path, 1, 4096 - 256 * MIB):
        pass
    assert not list(tmp_path.iterdir())


def test_what_makes_inodes_is_measured_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, measured = [], {}

    @contextmanager
    def made(where: Path, shares: int, share_size: int) -> Iterator[Path]:
        asked.append((where, shares, share_size))
        yield where / "other"

    def note(plan: Plan, results: Results, keep: object) -> None:
        measured[plan.where] = plan.workloads

    monkeypatch.setattr(measure, "journalled", made)
    monkeypatch.setattr(measure, "_measure", note)
    plan = Plan(["vfsd", "C"], ["getattr", "mkdir", "link", "recorded-untar"], [Setting(4, "one")], 1, 0.1, tmp_path)
    monkeypatch.setattr(measure, "is_fair", lambda where: False)
    measure_all(plan, Results({}, {}, []))
    assert measured == {tmp_path: ["getattr", "link"], tmp_path / "other": ["mkdir", "recorded-untar"]}
    assert asked == [(tmp_path, 3, 144 * MIB)]
    monkeypatch.setattr(measure, "is_fair", lambda where: True)
    measured.clear()
    measure_all(plan, Results({}, {}, []))
    assert measured == {tmp_path: plan.workloads} and len(asked) == 1

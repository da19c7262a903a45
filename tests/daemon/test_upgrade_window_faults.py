"""Upgrades that fail while a guest has files mapped: the old program goes on with the window as it was."""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.storm import Storm
from tests.daemon.upgrading import build, dies_when_given, dies_when_ready, replace, upgrade
from tests.daemon.windowed import Guest, Model
from tests.daemon.windowed_upgrade import WINDOW, Upgraded, stored, upgraded
from tests.shmem import PAGE


@pytest.fixture(params=["none"])
def windowed(request: pytest.FixtureRequest, share: Path, tmp_path: Path) -> Iterator[Upgraded]:
    with upgraded(share, tmp_path, f"--sandbox={request.param}") as daemon:
        yield daemon


two_modes = pytest.mark.parametrize("windowed", ["none", "namespace"], indirect=True)


def dies_when_it_has_all(tree: Path) -> None:
    replace(
        tree / "vfsd/taker.py",
        '    handover.send(transfer, "ready"',
        '    os._exit(9)\n    handover.send(transfer, "ready"',
    )


def dies_when_prepared(tree: Path) -> None:
    replace(
        tree / "vfsd/taker.py",
        '    handover.send(transfer, "prepared")\n',
        '    handover.send(transfer, "prepared")\n    os._exit(9)\n',
    )


def hangs_when_given(tree: Path) -> None:
    replace(tree / "vfsd/taker.py", "    control.resume(saved", "    time.sleep(60)\n    control.resume(saved")


def refuses_the_window(tree: Path) -> None:
    replace(tree / "vfsd/window.py", 'if number(data, "size") != self.size:', "if True:")


def cannot_be_imported(tree: Path) -> None:
    (tree / "vfsd/window.py").write_text("raise SystemExit(7)\n")


ENDED = "the other process has ended"
BROKEN = {
    cannot_be_imported: [f"{ENDED}; the new program ended with status 7"],
    # It is told of the state before its end is heard.
    dies_when_prepared: [ENDED, "the other process can't be told (Broken pipe)"],
    dies_when_given: [ENDED],
    hangs_when_given: ["the other process does not answer in time"],
    refuses_the_window: [f"its DAX window has {WINDOW} bytes, and this one's {WINDOW}"],
    dies_when_it_has_all: [ENDED],
    dies_when_ready: [ENDED],
}


@two_modes
@pytest.mark.parametrize("change", BROKEN, ids=lambda change: change.__name__)
def test_a_broken_build(
    vm: Guest, windowed: Upgraded, share: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """The old program goes on with the window as it was: when nothing happens meanwhile, and under load."""
    program, model = build(tmp_path, "8.3", change), Model(vm, share, 3)
    storm = Storm(model)
    file = model.add("a", 10 * PAGE + 7)
    storm.run(50)
    assert model.setup(file, 0, 16 * PAGE, 0) == 0
    told = len(vm.fe.handled)
    for number, meanwhile in enumerate((model.check, lambda: storm.run(10)), 1):
        done = upgrade(windowed.process.pid, f"--program={program}", meanwhile=meanwhile)
        assert done.returncode == 1
        reason = done.stderr.removeprefix("vfsd: no upgrade: ").removesuffix("; the old program goes on\n")
        assert reason in BROKEN[change]
        if number == 1:
            assert model.setup(file, 0, 16 * PAGE, 0) == 0
            assert len(vm.fe.handled) == told, "nothing is mapped anew"
        storm.run(50)
        windowed.logged("this program goes on", number)
    windowed.upgrade(meanwhile=model.check)
    storm.run(50)
    for each in model.files:
        model.check_file(each)


def test_the_window_of_a_new_program_has_another_size(
    vm: Guest, windowed: Upgraded, model: Model, tmp_path: Path
) -> None:
    """Its command adds an option, perhaps."""
    assert model.setup(model.files[0], 0, 4 * PAGE, 0) == 0
    program = tmp_path / "larger"
    program.write_text(
        build(tmp_path, "8.4").read_text().replace("sys.exit", "sys.argv.append('--dax-window=4M'); sys.exit")
    )
    program.chmod(0o755)
    done = upgrade(windowed.process.pid, f"--program={program}")
    assert f"its DAX window has {WINDOW} bytes, and this one's {4 << 20}" in done.stderr
    model.check()


@two_modes
def test_without_the_process_that_opens_files(vm: Guest, windowed: Upgraded, model: Model) -> None:
    """It ends, before an upgrade or after it; what is mapped stays."""
    (file,) = model.files
    assert model.setup(file, 0, 4 * PAGE, 0) == 0
    windowed.upgrade()
    (keeper,) = windowed.keepers
    os.kill(keeper, signal.SIGKILL)
    windowed.logged("files can't be mapped any more")
    for number in range(2):
        vm.client.setupmapping(file.nodeid, 4 * PAGE, PAGE, 8 * PAGE, expect=errno.ENOTCONN)
        stored(model, file, 4)
        windowed.upgrade(meanwhile=model.check)
        windowed.logged("files can't be mapped any more", number + 2)
        assert vm.client.getattr(file.nodeid).attr.size == len(file.data)

"""The window as guest memory: what a machine is told of it, and data that travels straight out of it.

`slots`: QEMU adds memory region by region, and starts devices beside many mappings. Else it tells of eight at most.
"""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.daemon import Daemon
from tests.daemon.test_window import NONE, WINDOW
from tests.daemon.windowed import FLAGS, Guest, Model
from tests.shmem import BAR, PAGE
from vhost.message import ProtocolFeature

MANY = 40


def begin(start: Callable[..., Daemon], size: object) -> Daemon:
    """A daemon with a window of this size."""
    daemon = start("--tag=fs", f"--dax-window={size}", "--dax-policy=always", "--sandbox=none")
    daemon.logged("Waiting")
    if NONE in daemon.log:
        pytest.skip(f"a window takes root and Linux 6.9: {daemon.log}")
    return daemon


@pytest.fixture(params=[True, False], ids=["slots", "tables"])
def vm(request: pytest.FixtureRequest, start: Callable[..., Daemon]) -> Iterator[Guest]:
    daemon = begin(start, WINDOW)
    vm = Guest(daemon, without=0 if request.param else ProtocolFeature.CONFIGURE_MEM_SLOTS)
    yield vm
    vm.close()
    assert "Traceback" not in daemon.log and "refused" not in daemon.log


@pytest.fixture
def model(vm: Guest, share: Path) -> Model:
    """With a file of MANY pages, `a`, each of them mapped by itself, at twice its offset."""
    model = Model(vm, share, 1)
    file = model.add("a", MANY * PAGE)
    for page in range(MANY):
        assert model.setup(file, page * PAGE, PAGE, 2 * page * PAGE) == 0
    return model


def copy_all(vm: Guest, model: Model) -> None:
    """Each page of `a` is written to the end of another file, out of the window."""
    source, copy = model.files[0], model.add("copy", 0)
    fh = vm.client.open(model.known(copy), os.O_RDWR).fh
    for page in range(MANY):
        error = vm.write_out_of_window(copy.nodeid, fh, page * PAGE, PAGE, 2 * page * PAGE)
        assert error == 0
    copy.data[:] = source.data
    model.check_file(copy)
    vm.client.release(copy.nodeid, fh)


def test_data_out_of_the_window(vm: Guest, model: Model) -> None:
    copy_all(vm, model)


def test_data_out_of_the_window_of_a_later_worker(vm: Guest, model: Model) -> None:
    vm.kill()
    copy_all(vm, model)


def test_what_is_mapped_there_by_now(vm: Guest, model: Model) -> None:
    """A worker that has used a mapping ends when another file comes to its place."""
    other, copy = model.add("b", PAGE), model.add("copy", 0)
    fh = vm.client.open(model.known(copy), os.O_RDWR).fh
    for number in range(10):
        source = (model.files[0], other)[number % 2]
        assert model.setup(source, 0, PAGE, 0) == 0
        assert vm.write_out_of_window(copy.nodeid, fh, 0, PAGE, 0) == 0
        copy.data[:] = source.data[:PAGE]
        model.check_file(copy)
    assert model.remove([(0, PAGE)]) == 0
    assert vm.write_out_of_window(copy.nodeid, fh, 0, PAGE, 0) == errno.EFAULT
    model.check_file(copy)
    assert "killed" not in vm.daemon.log


def test_a_reset_leaves_nothing_that_crashes_qemu(vm: Guest, model: Model) -> None:
    for _ in range(3):
        vm.fe.reset()
        assert not vm.fe.dangling
        vm.fe.start()
        vm.client.init(flags=FLAGS)
        model.gone()
        for page in range(MANY):
            assert model.setup(model.files[0], page * PAGE, PAGE, 2 * page * PAGE) == 0
        copy_all(vm, model)
        model.lose(model.files[-1])


@pytest.mark.parametrize("vm", [True], ids=["slots"], indirect=True)
def test_pauses(vm: Guest, model: Model) -> None:
    """QEMU insists that each mapping be taken at the start."""
    memory = len(vm.fe.regions) - MANY
    for _ in range(3):
        vm.pause()
        model.check()
        copy_all(vm, model)
        model.lose(model.files[-1])
        assert model.setup(model.files[0], 0, PAGE, 0) == 0
        assert model.setup(model.files[0], 0, PAGE, PAGE) == 0
        assert model.remove([(PAGE, PAGE)]) == 0
    assert len(vm.fe.announced) == memory + MANY - 1, "what was mapped since is refused"


def test_the_window_of_another_device(vm: Guest, model: Model, share: Path) -> None:
    """Data there is out of reach: the request fails, and nothing else."""
    copy = model.add("copy", 0)
    fh = vm.client.open(model.known(copy), os.O_RDWR).fh
    assert vm.write_out_of_window(copy.nodeid, fh, 0, PAGE, BAR) == errno.EFAULT
    assert vm.client.getattr(copy.nodeid).attr.size == 0


@pytest.mark.parametrize(("size", "slots"), [("512M", True), ("1G", False)])
def test_memory_slots_for_as_many_mappings_as_there_may_be(
    start: Callable[..., Daemon], size: str, slots: bool
) -> None:
    daemon = begin(start, size)
    vm = Guest(daemon)
    assert bool(vm.fe.protocol_features & ProtocolFeature.CONFIGURE_MEM_SLOTS) == slots
    assert ("loses the share" in daemon.log) == (not slots)
    vm.close()

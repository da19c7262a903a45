"""Upgrades while a guest has files mapped: what it sees through the window stays, and so does what it maps later.

VFSD_TEST_SCALE multiplies the number of upgrades under load.
"""

import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.daemon import PATIENCE, kinds, name, open_files, settled_files, until
from tests.daemon.storm import Storm
from tests.daemon.windowed import FLAGS, Guest, Model
from tests.daemon.windowed_upgrade import MODES, Upgraded, stored, upgraded
from tests.fuseclient import ROOT
from tests.shmem import PAGE
from vhost.message import BackendRequest, ProtocolFeature, SharedMapping

UPGRADES = 4 * int(os.environ.get("VFSD_TEST_SCALE", "1"))
MAP, UNMAP = BackendRequest.SHMEM_MAP, BackendRequest.SHMEM_UNMAP


@pytest.fixture(params=["none"])
def windowed(request: pytest.FixtureRequest, share: Path, tmp_path: Path) -> Iterator[Upgraded]:
    with upgraded(share, tmp_path, f"--sandbox={request.param}") as daemon:
        yield daemon


every_mode = pytest.mark.parametrize("windowed", MODES, indirect=True)
two_modes = pytest.mark.parametrize("windowed", ["none", "namespace"], indirect=True)


@every_mode
def test_every_byte_across_upgrades(vm: Guest, windowed: Upgraded, share: Path) -> None:
    """After a storm of mappings, and in the middle of one. The worker is killed and the guest paused all the while."""
    model = Model(vm, share, 11)
    storm = Storm(model)
    for _ in range(UPGRADES):
        storm.run(100)
        model.fence()
        asked, compared = len(vm.fe.handled), model.compared
        windowed.upgrade(meanwhile=model.check)
        model.check()
        assert model.compared > compared
        assert len(vm.fe.handled) == asked, "the front-end is told of nothing"
        windowed.upgrade(meanwhile=lambda: storm.run(10))
    storm.run(100)
    for file in list(model.files):
        model.check_file(file)
        model.close_handles(file)
        model.forget(file)
        storm.end(file)
    assert not vm.fe.window[0].mappings
    model.check()
    assert windowed.log.count("in the place of") == 2 * UPGRADES


@every_mode
def test_a_mapping_is_as_sure_as_it_was(vm: Guest, windowed: Upgraded, model: Model) -> None:
    """Nothing is mapped again that is there, what is mapped can be cut, and the last page has no end."""
    (file,) = model.files
    assert model.setup(file, 0, 11 * PAGE, 0) == 0
    assert model.setup(file, 10 * PAGE, 2 * PAGE, 100 * PAGE) == 0
    told = [*vm.fe.handled]
    for number in range(3):
        windowed.upgrade(meanwhile=lambda: stored(model, file))
        assert model.setup(file, 0, 11 * PAGE, 0) == 0
        vm.kill()
        assert model.setup(file, PAGE, PAGE, PAGE) == 0
        assert vm.fe.handled == told
        stored(model, file)
        # What it grows by is there, without a word; in its last page, and in one that had been beyond its end.
        grown = b"grown" * (number + 1) + bytes(number * PAGE // 4)
        size = len(file.data)
        fd = model.host_fd(file)
        os.pwrite(fd, grown, size)
        os.close(fd)
        model.write(file, size, grown)
        model.check()
    assert model.remove([(2 * PAGE, PAGE)]) == 0
    windowed.upgrade()
    assert model.setup(file, 10 * PAGE, 4 * PAGE, 20 * PAGE) == 0
    assert model.setup(file, 0, 2 * PAGE, 4 * PAGE) == 0
    model.check()
    windowed.upgrade()
    vm.client.forget(file.nodeid, file.lookups)
    until(lambda: not vm.fe.window[0].mappings)


def test_where_the_window_lies_is_known(vm: Guest, windowed: Upgraded, model: Model) -> None:
    """What the guest writes straight out of it finds its way, and the front-end is not asked again."""
    source, target = model.files[0], model.add("target", 0)
    model.handle(target)
    assert model.setup(source, 0, 8 * PAGE, 0) == 0
    told = [*vm.fe.handled]
    for number in range(3):
        assert vm.write_out_of_window(target.nodeid, target.fhs[0], number * 2 * PAGE, 2 * PAGE, PAGE) == 0
        model.write(target, number * 2 * PAGE, bytes(source.data[PAGE : 3 * PAGE]))
        model.check_file(target)
        assert vm.fe.handled == told
        windowed.upgrade()


@two_modes
def test_pauses_and_resets_after_it(vm: Guest, windowed: Upgraded, model: Model, share: Path) -> None:
    (file,) = model.files
    assert model.setup(file, 0, 8 * PAGE, 0) == 0
    windowed.upgrade()
    vm.pause()
    model.check()
    assert model.setup(file, 0, 8 * PAGE, 0) == 0
    assert [request for request, _, why in vm.fe.handled if not why] == [MAP, UNMAP, MAP], "a stop casts doubt on it"
    vm.fe.stop()
    windowed.upgrade(meanwhile=model.check)
    vm.fe.start()
    told = len(vm.fe.handled)
    assert model.setup(file, 0, 8 * PAGE, 0) == 0
    assert [request for request, _, _ in vm.fe.handled[told:]] == [UNMAP, MAP], "and so does one before the upgrade"
    windowed.upgrade()
    vm.fe.reset()
    windowed.upgrade()
    vm.fe.start()
    vm.client.init(flags=FLAGS)
    model.gone()
    (share / "a").unlink()
    model.files.clear()
    other = model.add("b", 9 * PAGE)
    assert model.setup(other, 0, 8 * PAGE, 0) == 0
    model.check()


@pytest.mark.parametrize("read", [False, True])
def test_the_front_end_owes_an_answer(vm: Guest, windowed: Upgraded, model: Model, read: bool) -> None:
    """It has been asked, and has not read the question or is about to answer: it is waited for, and nothing is asked
    twice."""
    (file,) = model.files
    model.known(file)
    gate = threading.Event() if read else vm.fe.gate
    if read:
        vm.fe.refuses = lambda *_: not gate.wait(PATIENCE)

    def work() -> None:
        until(lambda: vm.fe.received > 0)
        windowed.process.send_signal(signal.SIGUSR2)
        windowed.logged("the new program is ready", number)
        assert windowed.log.count("in the place of") == number - 1
        gate.set()

    for number in range(1, 4):
        vm.fe.received = 0
        gate.clear()
        vm.disturb = work
        assert model.setup(file, number * PAGE, PAGE, number * PAGE) == 0
        windowed.logged("in the place of", number)
        model.check()
    assert [request for request, _, _ in vm.fe.handled] == [MAP] * 3


@pytest.mark.parametrize("taken", range(4))
def test_a_change_begun_while_the_guest_is_paused(vm: Guest, windowed: Upgraded, model: Model, taken: int) -> None:
    """To set up the middle of a mapping takes four steps. The front-end has not read the question about one of them
    when it stops the device: the new program asks it."""
    file, other = model.files[0], model.add("b", 4 * PAGE)
    model.known(other)
    assert model.setup(file, 0, 8 * PAGE, 0) == 0
    vm.fe.handled.clear()
    vm.fe.received = 0

    def count(request: BackendRequest, mapping: SharedMapping) -> bool:
        if len(vm.fe.handled) == taken - 1:
            vm.fe.gate.clear()
        return False

    def work() -> None:
        # After each map, and before the next step, comes a question that maps nothing.
        until(lambda: vm.fe.received == taken + max(taken - 2, 0) + 1)
        vm.fe.stop()
        windowed.upgrade()
        vm.fe.gate.set()
        vm.fe.start()

    if not taken:
        vm.fe.gate.clear()
    vm.fe.refuses = count
    vm.disturb = work
    assert model.setup(other, 0, 2 * PAGE, 3 * PAGE) == 0
    # More than once when the messages of the start come so far apart that a worker begins between two of them.
    assert vm.fe.withdrawn >= 1
    model.check()
    assert len(vm.fe.window[0].mappings) == 3


def has_open(daemon: Upgraded) -> list[str]:
    """What the control process has open when nothing is under way: twice the same."""
    found: list[list[str]] = []

    def again() -> bool:
        killed = daemon.kill_worker()
        until(lambda: daemon.workers and killed not in daemon.workers)
        found.append(sorted(kinds(settled_files(daemon))))
        return found[-1:] == found[-2:-1]

    until(again)
    return found[-1]


@every_mode
def test_what_is_open_stays_the_same(vm: Guest, windowed: Upgraded, model: Model) -> None:
    file, other = model.files[0], model.add("b", 3 * PAGE)
    assert model.setup(file, 0, 8 * PAGE, 0) == 0
    assert model.setup(other, 0, 2 * PAGE, 16 * PAGE) == 0
    (keeper,) = windowed.keepers
    windowed.upgrade()
    before, kept = has_open(windowed), sorted(kinds(open_files(keeper)))
    for _ in range(3):
        windowed.upgrade()
        assert windowed.keepers == [keeper]
        until(lambda: has_open(windowed) == before)
        assert sorted(kinds(open_files(keeper))) == kept
    # Neither the process with the pid nor what is left of the first one has anything of it.
    for pid in (windowed.process.pid, *windowed.named("vfsd-init")):
        assert not [what for what in open_files(pid).values() if "share/" in what or "vfsd-probe" in what]
    windowed.process.kill()
    windowed.process.wait()
    until(lambda: not windowed.keepers)


@every_mode
def test_the_end_is_the_end_of_all(windowed: Upgraded, share: Path) -> None:
    """The process that opens files has outlived the one that started it, and ends all the same."""
    vm = Guest(windowed)
    model = Model(vm, share, 1)
    assert model.setup(model.add("a", PAGE), 0, PAGE, 0) == 0
    windowed.upgrade()
    windowed.upgrade()
    (keeper,) = windowed.keepers
    vm.close()
    assert windowed.wait() == 0
    until(lambda: not name(keeper))


def test_between_front_ends(share: Path, tmp_path: Path) -> None:
    """Each has a window of its own, however often the rings of the last one were stopped."""
    with upgraded(share, tmp_path, "--sandbox=namespace", "--keep-listening") as daemon:
        one_after_the_other(daemon, share)


def one_after_the_other(daemon: Upgraded, share: Path) -> None:
    for number in range(3):
        daemon.upgrade()
        vm = Guest(daemon)
        model = Model(vm, share, number)
        file = model.add(f"file{number}", 5 * PAGE)
        for _ in range(number):
            vm.pause()
        assert model.setup(file, 0, 4 * PAGE, 0) == 0
        told = [*vm.fe.handled]
        daemon.upgrade()
        assert model.setup(file, 0, 4 * PAGE, 0) == 0
        vm.kill()
        assert model.setup(file, 0, 4 * PAGE, 0) == 0
        assert vm.fe.handled == told, "no doubt is left of pauses"
        model.check()
        vm.close()
        daemon.logged("Client disconnected, waiting for the next one", number + 1)


def test_a_front_end_without_shared_memory(windowed: Upgraded) -> None:
    vm = Guest(windowed, without=ProtocolFeature.SHMEM)
    entry = vm.client.lookup(ROOT, b"hello")
    vm.client.setupmapping(entry.nodeid, 0, PAGE, 0, expect=errno.ENOSYS)
    for _ in range(2):
        windowed.upgrade()
        vm.client.setupmapping(entry.nodeid, 0, PAGE, 0, expect=errno.ENOSYS)
        assert vm.client.getattr(entry.nodeid).attr.size == 9
    vm.close()
    assert windowed.log.count("there is no DAX window: this front-end") == 1

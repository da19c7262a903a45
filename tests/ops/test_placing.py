"""Where the window lies in the guest's memory, and what of it the guest may name as such."""

import os

import pytest

from tests.ops.windowed import BASE, PAGE, Worker, mapped
from vfsd._fuse import lib
from vhost.message import MemoryRegion


def test_what_is_mapped_is_guest_memory(worker: Worker) -> None:
    worker.setup(7, 0, 3 * PAGE)
    worker.done()
    worker.setup(8, PAGE, 0, 2 * PAGE)
    worker.done()
    seven, eight = {(BASE, PAGE, 3 * PAGE): "file7"}, {(BASE + PAGE, 2 * PAGE, 0): "file8"}
    assert worker.memory.names() == seven | eight
    worker.window.suspend()
    worker.resume()
    assert worker.memory.names() == seven | eight
    worker.remove((2 * PAGE, PAGE))
    worker.done()
    assert worker.memory.names() == seven | {(BASE + PAGE, PAGE, 0): "file8"}
    worker.setup(9, 0)
    worker.done()
    assert worker.memory.names() == {(BASE, PAGE, 0): "file9", (BASE + PAGE, PAGE, 0): "file8"}
    worker.ask(lib.WINDOW_EMPTY)
    worker.done()
    assert worker.memory.shown == {}


def test_the_guest_is_told_of_a_mapping_when_it_may_name_it(worker: Worker) -> None:
    worker.setup(7, 0)
    worker.work()
    worker.memory.show = lambda wire, fd: (_ for _ in ()).throw(KeyError)  # type: ignore[method-assign, assignment]
    worker.channel.answer()
    with pytest.raises(KeyError):
        worker.channel.answer()
    assert worker.answers() == []


def test_a_mapping_of_another_tells_nothing(worker: Worker) -> None:
    worker.window.suspend()
    worker.window.clear()
    worker.begin(None)
    worker.setup(7, PAGE, 2 * PAGE)
    worker.work()
    for address, length, file_offset in ((BASE, PAGE, PAGE), (BASE, 2 * PAGE, 2 * PAGE), (BASE, PAGE, 2 * PAGE)):
        worker.tell(address, length, file_offset)
    other = os.memfd_create("other")
    worker.window.learn(MemoryRegion(BASE + PAGE, PAGE, 0, 2 * PAGE), other)
    os.close(other)
    worker.channel.answer_all()
    assert worker.memory.shown == {}
    worker.setup(8, 5 * PAGE, 0)
    worker.work()
    worker.tell(BASE + 5 * PAGE, PAGE)
    worker.channel.answer_all()
    assert worker.memory.names() == {(BASE + PAGE, PAGE, 2 * PAGE): "file7", (BASE + 5 * PAGE, PAGE, 0): "file8"}


@pytest.mark.parametrize("told", [True, False])
def test_the_next_boot_may_have_its_window_elsewhere(worker: Worker, told: bool) -> None:
    worker.setup(7, PAGE)
    worker.done()
    worker.window.suspend()
    if told:
        worker.tell(2 * BASE + PAGE, PAGE)
    worker.resume(paused=True)
    assert worker.memory.names() == ({(2 * BASE + PAGE, PAGE, 0): "file7"} if told else {})
    worker.channel.asked.clear()
    worker.work()
    assert worker.channel.asked == ([] if told else [("map", "/memfd:vfsd-probe (deleted)", 0, 0, PAGE)])


def test_what_is_being_mapped_anew_is_not_probed_over(worker: Worker) -> None:
    """A pause in the middle of a change that takes a mapping away to cut it."""
    worker.setup(7, 0, 0, 3 * PAGE)
    worker.done()
    worker.remove((PAGE, PAGE))
    worker.work()
    assert worker.channel.asked[-1] == ("unmap", 0, 3 * PAGE)
    worker.window.suspend()
    worker.channel.answer()
    worker.channel.asked.clear()
    worker.resume(paused=True)
    worker.done()
    assert worker.channel.asked == [*mapped("file7", 0, 0), *mapped("file7", 2 * PAGE, 2 * PAGE)]


def test_what_memory_has_hidden_is_shown_to_the_next_worker(worker: Worker) -> None:
    worker.setup(7, 0)
    worker.done()
    worker.memory.shown.clear()
    worker.window.suspend()
    worker.resume()
    assert worker.memory.names() == {(BASE, PAGE, 0): "file7"}


def test_an_address_that_no_machine_has_is_ignored(worker: Worker) -> None:
    worker.window.suspend()
    worker.window.clear()
    worker.begin(1 << 63)
    worker.setup(7, 0)
    worker.done()
    assert worker.memory.names() == {}

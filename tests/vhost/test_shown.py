"""Mappings in shared memory: left out of what the front-end tells, and shown by the device."""

import os

import pytest

from tests.vhost.examples import is_open
from tests.vhost.regions import MAPPED, Quiesce, file, live, region, use
from vhost import memory as memory_module
from vhost.device import Refused
from vhost.memory import GuestMemory
from vhost.protocol import RemoteProtocolError, close_all


def mapped() -> int:
    """A file that is mapped there."""
    fd = file()
    MAPPED.add(fd)
    return fd


def test_mappings_are_left_out_of_what_is_told(memory: GuestMemory) -> None:
    fds = [file(), mapped(), mapped()]
    memory.set_table([region(0), region(16)], fds[:2])
    assert live(memory) == [region(0)]
    memory.add(region(32), fds[2:])
    assert live(memory) == [region(0)]
    memory.remove(region(32))
    with pytest.raises(RemoteProtocolError, match="names no live region"):
        memory.remove(region(32))
    close_all(fds[1:])


def test_a_mapping_is_refused_while_rings_run(memory: GuestMemory) -> None:
    memory.set_table([region(0)], [file()])
    fds = [mapped()]
    with pytest.raises(Refused) as caught:
        memory.add(region(16), fds, running=True)
    assert caught.value.routine and len(fds) == 1 and live(memory) == [region(0)]
    with pytest.raises(RemoteProtocolError, match="names no live region"):
        memory.remove(region(16))
    memory.add(region(32), [file()], running=True)
    close_all(fds)


def test_what_the_device_shows_comes_and_goes(memory: GuestMemory, quiesce: Quiesce) -> None:
    fd = file()
    memory.set_table([region(0)], [file()])
    for page in (16, 17):
        memory.show(region(page), fd)
    assert live(memory) == [region(0), region(16), region(17)] and memory.regions[0].wire == region(0)
    memory.set_table([region(1)], [file()])
    assert live(memory) == [region(16), region(17), region(1)], "what is told anew is none of it"
    with pytest.raises(RemoteProtocolError, match="names no live region"):
        memory.remove(region(16))
    memory.hide(region(16))
    assert quiesce.calls == 0 and live(memory) == [region(17), region(1)]
    use(memory, region(17))
    memory.hide(region(17))
    assert quiesce.calls == 1 and live(memory) == [region(1)]
    memory.hide(region(17))
    assert is_open(fd)
    os.close(fd)


def test_nothing_is_used_where_no_worker_runs(memory: GuestMemory, quiesce: Quiesce) -> None:
    fd = file()
    memory.set_table([region(0)], [file()])
    for _ in range(memory_module.CAPACITY // 2 + 10):
        memory.show(region(16), fd)
        memory.hide(region(16))
    memory.show(region(16), fd)
    use(memory, region(16))
    use(memory, region(0))
    memory.settle()
    assert memory.table.count == 2
    memory.hide(region(16))
    memory.set_table([region(1)], [file()])
    assert live(memory) == [region(1)] and quiesce.calls == 0
    os.close(fd)


def test_there_is_always_room_for_what_is_told(memory: GuestMemory) -> None:
    fd = file()
    shown = [memory.show(region(1000 + page), fd) for page in range(memory_module.CAPACITY)]
    assert sum(shown) == memory_module.SHOWN_MAX and all(shown[: memory_module.SHOWN_MAX])
    for page in range(memory_module.MAX_SLOTS):
        memory.add(region(page, 1, page % 64), [file()])
    for page in range(memory_module.CAPACITY):
        memory.hide(region(1000 + page))
    assert len(live(memory)) == memory_module.MAX_SLOTS
    os.close(fd)


def test_a_new_table_is_all_there_is(memory: GuestMemory) -> None:
    fds = [mapped()]
    memory.add(region(16), fds)
    memory.set_table([region(0)], [file()])
    with pytest.raises(RemoteProtocolError, match="names no live region"):
        memory.remove(region(16))
    close_all(fds)


def test_told_memory_wins(memory: GuestMemory) -> None:
    fd = file()
    memory.set_table([region(0, 2)], [file()])
    assert not memory.show(region(1, 2), fd)
    assert live(memory) == [region(0, 2)]
    assert memory.show(region(8, 2), fd) and memory.shows(region(8, 2))
    memory.add(region(9), [file()])
    assert not memory.shows(region(8, 2))
    assert live(memory) == [region(0, 2), region(9)]
    memory.hide(region(8, 2))
    os.close(fd)

"""The memory table against a model: after any sequence of messages it says what the front-end said last."""

import mmap
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.vhost.examples import is_open
from tests.vhost.regions import PAGE, USER, Quiesce, file, is_mapping, live, region, use
from vhost import memory as memory_module
from vhost._virtq import lib
from vhost.memory import GuestMemory, table_arena
from vhost.message import MemoryRegion
from vhost.protocol import RemoteProtocolError, close_all


def test_the_same_table_changes_nothing(memory: GuestMemory, quiesce: Quiesce) -> None:
    fd, wires = file(), [region(0, 16), region(16, 16, 16)]
    first = [os.dup(fd), os.dup(fd)]
    memory.set_table(wires, first)
    use(memory, wires[0])
    held, again = memory.descriptors(), [os.dup(fd), os.dup(fd)]
    memory.set_table(wires, again)
    assert first == [] and len(again) == 2, "the duplicates stay with the message, which closes them"
    assert memory.descriptors() == held and live(memory) == wires and quiesce.calls == 0
    close_all([*again, fd])


def test_unused_regions_come_and_go_while_rings_run(memory: GuestMemory, quiesce: Quiesce) -> None:
    """What QEMU does to every device when any of its devices maps a window."""
    kept, window = region(0, 16), region(64, 16)
    fd = file()
    memory.set_table([kept], [os.dup(fd)])
    use(memory, kept)
    for _ in range(20):
        fds = [os.dup(fd), os.dup(fd)]
        mapped = fds[1]
        memory.set_table([kept, window], fds)
        assert live(memory) == [kept, window]
        close_all(fds)
        fds = [os.dup(fd)]
        memory.set_table([kept], fds)
        close_all(fds)
        assert live(memory) == [kept] and mapped not in memory.descriptors()
    assert quiesce.calls == 0
    os.close(fd)


def test_a_used_region_goes_after_quiesce(memory: GuestMemory) -> None:
    seen = []
    memory._quiesce = lambda: seen.append((live(memory), is_open(fd)))
    fd = file()
    memory.set_table([region(0)], [fd])
    use(memory, region(0))
    memory.set_table([region(8)], [file()])
    assert seen == [([region(0)], True)], "a worker that dies while it drains is replaced by one that needs the table"
    assert live(memory) == [region(8)] and memory.table.count == 1
    assert memory.descriptors() == {memory.table.regions[0].fd}


def test_a_region_used_at_the_last_moment(memory: GuestMemory, quiesce: Quiesce, monkeypatch) -> None:
    """memory_retire says what the look before it could not."""
    memory.set_table([region(0), region(1)], [file(), file()])

    class Raced:
        MEMORY_LIVE = lib.MEMORY_LIVE
        memory_append = staticmethod(lib.memory_append)

        @staticmethod
        def memory_retire(table, index: int) -> int:
            table.regions[index].used = 1
            return lib.memory_retire(table, index)

    monkeypatch.setattr(memory_module, "lib", Raced)
    memory.set_table([region(2)], [file()])
    assert quiesce.calls == 1 and live(memory) == [region(2)]


def test_another_file_at_the_same_place_is_another_region(memory: GuestMemory) -> None:
    memory.set_table([region(0)], [file()])
    (before,) = memory.regions
    memory.set_table([region(0)], [file()])
    (after,) = memory.regions
    assert after.inode != before.inode and memory.table.regions[0].state == lib.MEMORY_RETIRED


def test_a_full_table_is_packed_anew(memory: GuestMemory, quiesce: Quiesce) -> None:
    fd = file()
    for turn in range(memory_module.CAPACITY // 2 + 1):
        memory.set_table([region(turn), region(turn + 1, 1, 1)], [os.dup(fd), os.dup(fd)])
    assert quiesce.calls == 1 and memory.table.count <= 4
    os.close(fd)


@pytest.mark.parametrize(
    ("wires", "sentence"),
    [
        ([], "no memory region"),
        ([MemoryRegion(0, 0, USER, 0)], "empty"),
        ([MemoryRegion(2**64 - PAGE, 2 * PAGE, USER, 0)], "wraps"),
        ([MemoryRegion(0, 2 * PAGE, 2**64 - PAGE, 0)], "wraps"),
        ([MemoryRegion(0, PAGE, USER, 2**64 - PAGE)], "outside of any file"),
        ([region(0, 65)], "exceeds its file of 262144 bytes"),
        ([region(0, 2, 63)], "exceeds its file"),
        ([region(0, 2), region(1, 2)], "overlap"),
        ([region(4), region(0, 8)], "overlap"),
        ([region(0), region(0)], "overlap"),
    ],
)
def test_refused_tables(memory: GuestMemory, quiesce: Quiesce, wires: list[MemoryRegion], sentence: str) -> None:
    memory.set_table([region(32)], [file()])
    fds = [file() for _ in wires]
    with pytest.raises(RemoteProtocolError, match=sentence):
        memory.set_table(wires, fds)
    assert len(fds) == len(wires) and live(memory) == [region(32)] and quiesce.calls == 0
    close_all(fds)


def test_refused_changes(memory: GuestMemory) -> None:
    memory.set_table([region(0)], [file()])
    fds = [file()]
    with pytest.raises(RemoteProtocolError, match="overlap"):
        memory.add(region(0), fds)
    for other in (region(1), region(0, 2), MemoryRegion(0, PAGE, USER + PAGE, 0)):
        with pytest.raises(RemoteProtocolError, match="names no live region"):
            memory.remove(other)
    memory.remove(MemoryRegion(0, PAGE, USER, 12345))  # the specification has the offset ignored
    assert live(memory) == []
    close_all(fds)


def test_slots_are_bounded(memory: GuestMemory) -> None:
    fd = file()
    for page in range(memory_module.MAX_SLOTS):
        memory.add(region(page, 1, page % 64), [os.dup(fd)])
    fds = [fd]
    with pytest.raises(RemoteProtocolError, match="512 memory regions, all in use"):
        memory.add(region(memory_module.MAX_SLOTS, 1, 0), fds)
    close_all(fds)


def test_two_guest_addresses_may_show_the_same_memory(memory: GuestMemory) -> None:
    low, high = MemoryRegion(0, PAGE, USER, 0), MemoryRegion(1 << 32, PAGE, USER, 0)
    memory.set_table([low, high], [file(), file()])
    assert live(memory) == [low, high]


@pytest.mark.parametrize("private", [False, True])
def test_private_memory_stays_zero_in_its_file(memory: GuestMemory, private: bool) -> None:
    """A private page is a copy of one the kernel first fills in the file: holes do not tell, content does."""
    fd = file()
    guest = mmap.mmap(fd, 64 * PAGE, mmap.MAP_PRIVATE if private else mmap.MAP_SHARED)
    guest[9 * PAGE] = guest[63 * PAGE] = 1
    memory.set_table([region(0, 60, 4)], [os.dup(fd)])
    for page in (5, 59):
        assert memory.looks_private(USER + page * PAGE + 256) == private
    assert memory.looks_private(USER + 6 * PAGE) == private, "an idle ring in shared memory"
    assert not memory.looks_private(USER - 1) and not memory.looks_private(USER + 60 * PAGE)
    guest.close()
    os.close(fd)


def test_a_file_that_cannot_tell_does_not_look_private(memory: GuestMemory) -> None:
    fd = os.open("/proc/self/mem", os.O_RDWR)
    memory.add(MemoryRegion(0, PAGE, USER, 0), [file()])
    os.dup2(fd, *memory.descriptors(), inheritable=False)
    assert not memory.looks_private(USER)
    os.close(fd)


class Messages(RuleBasedStateMachine):
    """Front-end, worker and control in any order; the model is a dictionary."""

    pages = st.integers(0, 9)

    def __init__(self) -> None:
        super().__init__()
        self.used: set[MemoryRegion] = set()
        self.model: dict[MemoryRegion, int] = {}  # to the file's number
        self.must_quiesce = False
        self.memory = GuestMemory(table_arena(), self.quiesce, is_mapping)
        self.files = [file(), file()]

    def quiesce(self) -> None:
        self.used.clear()

    def fds(self, wanted: dict[MemoryRegion, int]) -> list[int]:
        return [os.dup(self.files[number]) for number in wanted.values()]

    @rule(wanted=st.dictionaries(st.builds(region, pages, st.just(1)), st.integers(0, 1), min_size=1))
    def set_table(self, wanted: dict[MemoryRegion, int]) -> None:
        fds = self.fds(wanted)
        self.memory.set_table(list(wanted), fds)
        close_all(fds)
        self.model = wanted

    @rule(page=pages, number=st.integers(0, 1))
    def add(self, page: int, number: int) -> None:
        fds = self.fds({region(page): number})
        try:
            self.memory.add(region(page), fds)
            assert region(page) not in self.model
            self.model = {**self.model, region(page): number}
        except RemoteProtocolError:
            assert region(page) in self.model
        close_all(fds)

    @rule(page=pages)
    def remove(self, page: int) -> None:
        try:
            self.memory.remove(region(page))
            self.model = {wire: number for wire, number in self.model.items() if wire != region(page)}
        except RemoteProtocolError:
            assert region(page) not in self.model

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def worker_uses(self, data: st.DataObject) -> None:
        wire = data.draw(st.sampled_from(sorted(self.model, key=lambda wire: wire.guest_addr)))
        use(self.memory, wire)
        self.used.add(wire)

    @invariant()
    def table_is_the_model(self) -> None:
        assert sorted(live(self.memory), key=str) == sorted(self.model, key=str)
        inodes = {region.wire: region.inode for region in self.memory.regions}
        assert inodes == {wire: os.fstat(self.files[number]).st_ino for wire, number in self.model.items()}

    @invariant()
    def a_running_worker_keeps_what_it_uses(self) -> None:
        assert self.used <= set(self.model), "a used region went without quiesce"

    def teardown(self) -> None:
        held = self.memory.descriptors()
        self.memory.clear()
        assert not any(map(is_open, held))
        close_all(self.files)


Messages.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestMessages = Messages.TestCase

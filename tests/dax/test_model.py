"""The manager against a front-end that checks like QEMU 11.1, over byte arrays; the guest's view is a third byte array.

VFSD_TEST_SCALE multiplies the number of operations.
"""

import errno
import os
import random

import pytest

from dax.manager import Change, Drop, Empty, Manager, Remove, Setup
from dax.window import Map, Mapping, Step, Unmap, Window

PAGE = 4  # bytes: so small that comparing all of them is cheap
PAGES = 48
SIZE = PAGE * PAGES
OPERATIONS = 20_000 * int(os.environ.get("VFSD_TEST_SCALE", "1"))
SEEDS = range(5)


class FrontEnd:
    """QEMU: the window's bytes, and what it refuses. What it must never be asked is an assertion."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files
        self.bytes = bytearray(SIZE)
        self.maps: dict[tuple[int, int], Mapping] = {}
        self.forgot = False  # dropped mappings and told nobody

    def take(self, step: Step) -> bool:
        assert step.length > 0 and 0 <= step.offset <= SIZE - step.length
        assert step.offset % PAGE == step.length % PAGE == 0
        key = step.offset, step.length
        over = [
            (offset, length)
            for offset, length in self.maps
            if offset < step.offset + step.length and step.offset < offset + length
        ]
        if isinstance(step, Map):
            assert not over, "a map over a mapping"
            mapping = step.mapping
            assert mapping.file_offset % PAGE == 0
            source = self.files[mapping.file][mapping.file_offset :][: mapping.length]
            if len(source) < mapping.length:
                return False
            self.maps[key] = mapping
            self.bytes[step.offset : step.offset + step.length] = source
            return True
        assert over == [key] or (not over and (step.tolerant or self.forgot)), "an inexact unmap"
        return bool(over) and self.drop(key)

    def drop(self, key: tuple[int, int]) -> bool:
        del self.maps[key]
        self.bytes[key[0] : key[0] + key[1]] = bytes(key[1])
        return True

    def reset(self) -> None:
        self.maps.clear()
        self.bytes[:] = bytes(SIZE)


class Simulation:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.files = [self.random.randbytes(PAGE * self.random.randrange(20, 2 * PAGES)) for _ in range(4)]
        self.front_end = FrontEnd(self.files)
        self.manager = Manager(Window(SIZE, PAGE))
        self.guest = bytearray(SIZE)  # what the guest has to see
        self.settled = True  # False from a reset until the window was emptied
        self.asked: list[tuple[int, Change]] = []
        self.token = 0
        self.ended = 0  # changes that have begun and are over
        self.sent: Step | None = None
        self.outcome: bool | None = None  # of sent, once the front-end looked at it
        self.missing: list[Step] = []  # maps refused in the change under way
        self.compared = 0
        self.handed_over = 0  # with a step under way

    # The guest

    def ask(self, change: Change) -> None:
        self.token += 1
        self.asked.append((self.token, change))
        self.manager.ask(self.token, change)

    def range(self) -> tuple[int, int]:
        length = min(self.random.choice((1, 1, 2, 3, 5, 8, 16)), PAGES)
        return self.random.randrange(PAGES - length + 1) * PAGE, length * PAGE

    def some_change(self) -> Change:
        kind = self.random.random()
        offset, length = self.range()
        if kind < 0.02:
            return self.random.choice(
                (Setup(Mapping(offset + 1, length, 0, 0, True)), Remove(((offset, length), (offset, SIZE + PAGE))))
            )
        if kind < 0.55:
            file = self.random.randrange(len(self.files))
            # Every file mostly lies at the same place, so that setups meet mappings that serve them.
            shift = self.random.choice((0, 0, 0, 4 * PAGE))
            return Setup(Mapping(offset, length, file, offset + shift, self.random.random() < 0.7))
        if kind < 0.95:
            return Remove(tuple(self.range() for _ in range(self.random.choice((0, 1, 1, 2, 5)))))
        return Drop(self.random.randrange(len(self.files))) if kind < 0.99 else Empty()

    def expect(self, change: Change, error: int) -> None:
        """A change is over: it has had its effect on what the guest sees."""
        nonsense = (isinstance(change, Setup) and change.mapping.offset % PAGE) or (
            isinstance(change, Remove) and any(length > SIZE for _, length in change.ranges)
        )
        if nonsense:
            assert error == errno.EINVAL
            return
        assert error == (errno.EIO if self.missing else 0)
        if isinstance(change, Setup):
            wanted = change.mapping
            source = self.files[wanted.file][wanted.file_offset :][: wanted.length]
            self.guest[wanted.offset : wanted.end] = source.ljust(wanted.length, b"\0")
            if not error and wanted.writable:
                seen = self.manager.window.overlapping(wanted.offset, wanted.length)
                assert all(mapping.writable for mapping in seen)
        elif isinstance(change, Remove):
            for offset, length in change.ranges:
                self.guest[offset : offset + length] = bytes(length)
        elif isinstance(change, Drop):
            self.forget(change.file)
        else:
            self.guest[:] = bytes(SIZE)
            self.settled = True
        for step in self.missing:
            self.guest[step.offset : step.offset + step.length] = bytes(step.length)
        self.missing.clear()

    def forget(self, file: int) -> None:
        """Random bytes tell a file's pages from those of any other, but for zeros."""
        pages = {self.files[file][at : at + PAGE] for at in range(0, len(self.files[file]), PAGE)}
        for at in range(0, SIZE, PAGE):
            if bytes(self.guest[at : at + PAGE]) in pages:
                self.guest[at : at + PAGE] = bytes(PAGE)

    # The owner of the manager, and the front-end

    def advance(self) -> bool:
        """Sends a step, or lets the front-end look at it, or takes the answer. False: nothing to do."""
        if self.sent is None:
            self.sent, self.outcome = self.manager.next(), None
            self.collect()
            return self.sent is not None
        if self.outcome is None:
            self.outcome = self.willing(self.sent) and self.front_end.take(self.sent)
            return True
        step, accepted = self.sent, self.outcome
        self.sent = self.outcome = None
        if not accepted and isinstance(step, Map):
            self.missing.append(step)
        self.manager.answered(accepted)
        self.collect()
        return True

    def willing(self, step: Step) -> bool:
        """False: refused for no reason. The truth is told of a tolerant unmap, for we believe it."""
        if isinstance(step, Unmap) and step.tolerant:
            return True
        if self.random.random() >= 0.02:
            return True
        key = step.offset, step.length
        if isinstance(step, Unmap) and key in self.front_end.maps and self.random.random() < 0.5:
            self.front_end.drop(key)
        return False

    def collect(self) -> None:
        for done in self.manager.finished():
            token, change = self.asked.pop(0)
            assert token == done.token
            self.ended += 1
            self.expect(change, done.error)
            # Later changes of this batch had no step, or have not begun.
            self.compare()

    def compare(self) -> None:
        if self.settled:
            self.compared += 1
            assert self.front_end.bytes == self.guest

    def check_state(self) -> None:
        if self.sent:
            return
        window = self.manager.window
        known = {(mapping.offset, mapping.length): mapping for mapping in window.mappings}
        assert self.front_end.maps.items() <= known.items()
        for key, mapping in known.items():
            assert window.is_doubtful(mapping.offset) or key in self.front_end.maps
        assert window.mapped == sum(length for _, length in known)
        assert {mapping.file for mapping in known.values()} <= self.manager.files()

    # What happens to a device

    def pause(self) -> None:
        """GET_VRING_BASE, and the rings start again. The front-end keeps everything."""
        self.manager.suspend()
        self.stop()
        self.manager.doubt()
        self.interlude()
        self.manager.resume()

    def reset(self) -> None:
        """The rings stop, and the front-end drops everything; a new guest begins with INIT."""
        self.manager.suspend()
        self.stop()
        self.manager.doubt()
        self.flush()
        self.settled = False
        self.front_end.reset()
        self.front_end.forgot = True
        if self.random.random() < 0.5:
            self.manager.clear()
        self.interlude()
        self.manager.resume()
        self.finish_the_flushed()
        self.front_end.forgot = False
        self.missing.clear()
        self.ask(Empty())

    def stop(self) -> None:
        if self.sent and self.random.random() < 0.5:
            self.advance()  # the front-end looks at it, or answers
        if self.sent and self.random.random() < 0.3:
            if self.outcome is None and self.random.random() < 0.5:
                self.front_end.take(self.sent)
            self.sent = self.outcome = None
            self.manager.lost()

    def interlude(self) -> None:
        """While the rings are stopped answers still come in, and changes are asked for."""
        assert self.sent or self.manager.next() is None
        if self.sent and self.random.random() < 0.5:
            while self.sent:
                self.advance()

    def die(self) -> None:
        """The worker ends: whoever asked is gone. The guest goes on, with what was begun and without the rest. Now and
        then another manager does."""
        orphan = self.flush()
        if self.random.random() < 0.5:
            self.hand_over()
        self.finish_the_flushed()
        if orphan:
            self.expect(orphan, errno.EIO if self.missing else 0)
        self.compare()

    def hand_over(self) -> None:
        """Whether a step under way was taken, nobody says."""
        if self.sent and self.outcome is None and self.random.random() < 0.5:
            self.front_end.take(self.sent)
        self.handed_over += bool(self.sent)
        self.sent = self.outcome = None
        state, self.manager = self.manager.state(), Manager(Window(SIZE, PAGE))
        self.manager.restore(state)
        again = self.manager.state()
        assert (set(again.mappings), again.due) == (set(state.mappings), state.due)

    def flush(self) -> Change | None:
        """The change that has begun, if one has."""
        orphan = self.asked[0][1] if self.begun() > self.ended else None
        self.manager.flush()
        self.asked.clear()
        return orphan

    def begun(self) -> int:
        statistics = self.manager.statistics
        return statistics.setups + statistics.removals

    def finish_the_flushed(self) -> None:
        while self.advance():
            pass
        assert not self.manager.finished()
        self.ended = self.begun()

    def run(self, operations: int) -> None:
        for _ in range(operations):
            event = self.random.random()
            if event < 0.94:
                self.ask(self.some_change())
                for _ in range(self.random.choice((0, 3, 10, 40, 40))):
                    self.advance()
            elif event < 0.95:
                self.pause()
            elif event < 0.96:
                self.reset()
            else:
                self.die()
            self.check_state()
        while self.advance():
            pass
        self.check_state()
        self.compare()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_byte_is_as_the_guest_wants_it(seed: int) -> None:
    simulation = Simulation(seed)
    simulation.run(OPERATIONS)
    assert simulation.compared > OPERATIONS // 2
    assert simulation.handed_over > OPERATIONS // 1000
    statistics = simulation.manager.statistics
    assert min(statistics.maps, statistics.unmaps, statistics.refusals) > OPERATIONS // 100

"""Simulated guests: a working set, a window, and the reclaim of Linux (fs/fuse/dax.c: the oldest range goes first)."""

import random
from collections import deque
from collections.abc import Callable, Iterable

import pytest

from dax.policy import MAX_FILES, REMEMBERED, Churn

RANGE = 2 << 20
PAGES = RANGE // 4096


class Guest:
    """Reads through a window of `ranges` ranges, and keeps a fifth of it free."""

    def __init__(self, ranges: int) -> None:
        self.churn = Churn(ranges * RANGE)
        self.most = ranges * 4 // 5
        self.mapped: deque[tuple[int, int]] = deque()
        self.known: set[tuple[int, int]] = set()

    def read(self, file: int, page: int) -> bool:
        """True: the file thrashes."""
        key = file, page // PAGES
        if key in self.known:
            return False
        if len(self.mapped) >= self.most:
            oldest = self.mapped.popleft()
            self.known.remove(oldest)
            self.churn.note_removed(oldest[0], oldest[1] * RANGE)
        self.mapped.append(key)
        self.known.add(key)
        return self.churn.note_setup(file, key[1] * RANGE)

    def accesses_until_thrashing(self, pages: Iterable[int], file: int = 2) -> int | None:
        return next((count for count, page in enumerate(pages) if self.read(file, page)), None)


WINDOWS = pytest.mark.parametrize("ranges", [4, 8, 32, 128, 512])


@WINDOWS
def test_random_access_over_twice_the_window_thrashes_soon(ranges: int) -> None:
    choose = random.Random(ranges)
    pages = (choose.randrange(2 * ranges * PAGES) for _ in range(100 * ranges + 1000))
    count = Guest(ranges).accesses_until_thrashing(pages)
    assert count is not None and count < 12 * max(ranges, 16)


@WINDOWS
@pytest.mark.parametrize("share", [2, 3, 10])
def test_sequential_passes_never_thrash(ranges: int, share: int) -> None:
    guest = Guest(ranges)
    for _ in range(8):
        assert guest.accesses_until_thrashing(range(0, share * ranges * PAGES, PAGES // 2)) is None


def test_several_sequential_readers_never_thrash() -> None:
    guest, ranges = Guest(64), 256
    starts = [ranges // 4 * reader for reader in range(4)]
    for step in range(20 * ranges):
        for start in starts:
            assert not guest.read(2, (start + step) % ranges * PAGES)


@WINDOWS
def test_a_working_set_below_the_window_never_thrashes(ranges: int) -> None:
    choose, guest = random.Random(ranges), Guest(ranges)
    pages = (choose.randrange(guest.most * PAGES) for _ in range(50 * ranges))
    assert guest.accesses_until_thrashing(pages) is None


def test_a_working_set_that_moves_away_and_back_does_not_thrash() -> None:
    choose, guest = random.Random(1), Guest(64)
    for start in (0, 40 * PAGES, 0):
        assert guest.accesses_until_thrashing(start + choose.randrange(40 * PAGES) for _ in range(4000)) is None


def test_the_file_that_thrashes_is_named_and_no_other() -> None:
    choose, guest = random.Random(2), Guest(32)
    for step in range(4000):
        assert not guest.read(3, step * PAGES % (200 * PAGES))  # a sequential reader beside it
        if guest.read(2, choose.randrange(64 * PAGES)):
            return
    pytest.fail("nothing thrashed")


def test_ranges_given_up_while_there_is_room_do_not_count() -> None:
    churn = Churn(64 * RANGE)
    choose = random.Random(3)
    for _ in range(10000):
        offset = choose.randrange(64) * RANGE
        assert not churn.note_setup(2, offset)
        churn.note_removed(2, offset)


@pytest.mark.parametrize("end", [lambda churn: churn.forget(2), lambda churn: churn.clear()], ids=["forget", "clear"])
def test_what_is_forgotten_starts_anew(end: Callable[[Churn], None]) -> None:
    def pages(seed: int) -> Iterable[int]:
        choose = random.Random(seed)
        return (choose.randrange(64 * PAGES) for _ in range(10000))

    def count(guest: Guest) -> int:
        found = guest.accesses_until_thrashing(pages(1))
        assert found is not None
        return found

    expected = count(Guest(32))
    guest = Guest(32)
    choose = random.Random(2)
    for _ in range(expected // 2):
        assert not guest.read(2, choose.randrange(64 * PAGES))
    guest.mapped.clear()
    guest.known.clear()
    end(guest.churn)
    assert count(guest) == expected


def test_memory_is_bounded() -> None:
    churn = Churn(32 * RANGE)
    for step in range(5000):
        churn.note_setup(step, 0)
        if step >= 32:
            churn.note_removed(step - 32, 0)
    assert len(churn._files) <= MAX_FILES
    assert len(churn._live.keys) <= 64
    assert len(churn._given_up.keys) <= REMEMBERED * 32

"""Which files thrash: those for which the window is a loss, because the guest keeps giving up ranges it needs again.

A guest maps ranges, of 2 MiB on Linux, and gives up others when the window is nearly full. A *refault* is the set-up of
a range that was given up in a nearly full window not long ago. In a sequential pass one costs little, since it serves a
whole range. Scattered ones serve a page or two each: a few of them are a change of what the guest works on, a whole
window full of them is thrashing.

What the guest does between two set-ups is not seen. So a file whose readers go to and fro, time and again, between
parts that together exceed the window thrashes too, however long they stay in each.

Rule 1. Only scattered refaults count against a file: not those that follow on one of its last few set-ups.
Rule 2. Every other set-up of the file pays one back.
Rule 3. Time is counted in set-ups and memory is bounded: what is long past is forgotten.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

#: Linux starts to reclaim when less than a fifth of the window is free (fs/fuse/dax.c), so "full" is a little less.
NEARLY_FULL = 3 / 4
MIN_LIMIT, MAX_LIMIT = 16, 512  # refaults
MAX_STREAMS = 8
REMEMBERED = 8  # windows full of ranges given up
MAX_FILES = 1024


@dataclass(slots=True)
class _File:
    recent: deque[int]  # ranges set up last
    score: int = 0  # scattered refaults not paid back


@dataclass(slots=True)
class _Bounded:
    """Keys that keep only the newest `room`."""

    room: int
    keys: OrderedDict[tuple[int, int], None] = field(default_factory=OrderedDict)

    def add(self, key: tuple[int, int]) -> None:
        self.keys[key] = None
        self.keys.move_to_end(key)
        if len(self.keys) > self.room:
            self.keys.popitem(last=False)

    def take(self, key: tuple[int, int]) -> bool:
        """Whether it was there; it is no more."""
        return self.keys.pop(key, self) is None


class Churn:
    """Watches the ranges of a window of `window_size` bytes, in guest ranges of `range_size` bytes."""

    def __init__(self, window_size: int, range_size: int = 2 << 20) -> None:
        self._range_size = range_size
        self._ranges = max(window_size // range_size, 1)
        #: Scattered refaults of a file after which it thrashes: as many as the window has ranges, within reason.
        self.limit = min(max(self._ranges, MIN_LIMIT), MAX_LIMIT)
        # In a small window almost every range follows on one of the last eight.
        self._streams = min(max(self._ranges // 16, 1), MAX_STREAMS)
        self._live = _Bounded(2 * self._ranges)  # no guest has more; twice, for what we were not told
        self._given_up = _Bounded(REMEMBERED * self._ranges)
        self._files: OrderedDict[int, _File] = OrderedDict()

    def note_setup(self, file: int, file_offset: int) -> bool:
        """A range of the file was set up anew (not merely made writable). True: the file thrashes from now on.

        It is said once: the file is then as unknown as any other, so that it may be tried again.
        """
        key = self._key(file, file_offset)
        self._live.add(key)
        refault = self._given_up.take(key)
        state = self._state(file)
        follows = key[1] - 1 in state.recent
        state.recent.append(key[1])
        state.score = max(state.score + (1 if refault and not follows else -1), 0)
        if state.score < self.limit:
            return False
        del self._files[file]
        return True

    def note_removed(self, file: int, file_offset: int) -> None:
        """The guest gave up a range, or set up another in its place."""
        key = self._key(file, file_offset)
        full = len(self._live.keys) >= NEARLY_FULL * self._ranges
        if self._live.take(key) and full:
            self._given_up.add(key)

    def forget(self, file: int) -> None:
        """The guest forgot the file, and with it every range. Its number may come to name another file."""
        self._files.pop(file, None)
        for known in (self._live, self._given_up):
            for key in [key for key in known.keys if key[0] == file]:
                known.take(key)

    def clear(self) -> None:
        """The window is empty, as after a reset."""
        self._live.keys.clear()
        self._given_up.keys.clear()
        self._files.clear()

    def _key(self, file: int, file_offset: int) -> tuple[int, int]:
        return file, file_offset // self._range_size

    def _state(self, file: int) -> _File:
        state = self._files.setdefault(file, _File(deque(maxlen=self._streams)))
        self._files.move_to_end(file)
        if len(self._files) > MAX_FILES:
            self._files.popitem(last=False)
        return state

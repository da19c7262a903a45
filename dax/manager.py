"""Changes of the window, one after the other, one step at a time. No I/O: the owner sends steps and tells the answers.

    manager.ask(token, Setup(mapping))
    while step := manager.next():       # the owner sends it, and goes on when the front-end has answered
        manager.answered(accepted)
    for done in manager.finished(): ... # the owner answers who asked

Rule 1. At most one step is under way.
Rule 2. A change is planned when it is its turn, against what is mapped by then.
Rule 3. A change once begun goes on to its end, whatever is refused: what it unmapped only to split must come back.
Rule 4. An accepted Map counts for nothing if the window came into doubt before we read the answer: it is made again.
"""

import errno
from collections import Counter, deque
from dataclasses import dataclass

from dax.window import Map, Mapping, Range, Step, Unmap, Window, WindowError


@dataclass(frozen=True, slots=True)
class Setup:
    """Have `mapping`, in place of what it overlaps."""

    mapping: Mapping

    def plan(self, window: Window) -> list[Step]:
        return window.setup(self.mapping)


@dataclass(frozen=True, slots=True)
class Fill:
    """Have `mapping` if there is nothing where it would be. Else nothing happens."""

    mapping: Mapping

    def plan(self, window: Window) -> list[Step]:
        if window.overlapping(self.mapping.offset, self.mapping.length):
            return []
        return window.setup(self.mapping)


@dataclass(frozen=True, slots=True)
class Remove:
    """Have nothing in the ranges, (offset, length) each."""

    ranges: tuple[Range, ...]

    def plan(self, window: Window) -> list[Step]:
        return window.remove(self.ranges)


@dataclass(frozen=True, slots=True)
class Drop:
    """Have nothing of a file."""

    file: int

    def plan(self, window: Window) -> list[Step]:
        return window.drop(self.file)


@dataclass(frozen=True, slots=True)
class Empty:
    """Have nothing."""

    def plan(self, window: Window) -> list[Step]:
        return window.everything()


Change = Setup | Fill | Remove | Drop | Empty


@dataclass(frozen=True, slots=True)
class Done:
    """The change asked for with `token` is over. `error` is 0, EINVAL (nonsense, nothing happened), EIO (a map was
    refused) or EAGAIN (the window was cleared meanwhile)."""

    token: int
    error: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counted from the start, but for the last two."""

    setups: int  # changes begun
    removals: int  # changes begun of the other kinds
    maps: int  # steps accepted
    unmaps: int
    refusals: int  # steps refused; tolerant ones, of which that is expected, aside
    highest: int  # most mappings there ever were at once
    mappings: int  # now
    mapped: int  # bytes, now


#: Those of a Manager's Counter.
COUNTS = ("setups", "removals", "maps", "unmaps", "refusals")


@dataclass(frozen=True, slots=True)
class State:
    """What a manager knows, but for those who wait."""

    mappings: tuple[tuple[Mapping, bool], ...]  # and whether each is doubtful
    due: tuple[Change, ...]  # to be done before anything else, for nobody
    statistics: Statistics


@dataclass(slots=True)
class _Begun:
    """The change whose turn it is."""

    token: int | None  # None when the asker is gone
    steps: deque[Step]  # still to take; the one under way aside
    error: int = 0


class Manager:
    """Owns `window`: nobody else changes it."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self._queue: deque[tuple[int | None, Change]] = deque()
        self._begun: _Begun | None = None
        self._sent: Step | None = None
        self._stale = False  # the window came into doubt after _sent was
        self._suspended = False
        self._finished: list[Done] = []
        self._count: Counter[str] = Counter()
        self._highest = 0

    def ask(self, token: int | None, change: Change) -> None:
        """Queues a change. None: nobody waits for it."""
        self._queue.append((token, change))

    def next(self) -> Step | None:
        """The step to send now. None while one is under way, while suspended, and when all is done.

        Changes that take no step are over by calling this: look at `finished` after it.
        """
        if self._sent or self._suspended:
            return None
        while self._begun or self._queue:
            begun = self._begun or self._begin()
            if begun and begun.steps:
                self._sent, self._stale = self._current(begun.steps.popleft()), False
                return self._sent
            self._end()
        return None

    def answered(self, accepted: bool) -> None:
        """The front-end accepted or refused the step under way."""
        step = self._under_way()
        if accepted and self._stale and isinstance(step, Map):
            self.lost()
            return
        self._sent = None
        if accepted:
            self.window.done(step)
            self._count["maps" if isinstance(step, Map) else "unmaps"] += 1
            self._highest = max(self._highest, len(self.window))
        else:
            self._refused(step)
        self._end_if_over()

    def lost(self) -> None:
        """The answer to the step under way will never come, or tells nothing. The step is taken again, if the change
        goes on."""
        step = self._under_way()
        self._sent = None
        self.window.lost(step)
        if self._begun:
            again = [step] if isinstance(step, Map) else []
            self._begun.steps.extendleft([*again, Unmap(step.offset, step.length, tolerant=True)])

    def finished(self) -> list[Done]:
        """Changes over since the last call, in order."""
        finished, self._finished = self._finished, []
        return finished

    def suspend(self) -> None:
        """No step may be sent until `resume`. The answer to one under way still comes."""
        self._suspended = True

    def resume(self) -> None:
        self._suspended = False

    def doubt(self) -> None:
        """The rings were stopped (see Window.doubt)."""
        self.window.doubt()
        self._stale = True

    def clear(self) -> None:
        """The front-end has dropped all mappings. The change begun ends with EAGAIN; queued ones stay.

        A step under way still is, until `answered` or `lost`.
        """
        self.window.clear()
        self._stale = True
        if self._begun:
            self._begun.error = errno.EAGAIN
            self._end()

    def flush(self) -> None:
        """Those who asked are gone: nobody is told of anything asked for so far, and what has not begun never does, but
        for what nobody waited for: it is as due as before."""
        self._queue = deque(asked for asked in self._queue if asked[0] is None)
        self._finished.clear()
        if self._begun:
            self._begun.token = None

    def state(self) -> State:
        """What another manager can go on from. Those who wait are to ask that one again. A step under way counts as
        lost."""
        found = {each.offset: (each, self.window.is_doubtful(each.offset)) for each in self.window.mappings}
        steps = list(self._begun.steps) if self._begun else []
        if sent := self._sent:
            mapping = sent.mapping if isinstance(sent, Map) else self.window.at(sent.offset)
            if mapping:
                found[sent.offset] = mapping, True
            if self._begun:
                steps.insert(0, sent)
        due = [*map(_change, steps), *(change for token, change in self._queue if token is None)]
        return State(tuple(found.values()), tuple(due), self.statistics)

    def restore(self, state: State) -> None:
        """Goes on where another manager stood; in place of a fresh one only. Raises WindowError when no window can be
        like that."""
        for mapping, doubtful in state.mappings:
            if self.window.setup(mapping) != [Map(mapping)]:
                raise WindowError("mappings overlap")
            (self.window.lost if doubtful else self.window.done)(Map(mapping))
        for change in state.due:
            self.ask(None, change)
        self._count.update({name: getattr(state.statistics, name) for name in COUNTS})
        self._highest = state.statistics.highest

    @property
    def mapping(self) -> Mapping | None:
        """What the step under way maps."""
        return self._sent.mapping if isinstance(self._sent, Map) else None

    def files(self) -> set[int]:
        """Files whose descriptors are needed, now or for what is asked."""
        coming = (
            *(step.mapping for step in self._steps() if isinstance(step, Map)),
            *(change.mapping for _, change in self._queue if isinstance(change, Setup | Fill)),
        )
        return {*self.window.files, *(mapping.file for mapping in coming)}

    @property
    def statistics(self) -> Statistics:
        counted = {name: self._count[name] for name in COUNTS}
        return Statistics(**counted, highest=self._highest, mappings=len(self.window), mapped=self.window.mapped)

    def _begin(self) -> _Begun | None:
        token, change = self._queue.popleft()
        self._count["setups" if isinstance(change, Setup | Fill) else "removals"] += 1
        try:
            self._begun = _Begun(token, deque(change.plan(self.window)))
        except WindowError:
            if token is not None:
                self._finished.append(Done(token, errno.EINVAL))
        return self._begun

    def _current(self, step: Step) -> Step:
        """A step as it has to be by now: its mapping may have come into doubt since it was planned."""
        if isinstance(step, Unmap) and self.window.is_doubtful(step.offset):
            return Unmap(step.offset, step.length, tolerant=True)
        return step

    def _refused(self, step: Step) -> None:
        self.window.refused(step)
        tolerant = isinstance(step, Unmap) and step.tolerant
        self._count["refusals"] += not tolerant
        if not self._begun or tolerant:
            return
        if isinstance(step, Map):
            self._begun.error = errno.EIO
        else:
            # Now it is in doubt: once more, and a second refusal means that it is gone.
            self._begun.steps.appendleft(Unmap(step.offset, step.length, tolerant=True))

    def _end_if_over(self) -> None:
        if self._begun and not self._begun.steps:
            self._end()

    def _end(self) -> None:
        if self._begun and self._begun.token is not None:
            self._finished.append(Done(self._begun.token, self._begun.error))
        self._begun = None

    def _under_way(self) -> Step:
        if self._sent is None:
            raise RuntimeError("no step is under way")
        return self._sent

    def _steps(self) -> list[Step]:
        return [*([self._sent] if self._sent else []), *(self._begun.steps if self._begun else ())]


def _change(step: Step) -> Change:
    """What comes to this step when it is planned, or to what it takes if the one before it was lost."""
    return Setup(step.mapping) if isinstance(step, Map) else Remove(((step.offset, step.length),))

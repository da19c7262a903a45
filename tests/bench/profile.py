"""Where the time of daemons goes, row by row: perf's samples by part, beside the clocks' sums."""

import os
import sys
import tempfile
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

from tests.bench.guest import BadReply, Script
from tests.bench.measure import Figure, Plan, Setting, mounted, on_fair_ground, pin, prepared
from tests.bench.parts import Part, call, is_kernel, part
from tests.bench.perf import Perf, Sample, counted, counter, recorded, recorder, require
from tests.bench.share import Files, cold_file, content
from tests.bench.workloads import WORKLOADS

#: Functions that are kept by name: the most frequent.
KEPT = 12


class Wanted(NamedTuple):
    """A row, and whom it is looked into of."""

    workload: str
    setting: Setting
    daemons: Sequence[str]


class Profile(NamedTuple):
    """What one unit takes a daemon. Times are microseconds."""

    #: By the clock.
    seconds: float
    #: Of the daemon's CPUs, and of the driver's.
    cpu: float
    driver: float
    #: System calls; None: they can't be counted here.
    calls: float | None
    #: Of `cpu`, by the name of a Part.
    parts: dict[str, float]
    #: The functions most of `cpu` goes to, and the part of it, 0 to 1.
    functions: list[tuple[str, float]]
    #: What that was found from.
    samples: int

    def of(self, *parts: Part) -> float:
        return sum(self.parts.get(each.name, 0.0) for each in parts)

    @property
    def waiting(self) -> float:
        """It slept, or watched the ring: what it waited for others."""
        return max(self.seconds - self.cpu, 0.0) + self.of(Part.WATCH)

    def scaled(self, figure: Figure) -> Self:
        """With these times, in the same parts."""
        factor = figure.cpu / self.cpu
        parts = {name: used * factor for name, used in self.parts.items()}
        return self._replace(seconds=1e6 / figure.rate, cpu=figure.cpu, parts=parts)


#: By workload and setting, then by daemon.
Profiles = dict[tuple[str, Setting], dict[str, Profile]]


class Stretch(NamedTuple):
    """While a daemon was looked at. Seconds, of a clock each."""

    row: tuple[str, Setting]
    begin: float
    end: float
    units: int
    seconds: float
    cpu: float
    driver: float


class Subject:
    """A daemon that is looked at, with a guest, until `stack` ends."""

    def __init__(self, stack: ExitStack, name: str, directory: Path, plan: Plan, files: Files) -> None:
        share = Path(tempfile.mkdtemp(dir=plan.where))
        self.guest = mounted(stack, name, share, plan.depth, files)
        self.name, self.output = name, directory / f"{name}-{share.name}"
        self.recorder: Perf = stack.enter_context(recorder(self.guest.daemon, self.output))
        self.usable = True
        self.stretches: list[Stretch] = []
        self.calls: dict[tuple[str, Setting], float | None] = {}

    def stretch(self, row: tuple[str, Setting], script: Script, seconds: float) -> None:
        """Warms up, and looks at the daemon for so long."""
        daemon = self.guest.daemon
        self._begin(row, script, seconds)
        with self.recorder.on():
            before, driver, begin = daemon.cpu(), time.thread_time(), time.monotonic()
            run = self.guest.run(script, seconds=seconds)
            end, driver = time.monotonic(), time.thread_time() - driver
            used = daemon.cpu_since(before)
        self.stretches.append(Stretch(row, begin, end, run.units, run.seconds, used, driver))

    def _begin(self, row: tuple[str, Setting], script: Script, seconds: float) -> None:
        if cold := WORKLOADS[row[0]].cold:
            cold(self.guest.daemon.share)
        self.guest.run(script, seconds=seconds / 5)

    def count(self, row: tuple[str, Setting], script: Script, seconds: float) -> None:
        self._begin(row, script, seconds)
        output = self.output.with_suffix(".stat")
        with counter(self.guest.daemon, output) as perf, perf.on():
            units = self.guest.run(script, seconds=seconds).units
        calls = counted(output)
        self.calls[row] = None if calls is None else calls / units

    def fail(self, row: tuple[str, Setting]) -> None:
        self.usable = False
        self.stretches = [each for each in self.stretches if each.row != row]

    def profiles(self) -> dict[tuple[str, Setting], Profile]:
        """By row. The daemon must have ended. RuntimeError when perf saw nothing of it, or does not work."""
        found = sorted_out(self.stretches, recorded(self.output))
        for (name, setting), tally in found.items():
            if not tally.parts:
                raise RuntimeError(f"perf has not seen {self.name} at {name}, depth {setting.depth}")
        return {
            row: _profile([each for each in self.stretches if each.row == row], self.calls.get(row), tally)
            for row, tally in found.items()
        }


class Tally(NamedTuple):
    parts: Counter[Part]
    functions: Counter[str]


def sorted_out(stretches: Sequence[Stretch], samples: Iterable[Sample]) -> dict[tuple[str, Setting], Tally]:
    """Samples by the row they fell in; those between two are dropped. `stretches` are in the order of time."""
    found = {each.row: Tally(Counter(), Counter()) for each in stretches}
    begins = [each.begin for each in stretches]
    for sample in samples:
        at = bisect(begins, sample.time) - 1
        if at >= 0 and sample.time <= stretches[at].end:
            tally = found[stretches[at].row]
            tally.parts[part(sample.frames)] += 1
            tally.functions[function(sample)] += 1
    return found


def function(sample: Sample) -> str:
    """By name; with the system call, if it is the kernel's, and with the file of what has no name there."""
    innermost = sample.frames[0]
    if is_kernel(innermost):
        inside = call([frame.symbol for frame in sample.frames if is_kernel(frame)])
        return f"{innermost.symbol} ({inside})" if inside else innermost.symbol
    return innermost.symbol if innermost.symbol != "[unknown]" else innermost.place


def _profile(stretches: Sequence[Stretch], calls: float | None, tally: Tally) -> Profile:
    units, total = sum(each.units for each in stretches), tally.parts.total()
    seconds, cpu, driver = (
        sum(times) / units * 1e6
        for times in zip(*((each.seconds, each.cpu, each.driver) for each in stretches), strict=True)
    )
    parts = {each.name: cpu * number / total for each, number in tally.parts.items()}
    functions = [(name, number / total) for name, number in tally.functions.most_common(KEPT)]
    return Profile(seconds, cpu, driver, calls, parts, functions, total)


def profile_all(wanted: Sequence[Wanted], plan: Plan, profiles: Profiles) -> None:
    """Adds to `profiles` what is wanted, of `plan.rounds` stretches each, with shares below `plan.where`. A peer that
    can't do a row has none. RuntimeError: there is no perf, or it does not work."""
    require()
    daemons = list(dict.fromkeys(daemon for row in wanted for daemon in row.daemons))
    workloads = list(dict.fromkeys(row.workload for row in wanted))
    plan = plan._replace(daemons=daemons, workloads=workloads, settings=[row.setting for row in wanted])
    on_fair_ground(plan, lambda part: _profile_there(wanted, part, profiles))


def _profile_there(wanted: Sequence[Wanted], plan: Plan, profiles: Profiles) -> None:
    rows = [row for row in wanted if row.workload in plan.workloads]
    cpus = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="bench-") as kept:
        with ExitStack() as stack:
            stack.callback(os.sched_setaffinity, 0, cpus)
            is_cold = any(WORKLOADS[row.workload].cold for row in rows)
            files = Files(content(), stack.enter_context(cold_file(plan.where)) if is_cold else None)
            shares = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=plan.where))
            plan = plan._replace(where=Path(shares))
            subjects: list[Subject] = []
            for number, row in enumerate(rows):
                where = f"depth {row.setting.depth}, {row.setting.placement}"
                print(f"where time goes, {number + 1} of {len(rows)}: {row.workload}, {where}", file=sys.stderr)
                usable = {subject.name: subject for subject in subjects if subject.usable}
                for name in row.daemons:
                    if name not in usable:
                        usable[name] = Subject(stack, name, Path(kept), plan, files)
                        subjects.append(usable[name])
                _look(row, [usable[name] for name in row.daemons], plan, cpus, files.content)
        for subject in subjects:
            for key, profile in subject.profiles().items():
                profiles.setdefault(key, {})[subject.name] = profile


def _look(row: Wanted, subjects: Sequence[Subject], plan: Plan, cpus: Sequence[int], content: bytes) -> None:
    """One after the other, in turn. A peer that fails is not usable any more."""
    key, workload = (row.workload, row.setting), WORKLOADS[row.workload]
    scripts: dict[str, Script] = {}
    steps: list[Callable[[Subject], None]] = [
        lambda subject: scripts.update(
            {subject.name: prepared(subject.guest, workload, row.setting.depth, content)[0]}
        ),
        *[lambda subject: subject.stretch(key, scripts[subject.name], plan.seconds)] * plan.rounds,
        lambda subject: subject.count(key, scripts[subject.name], plan.seconds / 3),
    ]
    for step in steps:
        for subject in subjects:
            if not subject.usable:
                continue
            try:
                pin(subject.guest.daemon, row.setting.placement, cpus)
                step(subject)
            except (BadReply, OSError, AssertionError, RuntimeError):  # the last: perf finds none that has ended
                if not subject.guest.daemon.kind.peer:
                    raise
                subject.fail(key)

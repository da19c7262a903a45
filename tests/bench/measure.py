"""Rounds: every daemon serves a share of its own at the same time, and each workload goes round among them.

Each round begins with another daemon, so that none is always the first, whose files and buffers get their memory before
those of the others, and who comes after the pause in which the files of a round are made.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.bench.bare import repeat
from tests.bench.daemons import ALONE, BARE, Daemon
from tests.bench.data import Workload
from tests.bench.guest import BadReply, Guest, Script
from tests.bench.share import Files, Place, cold_file, content, places, prepare
from tests.bench.volume import is_fair, journalled
from tests.bench.workloads import WORKLOADS, verify
from tests.frontend import FEATURES, MIB

#: Bytes of a share, apart from what each lane has.
SHARE_SIZE = 128 * MIB


class Setting(NamedTuple):
    """A table."""

    #: Requests in flight.
    depth: int
    #: "one" core for driver and daemon, "two", or "free": where the host lets them run.
    placement: str


#: At depth 1 a round trip across cores is mostly two wake-ups.
SETTINGS = [Setting(1, "one"), Setting(1, "two"), Setting(8, "two"), Setting(32, "two")]


class Plan(NamedTuple):
    """What is to be measured."""

    daemons: Sequence[str]
    #: Names in WORKLOADS.
    workloads: Sequence[str]
    settings: Sequence[Setting]
    rounds: int
    #: Of each figure; a fifth of it more to get warm.
    seconds: float
    #: The directory below which shares are made.
    where: Path
    #: The driver watches the ring instead of sleeping.
    spin: bool = False
    #: Keep how long requests take: it costs the driver two looks at the clock each.
    timed: bool = False

    @property
    def depth(self) -> int:
        return max(setting.depth for setting in self.settings)


class Figure(NamedTuple):
    """Of one daemon, in one round."""

    #: Units per second.
    rate: float
    #: The daemon's CPU time for one, microseconds.
    cpu: float
    #: How long half of the requests took at most, and 99 of 100, microseconds; 0: it was not asked for.
    p50: float = 0.0
    p99: float = 0.0


#: By workload and setting, then by daemon, or BARE: a figure a round.
Figures = dict[tuple[str, Setting], dict[str, list[Figure]]]


class Results(NamedTuple):
    figures: Figures
    #: By daemon: the most memory it had after any workload of a round, MiB.
    memory: dict[str, list[float]]
    #: What peers could not do: sentences.
    failures: list[str]


def pin(daemon: Daemon, placement: str, cpus: Sequence[int]) -> None:
    """Driver and daemon on one core, on different ones, or wherever the host lets them run."""
    driver, others = cpus[0], cpus[1:]
    if placement == "two" and not others:
        raise SystemExit("bench: this host has one core: --cores one")
    os.sched_setaffinity(0, cpus if placement == "free" else {driver})
    daemon.pin({"one": {driver}, "two": others, "free": cpus}[placement])


def prepared(guest: Guest, workload: Workload, depth: int, content: bytes) -> tuple[Script, Sequence[Place]]:
    """Its requests, which have been done once, and where. Raises what Guest.run does, and AssertionError when the share
    does not show what was done."""
    guest.clear()
    where = places(guest, depth)
    script = Script(guest, [workload.lane(guest, each) for each in where])
    verify(guest, workload, script, where, content)
    return script, where


def measure(guest: Guest, workload: Workload, depth: int, plan: Plan, content: bytes) -> Figure:
    """Raises what `prepared` does."""
    script, where = prepared(guest, workload, depth, content)
    if workload.cold:
        workload.cold(guest.daemon.share)
    guest.run(script, seconds=plan.seconds / 5, spin=plan.spin)
    before = guest.daemon.cpu()
    run = guest.run(script, seconds=plan.seconds, spin=plan.spin, timed=plan.timed)
    used = guest.daemon.cpu_since(before)
    if not guest.daemon.kind.alone:
        for each in where:
            workload.finished(script, each)
    latencies = [run.latency(percent) for percent in (50, 99)] if plan.timed else []
    return Figure(run.units / run.seconds, used / run.units * 1e6, *latencies)


def measure_bare(share: Path, workload: Workload, depth: int, seconds: float) -> Figure:
    """Of the system calls alone. Raises OSError."""
    if workload.cold:
        workload.cold(share)
    repeat(share, workload, depth, seconds / 5)
    done = repeat(share, workload, depth, seconds)
    return Figure(done.units / done.seconds, done.used / done.units * 1e6)


def on_fair_ground(plan: Plan, measure: Callable[[Plan], None]) -> None:
    """Has what makes inodes measured on an ext4 with a journal where there is one without."""
    makers = [name for name in plan.workloads if WORKLOADS[name].makes and not is_fair(plan.where)]
    others = [name for name in plan.workloads if name not in makers]
    if others:
        measure(plan._replace(workloads=others))
    if makers:
        size = SHARE_SIZE + plan.depth * 4 * MIB
        with journalled(plan.where, len(plan.daemons) + 1, size) as where:
            measure(plan._replace(workloads=makers, where=where))


def measure_all(plan: Plan, results: Results, keep: Callable[[], None] = lambda: None) -> None:
    """Adds to `results` figure by figure; `keep` is called after each workload."""
    on_fair_ground(plan, lambda part: _measure(part, results, keep))


def _measure(plan: Plan, results: Results, keep: Callable[[], None]) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cpus)
        is_cold = any(WORKLOADS[name].cold for name in plan.workloads)
        cold = stack.enter_context(cold_file(plan.where)) if is_cold else None
        files = Files(content(), cold)
        for number in range(plan.rounds):
            first = number % len(plan.daemons)
            order = [*plan.daemons[first:], *plan.daemons[:first]]
            Round(plan, order, results, cpus, files, f"round {number + 1} of {plan.rounds}", keep).run()


class Round(NamedTuple):
    """All workloads once, with daemons in this order."""

    plan: Plan
    order: Sequence[str]
    results: Results
    cpus: Sequence[int]
    files: Files
    title: str
    keep: Callable[[], None]

    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=self.plan.where) as directory, ExitStack() as stack:
            guests = [self._mount(stack, name, directory) for name in self.order]
            bare = Path(directory, "bare")
            prepare(bare, self.plan.depth, self.files)
            peak = dict.fromkeys(self.plan.daemons, 0.0)
            for name in self.plan.workloads:
                for setting in self.plan.settings:
                    if setting.depth > WORKLOADS[name].depth:
                        continue
                    print(f"{self.title}: {name}, depth {setting.depth}, {setting.placement}", file=sys.stderr)
                    for i, guest in enumerate(guests):
                        if not self._figure(name, setting, guest):
                            guests[i] = self._mount(stack, guest.daemon.name, directory)
                    self._bare(name, setting, bare)
                self.keep()
                for guest in guests:
                    peak[guest.daemon.name] = max(peak[guest.daemon.name], guest.daemon.memory())
            for name, most in peak.items():
                self.results.memory.setdefault(name, []).append(most)

    def _mount(self, stack: ExitStack, name: str, directory: str) -> Guest:
        own = tempfile.mkdtemp(dir=directory)
        return mounted(stack, name, Path(own), self.plan.depth, self.files)

    def _figure(self, name: str, setting: Setting, guest: Guest) -> bool:
        """False when it was a peer's and it failed, by which it is not usable any more."""
        daemon = guest.daemon
        if daemon.kind.pool and setting.depth < (2 if WORKLOADS[name].blocks else 32):
            return True
        try:
            pin(daemon, setting.placement, self.cpus)
            figure = measure(guest, WORKLOADS[name], setting.depth, self.plan, self.files.content)
        except (BadReply, OSError, AssertionError) as error:
            if not daemon.kind.peer:
                raise
            said = str(error).partition("\n")[0]
            self.results.failures.append(f"{daemon.name}, {name}, depth {setting.depth}: {said}")
            return False
        row = self.results.figures.setdefault((name, setting), {})
        row.setdefault(daemon.name, []).append(figure)
        return True

    def _bare(self, name: str, setting: Setting, share: Path) -> None:
        if ALONE in self.order and WORKLOADS[name].bare:
            figure = measure_bare(share, WORKLOADS[name], setting.depth, self.plan.seconds)
            row = self.results.figures.setdefault((name, setting), {})
            row.setdefault(BARE, []).append(figure)


def mounted(stack: ExitStack, name: str, directory: Path, depth: int, files: Files, features: int = FEATURES) -> Guest:
    """A guest on a daemon, both until `stack` ends, with a share in `directory` that has all files workloads need."""
    share = directory / "share"
    prepare(share, depth, files)
    # Not below a path that may be too long for a socket.
    sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
    daemon = stack.enter_context(Daemon(name, share, Path(sockets, "socket")))
    return stack.enter_context(Guest(daemon, features))

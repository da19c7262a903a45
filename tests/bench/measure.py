"""Rounds: every daemon serves a share of its own at the same time, and each workload goes round among them.

Each round begins with another daemon, so that none is always the first, whose files and buffers get their memory before
those of the others, and who comes after the pause in which the files of a round are made.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.bench.daemons import Daemon
from tests.bench.guest import Guest, Script
from tests.bench.workloads import WORKLOADS, Workload, content, places, prepare, verify
from tests.frontend import FEATURES


class Plan(NamedTuple):
    """What is to be measured."""

    daemons: Sequence[str]
    #: Names in WORKLOADS.
    workloads: Sequence[str]
    #: Requests in flight.
    depths: Sequence[int]
    rounds: int
    #: Of each figure; a fifth of it more to get warm.
    seconds: float
    #: The directory below which shares are made.
    where: Path
    #: The driver watches the ring instead of sleeping.
    spin: bool = False
    #: "one", "two" or "free"; "auto": one core at depth 1, two above.
    cores: str = "auto"

    def placement(self, depth: int) -> str:
        if self.cores != "auto":
            return self.cores
        return "one" if depth == 1 and not self.spin else "two"


class Figure(NamedTuple):
    """Of one daemon, in one round."""

    #: Units per second.
    rate: float
    #: The daemon's CPU time for one, microseconds.
    cpu: float


#: By workload and depth, then by daemon: a figure a round.
Figures = dict[tuple[str, int], dict[str, list[Figure]]]


class Results(NamedTuple):
    figures: Figures
    #: By daemon: the most memory it had after any workload of a round, MiB.
    memory: dict[str, list[float]]


def pin(daemon: Daemon, placement: str, cpus: Sequence[int]) -> None:
    """Driver and daemon on one core, on different ones, or wherever the host lets them run."""
    driver, others = cpus[0], cpus[1:]
    if placement == "two" and not others:
        raise SystemExit("bench: this host has one core: --cores one")
    os.sched_setaffinity(0, cpus if placement == "free" else {driver})
    daemon.pin({"one": {driver}, "two": others, "free": cpus}[placement])


def measure(guest: Guest, workload: Workload, depth: int, plan: Plan, data: bytes) -> Figure:
    """Raises what Guest.run does, and AssertionError when the share does not show what was done."""
    guest.clear()
    where = places(guest, depth)
    script = Script(guest, [workload.lane(guest, each) for each in where])
    verify(guest, workload, script, where, data)
    guest.run(script, seconds=plan.seconds / 5, spin=plan.spin)
    before = guest.daemon.cpu()
    run = guest.run(script, seconds=plan.seconds, spin=plan.spin)
    used = sum(seconds - before.get(pid, 0.0) for pid, seconds in guest.daemon.cpu().items())
    if not guest.daemon.kind.alone:
        for each in where:
            workload.finished(script, each)
    return Figure(run.units / run.seconds, used / run.units * 1e6)


def measure_all(plan: Plan) -> Results:
    results = Results({}, {name: [] for name in plan.daemons})
    cpus = sorted(os.sched_getaffinity(0))
    data = content()
    try:
        for number in range(plan.rounds):
            first = number % len(plan.daemons)
            order = [*plan.daemons[first:], *plan.daemons[:first]]
            _round(plan, order, results, cpus, data, f"round {number + 1} of {plan.rounds}")
    finally:
        os.sched_setaffinity(0, cpus)
    return results


def _round(plan: Plan, order: Sequence[str], results: Results, cpus: Sequence[int], data: bytes, title: str) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-", dir=plan.where) as directory, ExitStack() as stack:
        guests = [
            mounted(stack, name, Path(directory, str(number)), max(plan.depths), data)
            for number, name in enumerate(order)
        ]
        peak = dict.fromkeys(plan.daemons, 0.0)
        for name in plan.workloads:
            for depth in plan.depths:
                print(f"{title}: {name}, depth {depth}", file=sys.stderr)
                for guest in guests:
                    pin(guest.daemon, plan.placement(depth), cpus)
                    figure = measure(guest, WORKLOADS[name], depth, plan, data)
                    row = results.figures.setdefault((name, depth), {})
                    row.setdefault(guest.daemon.name, []).append(figure)
                    peak[guest.daemon.name] = max(peak[guest.daemon.name], guest.daemon.memory())
        for name, most in peak.items():
            results.memory[name].append(most)


def mounted(stack: ExitStack, name: str, directory: Path, depth: int, data: bytes, features: int = FEATURES) -> Guest:
    """A guest on a daemon, both until `stack` ends, with a share in `directory` that has all files workloads need."""
    share = directory / "share"
    prepare(share, depth, data)
    # Not below a path that may be too long for a socket.
    sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
    daemon = stack.enter_context(Daemon(name, share, Path(sockets, "socket")))
    return stack.enter_context(Guest(daemon, features))

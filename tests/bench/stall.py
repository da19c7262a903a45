"""How long requests take that don't block, beside one that does: reads from the page cache, and an fsync."""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.bench.data import synced
from tests.bench.guest import Guest, Script
from tests.bench.markdown import line, ruler
from tests.bench.measure import Plan, mounted, pin
from tests.bench.share import Files, content, places
from tests.bench.table import count
from tests.bench.workloads import WORKLOADS
from tests.frontend import MIB

#: Lanes that read.
READERS = 7
READ = WORKLOADS["read-4k"]
#: The first daemon's reads, when it is not asked for the fsyncs: what the host itself takes from it.
HOST = "{}, fsyncs by the host"


class Stall(NamedTuple):
    """Of one daemon, in one round. Times are in microseconds."""

    #: Reads per second, how long half of them and 99 of 100 took at most.
    rate: float
    p50: float
    p99: float
    #: Per second.
    fsyncs: float = 0.0


#: By daemon, a round each: without fsyncs, and beside them.
Stalls = dict[str, list[tuple[Stall, Stall]]]


def measure(guest: Guest, seconds: float, beside: bool) -> Stall:
    """All lanes but one read 4 KiB at a time; `beside` them, that one writes 1 MiB and has it put on the disk."""
    guest.clear()
    first, *others = places(guest, READERS + 1)
    lanes = [READ.lane(guest, place) for place in others]
    if beside:
        lanes.append(synced(guest, first, MIB)._replace(timed=False))
    script = Script(guest, lanes)
    guest.run(script, seconds=seconds / 5)
    run = guest.run(script, seconds=seconds, timed=True)
    fsyncs = script.lanes[READERS].sent / 2 if beside else 0
    return Stall(run.units / run.seconds, run.latency(50), run.latency(99), fsyncs / run.seconds)


def _write(path: Path, syncs: "multiprocessing.sharedctypes.Synchronized[int]") -> None:
    fd, data = os.open(path, os.O_WRONLY | os.O_CREAT), bytes(MIB)
    while True:
        os.pwrite(fd, data, 0)
        os.fsync(fd)
        syncs.value += 1


@contextmanager
def host_writes(path: Path, cpus: Sequence[int]) -> Iterator["multiprocessing.sharedctypes.Synchronized[int]"]:
    """A process of the host does what the last lane would have a daemon do; gives how many fsyncs it has done."""
    fork = multiprocessing.get_context("fork")
    syncs = fork.Value("Q", 0)
    writer = fork.Process(target=_write, args=(path, syncs), daemon=True)
    writer.start()
    os.sched_setaffinity(writer.pid or 0, cpus)
    try:
        yield syncs
    finally:
        writer.kill()
        writer.join()


def measure_host(guest: Guest, seconds: float, path: Path, cpus: Sequence[int]) -> Stall:
    with host_writes(path, cpus) as syncs:
        begun = time.monotonic()
        run = measure(guest, seconds, beside=False)
        return run._replace(fsyncs=syncs.value / (time.monotonic() - begun))


def measure_all(plan: Plan, stalls: Stalls) -> None:
    """Adds to `stalls` round by round; the driver has a core to itself."""
    cpus = sorted(os.sched_getaffinity(0))
    files = Files(content())
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, cpus)
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=plan.where))
        guests = [
            mounted(stack, name, Path(directory, str(number)), READERS + 1, files)
            for number, name in enumerate(plan.daemons)
        ]
        for number in range(plan.rounds):
            print(f"slow fsync, round {number + 1} of {plan.rounds}", file=sys.stderr)
            for guest in guests:
                pin(guest.daemon, "two", cpus)
                without, beside = (measure(guest, plan.seconds, each) for each in (False, True))
                stalls.setdefault(guest.daemon.name, []).append((without, beside))
                if guest is guests[0]:
                    host = measure_host(guest, plan.seconds, Path(directory, "host"), cpus[1:])
                    stalls.setdefault(HOST.format(guest.daemon.name), []).append((without, host))


def _median(rounds: Sequence[Stall]) -> Stall:
    return Stall(*map(median, zip(*rounds, strict=True)))


def _cells(stall: Stall) -> list[str]:
    return [count(stall.rate), *(f"{time:.3g}" if time < 1000 else f"{time:.0f}" for time in (stall.p50, stall.p99))]


def table(stalls: Stalls) -> str:
    heading = ["", "reads/s", "p50, µs", "p99, µs", "fsyncs/s beside", "reads/s", "p50, µs", "p99, µs", "p99 to p99"]
    lines = [line(heading), ruler(len(heading))]
    for name, rounds in stalls.items():
        without, beside = (_median(each) for each in zip(*rounds, strict=True))
        cells = [*_cells(without), count(beside.fsyncs), *_cells(beside), f"{beside.p99 / without.p99:.1f}"]
        lines.append(line([name, *cells]))
    return "\n".join(lines)

"""What daemons cost whose guests do nothing, and how long it takes until they serve one."""

import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tests.bench.daemons import KINDS, Daemon, compile_all
from tests.bench.guest import Guest
from tests.bench.markdown import line, ruler
from tests.bench.measure import Plan
from tests.fuseclient import ROOT

#: Until what daemons do by themselves after a start is done, seconds: vfsd forks the next worker.
SETTLED = 3.0


class Idle(NamedTuple):
    """Of the daemons of one kind."""

    #: CPU time that all of them used, milliseconds per second.
    cpu: float
    #: That one has, the mean, MiB.
    memory: float
    #: Milliseconds from the start until a front-end is let in, and until INIT is answered: medians.
    connected: float
    answered: float


def _mounted(stack: ExitStack, name: str, share: Path, sockets: Path) -> tuple[Daemon, float, float]:
    begin = time.perf_counter()
    daemon = stack.enter_context(Daemon(name, share, sockets))
    connected = time.perf_counter() - begin
    guest = stack.enter_context(Guest(daemon))
    answered = time.perf_counter() - begin
    # It knows the share's root, as a guest that has mounted it does.
    guest.client.getattr(ROOT)
    return daemon, connected * 1000, answered * 1000


def measure(name: str, shares: int, seconds: float, where: Path) -> Idle:
    """So many daemons, each with a guest that has mounted an empty share, for so long."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=where)))
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        mounts = []
        for number in range(shares):
            share = directory / str(number)
            share.mkdir()
            mounts.append(_mounted(stack, name, share, sockets / f"{number}.socket"))
        daemons = [daemon for daemon, _, _ in mounts]
        time.sleep(SETTLED)
        before = sum(sum(daemon.cpu().values()) for daemon in daemons)
        time.sleep(seconds)
        used = sum(sum(daemon.cpu().values()) for daemon in daemons) - before
        memory = sum(daemon.memory() for daemon in daemons) / shares
    return Idle(used / seconds * 1000, memory, *(median(times) for times in list(zip(*mounts, strict=True))[1:]))


def measure_all(plan: Plan, shares: int, idles: dict[str, Idle], seconds: float = 10.0) -> None:
    compile_all()
    for name in plan.daemons:
        if KINDS[name].alone:
            continue
        print(f"{shares} idle shares: {name}", file=sys.stderr)
        idles[name] = measure(name, shares, seconds, plan.where)


def table(idles: dict[str, Idle], shares: int) -> str:
    rows: Sequence[tuple[str, str]] = (
        ("start until a front-end is let in, ms", "connected"),
        ("start until INIT is answered, ms", "answered"),
        (f"CPU time that {shares} with idle guests use, ms per second", "cpu"),
        ("memory of each, MiB", "memory"),
    )
    lines = [line(["", *idles]), ruler(len(idles) + 1)]
    for title, field in rows:
        values = [getattr(each, field) for each in idles.values()]
        lines.append(line([title, *(f"{value:.3g}" for value in values)]))
    return "\n".join(lines)

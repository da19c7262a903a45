"""What system calls a daemon makes for each kind of request, counted by strace.

Those of waiting (poll, read) may be fewer than without it: a daemon that is held up finds the next request there.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.daemons import PATIENCE, Daemon
from tests.bench.data import Workload
from tests.bench.guest import Guest, Script
from tests.bench.markdown import line
from tests.bench.measure import Plan, mounted
from tests.bench.share import Files, content, places
from tests.bench.workloads import WORKLOADS

#: How often a lane's requests are repeated under strace, and before that, so that it is not begun with.
REPEATS = 400
#: Calls for one unit below which a call is chance, or is made once for many.
RARE = 0.05

#: Calls for one unit by name.
Calls = dict[str, float]


@contextmanager
def traced(daemon: Daemon, output: Path) -> Iterator[None]:
    """Counts the system calls of all threads the daemon has."""
    tasks = daemon.tasks()
    argv = ["strace", "-f", "-qq", "-c", "-U", "calls,name", "-o", str(output), *(f"-p{task}" for task in tasks)]
    strace = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while any("\nTracerPid:\t0\n" in Path(f"/proc/{task}/status").read_text() for task in tasks):
            if strace.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"strace can't trace {daemon.name}")
            time.sleep(0.01)
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(PATIENCE)


def counted(output: Path) -> dict[str, int]:
    """Calls by name, of a summary with two columns."""
    rows = [row.split() for row in output.read_text().splitlines()]
    return {row[1]: int(row[0]) for row in rows if len(row) == 2 and row[0].isdigit() and row[1] != "total"}


def count(guest: Guest, workload: Workload) -> Calls:
    """At depth 1."""
    guest.clear()
    script = Script(guest, [workload.lane(guest, place) for place in places(guest, 1)])
    limit = REPEATS * len(script.described[0].steps)
    guest.run(script, limit=limit)
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "calls")
        with traced(guest.daemon, output):
            units = guest.run(script, limit=limit).units
        calls = {name: number / units for name, number in counted(output).items()}
    return {name: number for name, number in calls.items() if number >= RARE}


def _cell(calls: Mapping[str, float]) -> str:
    ordered = sorted(calls.items(), key=lambda item: (-round(item[1], 1), item[0]))
    named = (name if round(number, 1) == 1 else f"{number:.1f} {name}" for name, number in ordered)
    return f"{sum(calls.values()):.1f}: {', '.join(named)}"


def table(plan: Plan) -> str:
    """A column for each daemon of the plan, a row for each workload."""
    if not shutil.which("strace"):
        raise RuntimeError("strace is not installed")
    rows = {
        name: [WORKLOADS[name].title] for name in plan.workloads if WORKLOADS[name].bare and not WORKLOADS[name].cold
    }
    files = Files(content())
    with tempfile.TemporaryDirectory(prefix="bench-", dir=plan.where) as directory:
        for number, daemon in enumerate(plan.daemons):
            with ExitStack() as stack:
                guest = mounted(stack, daemon, Path(directory, str(number)), 1, files)
                for name, cells in rows.items():
                    print(f"{daemon}: {name}", file=sys.stderr)
                    cells.append(_cell(count(guest, WORKLOADS[name])))
    heading = ["", *plan.daemons]
    return "\n".join([line(heading), "|" + "---|" * len(heading), *(line(cells) for cells in rows.values())])

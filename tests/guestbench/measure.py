"""Figures of daemons, each of which is alone in a guest of its own."""

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.bench.daemons import RUST, VFSD, C, cpu_time
from tests.guestbench.order import orders
from tests.guestbench.work import FIO_SECONDS, WORKS, Work, prepare, warm
from vfsd.guest import Guest, Settings, Share

#: Seconds that a work may take.
LIMIT = 120.0


class Kind(NamedTuple):
    """A column: the program of a daemon, None for ours, and its options."""

    program: Path | None = None
    options: Sequence[str] = ()
    source: str = ""


KINDS = {
    VFSD: Kind(),
    "Rust": Kind(RUST, source="scripts/fetch-newer"),
    "Rust, no handles": Kind(RUST, ["--inode-file-handles=never"], "scripts/fetch-newer"),
    "C": Kind(C, source="apt-get install qemu-system-common (Debian 12)"),
}


class Figure(NamedTuple):
    #: Operations per second, or the seconds that the work takes.
    value: float
    #: For which part of that time the daemon uses a processor, 0 to 1 and more.
    busy: float


#: By work, then by daemon: a figure a round.
Figures = dict[str, dict[str, list[Figure]]]


def directories(count: int, place: Path) -> list[Path]:
    """What is shared, the same files in each."""
    found = [place / str(number) for number in range(count)]
    for directory in found:
        directory.mkdir()
        prepare(directory)
    return found


def share(daemon: str, directory: Path) -> Share:
    """Raises FileNotFoundError when the daemon is not installed."""
    kind = KINDS[daemon]
    if kind.program and not kind.program.exists():
        raise FileNotFoundError(f"{daemon}: there is no {kind.program}: {kind.source}")
    program = str(kind.program) if kind.program else None
    return Share(directory, daemon=program, daemon_options=kind.options)


def cpu(guest: Guest) -> float:
    """Seconds of CPU time that the daemon's processes have used."""
    return sum(map(cpu_time, guest.daemon.processes()))


def withheld() -> tuple[int, int]:
    """Of the processors' time since the machine has booted what programs have had or could have had, and what of that
    the hypervisor gave to somebody else, in clock ticks (/proc/stat)."""
    user, nice, system, _, _, irq, softirq, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
    return user + nice + system + irq + softirq + stolen, stolen


def once(guest: Guest, work: Work) -> Figure:
    """A figure, of mounts that know nothing yet. Raises RuntimeError when the work fails, AssertionError or
    CalledProcessError when the share is not what it must be."""
    (share,) = guest.shares
    anew = f"umount {share.mount_point} && mount -t virtiofs {share.tag} {share.mount_point}"
    found, used = [], 0.0
    for _ in range(work.times):
        result = guest.run(anew, LIMIT, "/")
        if not result.status:
            used -= cpu(guest)
            result = guest.run(["bash", "-c", work.script], LIMIT)
            used += cpu(guest)
        if result.status:
            raise RuntimeError(f"{work.title}: {share.daemon or VFSD}: {result.text}{result.stderr.decode()}")
        found.append(float(result.text.splitlines()[-1]) / (1 if work.rate else 1e6))
    work.check(Path(share.directory))
    # What it has written reaches the disk now, and not while the next is at work.
    subprocess.run(["sync", "-f", share.directory], check=True)
    return Figure(statistics.mean(found), used / (FIO_SECONDS if work.rate else sum(found)))


def measure(
    daemons: Sequence[str], works: Sequence[str], rounds: int, place: Path, settings: Settings, kernel: str | None
) -> tuple[str, Figures]:
    """The guest's kernel, and the figures."""
    figures: Figures = {name: {daemon: [] for daemon in daemons} for name in works}
    for daemon in daemons:
        share(daemon, place)
    shared, turns, release = directories(len(daemons), place), orders(len(daemons)), ""

    def tell(what: str) -> None:
        print(f"round {number + 1} of {rounds}: {what}", file=sys.stderr)

    def boot(each: int, stack: ExitStack) -> Guest:
        tell(f"a guest for {daemons[each]}")
        served = share(daemons[each], shared[(each + number) % len(shared)])
        guest = stack.enter_context(Guest(served, settings=settings, kernel_name=kernel))
        result = guest.run(warm(served.tag), LIMIT)
        if result.status:
            raise RuntimeError(f"the guest's programs: {result.text}{result.stderr.decode()}")
        return guest

    for number in range(rounds):
        # A guest ends with the thread that has booted it: that of the pool, which ends last.
        with ThreadPoolExecutor(os.cpu_count()) as pool, ExitStack() as stack:
            booting = {each: pool.submit(boot, each, stack) for each in turns[number % len(turns)]}
            wait(booting.values())
            guests = {each: future.result() for each, future in booting.items()}
            release = guests[0].release
            for turn, name in enumerate(works, number):
                for each in turns[turn % len(turns)]:
                    tell(f"{name}, {daemons[each]}")
                    figures[name][daemons[each]].append(once(guests[each], WORKS[name]))
            for guest in guests.values() if "rm" not in works else ():
                guest.run("rm -rf untarred", LIMIT)
    return release, figures

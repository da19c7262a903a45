"""One guest with a share of each daemon; each work goes round among them."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench.daemons import RUST, VFSD, C
from tests.bench.markdown import line, ruler, spread
from tests.guestbench.work import WORKS, Work, prepare, warm
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

#: By work, then by daemon: a figure a round.
Figures = dict[str, dict[str, list[float]]]


def shares(daemons: Sequence[str], place: Path) -> list[Share]:
    """Raises FileNotFoundError when a daemon is not installed."""
    found = []
    for number, name in enumerate(daemons):
        kind = KINDS[name]
        if kind.program and not kind.program.exists():
            raise FileNotFoundError(f"{name}: there is no {kind.program}: {kind.source}")
        directory = place / str(number)
        directory.mkdir()
        prepare(directory)
        program = str(kind.program) if kind.program else None
        found.append(Share(directory, f"share{number}", daemon=program, daemon_options=kind.options))
    return found


def once(guest: Guest, share: Share, work: Work) -> float:
    """A figure: of a mount that knows nothing yet. Raises RuntimeError when the work fails, AssertionError or
    CalledProcessError when the share is not what it must be."""
    where = share.mount_point
    result = guest.run(f"umount {where} && mount -t virtiofs {share.tag} {where} && sync", LIMIT, cwd="/")
    if not result.status:
        result = guest.run(["bash", "-c", work.script], LIMIT, cwd=where)
    if result.status:
        raise RuntimeError(f"{work.title}: {share.daemon or VFSD}: {result.text}{result.stderr.decode()}")
    figure = float(result.text.splitlines()[-1])
    work.check(Path(share.directory))
    return figure if work.rate else figure / 1e6


def measure(
    daemons: Sequence[str], works: Sequence[str], rounds: int, place: Path, settings: Settings, kernel: str | None
) -> tuple[str, Figures]:
    """The guest's kernel, and the figures."""
    figures: Figures = {name: {daemon: [] for daemon in daemons} for name in works}
    served = shares(daemons, place)
    with Guest(*served, settings=settings, kernel_name=kernel) as guest:
        result = guest.run(warm(served[0].tag), LIMIT)
        if result.status:
            raise RuntimeError(f"the guest's programs: {result.text}{result.stderr.decode()}")
        for number in range(rounds):
            first = number % len(daemons)
            order = [*range(first, len(daemons)), *range(first)]
            for name in works:
                for each in order:
                    print(f"round {number + 1} of {rounds}: {name}, {daemons[each]}", file=sys.stderr)
                    figures[name][daemons[each]].append(once(guest, served[each], WORKS[name]))
            for share in served if "rm" not in works else ():
                guest.run(f"rm -rf {share.mount_point}/untarred", LIMIT)
        return guest.release, figures


def shown(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def table(figures: Figures) -> str:
    """Medians; the last column is above 1 where vfsd is the quickest."""
    daemons = list(next(iter(figures.values())))
    lines = [line(["", *daemons, "vfsd to the quickest peer"]), ruler(len(daemons) + 2)]
    for name, row in figures.items():
        median = {daemon: statistics.median(values) for daemon, values in row.items()}
        peers = [value for daemon, value in median.items() if daemon != VFSD]
        ratio = ""
        if VFSD in median and peers:
            ratio = f"{median[VFSD] / max(peers) if WORKS[name].rate else min(peers) / median[VFSD]:.2f}"
        lines.append(line([WORKS[name].title, *map(shown, median.values()), ratio]))
    if len(next(iter(next(iter(figures.values())).values()))) > 2:
        within = f"{spread(rounds for row in figures.values() for rounds in row.values()):.0%}"
        lines += ["", f"Half of the rounds lie within {within} of the median (of all figures, the median)."]
    return "\n".join(lines)

"""Results as Markdown: medians over the rounds, and of the rounds' ratios."""

import statistics
from collections.abc import Sequence

from tests.bench.daemons import BARE, VFSD
from tests.bench.markdown import line, ruler, spread
from tests.bench.measure import Figure, Figures, Plan, Results, Setting
from tests.bench.row import LIMIT, Row, rows
from tests.bench.workloads import WORKLOADS

PLACEMENTS = {"one": "driver and daemon on one core", "two": "driver and daemon on two cores",
              "free": "placed by the host"}  # fmt: skip


def setting_title(setting: Setting) -> str:
    return f"depth {setting.depth}, {PLACEMENTS[setting.placement]}"


def count(value: float) -> str:
    """As short as a noisy figure may be."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value < 100 * size else f"{value / size:.0f}{unit}"
    return f"{value:.3g}"


#: What vfsd is to be of the fastest peer's rate.
GOAL = 1.5

def _cell(figure: Figure | None) -> str:
    if not figure:
        return ""
    latency = f"; {figure.p50:.3g}, {figure.p99:.3g}" if figure.p99 else ""
    return f"{count(figure.rate)}; {figure.cpu:.3g}{latency}"


def _ratios(row: Row, other: str | None) -> list[str]:
    if not other or VFSD not in row or other not in row:
        return ["", ""]
    return [f"{ratio:.2f}" for ratio in row.ratio(VFSD, other)]


def compared(name: str, row: Row) -> str:
    """A line that compares vfsd with the fastest peer and the limit."""
    peer = row.fastest_peer
    cells = [_cell(row.get(VFSD)), f"{peer}: {_cell(row[peer])}" if peer else "", *_ratios(row, peer)]
    return line([WORKLOADS[name].title, *cells, _cell(row.get(LIMIT)), *_ratios(row, LIMIT)])


COMPARED = ["", "vfsd", "fastest peer", "rate: vfsd to it", "CPU: vfsd to it", "limit", "rate: vfsd to it",
            "CPU: vfsd to it"]  # fmt: skip


def everything(name: str, row: Row, columns: Sequence[str]) -> str:
    return line([WORKLOADS[name].title, *(_cell(row.get(column)) for column in columns)])


def rate_spread(figures: Figures) -> float:
    return spread([figure.rate for figure in rounds] for row in figures.values() for rounds in row.values())


def setting_tables(plan: Plan, setting: Setting, figures: Figures) -> list[str]:
    """What was measured of it, as two tables: vfsd compared, and all there is."""
    found = rows(figures, plan.workloads, setting)
    waits = "watches the ring" if plan.spin else "sleeps until it is called"
    columns = [name for name in (*plan.daemons, BARE) if any(name in row for row in found.values())]
    lines = [
        f"{setting_title(setting).capitalize()}. The driver {waits}. "
        "Operations per second; the daemon's CPU time for one, µs"
        + ("; how long half of the requests, and 99 of 100, took at most, µs." if plan.timed else "."),
        "",
    ]
    if VFSD in columns and len(columns) > 1:
        lines += [line(COMPARED), ruler(len(COMPARED)), *(compared(name, row) for name, row in found.items()), ""]
    lines += [line(["", *columns]), ruler(len(columns) + 1)]
    return [*lines, *(everything(name, row, columns) for name, row in found.items()), ""]


def table(plan: Plan, results: Results) -> str:
    """Tables for each setting, and one of memory."""
    lines = [text for setting in plan.settings for text in setting_tables(plan, setting, results.figures)]
    known = {name: statistics.median(rounds) for name, rounds in results.memory.items()}
    if known:
        lines += [line(["", *known]), ruler(len(known) + 1),
                  line(["peak memory, MiB", *(f"{most:.1f}" for most in known.values())])]  # fmt: skip
    if results.failures:
        lines += ["", "What peers could not do:", "", *(f"- {failure}" for failure in sorted(set(results.failures)))]
    if plan.rounds > 2:
        within = f"{rate_spread(results.figures):.0%}"
        lines += ["", f"Half of the {plan.rounds} rounds lie within {within} of the median (of all rates, the median)."]
    return "\n".join(lines)

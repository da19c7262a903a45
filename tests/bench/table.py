"""Results as Markdown: medians over the rounds."""

import statistics
from collections.abc import Iterable, Sequence

from tests.bench.daemons import ALONE, VFSD
from tests.bench.measure import Figure, Figures, Plan, Results
from tests.bench.workloads import WORKLOADS

PLACEMENTS = {"one": "driver and daemon on one core", "two": "driver and daemon on different cores",
              "free": "placed by the host"}  # fmt: skip


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def count(value: float) -> str:
    """As short as a noisy figure may be."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value < 100 * size else f"{value / size:.0f}{unit}"
    return f"{value:.3g}"


def rates(row: dict[str, list[Figure]]) -> dict[str, float]:
    return {name: statistics.median(figure.rate for figure in figures) for name, figures in row.items()}


def fastest_peer(median: dict[str, float]) -> float | None:
    peers = [rate for name, rate in median.items() if name != ALONE and not name.startswith(VFSD)]
    return max(peers) if peers else None


def _ratios(median: dict[str, float]) -> list[str]:
    ours, peer, limit = median.get(VFSD), fastest_peer(median), median.get(ALONE)
    return ["" if ours is None or other is None else f"{ours / other:.2f}" for other in (peer, limit)]


def spread(figures: Figures) -> float:
    """How far the rounds of a rate are apart, half of them to each side of the median: of all rates, the median."""
    apart = []
    for row in figures.values():
        for rounds in row.values():
            quarters = statistics.quantiles([figure.rate for figure in rounds], n=4, method="inclusive")
            apart.append((quarters[2] - quarters[0]) / 2 / quarters[1])
    return statistics.median(apart)


def _rows(names: Sequence[str], depth: int, figures: Figures, daemons: Sequence[str]) -> Iterable[str]:
    for name in names:
        row = figures[name, depth]
        median = rates(row)
        cells = [
            f"{count(median[daemon])}; {statistics.median(figure.cpu for figure in row[daemon]):.3g}"
            for daemon in daemons
        ]
        yield line([WORKLOADS[name].title, *cells, *_ratios(median)])


def table(plan: Plan, results: Results) -> str:
    """A table for each depth, and one of memory."""
    lines = []
    for depth in plan.depths:
        waits = "watches the ring" if plan.spin else "sleeps until it is called"
        lines += [
            f"Depth {depth}, {PLACEMENTS[plan.placement(depth)]}. The driver {waits}. "
            "Operations per second; the daemon's CPU time for one, µs.",
            "",
            line(["", *plan.daemons, "vfsd to the fastest peer", "vfsd to the ring alone"]),
            "|" + "---|" * (len(plan.daemons) + 3),
            *_rows(plan.workloads, depth, results.figures, plan.daemons),
            "",
        ]
    lines += [
        line(["", *plan.daemons]),
        "|" + "---|" * (len(plan.daemons) + 1),
        line(["peak memory, MiB", *(f"{statistics.median(results.memory[name]):.1f}" for name in plan.daemons)]),
    ]
    if plan.rounds > 2:
        within = f"{spread(results.figures):.0%}"
        lines += ["", f"Half of the {plan.rounds} rounds lie within {within} of the median (of all rates, the median)."]
    return "\n".join(lines)

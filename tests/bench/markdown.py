"""Tables of figures, and how far these are apart: what all measuring scripts print."""

import statistics
from collections.abc import Iterable, Sequence


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def ruler(columns: int) -> str:
    return "|" + "---|" * columns


def spread(series: Iterable[Sequence[float]]) -> float:
    """How far the rounds of a figure are apart, half of them to each side of the median: of all figures, the median."""
    apart = []
    for rounds in series:
        if len(rounds) > 1:
            quarters = statistics.quantiles(rounds, n=4, method="inclusive")
            if quarters[1] > 0:
                apart.append((quarters[2] - quarters[0]) / 2 / quarters[1])
    return statistics.median(apart)

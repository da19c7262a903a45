"""Whether one daemon is quicker than another, by figures that were taken in pairs, one pair a round."""

import math
import statistics
from collections.abc import Sequence
from itertools import combinations_with_replacement, count
from typing import NamedTuple

#: How likely an interval is to hold the ratio, at least.
CONFIDENCE = 0.95


class Comparison(NamedTuple):
    #: How often one is as quick as the other.
    ratio: float
    #: What that lies between; from 0 to infinity where there are too few rounds to tell.
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "level"


def left_out(rounds: int) -> int | None:
    """How many of the outermost means, at each end, an interval may leave out: the greatest sum that the ranks of the
    rounds with a ratio below 1 come to, or stay below, with less than half the probability that CONFIDENCE leaves, when
    two daemons are equal. None: that there is no such round at all has more."""
    # By sum: how many of the 2**rounds ways to put rounds below 1 have it.
    ways = [1]
    for rank in range(1, rounds + 1):
        longer = [*ways, *[0] * rank]
        for number, known in enumerate(ways):
            longer[number + rank] += known
        ways = longer
    rest, seen = (1 - CONFIDENCE) / 2 * 2**rounds, 0
    for number, known in enumerate(ways):
        seen += known
        if seen > rest:
            return number - 1 if number else None
    return None


#: Rounds below which there is no interval.
LEAST_ROUNDS = next(rounds for rounds in count(1) if left_out(rounds) is not None)


def compare(ours: Sequence[float], theirs: Sequence[float], rate: bool) -> Comparison:
    """Rates are compared as ours to theirs, times as theirs to ours: above 1 is quicker.

    Of the logarithms of the rounds' ratios, the mean of each two, and each itself, is taken: the ratio is the median of
    these means (Hodges and Lehmann), and its interval what is left of them when the outermost are left out, as many as
    Wilcoxon's signed-rank test has it. So one round that something else disturbed moves neither far, and nothing is
    assumed of how the noise is spread but that two equal daemons could change places.
    """
    logs = [math.log(mine / other if rate else other / mine) for mine, other in zip(ours, theirs, strict=True)]
    means = sorted((one + other) / 2 for one, other in combinations_with_replacement(logs, 2))
    out = left_out(len(logs))
    ratio = math.exp(statistics.median(means))
    return Comparison(ratio, 0, math.inf) if out is None else Comparison(
        ratio, math.exp(means[out]), math.exp(means[-1 - out])
    )  # fmt: skip

"""A workload in one setting: what each daemon made of it in each round, and how they compare."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from tests.bench.daemons import ALONE, BARE, KINDS, VFSD
from tests.bench.measure import Figure, Figures, Setting

#: Poses as a daemon: one that has the ring's costs and those of the system calls, one after the other.
LIMIT = "limit"


class Ratio(NamedTuple):
    """Of one daemon's figures to another's."""

    rate: float
    cpu: float


def _ratio(ours: Figure, theirs: Figure) -> Ratio:
    return Ratio(ours.rate / theirs.rate, ours.cpu / theirs.cpu)


class Row(Mapping[str, Figure]):
    """By daemon, and LIMIT where its parts are known, which is no item: the median figure. A ratio is the median of
    those of each round. That is over in a second or two; from round to round the machine itself may be half as fast
    again."""

    def __init__(self, rounds: Mapping[str, Sequence[Figure]]) -> None:
        self._rounds = dict(rounds)
        if {ALONE, BARE} <= set(rounds):
            pairs = zip(rounds[ALONE], rounds[BARE], strict=True)
            self._rounds[LIMIT] = [Figure(1 / (1 / one.rate + 1 / two.rate), one.cpu + two.cpu) for one, two in pairs]

    def __getitem__(self, name: str) -> Figure:
        return Figure(*map(statistics.median, zip(*self._rounds[name], strict=True)))

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._rounds if name != LIMIT)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def ratio(self, name: str, other: str) -> Ratio:
        """That of the medians, where one of them has failed in a round."""
        ours, theirs = self._rounds[name], self._rounds[other]
        if len(ours) != len(theirs):
            return _ratio(self[name], self[other])
        return Ratio(*map(statistics.median, zip(*map(_ratio, ours, theirs), strict=True)))

    @property
    def fastest_peer(self) -> str | None:
        peers = [name for name in self if name in KINDS and KINDS[name].peer]
        if VFSD in self:
            return min(peers, key=lambda name: self.ratio(VFSD, name).rate, default=None)
        return max(peers, key=lambda name: self[name].rate, default=None)


def rows(figures: Figures, workloads: Sequence[str], setting: Setting) -> dict[str, Row]:
    """Those of a setting, in this order."""
    return {name: Row(figures[name, setting]) for name in workloads if (name, setting) in figures}

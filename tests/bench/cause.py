"""What stands in the way of a row: a verdict that follows from where its time goes.

Rule 1. Where the limit is below the goal, it is the limit.
Rule 2. What vfsd does not have to itself is the time it waits, the copy, and what the kernel does besides, as far
        as it does as much for the peer. Where that alone takes longer than the goal leaves, it is the most of that.
Rule 3. Else it is vfsd's own: its code, and what the kernel does for it beyond what it does for the peer.
"""

from typing import NamedTuple

from tests.bench.measure import Setting
from tests.bench.parts import KERNEL, OWN, Part
from tests.bench.profile import Profile
from tests.bench.table import GOAL
from tests.bench.workloads import WORKLOADS

#: The part of its time from which on the driver, on a core of its own, has no more to give.
BUSY = 0.9

# What may be in the way, besides the parts.
LIMIT, DRIVER, DISK, ACROSS, VFSD = "the limit", "the driver", "the disk", "wake-ups across cores", "vfsd's own"


class Cause(NamedTuple):
    """A row below the goal, and what there is to explain it."""

    file_system: str
    workload: str
    setting: Setting
    peer: str
    #: The rates of vfsd and of the limit, if there is one, to the peer's: those of the tables.
    ratio: float
    bound: float | None
    ours: Profile
    #: The peer's; None: it failed.
    theirs: Profile | None

    @property
    def waits_for(self) -> str:
        """What most of the time goes to that it waits."""
        driver, workload = self.ours.driver, WORKLOADS[self.workload]
        # With one request in flight the driver's work is part of it.
        rest = self.ours.waiting - (driver if self.setting.depth == 1 else 0)
        if driver >= BUSY * self.ours.seconds or driver >= rest:
            return DRIVER
        blocks = workload.blocks or not workload.bare
        return DISK if blocks and self.file_system != "tmpfs" else ACROSS

    @property
    def shared(self) -> dict[str, float]:
        """What vfsd does not have to itself (rule 2), microseconds for one."""
        found = {each.value: min(self.ours.of(each), (self.theirs or self.ours).of(each)) for each in KERNEL}
        return {**found, Part.COPY.value: self.ours.of(Part.COPY), self.waits_for: self.ours.waiting}

    @property
    def own(self) -> dict[str, float]:
        """The rest."""
        beyond = {each.value: self.ours.of(each) - self.shared[each.value] for each in KERNEL}
        return {**{each.value: self.ours.of(each) for each in OWN}, **beyond}

    @property
    def best(self) -> float:
        """The rate to the peer's, if nothing were its own."""
        return self.ratio * self.ours.seconds / sum(self.shared.values())

    @property
    def verdict(self) -> str:
        if self.bound is not None and self.bound < GOAL:
            return LIMIT
        if self.best < GOAL:
            return max(self.shared, key=lambda name: self.shared[name])
        return VFSD

    @property
    def told(self) -> str:
        """The verdict, with the figures it follows from."""
        if self.verdict == VFSD:
            return f"{VFSD}: {self._most(self.own, 3)}; {1 - self.ratio / GOAL:.0%} would have to go"
        most = self._most(self.shared, 2)
        return f"{LIMIT}; {most}" if self.verdict == LIMIT else most

    def _most(self, spent: dict[str, float], number: int) -> str:
        ordered = sorted(spent.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {used / self.ours.seconds:.0%}" for name, used in ordered[:number])

"""The rows below the goal, looked into; and what docs/performance.md says of them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tests.bench.cause import ACROSS, DISK, DRIVER, LIMIT, VFSD, Cause
from tests.bench.daemons import VFSD as OURS
from tests.bench.markdown import line, ruler
from tests.bench.measure import Plan, Setting
from tests.bench.page import rows_of
from tests.bench.parts import KERNEL, OWN
from tests.bench.profile import Profile, Profiles, Wanted, profile_all
from tests.bench.row import LIMIT as BOUND
from tests.bench.saved import Measured
from tests.bench.table import GOAL, count, setting_title
from tests.bench.workloads import WORKLOADS

#: What is written of tables whose rows nobody has looked into.
MISSING = "Not looked into: `scripts/performance --part causes`, with perf (Debian's linux-perf)."


def wanted(measured: Measured) -> list[Wanted]:
    """The rows below the goal, each with vfsd and the fastest peer."""
    found = []
    for setting in measured.plan.settings:
        for name, row in rows_of(measured, setting).items():
            peer = row.fastest_peer
            if peer and OURS in row and row.ratio(OURS, peer).rate < GOAL:
                found.append(Wanted(name, setting, [OURS, peer]))
    return found


def look_into(measured: Measured, rounds: int, seconds: float) -> list[Cause]:
    """How long a row takes is what the tables say; what of it, is measured now. Raises RuntimeError when there is no
    perf."""
    profiles: Profiles = {}
    asked = wanted(measured)
    profile_all(asked, Plan([], [], [], rounds, seconds, measured.plan.where), profiles)
    found = []
    for name, setting, (_, peer) in asked:
        row, profile = rows_of(measured, setting)[name], profiles[name, setting]
        bound = row.ratio(BOUND, peer).rate if BOUND in row else None
        found.append(Cause(
            measured.file_system, name, setting, peer, row.ratio(OURS, peer).rate, bound,
            profile[OURS].scaled(row[OURS]), profile[peer].scaled(row[peer]) if peer in profile else None,
        ))  # fmt: skip
    return found


#: In the order of the summary: what may be in the way.
CLASSES = [LIMIT, DRIVER, ACROSS, DISK, *(each.value for each in KERNEL), VFSD]
#: A cell has vfsd's figure and the peer's.
COLUMNS = ["", "fastest peer: rate to it", "limit: rate to it", "for one, µs", "waits",
           *(each.value for each in KERNEL), "own code", f"vfsd's: {', '.join(each.value for each in OWN)}",
           "driver busy", "system calls", "rate to it with nothing its own", "most of vfsd's CPU time",
           "in the way"]  # fmt: skip
#: Functions that are named.
NAMED = 3


def _both(ours: float | None, theirs: float | None) -> str:
    return " / ".join("" if each is None else count(each) for each in (ours, theirs)).strip()


def functions(profile: Profile) -> str:
    return ", ".join(f"`{name}` {part:.0%}" for name, part in profile.functions[:NAMED])


def _line(cause: Cause) -> str:
    ours, theirs = cause.ours, cause.theirs
    bound = f"{cause.bound:.2f}" if cause.bound else ""
    groups = [*((each,) for each in KERNEL), OWN]
    return line([
        WORKLOADS[cause.workload].title, f"{cause.peer}: {cause.ratio:.2f}", bound,
        _both(ours.seconds, theirs and theirs.seconds), _both(ours.waiting, theirs and theirs.waiting),
        *(_both(ours.of(*group), theirs and theirs.of(*group)) for group in groups),
        ", ".join(count(ours.of(each)) for each in OWN), f"{min(ours.driver / ours.seconds, 1):.0%}",
        _both(ours.calls, theirs and theirs.calls), f"{cause.best:.2f}", functions(ours), cause.told,
    ])  # fmt: skip


def profile_table(profiles: Profiles) -> str:
    """Of what daemons spend their time on, whatever the rows are."""
    columns = ["", "", "for one, µs", "waits", *(each.value for each in (*KERNEL, *OWN)), "driver busy", "system calls",
               "most of the CPU time"]  # fmt: skip
    lines = [line(columns), ruler(len(columns))]
    for (name, setting), row in profiles.items():
        title = f"{WORKLOADS[name].title}, {setting_title(setting)}"
        for daemon, each in row.items():
            times = (each.seconds, each.waiting, *(each.of(part) for part in (*KERNEL, *OWN)))
            driver, calls = min(each.driver / each.seconds, 1), "" if each.calls is None else count(each.calls)
            lines.append(line([title, daemon, *map(count, times), f"{driver:.0%}", calls, functions(each)]))
    return "\n".join(lines)


def _settings(causes: Iterable[Cause]) -> dict[tuple[str, Setting], list[Cause]]:
    found: dict[tuple[str, Setting], list[Cause]] = {}
    for each in causes:
        found.setdefault((each.file_system, each.setting), []).append(each)
    return found


def _summary(causes: Sequence[Cause]) -> Iterator[str]:
    """How many rows of each table have what in the way."""
    present = [name for name in CLASSES if any(each.verdict == name for each in causes)]
    yield line(["", f"rows below {GOAL}", *present])
    yield ruler(len(present) + 2)
    for (kind, setting), rows_ in _settings(causes).items():
        tally = Counter(each.verdict for each in rows_)
        title = f"{kind}, {setting_title(setting)}"
        yield line([title, str(len(rows_)), *(str(tally[name]) for name in present)])


def table(causes: Sequence[Cause], commit: str) -> str:
    """Of all rows, and how many there are of each kind."""
    lines = [*_summary(causes), ""]
    for (kind, setting), rows_ in _settings(causes).items():
        title = f"{kind}, {setting_title(setting)}"
        lines += [f"<details><summary>{title}: row by row</summary>", "", line(COLUMNS), ruler(len(COLUMNS)),
                  *map(_line, rows_), "", "</details>", ""]  # fmt: skip
    fewest = min((each.ours.samples for each in causes), default=0)
    return "\n".join([*lines, f"vfsd at {commit}; at least {fewest} samples of it a row."])

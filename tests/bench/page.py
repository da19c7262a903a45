"""docs/performance.md: what was measured goes between marks in it; what is written there by hand stays."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.bench.daemons import RUST, VFSD, C
from tests.bench.markdown import line, ruler
from tests.bench.measure import Setting
from tests.bench.row import LIMIT, Row, rows
from tests.bench.saved import Measured
from tests.bench.table import COMPARED, GOAL, compared, everything, rate_spread, setting_title
from tests.bench.workloads import WORKLOADS


def mark(name: str) -> str:
    return f"<!-- measured: {name} -->"


END = "<!-- end -->"


def replaced(page: str, parts: Mapping[str, str]) -> str:
    """The page with these parts. Raises ValueError when it has no mark for one."""
    for name, text in parts.items():
        before, found, rest = page.partition(mark(name) + "\n")
        _, ended, after = rest.partition(END)
        if not found or not ended:
            raise ValueError(f"the page has no part {mark(name)}")
        page = f"{before}{found}{text.strip()}\n{END}{after}"
    return page


def rows_of(measured: Measured, setting: Setting) -> dict[str, Row]:
    return rows(measured.results.figures, measured.plan.workloads, setting)


def _setting(measured: Measured, setting: Setting) -> Iterator[str]:
    found = rows_of(measured, setting)
    if not found:
        return
    columns = list(dict.fromkeys(name for row in found.values() for name in row))
    yield f"### {setting_title(setting).capitalize()}\n"
    yield line(COMPARED)
    yield ruler(len(COMPARED))
    yield from (compared(name, row) for name, row in found.items())
    yield "\n<details><summary>All daemons</summary>\n"
    yield line(["", *columns])
    yield ruler(len(columns) + 1)
    yield from (everything(name, row, columns) for name, row in found.items())
    yield "\n</details>\n"


#: How far vfsd is to be from the limit.
NEAR = 1.3

SUMMARY = ["", "rows", "ahead of the fastest peer", f"{GOAL} times as fast or more", "not, nor is the limit",
           f"not, but within {NEAR} of the limit", "neither", "no more CPU time"]  # fmt: skip


def _counts(found: Mapping[str, Row]) -> list[str]:
    """Of the rows that have peers: how many there are, and how many reach what; in the order of SUMMARY."""
    counts = dict.fromkeys(SUMMARY[1:], 0)
    for row in found.values():
        peer = row.fastest_peer
        if not peer or VFSD not in row:
            continue
        ratio = row.ratio(VFSD, peer)
        if ratio.rate >= GOAL:
            verdict = SUMMARY[3]
        elif LIMIT in row and row.ratio(LIMIT, peer).rate < GOAL:
            verdict = SUMMARY[4]
        else:
            verdict = SUMMARY[5 if LIMIT in row and row.ratio(VFSD, LIMIT).rate * NEAR >= 1 else 6]
        counts[SUMMARY[1]] += 1
        counts[SUMMARY[2]] += ratio.rate >= 1
        counts[verdict] += 1
        counts[SUMMARY[7]] += ratio.cpu <= 1
    return [str(count) for count in counts.values()]


def _behind(found: Mapping[str, Row]) -> Iterator[str]:
    """The rows in which a peer is faster, and by how much."""
    for name, row in found.items():
        peer = row.fastest_peer
        if peer and VFSD in row and (ratio := row.ratio(VFSD, peer).rate) < 1:
            yield f"{WORKLOADS[name].title} ({ratio:.2f})"


def summary(measured: Measured) -> list[str]:
    """How many rows reach what, and which are behind."""
    lines, behind = [line(SUMMARY), ruler(len(SUMMARY))], []
    for setting in measured.plan.settings:
        if not (found := rows_of(measured, setting)):
            continue
        title = setting_title(setting)
        lines.append(line([title, *_counts(found)]))
        if slower := ", ".join(_behind(found)):
            behind.append(f"- {title}: {slower}")
    return [*lines, "", *(["A peer is faster, vfsd's rate to its:", "", *behind] if behind else [])]


def tables(measured: Measured) -> str:
    plan, results = measured.plan, measured.results
    lines = [*summary(measured), ""]
    for setting in plan.settings:
        lines += _setting(measured, setting)
    if results.failures:
        lines += ["What peers could not do:", "", *(f"- {each}" for each in sorted(set(results.failures))), ""]
    rounds = f"Rounds: {plan.rounds}"
    if plan.rounds > 2:
        within = f"half of which lie within {rate_spread(results.figures):.0%} of it (of all rates, the median)"
        rounds = f"Medians of {plan.rounds} rounds, {within}"
    lines.append(f"{rounds}; {plan.seconds:g} s a figure.")
    return "\n".join(lines)


def queues(measured: Measured) -> str:
    """Daemons down, workloads across: with one request queue and with more."""
    [setting] = measured.plan.settings
    found = rows_of(measured, setting)
    lines = [line(["", *(WORKLOADS[name].title for name in found)]), ruler(len(found) + 1)]
    for daemon in measured.plan.daemons:
        cells = [everything(name, row, [daemon]).split(" | ")[1].removesuffix(" |") for name, row in found.items()]
        lines.append(line([daemon, *cells]))
    return "\n".join(lines)


def _first_line(argv: Sequence[str]) -> str:
    try:
        found = subprocess.run(argv, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "none"
    return (found.stdout or found.stderr).strip().partition("\n")[0]


def machine(parts: Mapping[str, Measured], date: str) -> str:
    """What it was measured on, and what was measured."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    hypervisor = "hypervisor" in Path("/proc/cpuinfo").read_text()
    commits = ", ".join(dict.fromkeys(part.commit for part in parts.values()))
    kinds = ", ".join(f"{part.file_system} ({part.plan.where})" for part in parts.values())
    facts = {
        "measured": f"{date}, vfsd at {commits}",
        "peers": f"{_first_line([str(RUST), '--version'])} (Rust); {_first_line([str(C), '--version'])} (C)",
        "processor": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores"
        + (" of a virtual machine" if hypervisor else ""),
        "kernel": f"Linux {platform.release()}",
        "file systems": kinds,
    }
    return "\n".join([line(["", ""]), ruler(2), *(line(fact) for fact in facts.items())])

"""The figures as Markdown: what they are, and whether vfsd is slower than a peer."""

import statistics
from collections.abc import Sequence

from tests.bench.daemons import VFSD
from tests.bench.markdown import line, ruler, spread
from tests.guestbench.measure import Figure, Figures
from tests.guestbench.paired import LEAST_ROUNDS, Comparison, compare
from tests.guestbench.work import WORKS

#: Two columns with one program, whose ratio must come out level in the rows whose work is plain.
ALIKE = ("Rust", "Rust, no handles")


def _median(figures: Sequence[Figure]) -> str:
    value, busy = map(statistics.median, zip(*figures, strict=True))
    return f"{f'{value:,.0f}' if value >= 100 else f'{value:.3g}'}; {busy:.0%}"


def _compare(work: str, ours: Sequence[Figure], theirs: Sequence[Figure]) -> Comparison:
    return compare([each.value for each in ours], [each.value for each in theirs], WORKS[work].rate)


def _compare_cpu(work: str, ours: Sequence[Figure], theirs: Sequence[Figure]) -> Comparison:
    """By the CPU time that the daemons use for the same: above 1 where ours uses less."""
    rate = WORKS[work].rate
    used = [[busy / value if rate else busy * value for value, busy in each] for each in (ours, theirs)]
    return compare(*used, rate=False)


def _cell(comparison: Comparison) -> str:
    if not comparison.low:
        return f"{comparison.ratio:.2f}"
    verdict = "" if comparison.verdict == "level" else f", {comparison.verdict}"
    return f"{comparison.ratio:.2f} ({comparison.low:.2f} to {comparison.high:.2f}){verdict}"


#: What is compared, by work and by peer.
Found = list[tuple[str, str, Comparison]]


def _named(what: str, verdict: str, found: Found) -> str:
    named = [f"{work} ({peer})" for work, peer, comparison in found if comparison.verdict == verdict]
    return f"vfsd {what} than: {', '.join(named) or 'none'}."


def table(figures: Figures) -> str:
    """Medians, with the part of the time for which the daemon uses a processor; then vfsd to each peer, above 1 where
    vfsd is quicker, with the interval."""
    daemons = list(next(iter(figures.values())))
    pairs = [(VFSD, daemon) for daemon in daemons if daemon != VFSD] if VFSD in daemons else []
    alike = [ALIKE] if set(ALIKE) <= set(daemons) and any(WORKS[name].plain for name in figures) else []
    heads = ["", *daemons, *(f"{one} to {other}" for one, other in pairs + alike)]
    lines = [line(heads), ruler(len(heads))]
    times: Found = []
    cpu: Found = []
    for name, row in figures.items():
        cells = [WORKS[name].title, *map(_median, row.values())]
        for one, other in pairs:
            comparison = _compare(name, row[one], row[other])
            times.append((name, other, comparison))
            cpu.append((name, other, _compare_cpu(name, row[one], row[other])))
            cells.append(_cell(comparison))
        for one, other in alike:
            cells.append(_cell(_compare(name, row[one], row[other])) if WORKS[name].plain else "")
        lines.append(line(cells))
    rounds = len(next(iter(next(iter(figures.values())).values())))
    if rounds >= LEAST_ROUNDS:
        within = f"{spread([each.value for each in values] for row in figures.values() for values in row.values()):.0%}"
        lines += ["", f"{rounds} rounds, half of which lie within {within} of the median (of all figures, the median)."]
        if pairs:
            lines += [_named(f"is {verdict}", verdict, times) for verdict in ("slower", "faster")]
            lines.append(_named("uses more CPU time", "slower", cpu))
            lines.append(_named("uses less CPU time", "faster", cpu))
    return "\n".join(lines)

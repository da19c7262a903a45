"""The closing line of runs of pytest that went on at the same time, as one run would have had it:

    python -m tests.closing FILE...        what each of them has printed
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

#: What pytest counts, in the order in which it tells.
KINDS = ["failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error"]
#: Those that it has a plural of.
PLURALS = KINDS[-2:]
LINE = re.compile(r"=* ?(no tests ran|\d+ [a-z]+(?:, \d+ [a-z]+)*) in ([0-9.]+)s( \([^)]*\))? ?=*")


def closing(lines: Sequence[str]) -> str:
    """Of their closing lines. ValueError when one of them is none: that run has not come to its end."""
    counts: Counter[str] = Counter()
    seconds = 0.0
    for line in lines:
        found = LINE.fullmatch(line)
        if not found:
            raise ValueError(f"no closing line of pytest: {line}")
        for part in found[1].split(", "):
            number, _, kind = part.partition(" ")
            if number != "no":
                counts[kind.removesuffix("s")] += int(number)
        seconds = max(seconds, float(found[2]))
    told = [
        f"{counts[kind]} {kind}{'s' if kind in PLURALS and counts[kind] > 1 else ''}" for kind in KINDS if counts[kind]
    ]
    assert counts.total() == sum(counts[kind] for kind in KINDS), f"pytest counts what is not known here: {counts}"
    text = ", ".join(told) or "no tests ran"
    return f" {text} in {seconds:.2f}s ({timedelta(seconds=int(seconds))}) ".center(80, "=")


def last(text: str) -> str:
    """The closing line of what a run has printed, or the last line when there is none. Others may have words after it:
    what tests have started, and Python as it ends."""
    lines = text.rstrip("\n").split("\n")
    return next((line for line in reversed(lines) if LINE.fullmatch(line)), lines[-1])


if __name__ == "__main__":
    print(closing([last(Path(name).read_text()) for name in sys.argv[1:]]))

"""What the table says of figures."""

import math
import random

from tests.guestbench.measure import Figure
from tests.guestbench.table import table
from tests.guestbench.work import WORKS


def noisy(source: random.Random, scale: float = 1.0) -> list[Figure]:
    return [Figure(scale * math.exp(source.gauss(0, 0.1)), 0.25) for _ in range(8)]


def test_the_table_says_in_which_rows_vfsd_is_slower() -> None:
    source = random.Random(3)
    # Seconds; and operations per second.
    figures = {
        "rm": {"vfsd": noisy(source, 2.0), "Rust": noisy(source), "Rust, no handles": noisy(source, 4.0)},
        "read": {"vfsd": noisy(source, 2.0), "Rust": noisy(source), "Rust, no handles": noisy(source)},
    }
    lines = table(figures).splitlines()
    heads, removal, read = ([cell.strip() for cell in lines[at].split("|")[1:-1]] for at in (0, 2, 3))
    assert heads[4:] == ["vfsd to Rust", "vfsd to Rust, no handles", "Rust to Rust, no handles"]
    assert [cell.partition(", ")[2] for cell in removal[4:]] == ["slower", "faster", ""]
    assert all(cell.endswith("; 25%") for cell in removal[1:4])
    assert removal[0] == WORKS["rm"].title and removal[6] == ""
    assert [cell.partition(", ")[2] for cell in read[4:]] == ["faster", "faster", ""]
    assert read[6].startswith(("0.", "1."))
    assert lines[-4:] == [
        "vfsd is slower than: rm (Rust).",
        "vfsd is faster than: rm (Rust, no handles), read (Rust), read (Rust, no handles).",
        # For the same part of a shorter time.
        "vfsd uses more CPU time than: rm (Rust).",
        "vfsd uses less CPU time than: rm (Rust, no handles), read (Rust), read (Rust, no handles).",
    ]
    few = table({"rm": {name: values[:5] for name, values in figures["rm"].items()}})
    assert "slower" not in few

"""No daemon has a better place than another."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import pytest

from tests.guestbench import measure as measured
from tests.guestbench.order import orders, rounds_for
from vfsd.guest import Result, Settings, Share

COUNTS = range(1, 8)


@pytest.mark.parametrize("count", COUNTS)
def test_each_has_each_place_equally_often(count: int) -> None:
    found = orders(count)
    assert all(sorted(order) == list(range(count)) for order in found)
    places = Counter((place, each) for order in found for place, each in enumerate(order))
    assert len(places) == count**2 and set(places.values()) == {len(found) // count}


@pytest.mark.parametrize("count", COUNTS)
def test_each_comes_after_each_other_equally_often(count: int) -> None:
    found = orders(count)
    after = Counter(pair for order in found for pair in pairwise(order))
    assert len(after) == count * (count - 1) and len(set(after.values())) <= 1


@pytest.mark.parametrize("count", COUNTS)
def test_the_default_goes_through_all_orders(count: int) -> None:
    assert rounds_for(count) >= 6 and rounds_for(count) % len(orders(count)) == 0
    assert rounds_for(4) == 8


class Recorded:
    """Plays a guest: notes its boot, and what is run in it."""

    log: ClassVar[list[tuple[str, str, str]]] = []
    release = "none"

    def __init__(self, share: Share, settings: Settings, kernel_name: str | None) -> None:
        self.shares = [share]
        self.program = share.daemon or "vfsd"
        self.daemon = self

    def __enter__(self) -> Self:
        self.log.append(("boot", self.program, str(self.shares[0].directory)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.log.append(("end", self.program, ""))

    def processes(self) -> list[int]:
        return []

    def run(self, command: list[str] | str, timeout: float, cwd: str | None = None) -> Result:
        if isinstance(command, list):
            self.log.append(("work", self.program, command[-1]))
        return Result(0, b"1\n", b"")


def test_rounds_have_guests_of_their_own_and_orders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {name: measured.Kind(Path("/bin") / name) for name in ("true", "false", "sh", "ls")}
    monkeypatch.setattr(measured, "KINDS", kinds)
    monkeypatch.setattr(measured, "Guest", Recorded)
    monkeypatch.setattr(measured, "prepare", lambda share: None)
    monkeypatch.setattr(Recorded, "log", log := [])
    works = ["read", "find"]
    _, figures = measured.measure(list(kinds), works, 4, tmp_path, Settings(), None)
    assert all(len(values) == 4 for row in figures.values() for values in row.values())

    boots = [entry for entry in log if entry[0] == "boot"]
    assert Counter(daemon for _, daemon, _ in boots) == {f"/bin/{name}": 4 for name in kinds}
    # Each daemon has each directory once.
    assert len({(daemon, directory) for _, daemon, directory in boots}) == 16
    # All guests of a round are up while it is measured.
    kind = "".join(entry[0][0] for entry in log)
    assert kind == ("b" * 4 + "w" * (4 + 4 * measured.WORKS["find"].times) + "e" * 4) * 4
    for name in works:
        turns = [daemon for what, daemon, text in log if what == "work" and text == measured.WORKS[name].script]
        turns = turns[:: measured.WORKS[name].times]
        assert len({(number % 4, daemon) for number, daemon in enumerate(turns)}) == 16

"""What scripts/performance keeps, draws and writes."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench import page, plot, saved
from tests.bench.daemons import ALONE, BARE
from tests.bench.idle import Idle
from tests.bench.measure import Figure, Figures, Plan, Results, Setting
from tests.bench.stall import Stall
from tests.bench.workloads import WORKLOADS

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [Setting(1, "one"), Setting(32, "two")]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def measured(tmp_path: Path) -> saved.Measured:
    """vfsd is twice as fast as the fastest peer in one row of two, at depth 1."""
    row = {"vfsd": [Figure(8.0, 1.0)], "C": [Figure(4.0, 2.0)], ALONE: [Figure(20.0, 0.1)], BARE: [Figure(30.0, 0.2)]}
    slow = {"vfsd": [Figure(2.0, 4.0, 1.0, 9.0)], "Rust": [Figure(4.0, 2.0)], "C": [Figure(3.0, 2.0)]}
    figures: Figures = {("getattr", SETTINGS[0]): row, ("lookup", SETTINGS[0]): slow}
    plan = Plan(["vfsd", "Rust", "C", ALONE], ["getattr", "lookup"], SETTINGS, 1, 0.1, tmp_path)
    return saved.Measured(plan, Results(figures, {"vfsd": [3.0]}, ["C, pool, create: gone"]), "tmpfs")


def test_what_is_kept_comes_back(tmp_path: Path, measured: saved.Measured) -> None:
    path = tmp_path / "kept/memory.json"
    saved.save(path, measured.plan, measured.results)
    found = saved.load(path)
    assert (found.plan, found.results) == (measured.plan, measured.results)
    assert found.commit
    assert [each.name for each in path.parent.iterdir()] == ["memory.json"]
    stalls = {"vfsd": [(Stall(1.0, 2.0, 3.0), Stall(1.0, 2.0, 4.0, 5.0))]}
    saved.save_stalls(path, stalls)
    assert saved.load_stalls(path) == stalls
    saved.save_idles(path, {"vfsd": Idle(0.0, 20.0, 1.0, 2.0)}, 20)
    assert saved.load_idles(path) == ({"vfsd": Idle(0.0, 20.0, 1.0, 2.0)}, 20)


def test_tables_of_a_page(measured: saved.Measured) -> None:
    text = page.tables(measured)
    assert "| depth 1, driver and daemon on one core | 2 | 1 | 1 | 0 | 0 | 1 | 1 |" in text
    assert "A peer is faster, vfsd's rate to its:\n\n- depth 1, driver and daemon on one core: lookup, known" in text
    assert "| getattr | 8; 1 | C: 4; 2 | 2.00 | 0.50 | 12; 0.3 | 0.67 | 3.33 |" in text
    assert "| lookup, known inode | 2; 4; 1, 9 | Rust: 4; 2 | 0.50 | 2.00 |  |  |  |" in text
    assert "- C, pool, create: gone" in text
    assert "epth 32" not in text
    # GitHub's Markdown wants empty lines around a table in HTML.
    assert re.search(r"</summary>\n\n\|.*\|\n\n</details>", text, re.S)


@pytest.mark.parametrize(
    ("ours", "peer", "alone", "bare", "verdict"),
    [(15, 10, 100, 100, "1 | 1 | 0 | 0 | 0"), (14, 10, 28, 28, "1 | 0 | 1 | 0 | 0"),
     (14, 10, 36, 36, "1 | 0 | 0 | 1 | 0"), (9, 10, 36, 36, "0 | 0 | 0 | 0 | 1"), (9, 10, 20, 20, "0 | 0 | 1 | 0 | 0")],
)  # fmt: skip
def test_what_stands_in_the_way(
    tmp_path: Path, ours: float, peer: float, alone: float, bare: float, verdict: str
) -> None:
    rates = {"vfsd": ours, "C": peer, ALONE: alone, BARE: bare}
    figures: Figures = {("getattr", SETTINGS[0]): {name: [Figure(rate, 1.0)] for name, rate in rates.items()}}
    plan = Plan(["vfsd", "C", ALONE], ["getattr"], SETTINGS[:1], 1, 0.1, tmp_path)
    text = page.summary(saved.Measured(plan, Results(figures, {}, []), "tmpfs"))
    assert text[2] == f"| depth 1, driver and daemon on one core | 1 | {verdict} | 1 |"
    assert len(text) == (4 if ours >= peer else 7)


def test_only_what_is_between_marks_is_replaced() -> None:
    text = f"before\n{page.mark('a')}\nold\n{page.END}\nbetween\n{page.mark('b')}\n{page.END}\nafter\n"
    found = page.replaced(text, {"a": "new\n", "b": "\\1"})
    assert found == f"before\n{page.mark('a')}\nnew\n{page.END}\nbetween\n{page.mark('b')}\n\\1\n{page.END}\nafter\n"
    assert page.replaced(found, {"a": "new"}) == found
    with pytest.raises(ValueError, match="measured: c"):
        page.replaced(text, {"c": ""})


def test_the_page_has_a_place_for_each_part() -> None:
    text = (ROOT / "docs/performance.md").read_text()
    for part in ("machine", "memory", "disk", "queues", "stall", "idle", "causes"):
        assert text.count(page.mark(part)) == 1
    assert text.count(page.END) == text.count("<!-- measured: ")


def test_the_plot(measured: saved.Measured) -> None:
    found = plot.bars(measured)
    assert found["getattr", SETTINGS[0]] == plot.Bar(2.0, pytest.approx(3.0))
    assert found["lookup", SETTINGS[0]] == plot.Bar(0.5, None)
    svg = ET.fromstring(plot.plot({"tmpfs": found, "ext4 <disk>": found}, ["getattr", "lookup"], SETTINGS))
    kinds = [rect.get("class") for rect in svg.iter(f"{SVG}rect")]
    assert kinds == ["goal", "goal second", "behind", "behind second"]
    assert len([each for each in svg.iter(f"{SVG}line") if each.get("class") == "limit"]) == 2
    assert all(len(each.title) <= 42 for each in WORKLOADS.values())  # what has room left of the bars
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    assert "depth 32, two cores" in texts and "lookup, known inode" in texts and texts.count("2.00") == 2
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    for rect in svg.iter(f"{SVG}rect"):
        assert float(rect.get("x", "")) + float(rect.get("width", "")) < width
        assert float(rect.get("y", "")) + float(rect.get("height", "")) < height

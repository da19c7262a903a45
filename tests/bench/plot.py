"""Ratios as bars, in SVG: how vfsd compares with the fastest peer, and where the limit is."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree as ET

from tests.bench.daemons import VFSD
from tests.bench.measure import Setting
from tests.bench.row import LIMIT, Row
from tests.bench.saved import Measured
from tests.bench.workloads import WORKLOADS

#: Pixels.
LABELS, PANEL, GAP, BAR, HEAD, FOOT = 270, 190, 14, 11, 64, 40
#: The greatest ratio that has room.
MOST = 3.0
#: What is to be reached.
GOAL = 1.5

STYLE = """
svg { font: 12px system-ui, sans-serif; }
text { fill: #1f2328; } .faint { fill: #59636e; } .line { stroke: #d1d9e0; } .one { stroke: #59636e; }
.behind { fill: #cf6a32; } .ahead { fill: #4a90d9; } .goal { fill: #2f9e5f; } .second { opacity: .55; }
.limit { stroke: #1f2328; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .faint { fill: #9198a1; } .line { stroke: #3d444d; } .one { stroke: #9198a1; }
  .limit { stroke: #e6edf3; }
}
"""


class Bar(NamedTuple):
    """Rates, as ratios to that of the fastest peer."""

    ours: float
    #: None where it was not measured.
    limit: float | None


#: By workload and setting.
Bars = Mapping[tuple[str, Setting], Bar]


def bars(measured: Measured) -> Bars:
    found = {}
    for key, rounds in measured.results.figures.items():
        row = Row(rounds)
        peer = row.fastest_peer
        if peer and VFSD in row:
            bound = row.ratio(LIMIT, peer).rate if LIMIT in row else None
            found[key] = Bar(row.ratio(VFSD, peer).rate, bound)
    return found


def _text(parent: ET.Element, x: float, y: float, text: str, **more: str) -> None:
    ET.SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **more}).text = text


def _line(parent: ET.Element, x: float, top: float, bottom: float, kind: str) -> None:
    ET.SubElement(parent, "line", {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": f"{top:.1f}", "y2": f"{bottom:.1f}",
                                   "class": kind})  # fmt: skip


def _width(ratio: float) -> float:
    return min(ratio, MOST) / MOST * (PANEL - 2 * GAP)


def _bar(svg: ET.Element, left: float, top: float, bar: Bar, second: bool) -> None:
    kind = "behind" if bar.ours < 1 else "ahead" if bar.ours < GOAL else "goal"
    width = _width(bar.ours)
    ET.SubElement(svg, "rect", {"x": f"{left:.1f}", "y": f"{top:.1f}", "width": f"{width:.1f}", "height": str(BAR - 1),
                                "class": f"{kind} second" if second else kind})  # fmt: skip
    if bar.limit is not None:
        _line(svg, left + _width(bar.limit), top - 1, top + BAR, "limit")
    beyond = "+" if bar.ours > MOST else ""
    _text(
        svg,
        left + max(width, _width(bar.limit or 0.0)) + 4,
        top + BAR - 2,
        f"{bar.ours:.2f}{beyond}",
        **{"font-size": "9px", "class": "faint"},
    )


def _panel(svg: ET.Element, left: float, bottom: float, setting: Setting) -> None:
    cores = {"one": "one core", "two": "two cores"}.get(setting.placement, setting.placement)
    _text(svg, left, HEAD - 22, f"depth {setting.depth}, {cores}", **{"font-weight": "600"})
    for ratio in (0.0, 1.0, GOAL, 2.0, MOST):
        x = left + _width(ratio)
        _line(svg, x, HEAD - 4, bottom, "one" if ratio == 1 else "line")
        _text(svg, x, HEAD - 8, f"{ratio:g}", **{"font-size": "9px", "class": "faint", "text-anchor": "middle"})


def plot(tables: Mapping[str, Bars], names: Sequence[str], settings: Sequence[Setting]) -> str:
    """A panel for each setting, a line for each workload, and in it a bar for each of at most two tables."""
    height = BAR * len(tables) + 8
    bottom = HEAD + height * len(names)
    width = LABELS + (PANEL + GAP) * len(settings)
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {width} {bottom + FOOT}",
                             "role": "img"})  # fmt: skip
    ET.SubElement(svg, "title").text = "vfsd's operations per second, as ratios to the fastest peer's"
    ET.SubElement(svg, "style").text = STYLE
    _text(svg, 8, 18, "Operations per second: vfsd to the fastest peer of each row", **{"font-size": "14px"})
    for column, setting in enumerate(settings):
        left = LABELS + column * (PANEL + GAP)
        _panel(svg, left, bottom, setting)
        for row, name in enumerate(names):
            for number, found in enumerate(tables.values()):
                if bar := found.get((name, setting)):
                    _bar(svg, left, HEAD + height * row + 4 + BAR * number, bar, number > 0)
    for row, name in enumerate(names):
        _text(svg, LABELS - 12, HEAD + height * row + height / 2 + 4, WORKLOADS[name].title, **{"text-anchor": "end"})
    kinds = ", and paler ".join(tables)
    _text(svg, 8, bottom + 24, f"Bars: {kinds}. Orange: behind; blue: ahead; green: at least {GOAL} times. "
          "Strokes: the limit, the ring alone and the bare system calls.", **{"class": "faint"})  # fmt: skip
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode") + "\n"

"""The plots of docs/performance.md, as SVG: what a turn costs against N, and turns a second against sessions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, LEGEND = 1060, 520, 70, 46, 60, 430
# Readable on white and on black.
COLOURS = ["#d9730d", "#3b82c4", "#2f9e6e", "#a463c9", "#c9a227", "#d1495b", "#4aa3a2", "#8d6e63", "#7a8b2a", "#6c7a89"]
OURS, FLOOR = "#e0402f", "#808890"
STYLE = """
    text { font: 13px system-ui, sans-serif; fill: #3c4148 }
    .title { font-size: 16px; font-weight: 600 }
    .grid { stroke: #808890; stroke-opacity: 0.3 }
    .axis { stroke: #808890 }
    @media (prefers-color-scheme: dark) { text { fill: #c9d1d9 } }
"""


@dataclass(frozen=True)
class Series:
    """A line: `synced` false is drawn dashed and named so; `weight` 2 is drawn thick."""

    name: str
    points: dict[int, float]
    synced: bool = True
    colour: str | None = None
    weight: int = 1


@dataclass(frozen=True)
class Chart:
    """Both axes logarithmic."""

    title: str
    x: str
    y: str
    note: str
    series: list[Series]


def cost_of_a_turn(reports: dict[str, Any]) -> Chart:
    """In multiples of the floor of the contender's own run, since only those can be compared between runs."""
    journal, compare = reports.get("journal"), reports.get("compare")
    series = []
    if journal:
        full = journal["full"]["results"]
        ours = {row["messages"]: row["journal"]["ratio_to_floor"]["median"] for row in full}
        series.append(Series("floor: raw append + fdatasync", dict.fromkeys(ours, 1.0), colour=FLOOR, weight=2))
        series.append(Series("perdure, journal mode", ours, colour=OURS, weight=2))
        snapshot = _field(journal, "Session.append, snapshot")
        series.append(Series("perdure, snapshot mode", snapshot, colour="#ee8a7c", weight=2))
        series.append(Series("PythonFileSessionStore", _field(journal, "PythonFileSessionStore")))
    for name, entry in (compare["contenders"] if compare else {}).items():
        if name in ("floor", "perdure", "journal", "python") or entry["missing"] is not None:
            continue
        points = {int(size): row["ratio_to_floor"]["median"] for size, row in entry["turns"].items()}
        synced = entry["durability"]["synced"]
        said = {"synced": "", "name not synced": " (name not synced)", "not synced": " (not synced)"}
        title = entry["title"].replace("`", "") + said.get(synced, " (not known whether synced)")
        series.append(Series(title, points, synced == "synced"))
    return Chart(
        "Cost of a turn of two messages of 1 KiB",
        "messages in the session",
        "median, × one raw append + fdatasync",
        "Each against the floor of its own interleaved run.",
        [one for one in series if one.points],
    )


def _field(journal: dict[str, Any], name: str) -> dict[int, float]:
    found = ((result["messages"], result["rows"].get(name)) for result in journal["field"])
    return {messages: row["ratio_to_floor"]["median"] for messages, row in found if row}


def turns_a_second(reports: dict[str, Any]) -> Chart:
    """Durable turns of many sessions at once."""
    colours = {"raw threads": FLOOR, "save_many": OURS, "Session.append, threads": "#ee8a7c"}
    colours["AsyncSession.append, tasks"] = "#b5523f"
    results = reports["many"]["results"]
    series = []
    for name in results[0]["rows"]:
        points = {result["sessions"]: result["rows"][name]["turns_per_second"] for result in results}
        title = "floor: raw threads, append + fdatasync" if name == "raw threads" else name
        series.append(Series(title, points, colour=colours.get(name), weight=2 if name in colours else 1))
    return Chart(
        "Durable turns a second",
        "sessions at once",
        "turns a second, all sessions together",
        f"Sessions of {results[0]['messages']} messages; every turn is synced before it counts.",
        series,
    )


PLOTS = {
    "cost-of-a-turn.svg": (cost_of_a_turn, ("journal",)),
    "turns-a-second.svg": (turns_a_second, ("many",)),
}


def draw(chart: Chart) -> str:
    """The chart as SVG."""
    xs = sorted({x for one in chart.series for x in one.points})
    ys = [y for one in chart.series for y in one.points.values()]
    across = _Scale(xs[0], xs[-1], LEFT, WIDTH - LEGEND)
    up = _Scale(min(ys) / 1.25, max(ys) * 1.25, HEIGHT - BOTTOM, TOP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}">',
        f"  <style>{STYLE}  </style>",
        _text(LEFT, 24, chart.title, kind="title"),
        *_axes(chart, xs, across, up),
    ]
    others = iter(range(len(chart.series)))
    for number, one in enumerate(sorted(chart.series, key=_last, reverse=True)):
        turn, place = (0, 0) if one.colour else divmod(next(others), len(COLOURS))
        look = _Look(one.colour or COLOURS[place], 1.2 * one.weight, 1.5 + one.weight, one.synced, square=turn > 0)
        out += look.line([(across(x), up(y)) for x, y in sorted(one.points.items())])
        out += look.legend(one.name, TOP + 10 + 21 * number)
    return "\n".join([*out, "</svg>", ""])


def _last(series: Series) -> float:
    """Where it ends, as if it went on as it does: the legend is in the order of the lines."""
    size = max(series.points)
    return series.points[size]


class _Scale:
    """From values to pixels, logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> Iterable[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        few = math.log10(self.high / self.low) < 2.5
        for decade in decades:
            for step in (1, 2, 5) if few else (1,):
                if self.low <= step * 10.0**decade <= self.high:
                    yield step * 10.0**decade


def _axes(chart: Chart, xs: list[int], across: _Scale, up: _Scale) -> list[str]:
    left, right, bottom, top = across.start, across.end, up.start, up.end
    out = []
    for y in up.ticks():
        out.append(f'  <line class="grid" x1="{left}" x2="{right}" y1="{up(y)}" y2="{up(y)}"/>')
        out.append(_text(left - 8, up(y) + 4, f"{y:,.10g}", anchor="end"))
    for x in xs:
        out.append(f'  <line class="grid" x1="{across(x)}" x2="{across(x)}" y1="{top}" y2="{bottom}"/>')
        out.append(_text(across(x), bottom + 18, f"{x:,}", anchor="middle"))
    out.append(f'  <path class="axis" fill="none" d="M{left} {top}V{bottom}H{right}"/>')
    middle = (left + right) / 2
    out.append(_text(middle, bottom + 38, chart.x, anchor="middle"))
    out.append(_text(LEFT, HEIGHT - 4, chart.note))
    height = (top + bottom) / 2
    out.append(_text(16, height, chart.y, anchor="middle", more=f' transform="rotate(-90 16 {height})"'))
    return out


@dataclass(frozen=True)
class _Look:
    """How a series is drawn. When all colours are used they come again with squares."""

    colour: str
    width: float
    size: float
    synced: bool
    square: bool

    def line(self, points: list[tuple[float, float]]) -> list[str]:
        path = "M" + "L".join(f"{x} {y}" for x, y in points)
        dashes = "" if self.synced else ' stroke-dasharray="5 4"'
        line = f'  <path fill="none" stroke="{self.colour}" stroke-width="{self.width}"{dashes} d="{path}"/>'
        return [line, *(self._mark(x, y) for x, y in points)]

    def legend(self, name: str, y: float) -> list[str]:
        x = WIDTH - LEGEND + 20
        line, *_ = self.line([(x, y - 4), (x + 26, y - 4)])
        return [line, self._mark(x + 13, y - 4), _text(x + 34, y, name)]

    def _mark(self, x: float, y: float) -> str:
        r = self.size
        if self.square:
            return f'  <rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r}" height="{2 * r}" fill="{self.colour}"/>'
        return f'  <circle cx="{x}" cy="{y}" r="{r}" fill="{self.colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "", more: str = "") -> str:
    shape = f' class="{kind}"' if kind else ""
    return f'  <text{shape} x="{x}" y="{y}" text-anchor="{anchor}"{more}>{escape(text)}</text>'

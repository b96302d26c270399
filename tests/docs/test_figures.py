"""The figures and plots of README.md and docs/performance.md are those that the benchmarks wrote."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest
from doc_pages import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import figures
import plots

REPORTS = figures.load()
# Of this one there is one only when everything that takes part could be installed.
OPTIONAL = {"compare"}


def test_the_pages_and_plots_show_what_was_measured() -> None:
    script = ROOT / "tools" / "figures.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", sorted({source for source, _ in figures.SECTIONS.values()} - OPTIONAL))
def test_everything_was_measured_and_stands_on_the_page(source: str) -> None:
    assert source in REPORTS, f"run make bench: benches/results/{source}.json is missing"
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert any(f"<!-- figures:start {name}" in page for name, (its, _) in figures.SECTIONS.items() if its == source)


def _numbers(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a report that holds a measured number."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, (dict, list)):
            yield from _numbers(item)
        elif isinstance(item, (int, float)) and not isinstance(item, bool):
            yield value, key


@pytest.mark.parametrize("name", figures.SECTIONS)
def test_changed_figures_are_noticed(name: str) -> None:
    source, make = figures.SECTIONS[name]
    if source not in REPORTS:
        pytest.skip(f"{source} was not measured")
    changed = copy.deepcopy(REPORTS[source])
    for holder, key in list(_numbers(changed)):
        if key in ("median_ms", "median", "turns_per_second", "written_bytes", "instructions_per_save"):
            holder[key] = holder[key] * 3
    assert make(changed) != make(REPORTS[source])


def test_a_changed_figure_of_the_readme_is_noticed() -> None:
    changed = copy.deepcopy(REPORTS)
    changed["save"]["results"][0]["rows"]["FileSessionStore"]["median_ms"] *= 3
    assert figures.short(changed) != figures.short(REPORTS)


def test_every_table_says_where_and_how_it_was_measured() -> None:
    for name, (source, make) in figures.SECTIONS.items():
        if source in REPORTS and "where" in REPORTS[source] and source != "compare":
            where, text = REPORTS[source]["where"], make(REPORTS[source])
            assert where["file_system"] in text and where["sync"] in text and "compare the ratios" in text, name


def test_the_sizes_that_the_documentation_speaks_of_were_measured() -> None:
    assert [result["messages"] for result in REPORTS["save"]["results"]] == [10, 100, 1_000, 10_000]
    assert [row["messages"] for row in REPORTS["journal"]["full"]["results"]] == [10, 100, 1_000, 10_000, 100_000]
    assert [result["sessions"] for result in REPORTS["many"]["results"]] == [1, 4, 16, 64]
    assert {row["turns"] for row in REPORTS["amplification"]["results"]} == {500, 2_000}


@pytest.mark.parametrize("name", plots.PLOTS)
def test_a_plot_is_svg_and_shows_every_contender(name: str) -> None:
    chart = plots.PLOTS[name][0](REPORTS)
    drawn = ElementTree.fromstring(plots.draw(chart))
    texts = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {series.name for series in chart.series} <= texts
    assert {chart.x, chart.y, chart.title} <= texts
    assert f"plots/{name}" in (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def test_who_does_not_sync_is_drawn_dashed_and_says_so() -> None:
    entry = {"title": "Peer", "missing": None, "turns": {"10": {"ratio_to_floor": {"median": 2.0}}}}
    contenders = {
        "safe": {**entry, "title": "Safe", "durability": {"synced": "synced"}},
        "fast": {**entry, "title": "Fast", "durability": {"synced": "not synced"}},
    }
    chart = plots.cost_of_a_turn({"journal": REPORTS["journal"], "compare": {"contenders": contenders}})
    alone = plots.Chart(chart.title, chart.x, chart.y, chart.note, [s for s in chart.series if s.name == "Safe"])
    both = {series.name: series.synced for series in chart.series}
    assert both["Safe"] and not both["Fast (not synced)"]
    assert "stroke-dasharray" in plots.draw(chart) and "stroke-dasharray" not in plots.draw(alone)


def test_points_stand_where_their_figures_are() -> None:
    chart = plots.Chart("t", "x", "y", "", [plots.Series("a", {1: 1.0, 10: 10.0, 100: 100.0})])
    path = re.search(r'stroke-width="1.2" d="M([^"]+)"', plots.draw(chart))
    assert path is not None
    (x1, y1), (x2, y2), (x3, y3) = (map(float, point.split()) for point in path.group(1).split("L"))
    # A straight line upwards: both axes are logarithmic.
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2) and y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert x1 < x3 and y1 > y3

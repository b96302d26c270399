"""Puts the figures of benches/results/ into README.md and docs/performance.md, and draws the plots.

    python tools/figures.py [--check]

`make bench` measures and runs this. `--check` changes nothing and fails if a page or a plot differs from the figures.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benches"))
import plots

from compare.report import table as compare_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benches" / "results"
PLOT_DIRECTORY = ROOT / "docs" / "plots"
_MARKED = re.compile(r"(<!-- figures:start ?([a-z]*)[^>]*-->\n).*?(<!-- figures:end -->)", re.DOTALL)
STATISTICS = ("median", "mean", "p99")

Report = dict[str, Any]


def short(reports: dict[str, Report]) -> str:
    """README.md: one line a size."""
    parts = []
    if "save" in reports:
        head = ["messages", "file", "save", "the floor", "× floor", "pure Python", "faster than pure Python"]
        rows = []
        for result in reports["save"]["results"]:
            ours, floor = result["rows"]["FileSessionStore"], result["rows"]["floor"]
            python = result["rows"]["PythonFileSessionStore"]
            rows.append(
                [
                    f"{result['messages']:,}",
                    _size(result["file_bytes"]),
                    _ms(ours["median_ms"]),
                    _ms(floor["median_ms"]),
                    _times(ours["ratio_to_floor"]["median"]),
                    _ms(python["median_ms"]),
                    f"{_times(ours['python_store_to_it']['median'])} ×",
                ]
            )
        parts += [_table(head, rows, numbers=7), place(reports["save"])]
    if "journal" in reports:
        head = ["messages", "`Session.append`, journal mode", "one write and fdatasync of its bytes", "× that"]
        rows = [
            [
                f"{row['messages']:,}",
                _ms(row["journal"]["median_ms"]),
                _ms(row["floor"]["median_ms"]),
                _times(row["journal"]["ratio_to_floor"]["median"]),
            ]
            for row in reports["journal"]["full"]["results"]
        ]
        parts += ["In journal mode:", _table(head, rows, numbers=4), place(reports["journal"])]
    return "\n\n".join(parts)


def journal(report: Report) -> str:
    """Session.append in journal mode, synced and not, against the raw write of the bytes."""
    parts = [place(report)]
    for durability, floor in (("full", "pwrite + fdatasync"), ("process", "pwrite alone, nothing synced")):
        part = report[durability]
        head = ["messages", "floor", "journal", *(f"× floor: {name}" for name in STATISTICS)]
        head += ["mean with folds", "a fold", "turns between folds"]
        rows = []
        for row in part["results"]:
            ratio, folds = row["journal"]["ratio_to_floor"], row["folds"]
            rows.append(
                [
                    f"{row['messages']:,}",
                    _ms(row["floor"]["median_ms"]),
                    _ms(row["journal"]["median_ms"]),
                    *(_times(ratio[name]) for name in STATISTICS),
                    _times(folds["ratio_with_folds"]) + ("*" if folds["amortised"] else ""),
                    _ms(folds["mean_ms"]),
                    f"{folds['turns_between']:,.0f}",
                ]
            )
        rounds = part["results"][0]["rounds"]
        parts.append(f'**`durability="{durability}"`**, against {floor}; {rounds:,} rounds:')
        parts.append(_table(head, rows, numbers=len(head)))
        if part["slope"] is not None:
            low, high = report["slope_between"]
            between = f"between {low:,} and {high:,} messages, both axes logarithmic"
            parts.append(f"Slope of the median {between}: {part['slope']:.3f}.")
    parts.append(
        "\\* No run held two folds. They were measured on their own, the journal being filled up to its limit first, "
        "and are spread over the turns that fit into a journal."
    )
    return "\n\n".join(parts)


def field(report: Report) -> str:
    """All contenders of the journal benchmark in one run."""
    return "\n\n".join([place(report), *(_contenders(result) for result in report["field"])])


def save(report: Report) -> str:
    """Whole files."""
    return "\n\n".join([place(report), *(_contenders(result) for result in report["results"])])


def rivals(report: Report) -> str:
    """Any benchmark whose results are rows of times and ratios: resume, listings."""
    parts = [place(report), *(_contenders(result) for result in report["results"])]
    if report.get("slopes"):
        found = ", ".join(f"{name} {value:.3f}" for name, value in report["slopes"].items())
        parts.append(f"Slope of the median in the number of messages, both axes logarithmic: {found}.")
    return "\n\n".join(parts)


def many(report: Report) -> str:
    """Turns a second of many sessions at once."""
    results = report["results"]
    last = results[-1]
    head = ["", *(f"{result['sessions']}" for result in results), "share of raw threads"]
    head += [f"least of {last['runs']} runs", "most"]
    rows = []
    for name, row in last["rows"].items():
        share = row["share_of_raw"]
        rates = [f"{result['rows'][name]['turns_per_second']:,.0f}" for result in results]
        rows.append([name, *rates, *(f"{share[key]:.0%}" for key in ("median", "min", "max"))])
    folds = last["rows"]["save_many"]["folds_per_session"]
    text = (
        f"Turns a second by the number of sessions; the shares are those with {last['sessions']} sessions. "
        f"Each session has {last['messages']} messages at first and makes {last['turns']} turns a run; with perdure it "
        f"was folded {folds:.0f} times meanwhile."
    )
    return "\n\n".join([place(report), text, _table(head, rows)])


def stall(report: Report) -> str:
    """How late the event loop is."""
    head = ["", "ticks", "late: median", "p99", "most", *(f"× idle: {name}" for name in STATISTICS), "× raw write: p99"]
    rows = [
        [
            name,
            f"{row['ticks']:,}",
            *(_ms(row[key]) for key in ("median_ms", "p99_ms", "max_ms")),
            *(_times(row["ratio_to_idle"][key]) for key in STATISTICS),
            _times(row["ratio_to_raw"]["p99"]),
        ]
        for name, row in report["rows"].items()
    ]
    size = f"{report['messages']:,} messages, {_size(report['bytes'])}"
    text = f"A session of {size}; {report['saves']} saves of each kind:"
    return "\n\n".join([place(report), text, _table(head, rows)])


def amplification(report: Report) -> str:
    """Bytes written over a session."""
    head = ["mode", "turns", "messages", "written", "× the messages", "× the text in them", "whole files"]
    rows = [
        [
            row["mode"],
            f"{row['turns']:,}",
            _size(row["message_bytes"]),
            _size(row["written_bytes"]),
            _times(row["ratio_to_messages"]),
            _times(row["ratio_to_text"]),
            f"{row['stats']['snapshots']:,}",
        ]
        for row in report["results"]
    ]
    return "\n\n".join([place(report), _table(head, rows)])


def callgrind(report: Report) -> str:
    """Instructions of a save."""
    rows = [[key, f"{entry['instructions_per_save']:,}"] for key, entry in report.items()]
    return _table(["compiler", "instructions a save"], rows)


def compare(report: Report) -> str:
    """The peers, as benches/compare/ tells of them."""
    return compare_table(report)


def _contenders(result: Report) -> str:
    """Median, mean and p99 of each, and as multiples of each rival."""
    rows = result["rows"]
    rivals = [key for key in next(iter(rows.values())) if key.startswith("ratio_to_") or key == "python_store_to_it"]
    head = ["", *STATISTICS]
    for rival in rivals:
        name = rival.removeprefix("ratio_to_").replace("_", " ")
        first = "pure Python to it" if rival == "python_store_to_it" else f"× {name}"
        head += [f"{first}: {STATISTICS[0]}", *STATISTICS[1:]]
    lines = []
    for name, row in rows.items():
        figures = [_ms(row[f"{key}_ms"]) for key in STATISTICS]
        figures += [_times(row[rival][key]) if rival in row else "—" for rival in rivals for key in STATISTICS]
        lines.append([name, *figures])
    size = f", {_size(result['file_bytes'])}" if "file_bytes" in result else ""
    what = next(key for key in ("messages", "sessions") if key in result)
    return f"**{result[what]:,} {what}**{size}, {result['rounds']:,} rounds:\n\n{_table(head, lines)}"


def place(report: Report) -> str:
    """Where it was measured, and what is asked of the disk."""
    where = report["where"]
    return (
        f"perdure {report['perdure']}, {where['python']}, {where['kernel']}, {where['cpus']} × {where['cpu']}, "
        f"{where['file_system']}, load {where['load'][0]:.1f}. Sync: {where['sync']}. "
        "Machines differ in milliseconds; compare the ratios."
    )


def _table(head: list[str], rows: list[list[str]], *, numbers: int | None = None) -> str:
    """Markdown; the last `numbers` columns hold numbers (default: all but the first)."""
    numbers = len(head) - 1 if numbers is None else numbers
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows)).replace("|  |", "| |")


def _ms(value: float) -> str:
    if value < 0.1:
        return f"{value * 1e3:.1f} µs"
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def _times(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**19 else f"{count / 2**10:.0f} KiB"


# What stands behind `figures:start` in docs/performance.md: the file of figures and how it is shown.
SECTIONS: dict[str, tuple[str, Callable[[Report], str]]] = {
    "journal": ("journal", journal),
    "field": ("journal", field),
    "save": ("save", save),
    "many": ("many", many),
    "stall": ("stall", stall),
    "amplification": ("amplification", amplification),
    "resume": ("resume", rivals),
    "infos": ("infos", rivals),
    "callgrind": ("callgrind", callgrind),
    "compare": ("compare", compare),
}


def load() -> dict[str, Report]:
    """Everything that was measured."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))}


def section(name: str, reports: dict[str, Report]) -> str:
    """What belongs between the markers of this name; README.md's have none."""
    if not name:
        return short(reports)
    source, make = SECTIONS[name]
    return make(reports[source]) if source in reports else "Not measured yet."


def filled(page: Path, reports: dict[str, Report]) -> str:
    """The page with these figures between its markers."""

    def fill(marks: re.Match[str]) -> str:
        if marks.group(2) not in ("", *SECTIONS):
            sys.exit(f"{page}: no figures {marks.group(2)!r}; there are {', '.join(SECTIONS)}")
        return f"{marks.group(1)}{section(marks.group(2), reports)}\n{marks.group(3)}"

    new, count = _MARKED.subn(fill, page.read_text(encoding="utf-8"))
    if count == 0:
        sys.exit(f"{page}: no place for figures")
    return new


PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")


def files(reports: dict[str, Report]) -> dict[Path, str]:
    """Every page and plot as it has to be."""
    made = {page: filled(page, reports) for page in PAGES}
    for name, (make, needs) in plots.PLOTS.items():
        if all(source in reports for source in needs):
            made[PLOT_DIRECTORY / name] = plots.draw(make(reports))
    return made


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    for path, text in files(load()).items():
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            sys.exit(f"{path}: not the figures of {RESULTS}; run python tools/figures.py")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

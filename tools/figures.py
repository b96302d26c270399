"""Puts the figures of benches/results/save.json into README.md and docs/performance.md, between their markers.

    python tools/figures.py [--check]

`make bench` measures and runs this. `--check` changes nothing and fails if a page differs from the figures.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benches" / "results" / "save.json"
OURS, PLAIN, FLOOR = "FileSessionStore", "PythonFileSessionStore", "floor"
_MARKED = re.compile(r"(<!-- figures:start[^>]*-->\n).*?(<!-- figures:end -->)", re.DOTALL)


def short(report: dict[str, Any]) -> str:
    """README.md: one line a size."""
    lines = [
        "| messages | file | save | the floor | × floor | pure Python | faster than pure Python |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for result in report["results"]:
        rows = result["rows"]
        ours = rows[OURS]
        lines.append(
            f"| {result['messages']:,} | {_size(result['file_bytes'])} | {_ms(ours['median_ms'])} | "
            f"{_ms(rows[FLOOR]['median_ms'])} | {ours['ratio_to_floor']['median']:.2f} | "
            f"{_ms(rows[PLAIN]['median_ms'])} | {ours['python_store_to_it']['median']:.1f} × |"
        )
    return "\n".join([*lines, "", _place(report)])


def full(report: dict[str, Any]) -> str:
    """docs/performance.md: every contender."""
    parts = [_place(report)]
    for result in report["results"]:
        lines = [
            f"**{result['messages']:,} messages**, {_size(result['file_bytes'])}, {result['rounds']} rounds:",
            "",
            "| | median | mean | p99 | × floor: median | mean | p99 | pure Python to it: median | mean | p99 |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for name, row in result["rows"].items():
            figures = [_ms(row[f"{what}_ms"]) for what in ("median", "mean", "p99")]
            for ratios in (row["ratio_to_floor"], row["python_store_to_it"]):
                figures += [f"{ratios[what]:.2f}" for what in ("median", "mean", "p99")]
            lines.append(f"| {name} | {' | '.join(figures)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _place(report: dict[str, Any]) -> str:
    where = report["where"]
    return (
        f"perdure {report['perdure']}, {where['python']}, {where['kernel']}, {where['cpus']} × {where['cpu']}, "
        f"{where['file_system']}, load {where['load'][0]:.1f}. Machines differ in milliseconds; compare the ratios."
    )


def _ms(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def _size(count: int) -> str:
    return f"{count / 2**20:.2f} MiB" if count >= 2**19 else f"{count / 2**10:.0f} KiB"


PAGES = {ROOT / "README.md": short, ROOT / "docs" / "performance.md": full}


def filled(page: Path, text: str) -> str:
    """The page with these figures between its markers."""
    old = page.read_text(encoding="utf-8")
    new, count = _MARKED.subn(lambda marks: f"{marks.group(1)}{text}\n{marks.group(2)}", old)
    if count != 1:
        sys.exit(f"{page}: {count} places for figures, not one")
    return new


def main() -> None:
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    check = sys.argv[1:] == ["--check"]
    for page, make in PAGES.items():
        new = filled(page, make(report))
        if check and new != page.read_text(encoding="utf-8"):
            sys.exit(f"{page}: its figures are not those of {RESULTS}; run python tools/figures.py")
        if not check:
            page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()

"""The figures in README.md and docs/performance.md are those that the benchmark wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import figures


def test_the_pages_show_what_was_measured() -> None:
    script = ROOT / "tools" / "figures.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", figures.PAGES, ids=lambda page: page.name)
def test_a_changed_figure_is_noticed(page: Path) -> None:
    report = json.loads(figures.RESULTS.read_text(encoding="utf-8"))
    report["results"][0]["rows"][figures.OURS]["median_ms"] *= 3
    assert figures.filled(page, figures.PAGES[page](report)) != page.read_text(encoding="utf-8")


def test_the_sizes_that_the_documentation_speaks_of_were_measured() -> None:
    report = json.loads(figures.RESULTS.read_text(encoding="utf-8"))
    assert [result["messages"] for result in report["results"]] == [10, 100, 1_000, 10_000]

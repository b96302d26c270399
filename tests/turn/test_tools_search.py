"""glob and grep: what they find, what they leave alone, and that no pattern hangs them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from perdure.turn.tools import ToolBox, ToolOutcome


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    for name, text in {
        "a.py": "import os\nprint(1)\n",
        "src/b.py": "import sys\n",
        "src/deep/c.py": "IMPORT json\n",
        "src/deep/c.txt": "import nothing\n",
        ".git/config.py": "import git\n",
        "node_modules/x.py": "import x\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "bin.py").write_bytes(b"import\0binary\n")
    return tmp_path


async def run(workspace: Path, name: str, /, timeout: float = 60, **arguments: Any) -> ToolOutcome:
    return await ToolBox(workspace, timeout=timeout).run(name, arguments, tool_use_id="t1")


@pytest.mark.parametrize(
    ("pattern", "path", "found"),
    [
        ("*.py", ".", ["a.py", "bin.py"]),
        ("**/*.py", ".", ["a.py", "bin.py", "src/b.py", "src/deep/c.py"]),
        ("src/**", ".", ["src/", "src/b.py", "src/deep/", "src/deep/c.py", "src/deep/c.txt"]),
        ("**/deep/**/c.*", ".", ["src/deep/c.py", "src/deep/c.txt"]),
        ("*.py", "src", ["src/b.py"]),
        ("config.py", ".git", [".git/config.py"]),
        ("[ab]*.py", ".", ["a.py", "bin.py"]),
        ("*.rs", ".", ["[nothing matches *.rs in .]"]),
    ],
)
async def test_glob(workspace: Path, pattern: str, path: str, found: list[str]) -> None:
    outcome = await run(workspace, "glob", pattern=pattern, path=path)
    assert outcome == ToolOutcome("\n".join(found), False)


@pytest.mark.parametrize("pattern", ["../*", "/etc/*", "a/../../*", ""])
async def test_glob_pattern_cannot_leave(workspace: Path, pattern: str) -> None:
    assert (await run(workspace, "glob", pattern=pattern)).is_error


async def test_glob_with_many_stars_is_fast(workspace: Path) -> None:
    deep = workspace.joinpath(*(["d"] * 60))
    deep.mkdir(parents=True)
    (deep / ("a" * 200)).write_text("")
    started = time.monotonic()
    await run(workspace, "glob", pattern="**/d/" * 20 + "*a" * 40 + "b")
    assert time.monotonic() - started < 5


async def test_walk_does_not_follow_links(workspace: Path) -> None:
    (workspace / "loop").symlink_to(".")
    (workspace / "out").symlink_to("/etc")
    found = (await run(workspace, "glob", pattern="**/*")).content.splitlines()
    assert "out" in found
    assert not [line for line in found if line.startswith(("out/", "loop/"))]
    assert "root:" not in (await run(workspace, "grep", pattern="root:")).content


async def test_glob_is_bounded(workspace: Path) -> None:
    for number in range(2_010):
        (workspace / f"{number:04d}.many").touch()
    lines = (await run(workspace, "glob", pattern="*.many")).content.splitlines()
    assert len(lines) == 2_001
    assert "more than 2,000 paths match" in lines[-1]


async def test_grep(workspace: Path) -> None:
    outcome = await run(workspace, "grep", pattern=r"^import \w+")
    assert outcome.content.splitlines() == [
        "a.py:1:import os",
        "src/b.py:1:import sys",
        "src/deep/c.txt:1:import nothing",
        "[files not searched: 1 binary]",
    ]
    outcome = await run(workspace, "grep", pattern="import", glob="*.py", path="src", ignore_case=True)
    assert outcome.content.splitlines() == ["src/b.py:1:import sys", "src/deep/c.py:1:IMPORT json"]
    assert (await run(workspace, "grep", pattern="print", path="a.py")).content == "a.py:2:print(1)"
    assert (await run(workspace, "grep", pattern="zzz", path="src")).content == "[no matches]"
    assert (await run(workspace, "grep", pattern="x", path="none")).is_error


async def test_grep_names_a_bad_pattern(workspace: Path) -> None:
    outcome = await run(workspace, "grep", pattern="(")
    assert outcome.is_error
    assert "not a valid Python regular expression" in outcome.content


async def test_catastrophic_pattern_is_stopped(workspace: Path) -> None:
    (workspace / "evil.txt").write_text("a" * 64 + "!\n")
    started = time.monotonic()
    outcome = await run(workspace, "grep", pattern="(a+)+$", path="evil.txt", timeout=1.0)
    assert outcome.is_error
    assert "more than 1 s" in outcome.content
    assert time.monotonic() - started < 4


async def test_many_matches_and_long_lines_are_bounded(workspace: Path) -> None:
    (workspace / "many.txt").write_text("hit\n" * 200_000)
    (workspace / "wide.txt").write_text("w" * 500_000 + "\n")
    box = ToolBox(workspace, max_output=1_000_000)
    outcome = await box.run("grep", {"pattern": "hit"}, tool_use_id="t")
    assert outcome.content.count("hit") == 2000
    assert "more than 2,000 matches" in outcome.content
    wide = await box.run("grep", {"pattern": "w+", "path": "wide.txt"}, tool_use_id="t")
    assert wide.content.endswith("[... line cut]")
    assert len(wide.content) < 500


async def test_big_files_are_not_searched_and_said(workspace: Path) -> None:
    (workspace / "big.txt").write_text("needle\n" * (9 * 1024 * 1024 // 7))
    outcome = await run(workspace, "grep", pattern="needle", path="big.txt")
    assert outcome.content == "[no matches]\n[files not searched: 1 over 8 MB]"

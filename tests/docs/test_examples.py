"""Everything that README.md and docs/ show is run, in the order of the page, in an empty directory."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, Block, anchors, blocks, prose

from perdure.config import load_config

SHOWN = [block for page in PAGES for block in blocks(page)]
RUNNABLE = [page for page in PAGES if any(b.language in {"python", "console"} for b in blocks(page))]
BIN = Path(sys.executable).parent


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONWARNINGS": "error", "OPENAI_API_KEY": "sk-not-a-real-key-0000"}


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def matches(shown: str, got: str) -> bool:
    """Whether the output is what is shown; `…` stands for anything, also for several lines."""
    pattern = ".*".join(re.escape(part) for part in shown.strip("\n").split("…"))
    return re.fullmatch(pattern, got.strip("\n"), re.DOTALL) is not None


@pytest.mark.model
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_what_a_page_shows_works(page: Path, tmp_path: Path) -> None:
    last = ""
    for block in blocks(page):
        if block.language == "hcl":
            (tmp_path / _file_of(block)).write_text(block.text)
        elif block.language == "python":
            last = run([sys.executable, "-c", block.text], tmp_path)
        elif block.language == "console":
            _session(block, tmp_path)
        elif block.note == "output ends with":
            assert last.endswith(block.text), f"{block.where}: {last!r}"


def _file_of(block: Block) -> str:
    name = re.match(r"# (\S+\.hcl)\n", block.text)
    assert name is not None, f"{block.where}: the first line has to name the file"
    return name.group(1)


def _session(block: Block, cwd: Path) -> None:
    """Lines after `$ ` are commands, the lines below each its output."""
    for step in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, shown = step.partition("\n")
        got = run(shlex.split(command), cwd)
        assert matches(shown, got), f"{block.where}: {command}\n{got}"


@pytest.mark.parametrize("block", [b for b in SHOWN if b.language == "hcl"], ids=lambda block: block.where)
def test_configurations_that_are_shown_are_valid(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-real-key-0000")
    load_config(block.text).validate()


@pytest.mark.parametrize("block", [b for b in SHOWN if b.language == "sh"], ids=lambda block: block.where)
def test_commands_that_are_shown_exist(block: Block) -> None:
    """Commands that install or build: run by tests/packaging and by whoever runs this test; here their names count."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    extras = set(re.findall(r"^(\w+) = \[\"", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for line in block.text.splitlines():
        for command in (part.strip() for part in line.partition("#")[0].split("&&")):
            words = shlex.split(command)
            if words[:1] == ["make"]:
                assert words[1] in targets, command
            elif words[:2] == ["pip", "install"]:
                wanted = re.fullmatch(r"\.(?:\[(.+)\])?", words[-1])
                assert wanted is not None, command
                assert set(filter(None, (wanted.group(1) or "").split(","))) <= extras, command
            elif words:
                assert words[0] == "perdure", f"{block.where}: {command} is not checked by anything"


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    for block in SHOWN:
        # `json` and `text` describe a format or an output; they are checked where a note or a table says so.
        assert block.language in {"python", "console", "hcl", "sh", "json", "text"}, block.where
        if block.language in {"python", "console"}:
            assert block.page in RUNNABLE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.is_file(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name}: {target}"


def test_a_wrong_output_is_noticed() -> None:
    assert matches("a…c\n", "abbc\n")
    assert not matches("a…c\n", "abb\n")
    assert not matches("abc\n", "abcd\n")

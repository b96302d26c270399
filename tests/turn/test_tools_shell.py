"""bash: real processes, of which nothing is left."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from perdure.turn.tools import ToolBox, ToolOutcome

SECRET = "sk-canary-0123456789abcdef"


class Mask:
    def text(self, text: str) -> str:
        return text.replace(SECRET, "***")

    def scrub_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in environment.items() if SECRET not in value}


async def bash(workspace: Path, command: str, **options: Any) -> ToolOutcome:
    arguments = {"command": command}
    if "limit" in options:
        arguments["timeout"] = options.pop("limit")
    return await ToolBox(workspace, permissive=True, **options).run("bash", arguments, tool_use_id="t1")


def alive(marker: str) -> list[int]:
    """Processes, zombies included, whose command line holds the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


def children() -> set[str]:
    """Processes of this one, other tests' helpers among them: compare before and after."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def test_output_and_exit_code(tmp_path: Path) -> None:
    assert await bash(tmp_path, "echo out; echo err >&2; pwd") == ToolOutcome(f"out\nerr\n{tmp_path}\n", False)
    assert await bash(tmp_path, "echo no; exit 3") == ToolOutcome("no\n[exit code 3]", True)
    assert await bash(tmp_path, "true") == ToolOutcome("[no output]", False)
    assert await bash(tmp_path, "kill -SEGV $$") == ToolOutcome("[the command was killed by SIGSEGV]", True)
    assert (await bash(tmp_path, "printf '\\xff\\xfe'")).content == "\ufffd\ufffd"


def test_stdin_is_empty_whatever_the_program_has(tmp_path: Path) -> None:
    program = f"""
import asyncio
from perdure.turn.tools import ToolBox
box = ToolBox({str(tmp_path)!r}, permissive=True, timeout=3)
print(asyncio.run(box.run("bash", {{"command": "cat; echo done"}}, tool_use_id="t")).content)
"""
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    read, write = os.pipe()
    try:
        done = subprocess.run([sys.executable, "-c", program], env=path, stdin=read, capture_output=True, timeout=30)
    finally:
        os.close(read)
        os.close(write)
    assert done.stdout == b"done\n\n"


@pytest.mark.parametrize(
    "command",
    [
        "sleep 7{n}1",
        "sleep 7{n}2 & sleep 7{n}3",
        "setsid sleep 7{n}4 & sleep 7{n}5",
        "trap '' TERM; while :; do sleep 7{n}6; done",
        "exec >/dev/null 2>&1; sleep 7{n}7",
        "(setsid sh -c 'sleep 7{n}8 & wait' &) ; sleep 7{n}9",
    ],
)
async def test_timeout_kills_everything(tmp_path: Path, command: str) -> None:
    number, before = f"{os.getpid()}", children()
    started = time.monotonic()
    outcome = await bash(tmp_path, "echo before; " + command.replace("{n}", number), timeout=0.5)
    assert outcome.is_error
    assert "before" in outcome.content
    assert "more than 0.5 s" in outcome.content
    assert time.monotonic() - started < 4
    assert alive(f"sleep\x007{number}") == []
    assert children() <= before


async def test_model_can_shorten_the_limit_but_not_lengthen_it(tmp_path: Path) -> None:
    assert "more than 0.3 s" in (await bash(tmp_path, "sleep 20", limit=0.3, timeout=10)).content
    started = time.monotonic()
    assert "more than 0.4 s" in (await bash(tmp_path, "sleep 20", limit=1000, timeout=0.4)).content
    assert time.monotonic() - started < 3
    assert "greater than 0" in (await bash(tmp_path, "sleep 20", limit=-1)).content


async def test_background_process_does_not_hold_the_call(tmp_path: Path) -> None:
    started = time.monotonic()
    outcome = await bash(tmp_path, f"sleep 8{os.getpid()} & setsid sleep 8{os.getpid()} & echo up")
    assert outcome.content == "up\n[processes that the command left in the background were ended]"
    assert not outcome.is_error
    assert time.monotonic() - started < 3
    assert alive(f"sleep\x008{os.getpid()}") == []


async def test_cancellation_kills_and_passes(tmp_path: Path) -> None:
    before = children()
    task = asyncio.ensure_future(bash(tmp_path, f"touch started; setsid sleep 9{os.getpid()} & sleep 9{os.getpid()}"))
    while not (tmp_path / "started").exists():  # noqa: ASYNC110 (made by another process)
        await asyncio.sleep(0.01)
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - started < 3
    assert alive(f"sleep\x009{os.getpid()}") == []
    assert children() <= before


async def test_event_loop_is_not_blocked(tmp_path: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticker = asyncio.ensure_future(tick())
    await bash(tmp_path, "sleep 0.5")
    ticker.cancel()
    assert ticks > 20


async def test_huge_output_is_bounded_with_head_and_tail(tmp_path: Path) -> None:
    outcome = await bash(tmp_path, "echo first; seq 1 3000000; echo last", max_output=2000)
    assert outcome.content.startswith("first\n1\n2\n")
    assert outcome.content.endswith("2999999\n3000000\nlast\n")
    assert "bytes left out" in outcome.content
    assert len(outcome.content) < 2100


async def test_medium_output_is_bounded(tmp_path: Path) -> None:
    outcome = await bash(tmp_path, "seq 1 1000", max_output=500)
    assert outcome.content.startswith("1\n2\n")
    assert outcome.content.endswith("999\n1000\n")
    assert 500 < len(outcome.content) < 600


@pytest.mark.parametrize("shift", range(0, 26, 5))
async def test_secret_is_masked_wherever_the_cut_falls(tmp_path: Path, shift: int) -> None:
    (tmp_path / ".env").write_text("x" * shift + (SECRET + "\n") * 40_000)
    for command in ("cat .env", "head -n 100 .env", "head -n 800 .env"):
        outcome = await bash(tmp_path, command, masker=Mask(), max_output=1000)
        assert "***" in outcome.content
        assert "canary" not in outcome.content
        assert "0123456789" not in outcome.content


async def test_environment_is_scrubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", SECRET)
    monkeypatch.setenv("HARMLESS", "kept")
    outcome = await bash(tmp_path, "echo [$THE_KEY] [$HARMLESS]", masker=Mask())
    assert outcome.content == "[] [kept]\n"


async def test_workspace_that_vanished_is_an_error(tmp_path: Path) -> None:
    workspace = tmp_path / "gone"
    workspace.mkdir()
    box = ToolBox(workspace, permissive=True)
    workspace.rmdir()
    for tool, arguments in (
        ("bash", {"command": "true"}),
        ("ls", {}),
        ("write", {"path": "f", "content": ""}),
    ):
        outcome = await box.run(tool, arguments, tool_use_id="t")
        assert outcome.is_error
        assert "No such file or directory" in outcome.content


def test_a_program_that_exits_leaves_no_command_behind(tmp_path: Path) -> None:
    """The interpreter ends while a call is running on its thread."""
    seconds = f"6{os.getpid()}"
    program = f"""
import asyncio, sys, threading, time
from pathlib import Path
from perdure.turn.tools import ToolBox
box = ToolBox({str(tmp_path)!r}, permissive=True)
call = lambda: asyncio.run(box.run("bash", {{"command": "touch up; sleep {seconds}"}}, tool_use_id="t"))
threading.Thread(target=call, daemon=True).start()
while not Path({str(tmp_path / "up")!r}).exists():
    time.sleep(0.01)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=30,
    )
    assert done.returncode == 0
    assert alive(f"sleep\x00{seconds}") == []

"""What the tests of the command share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure import FileSessionStore, SessionData
from perdure.cli import main


@dataclass
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process, with an empty directory as the current one."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Outcome(code, said.out, said.err)

    return run


def command(*arguments: object, **more: Any) -> subprocess.Popen[bytes]:
    """The command in a process of its own."""
    environment = {**os.environ, "COLUMNS": "100"}
    return subprocess.Popen([sys.executable, "-m", "perdure", *map(str, arguments)], env=environment, **more)


def text(role: str, words: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": words}]}


def call(id: str = "call_1", name: str = "bash") -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": name, "input": {"command": "ls"}}]}


def result(id: str = "call_1", content: str = "a.txt", failed: bool = False) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": id, "content": content, "is_error": failed}
    return {"role": "user", "content": [block]}


def store(directory: Path, id: str, *messages: dict[str, Any], **fields: Any) -> SessionData:
    data = SessionData(id, messages=list(messages), **fields)
    with FileSessionStore(directory) as sessions:
        sessions.save(data)
    return data

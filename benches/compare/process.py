"""A contender's process, seen from the parent."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from compare.contenders import Contender
from compare.environments import HERE, Missing

TIMEOUT = 600


class Process:
    """Starts a contender and asks it. Use it as a context manager: what was started is ended."""

    def __init__(self, contender: Contender, python: str, home: Path, before: list[str] | None = None) -> None:
        self.contender = contender
        home.mkdir(parents=True, exist_ok=True)
        self._errors = tempfile.TemporaryFile("w+", errors="replace", dir=home)  # noqa: SIM115
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
        environment |= {
            "HOME": str(home),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AGNO_TELEMETRY": "false",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
            "LANGSMITH_TRACING": "false",
        }
        self._process = subprocess.Popen(
            [*(before or []), python, str(HERE / "child.py"), contender.module, contender.kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=home,
            env=environment,
        )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One command and its answer. Raises `Missing` with the contender's own words if it cannot."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise Missing(f"its process ended: {self._last_words()}") from error
        if not self._selector.select(TIMEOUT):
            self._process.kill()  # a late answer must not be taken for that of the next command
            raise Missing(f"no answer to {command!r} within {TIMEOUT} s")
        line = self._process.stdout.readline()
        if not line:
            raise Missing(f"its process ended at {command!r}: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Missing(f"{command}: {answer['error']}")
        return answer["ok"]

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else "without a word"

    def end(self) -> None:
        """Closes its input and waits; a process that does not go is killed."""
        self._selector.close()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

"""The child process as the parent sees it: its reports, and its end at a chosen moment."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import perdure
from perdure.cli.demo.verify import Acknowledged
from perdure.errors import PerdureError

__all__ = ["KINDS", "Child", "DemoError", "Moment"]

KINDS = ("streaming", "saved", "tool", "waiting", "anytime")
_PATIENCE = 90.0  # seconds for a child to come to its moment; then it is killed wherever it is


class DemoError(PerdureError):
    """The demo itself could not go on; nothing is said about saving."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When to kill: once reports of one kind came `count` times from `turn` on, and `delay` seconds later."""

    kind: str
    report: str
    count: int
    turn: int
    delay: float

    @classmethod
    def choose(cls, kind: str, dice: random.Random) -> Moment:
        """A moment of a kind, else at random."""
        turn = dice.randrange(2)
        if kind == "streaming":
            return cls(kind, "delta", dice.randint(1, 8), turn, dice.uniform(0, 0.02))
        if kind == "saved":
            # At once, or a little later: in the middle of the save after it.
            return cls(kind, "saved", dice.randint(1, 5), 0, dice.choice((0.0, dice.uniform(0, 0.006))))
        if kind == "tool":
            return cls(kind, "tool", 1, turn, dice.uniform(0, 0.5))
        if kind == "waiting":
            return cls(kind, "asked", 1, turn, dice.uniform(0, 0.03))
        return cls(kind, "opened", 1, 0, dice.uniform(0.05, 2.5))


class Child:
    """One process of `perdure.cli.demo.child`. It imports the model layer at once and then waits for its order."""

    def __init__(self, directory: Path) -> None:
        package = str(Path(perdure.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "perdure.cli.demo.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            cwd=directory,
            env={**os.environ, "PYTHONPATH": path},
        )
        self.pid = self._process.pid
        self.was_killed = False

    def kill(self) -> None:
        """SIGKILL: no handler, no clean-up, no last words."""
        self.was_killed = self.was_killed or self._process.poll() is None
        self._process.kill()

    def close(self) -> None:
        """End it, wherever it is, and leave nothing of it."""
        self.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass

    def run(self, order: Mapping[str, Any], moment: Moment, acknowledged: Acknowledged) -> str:
        """Give the order, note every save that is reported, kill at the moment. Says what it was doing then.

        Raises `DemoError` if the process ended by itself.
        """
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        impatience = threading.Timer(_PATIENCE, self.kill)
        impatience.daemon = True
        impatience.start()
        last: dict[str, Any] = {}
        pieces = seen = 0
        struck = False
        try:
            # To the end of the pipe: what it reported before it died counts, also what is read after.
            for line in process.stdout:
                if not line.endswith(b"\n"):
                    break  # it died while it spoke
                report = json.loads(line)
                now = report["now"]
                if now == "saved":
                    acknowledged.saved(report["revision"], report["first"], report["digests"])
                pieces = pieces + 1 if now == "delta" else 0
                last = report
                seen += now == moment.report and report.get("turn", moment.turn) >= moment.turn
                if now == moment.report and seen == moment.count and not struck:
                    struck = True
                    # On a clock of its own, so that reports are read meanwhile and the pipe cannot fill up.
                    threading.Timer(moment.delay, self.kill).start()
            process.wait()
        finally:
            impatience.cancel()
        if not self.was_killed:
            raise DemoError(f"the process that was to be killed ended by itself: {self._said()}")
        return _doing(last, pieces)

    def _said(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"status {self._process.returncode}"


def _doing(last: Mapping[str, Any], pieces: int) -> str:
    now = last.get("now")
    if now == "delta":
        return f"while the reply was streaming, {pieces} pieces in"
    if now == "saved":
        return f"right after revision {last['revision']} was saved"
    if now == "tool":
        return "while a tool was running"
    if now == "asked":
        return "while it waited for the model"
    if now == "prompt":
        return "while a prompt was being saved"
    return "before its first step" if now == "opened" else "while it opened the session"

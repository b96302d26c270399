"""The process that the demo kills: talks to the model with auto-save, and reports each save once it is acknowledged.

It reads one line of JSON that says what to do, and never ends by itself while somebody listens.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from perdure import Agent, Session, SessionOptions
from perdure.cli.demo.verify import digest

PROMPTS = (
    "Name an animal.",
    "What is the capital of France?",
    "Name a colour.",
    "What is two plus three?",
    "Name a fruit.",
    "Name a planet.",
    "What do bees make?",
    "Name a musical instrument.",
    "What is the opposite of hot?",
    "Name a tree.",
)


def say(**fields: Any) -> None:
    """One line to the parent, in one write: it is there whole or not at all."""
    os.write(1, json.dumps(fields).encode() + b"\n")


class _Child:
    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._workspace = Path(order["workspace"])
        self._session: Session = Agent.create(order["config"]).session(
            self._workspace,
            SessionOptions(
                file_session_store=order["store"],
                session_id=order["id"],
                auto_save=True,
                resume=True,
                tools=[],
                # Short replies, so that a round does not take long.
                system_prompt="Answer in one short sentence.",
                temperature=0.0,
            ),
        )
        self._reported = len(self._session.history())

    def run(self) -> None:
        say(now="opened")
        for turn in itertools.count():
            if turn == self._order["tool_turn"]:
                self._tool_step()
            prompt = PROMPTS[(self._order["round"] * 3 + turn) % len(PROMPTS)]
            say(now="prompt")
            asked = False
            for event in self._session.stream(prompt):
                if event.type == "text_delta":
                    say(now="delta", turn=turn)
                elif event.type == "saved":
                    self._report(event.revision)
                    if not asked:
                        say(now="asked", turn=turn)
                    asked = True

    def _report(self, revision: int | None) -> None:
        history = self._session.history()
        new = [digest(history[at]) for at in range(self._reported, len(history))]
        say(now="saved", revision=revision, first=self._reported, digests=new)
        self._reported = len(history)

    def _tool_step(self) -> None:
        """A tool call as an agent loop of one's own records it: the model is too small to call tools."""
        number = self._order["round"]
        call = f"call_{number}"
        # The number keeps the messages of the rounds apart: one that is there twice would be noticed.
        self._append("user", {"type": "text", "text": f"Take the checksum of notes.txt, take {number}."})
        name, arguments = "checksum", {"path": "notes.txt"}
        self._append("assistant", {"type": "tool_use", "id": call, "name": name, "input": arguments})
        say(now="tool")
        result = _checksum(self._workspace / "notes.txt", seconds=1.0)
        self._append("user", {"type": "tool_result", "tool_use_id": call, "content": result, "is_error": False})

    def _append(self, role: str, block: dict[str, Any]) -> None:
        self._session.append({"role": role, "content": [block]})  # returns once it is on disk
        self._report(self._session.data.revision)


def _checksum(path: Path, seconds: float) -> str:
    """The file's SHA-256, read and hashed over and over, to give the parent time to strike."""
    end = time.monotonic() + seconds
    while True:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if time.monotonic() >= end:
            return found


def main() -> None:
    """Import what a turn needs, wait for the order, go."""
    import perdure.turn.loop
    import perdure.turn.models  # noqa: F401

    say(now="ready")
    line = sys.stdin.readline()
    if line:
        try:
            _Child(json.loads(line)).run()
        except BrokenPipeError:
            pass  # the parent is gone


if __name__ == "__main__":
    main()

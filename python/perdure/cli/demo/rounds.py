"""The rounds of the demo: kill, look, resume, go on."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perdure import Agent, Session, SessionOptions
from perdure._core import FileSessionStore
from perdure.checking import check_directory
from perdure.cli.demo.child import PROMPTS
from perdure.cli.demo.process import KINDS, Child, Moment
from perdure.cli.demo.verify import Acknowledged, digest, lost_or_mixed
from perdure.cli.term import cut, one_line
from perdure.errors import PerdureError
from perdure.options import new_session_id
from perdure.stores._plain_names import stem_of
from perdure.stores.python_file import PythonFileSessionStore
from perdure.turn.local import start_local

__all__ = ["Demo"]

_FULL = 3000  # tokens of the local model's 4,096: then the conversation moves on to a new session
_WIDTH = 100


class Demo:
    """Ten times (or `rounds`): a child process talks, is killed at random, and the session is resumed here.

    directory  where the workspace and the sessions go; kept afterwards
    say        takes each line of the output
    tamper     for tests: called with the session's file after each kill, to lose something on purpose
    """

    def __init__(
        self,
        directory: Path,
        *,
        rounds: int,
        seed: int,
        say: Callable[[str], object],
        tamper: Callable[[Path], object] | None = None,
    ) -> None:
        self._directory = directory
        self._rounds = rounds
        self._seed = seed
        self._say = say
        self._tamper = tamper
        self._dice = random.Random(seed)
        self._workspace = directory / "workspace"
        self._store = directory / "sessions"
        self._config = ""
        self._begin()

    def _begin(self) -> None:
        """A new session of which nothing is acknowledged yet."""
        self._id = f"demo-{new_session_id()}"
        self._acknowledged = Acknowledged()

    @property
    def _path(self) -> Path:
        return self._store / f"{stem_of(self._id)}.json"

    def run(self) -> bool:
        """Whether every acknowledged step was there after every kill."""
        begun = time.monotonic()
        self._workspace.mkdir(exist_ok=True)
        (self._workspace / "notes.txt").write_text("perdure: to endure\n", encoding="utf-8")
        self._say(f"A session on the local model SmolLM2-135M, killed with SIGKILL {self._rounds} times.")
        self._say("The child process saves each step and reports it; this process kills the child, reads the")
        self._say("file with a second reader that shares no code with the first, resumes and goes on talking.")
        self._say("The model is too small to call tools: the tool calls are the demo's own, made with append().")
        self._say(f"directory {self._directory}   seed {self._seed}")
        # The model's server belongs to this process: what is killed is the agent, not the model.
        url = start_local().base_url
        provider = {"name": "local", "base_url": url, "models": [{"id": "smollm2", "limit": {"output": 60}}]}
        self._config = json.dumps({"default_model": "local/smollm2", "providers": [provider]})
        wrong: list[str] = []
        saves = 0
        kinds = self._kinds()
        child = Child(self._directory)
        try:
            for number in range(1, self._rounds + 1):
                running = child
                try:
                    # The next one imports the model layer meanwhile.
                    if number < self._rounds:
                        child = Child(self._directory)
                    before = self._acknowledged.saves
                    found = self._round(number, running, kinds[number - 1])
                    saves += self._acknowledged.saves - before
                finally:
                    running.close()
                wrong += [f"round {number}: {what}" for what in found]
                if found:
                    break  # what comes after a loss says nothing any more
        finally:
            child.close()
        wrong += self._left_over()
        self._show_file()
        seconds = time.monotonic() - begun
        self._say("")
        if wrong:
            for what in wrong:
                self._say(f"  {what}")
            self._say(f"FAILED after {seconds:.0f} s: see above; the files are in {self._store}")
            return False
        self._say(
            f"PASSED in {seconds:.0f} s: {self._rounds} kills, {saves} acknowledged saves, nothing lost, nothing mixed"
        )
        return True

    def _kinds(self) -> list[str]:
        """Every kind of moment once before any comes again; the three that matter most come first."""
        kinds: list[str] = []
        first = list(KINDS[:3])
        self._dice.shuffle(first)
        kinds += first
        while len(kinds) < self._rounds:
            more = list(KINDS)
            self._dice.shuffle(more)
            kinds += more
        return kinds[: self._rounds]

    def _round(self, number: int, child: Child, kind: str) -> list[str]:
        moment = Moment.choose(kind, self._dice)
        order = {
            "config": self._config,
            "workspace": str(self._workspace),
            "store": str(self._store),
            "id": self._id,
            "round": number,
            "tool_turn": moment.turn if kind == "tool" else -1,
        }
        doing = child.run(order, moment, self._acknowledged)
        self._say("")
        self._say(f"Round {number} of {self._rounds}: killed process {child.pid} {doing}")
        if self._tamper is not None:
            self._tamper(self._path)
        known = self._acknowledged
        self._say(f"  acknowledged  revision {known.revision}, {len(known.digests)} messages")
        try:
            return self._look() or self._go_on()
        except PerdureError as error:
            self._say(f"  FAILED        {one_line(str(error))}")
            return [f"{type(error).__name__}: {one_line(str(error))}"]

    def _look(self) -> list[str]:
        """Read what is on disk, before anything is opened for writing."""
        revision, messages = self._read()
        self._say(f"  on disk       revision {revision}, {len(messages)} messages")
        wrong = lost_or_mixed(self._acknowledged, revision, messages)
        for what in wrong:
            self._say(f"  {what}")
        if not wrong:
            more = ", and a save that was not reported yet" if revision > self._acknowledged.revision else ""
            self._say(f"  kept          all that was acknowledged{more}")
        return wrong

    def _read(self) -> tuple[int, Sequence[Mapping[str, Any]]]:
        if os.name == "posix":
            plain = PythonFileSessionStore(self._store).load_dict(self._id)
            return (plain["perdure"]["revision"], plain["messages"]) if plain is not None else (0, [])
        data = FileSessionStore(self._store).load(self._id)
        return (data.revision, data.messages) if data is not None else (0, [])

    def _go_on(self) -> list[str]:
        """Resume, check once more what the resumed session holds, and continue the conversation."""
        options = SessionOptions(
            file_session_store=self._store,
            session_id=self._id,
            auto_save=True,
            resume=True,
            tools=[],
            temperature=0.0,
        )
        known = self._acknowledged
        with Agent.create(self._config).session(self._workspace, options) as session:
            history = session.history()
            wrong = [
                f"MIXED: message {at + 1} of the resumed session is not the one that was acknowledged"
                for at, was in enumerate(known.digests)
                if at >= len(history) or digest(history[at]) != was
            ][:1]
            if wrong:
                self._say(f"  {wrong[0]}")
                return wrong
            if self._dangling(session):
                self._say("  repaired      the interrupted tool call has a result that says so")
            self._answer(session)
            session.save()
            history = session.history()
            known.saved(session.data.revision, 0, [digest(message) for message in history])
            full = session.data.context_usage.get("used_tokens", 0) > _FULL
        if full:
            self._say("  (the small model's context is nearly full: the next round begins a new session)")
            self._begin()
        return []

    def _dangling(self, session: Session) -> bool:
        last = session.history()[-1] if len(session.history()) else {}
        content = last.get("content")
        return isinstance(content, list) and any(
            isinstance(block, dict) and block.get("type") == "tool_result" and block.get("is_error")
            for block in content
        )

    def _answer(self, session: Session) -> None:
        history = session.history()
        if len(history) and history[-1]["role"] == "user":
            reply = session.continue_turn()
            block = history[-1]["content"][0]
            asked = block.get("text") or "(the tool's result)"
            how = "continued"
        else:
            asked = self._dice.choice(PROMPTS)
            reply = session.send(asked)
            how = "went on with"
        self._say(f"  {how:<12}  {cut(f'{asked} -> {one_line(reply.text)}', _WIDTH - 16)}")

    def _left_over(self) -> list[str]:
        """What `perdure check` has against the directory after all this."""
        try:
            return [f"perdure check: {finding}" for finding in check_directory(self._store) if finding.act]
        except PerdureError as error:
            return [one_line(str(error))]

    def _show_file(self) -> None:
        path = self._path
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        self._say("")
        self._say(f"The session is one file, {path}:")
        first = next((at for at, line in enumerate(lines) if line.startswith('  "messages"')), 0)
        for line in [*lines[:4], "  …", *lines[first : first + 3], "    …"]:
            self._say("  " + cut(line, _WIDTH))
        self._say(f"Look at it with: perdure show --store {self._store} {self._id}")

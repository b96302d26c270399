"""One contender in a process of its own. It reads commands from standard input, a JSON object a line, and answers so.

    python child.py MODULE CLASS

Only what stores is timed, here, around the one call; the parent decides whose turn it is. It runs in the environments
of the peers, so it needs nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.metadata
import inspect
import json
import os
import platform
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from compare.peers.base import Peer, Session
from compare.workload import MARK, NEW_MESSAGES, messages


def io() -> dict[str, int]:
    """What this process has written so far: `wchar` by its calls, `write_bytes` to the disk, in pages."""
    path = Path("/proc/self/io")
    if not path.exists():
        return {}
    pairs = (line.split(": ") for line in path.read_text().splitlines())
    return {name: int(value) for name, value in pairs if name in ("wchar", "write_bytes")}


def _words(error: Exception) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


class Child:
    def __init__(self, module: str, name: str) -> None:
        self.kind: type[Peer] = getattr(importlib.import_module(module), name)
        self.loop = asyncio.new_event_loop()
        self.peer: Peer | None = None
        self.session: Session | None = None
        self.count = 0
        self.names = 0

    def wait(self, value: Any) -> Any:
        return self.loop.run_until_complete(value) if inspect.isawaitable(value) else value

    # ---- commands

    def hello(self) -> dict[str, Any]:
        return {
            "python": platform.python_version(),
            "sqlite": sqlite3.sqlite_version,
            "packages": {name: importlib.metadata.version(name) for name in self.kind.packages},
        }

    def start(self, directory: str) -> dict[str, Any]:
        """A new store in a new directory."""
        self.stop()
        Path(directory).mkdir(parents=True)
        self.peer = self._make(Path(directory))
        return {}

    def _make(self, directory: Path) -> Peer:
        # In a coroutine: locks of some libraries belong to the loop that runs when they are made.
        async def make() -> Peer:
            return self.kind(directory)

        inside = any(inspect.iscoroutinefunction(vars(part).get("open")) for part in self.kind.__mro__)
        return self.wait(make()) if inside else self.kind(directory)

    def facts(self) -> dict[str, Any]:
        return self.wait(self._peer().facts())

    def open(self, count: int) -> dict[str, Any]:
        """A session of `count` messages. Its last turn is a common one, so that the first one timed is no first one."""
        if self.session is not None:
            self.wait(self.session.close())
        first = max(count - NEW_MESSAGES, NEW_MESSAGES)
        self.session, self.count = self._new_session(first), first
        while self.count < count:
            self.turn()
        gc.collect()
        # A history of plain objects makes every full collection slow; that is not the store's doing.
        gc.freeze()
        return {"messages": self.count}

    def turn(self) -> dict[str, Any]:
        """One turn: two messages. The call that stores them is timed, and only that."""
        session = self._session()
        turn = session.prepare(messages(self.count, NEW_MESSAGES))
        before = io()
        started = time.perf_counter()
        self.wait(session.save(turn))
        taken = time.perf_counter() - started
        after = io()
        self.count += NEW_MESSAGES
        return {"seconds": taken, "wrote": {name: after[name] - before[name] for name in before}}

    def turns(self, count: int, mark: bool = False) -> dict[str, Any]:
        """Turns one after the other."""
        made = []
        for _ in range(count):
            if mark:
                try:
                    os.fsync(MARK)
                except OSError:
                    pass
            made.append(self.turn())
        names = made[0]["wrote"]
        return {
            "seconds": [turn["seconds"] for turn in made],
            "wrote": {name: sum(turn["wrote"][name] for turn in made) for name in names},
        }

    def check(self) -> dict[str, Any]:
        """What was timed is there: as many messages as were stored."""
        return {"expected": self.count, "stored": self.wait(self._session().stored())}

    def many(self, sessions: int, count: int, turns: int) -> dict[str, Any]:
        """`sessions` new sessions of `count` messages at once, each making its turns: threads, or tasks if async."""
        if self._peer().one_at_a_time:
            return {"missing": self._peer().one_at_a_time}
        opened = [self._new_session(count) for _ in range(sessions)]
        ready = [
            [session.prepare(messages(count + turn * NEW_MESSAGES, NEW_MESSAGES)) for turn in range(turns)]
            for session in opened
        ]
        gc.collect()
        gc.freeze()
        asynchronous = inspect.iscoroutinefunction(opened[0].save)
        run = self._tasks if asynchronous else self._threads
        seconds, failed = run(opened, ready)
        stored = sum(self.wait(session.stored()) for session in opened)
        for session in opened:
            self.wait(session.close())
        return {
            "seconds": seconds,
            "by": "tasks of one event loop" if asynchronous else "threads",
            "done": sessions * turns - len(failed),
            "failed": len(failed),
            "error": failed[0] if failed else None,
            "expected": sessions * count + (sessions * turns - len(failed)) * NEW_MESSAGES,
            "stored": stored,
        }

    def _threads(self, sessions: list[Session], ready: list[list[Any]]) -> tuple[float, list[str]]:
        failed: list[str] = []
        gate = threading.Barrier(len(sessions) + 1)

        def work(session: Session, turns: list[Any]) -> None:
            gate.wait()
            for turn in turns:
                try:
                    session.save(turn)
                except Exception as error:
                    failed.append(_words(error))

        threads = [threading.Thread(target=work, args=pair) for pair in zip(sessions, ready, strict=True)]
        for thread in threads:
            thread.start()
        gate.wait()
        started = time.perf_counter()
        for thread in threads:
            thread.join()
        return time.perf_counter() - started, failed

    def _tasks(self, sessions: list[Session], ready: list[list[Any]]) -> tuple[float, list[str]]:
        failed: list[str] = []

        async def work(session: Session, turns: list[Any]) -> None:
            for turn in turns:
                try:
                    await session.save(turn)
                except Exception as error:
                    failed.append(_words(error))

        async def all_of_them() -> None:
            await asyncio.gather(*(work(*pair) for pair in zip(sessions, ready, strict=True)))

        started = time.perf_counter()
        self.loop.run_until_complete(all_of_them())
        return time.perf_counter() - started, failed

    def stop(self) -> dict[str, Any]:
        gc.unfreeze()
        if self.session is not None:
            self.wait(self.session.close())
        if self.peer is not None:
            self.wait(self.peer.close())
        self.session = self.peer = None
        return {}

    # ----

    def _peer(self) -> Peer:
        assert self.peer is not None, "start comes first"
        return self.peer

    def _session(self) -> Session:
        assert self.session is not None, "open comes first"
        return self.session

    def _new_session(self, count: int) -> Session:
        self.names += 1
        return self.wait(self._peer().open(f"s{self.names}", messages(0, count)))


COMMANDS = ("hello", "start", "facts", "open", "turn", "turns", "check", "many", "stop")


def main() -> None:
    # Libraries print; the answers go where nothing else does.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    child: Child | None = None
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("command")
        try:
            if child is None:
                child = Child(sys.argv[1], sys.argv[2])
            if name not in COMMANDS:
                raise ValueError(f"no command {name!r}")
            command: Callable[..., dict[str, Any]] = getattr(child, name)
            answer = {"ok": command(**request)}
        except Exception as error:
            answer = {"error": _words(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

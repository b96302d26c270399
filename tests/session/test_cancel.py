"""Ctrl-C and cancellation: whatever is interrupted, the history stays valid and is saved."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from perdure import Agent, AsyncAgent, FileSessionStore, SessionDelta, StoreError
from perdure.turn.repair import INTERRUPTED, dangling_tool_calls
from turn.scripted import Call, ScriptedServer, reply

from .conftest import hcl, stored, texts

CHILD = """
import asyncio, sqlite3, sys, time
from perdure import Agent, AsyncAgent, SessionData
config, place, kind = sys.argv[1:4]
def slow() -> str:
    "Slow."
    print("ready", flush=True)
    time.sleep(60)
    return "never"
async def aslow() -> str:
    "Slow."
    print("ready", flush=True)
    await asyncio.sleep(60)
    return "never"
options = dict(session_id="s", auto_save=True, file_session_store=place, tools=[slow, aslow])
def show(event):
    if event.type == "text_delta":
        print("ready", flush=True)
async def main():
    async with await (await AsyncAgent.create(config)).session(**options) as session:
        async for event in session.stream("go"):
            show(event)
try:
    if kind == "async":
        asyncio.run(main())
    else:
        with Agent.create(config).session(**options) as session:
            if kind == "send":
                session.send("go")
            else:
                for event in session.stream("go"):
                    show(event)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
@pytest.mark.parametrize("kind", ["send", "stream", "async"])
@pytest.mark.parametrize("where", ["stream", "slow", "aslow"])
def test_ctrl_c_leaves_a_valid_saved_history(
    agent: Agent, server: ScriptedServer, place: Path, kind: str, where: str
) -> None:
    if where == "stream":
        server.enqueue(reply("one", "two", hang_after=3))
    else:
        server.enqueue(reply("", calls=[Call("a", where), Call("b", where)]))
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, hcl(server), str(place), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        if kind == "send" and where == "stream":
            assert server.asked.wait(30)
            time.sleep(0.3)  # the reply is being read; nothing in the child shows it
        else:
            assert child.stdout.readline() == "ready\n"
        os.kill(child.pid, signal.SIGINT)
        assert "interrupted\n" in child.stdout.read()
        assert child.wait(30) == 0 and child.stderr.read() == ""
    repaired = ["go", "call a", "call b", "result a", "result b"]
    assert stored(place) == (["go"] if where == "stream" else repaired)
    assert sorted(path.suffix for path in place.iterdir()) == [".json"], "folded, and everything let go"
    messages = json.loads((place / "s.json").read_bytes())["messages"]
    assert dangling_tool_calls(messages) == []
    if where != "stream":
        assert [m["content"][0]["content"] for m in messages[2:]] == [INTERRUPTED, INTERRUPTED]
    session = agent.resume_session("s", file_session_store=place, auto_save=True)
    server.enqueue(reply("done"))
    session.continue_turn()
    assert stored(place)[-1] == "done"


async def test_a_cancelled_turn_leaves_a_valid_saved_history(
    async_agent: AsyncAgent, server: ScriptedServer, place: Path
) -> None:
    started = asyncio.Event()

    async def slow() -> str:
        """Slow."""
        started.set()
        await asyncio.sleep(60)
        return "never"

    session = await async_agent.session(file_session_store=place, session_id="s", auto_save=True, tools=[slow])
    server.enqueue(reply(calls=[Call("a", "slow")]))
    turn = asyncio.ensure_future(session.send("go"))
    await started.wait()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert not session.running and stored(place) == ["go", "call a", "result a"]
    server.enqueue(reply(hang_before=True))
    server.asked.clear()
    turn = asyncio.ensure_future(session.send("more"))
    assert await asyncio.to_thread(server.asked.wait, 30)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert stored(place) == ["go", "call a", "result a"], "unanswered, so taken back"
    server.enqueue(reply("done"))
    assert (await session.continue_turn()).text == "done"
    await session.close()


async def test_a_time_out_around_a_turn(async_agent: AsyncAgent, server: ScriptedServer, place: Path) -> None:
    session = await async_agent.session(file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(reply("one", hang_after=2))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(session.send("go"), 1.5)
    assert stored(place) == ["go"] and not session.running
    await session.close()


class Slow(FileSessionStore):
    """Shows when an append has begun, and waits to be told to do it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def append(self, delta: SessionDelta, /, *, step: bool = False) -> Any:
        self.begun.set()
        assert self.go_on.wait(30)
        return super().append(delta, step=step)


async def test_a_cancelled_save_waits_for_its_real_outcome(async_agent: AsyncAgent, place: Path) -> None:
    store = Slow(place)
    session = await async_agent.session(session_store=store, session_id="s", auto_save=True)
    save = asyncio.ensure_future(session.append({"role": "user", "content": "one"}))
    assert await asyncio.to_thread(store.begun.wait, 30)
    for _ in range(3):
        save.cancel()
        await asyncio.sleep(0.02)
    assert not save.done(), "what became of the save is not known yet"
    store.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await save
    assert session.data.revision == 1 and stored(place) == ["one"]
    await session.append({"role": "user", "content": "two"})
    assert stored(place) == ["one", "two"], "no conflict with oneself"
    await session.close()


def test_a_loop_that_ends_in_the_middle_of_a_save_knows_its_outcome(agent: Agent, place: Path) -> None:
    store = Slow(place)
    loose = AsyncAgent(agent.config)
    sessions: list[Any] = []

    async def first() -> None:
        session = await loose.session(session_store=store, session_id="s", auto_save=True)
        sessions.append(session)
        sessions.append(asyncio.ensure_future(session.append({"role": "user", "content": "one"})))
        assert await asyncio.to_thread(store.begun.wait, 30)
        threading.Timer(0.2, store.go_on.set).start()

    # Cancels every task at its end, those that save too.
    asyncio.run(first())
    assert stored(place) == ["one"] and sessions[0].data.revision == 1

    async def second() -> None:
        await sessions[0].append({"role": "user", "content": "two"})
        await sessions[0].close()

    asyncio.run(second())
    assert stored(place) == ["one", "two"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_while_a_users_store_saves(server: ScriptedServer, tmp_path: Path) -> None:
    """The store runs on the thread that gets the signal; the turn hears of it and comes to its end."""
    code = """
    import sys, time
    from perdure import Agent
    class Store:
        def __init__(self): self.kept = {}; self.slow = True
        def save(self, data):
            if self.slow and len(data) == 2:
                self.slow = False
                print("ready", flush=True)
                time.sleep(60)
            self.kept[data.id] = data.to_json()
        def load(self, id): return None
        def delete(self, id): return False
        def list(self): return list(self.kept)
        def exists(self, id): return id in self.kept
    store = Store()
    session = Agent.create(sys.argv[1]).session(session_store=store, session_id="s", auto_save=True)
    try:
        session.send("go")
    except KeyboardInterrupt:
        from perdure import SessionData
        print(len(SessionData.from_json(store.kept["s"])), len(session.history()), session.running)
    session.close()
    """
    server.enqueue(reply("hello"))
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), hcl(server)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        os.kill(child.pid, signal.SIGINT)
        assert child.stdout.read() == "2 2 False\n"


def test_a_program_that_ends_in_the_middle_of_a_stream_leaves_a_valid_history(
    server: ScriptedServer, place: Path
) -> None:
    code = """
    import sys
    from perdure import Agent
    def act() -> str:
        "Acts."
        return "done"
    session = Agent.create(sys.argv[1]).session(
        session_id="s", auto_save=True, file_session_store=sys.argv[2], tools=[act])
    stream = session.stream("go")
    while next(stream).type != "tool_start": pass
    """
    server.enqueue(reply(calls=[Call("a", "act")]))
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), hcl(server), str(place)],
        timeout=60,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0 and child.stderr == ""
    assert stored(place) == ["go", "call a", "result a"]
    assert sorted(path.suffix for path in place.iterdir()) == [".json"]


def test_a_save_that_fails_while_it_is_cancelled_is_not_lost(agent: Agent, place: Path) -> None:
    """The next save knows that nothing was stored."""

    class Failing(Slow):
        def append(self, delta: SessionDelta, /, *, step: bool = False) -> Any:
            if not self.go_on.is_set():
                self.begun.set()
                assert self.go_on.wait(30)
                raise StoreError("full")
            return FileSessionStore.append(self, delta, step=step)

    async def run() -> None:
        store = Failing(place)
        session = await AsyncAgent(agent.config).session(session_store=store, session_id="s", auto_save=True)
        save = asyncio.ensure_future(session.append({"role": "user", "content": "one"}))
        assert await asyncio.to_thread(store.begun.wait, 30)
        save.cancel()
        store.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await save
        await session.close()

    asyncio.run(run())
    assert stored(place) == ["one"]
    assert texts(agent.resume_session("s", file_session_store=place).history()) == ["one"]

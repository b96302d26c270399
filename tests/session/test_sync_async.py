"""Sync and async sessions: which thread does what, and that no event loop is blocked."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from perdure import Agent, AsyncAgent, AsyncSession, ConfigError, MemorySessionStore, Session, SessionBusyError
from perdure import _loop as loops
from perdure.turn.repair import interrupted_results
from turn.scripted import Call, ScriptedServer, reply

from .conftest import hcl, stored, text, texts


def test_async_has_the_same_names() -> None:
    for sync, other in ((Session, AsyncSession), (Agent, AsyncAgent)):
        names = [{name for name in dir(kind) if not name.startswith("_")} for kind in (sync, other)]
        assert names[0] == names[1]


async def test_the_same_conversation_awaited(async_agent: AsyncAgent, server: ScriptedServer, place: Path) -> None:
    options: dict[str, Any] = {"file_session_store": place, "session_id": "s"}
    async with await async_agent.session(**options, auto_save=True) as session:
        server.enqueue(reply("hello"), reply("aside"))
        assert (await session.send("hi")).text == "hello"
        assert (await session.send("?", history=[])).text == "aside"
        await session.append(text("note"), text("gone"))
        await session.rewind(3)
        assert (await session.save()).bytes_written == 0
        await session.reload()
        assert session.usage.total_tokens == 18 and not session.running
    with pytest.raises(ConfigError, match="closed"):
        await session.send("x")
    assert stored(place) == ["hi", "hello", "note"]
    resumed = await async_agent.resume_session("s", file_session_store=place)
    server.enqueue(reply("answer"))
    assert (await resumed.continue_turn()).text == "answer"
    await resumed.save()
    await resumed.close()
    assert await async_agent.list_sessions(file_session_store=place) == ["s"]
    assert [info.message_count async for info in async_agent.sessions(file_session_store=place)] == [4]
    assert await async_agent.fork_session("s", "t", 1, file_session_store=place) == "t"
    assert await async_agent.delete_session("s", file_session_store=place)


async def test_a_sync_session_on_a_thread_with_a_running_loop_names_the_other(
    agent: Agent, server: ScriptedServer, place: Path
) -> None:
    session = await asyncio.to_thread(lambda: agent.session(file_session_store=place, session_id="s", auto_save=True))
    for use in (
        lambda: session.append(text("x")),
        lambda: session.rewind(0),
        session.save,
        session.reload,
        session.fork,
        session.close,
        session.continue_turn,
        lambda: session.send("x"),
        lambda: session.send("x", history=[]),
        lambda: session.stream("x"),
        lambda: session.__exit__(None, None, None),
    ):
        with pytest.raises(ConfigError, match="AsyncSession"):
            use()
    for use in (
        lambda: agent.session(),
        lambda: agent.resume_session("s"),
        agent.list_sessions,
        lambda: next(agent.sessions()),
        lambda: agent.delete_session("s"),
        lambda: agent.fork_session("s"),
        lambda: Agent.create("max_tool_rounds = 1"),
    ):
        with pytest.raises(ConfigError, match="AsyncAgent"):
            use()
    assert len(session.history()) == 0 and session.usage.total_tokens == 0 and session.session_id == "s"
    server.enqueue(reply("hello"))
    assert (await asyncio.to_thread(session.send, "hi")).text == "hello"
    await asyncio.to_thread(session.close)


def test_a_sync_call_on_a_sync_store_needs_no_loop_and_no_thread(agent: Agent, place: Path) -> None:
    before = (loops._thread, threading.active_count())
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    session.append(text("one"))
    session.reload()
    session.close()
    assert agent.list_sessions(file_session_store=place) == ["s"]
    assert (loops._thread, threading.active_count()) == before


class Watch:
    """The longest time for which the event loop did nothing else, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def run(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.002)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            last = now


class Slow(MemorySessionStore):
    """Takes a while for everything, as a disk or a server may."""

    pause = 0.6

    def append(self, delta: Any, *, step: bool = False) -> Any:
        time.sleep(self.pause)
        return super().append(delta, step=step)

    def load(self, id: str) -> Any:
        time.sleep(self.pause)
        return super().load(id)

    def exists(self, id: str) -> bool:
        time.sleep(self.pause)
        return super().exists(id)


async def test_nothing_blocks_the_event_loop(async_agent: AsyncAgent, server: ScriptedServer) -> None:
    # The machine may be busy: what is looked for is a wait as long as the store's, or the work of a long history.
    store = Slow()
    long = [text("word " * 200) for _ in range(5000)]  # 5 MB
    server.enqueue(reply("warm"))
    async with await async_agent.session() as session:
        await session.send("imports and the like")
    session = await async_agent.session(session_store=store, session_id="s", auto_save=True)
    await asyncio.to_thread(lambda: session._keeper.data.append(*long))
    watch = Watch()
    watching = asyncio.ensure_future(watch.run())
    await session.append(text("one"))
    await session.close()
    resumed = await async_agent.resume_session("s", session_store=store, auto_save=True)
    await resumed.append(text("two"))
    await resumed.reload()
    await async_agent.fork_session("s", "t", session_store=store)
    assert len(resumed.history()) == 5002
    await resumed.close()
    watching.cancel()
    assert watch.longest < Slow.pause * 0.8


async def test_long_histories_are_looked_through_off_the_loop(
    async_agent: AsyncAgent, server: ScriptedServer, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.get_ident())
        return interrupted_results(*args, **kwargs)

    monkeypatch.setattr("perdure._keeper.interrupted_results", noting)
    async with await async_agent.session(file_session_store=place, session_id="s", auto_save=True) as session:
        await session.append(text("one"))
    session = await async_agent.resume_session("s", file_session_store=place)
    await session.reload()
    assert len(threads) == 2 and threading.get_ident() not in threads
    await session.close()


# The connections of a loop that is over cannot be closed any more; that they were left is said.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_session_may_be_used_on_one_loop_after_another(agent: Agent, server: ScriptedServer, place: Path) -> None:
    sessions: list[AsyncSession] = []

    async def talk(n: int) -> None:
        if not sessions:
            sessions.append(
                await AsyncAgent(agent.config).session(file_session_store=place, session_id="s", auto_save=True)
            )
        session = sessions[0]
        # Two at a time, so that one of them has to wait for a lock.
        await asyncio.gather(session.send(f"a{n}"), session.send(f"b{n}"))
        await asyncio.gather(session.save(), session.save())
        if n == 2:
            await session.close()

    for n in range(3):
        server.enqueue(reply("x"), reply("y"))
        asyncio.run(talk(n))
        gc.collect()
    assert len(stored(place)) == 12


async def test_one_session_on_two_loops_at_once_is_refused(async_agent: AsyncAgent, server: ScriptedServer) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> str:
        """Waits."""
        inside.set()
        await go_on.wait()
        return "ok"

    session = await async_agent.session(tools=[wait])
    server.enqueue(reply(calls=[Call("a", "wait")]), reply("done"))
    turn = asyncio.ensure_future(session.send("go"))
    await inside.wait()

    def elsewhere() -> None:
        with pytest.raises((ConfigError, SessionBusyError)):
            asyncio.run(session.send("x"))

    await asyncio.to_thread(elsewhere)
    go_on.set()
    assert (await turn).text == "done"
    await session.close()


async def test_a_tool_that_waits_for_its_own_session_is_refused(
    async_agent: AsyncAgent, server: ScriptedServer
) -> None:
    async def again() -> str:
        """Starts a turn."""
        with pytest.raises(SessionBusyError, match="wait for itself"):
            await session.send("x")
        return (await session.send("x", history=[])).text

    session = await async_agent.session(tools=[again])
    server.enqueue(reply(calls=[Call("a", "again")]), reply("aside"), reply("done"))
    result = await session.send("go")
    assert result.text == "done" and result.messages[2]["content"][0]["content"] == "aside"
    await session.close()


def test_a_tool_may_use_another_session(agent: Agent, server: ScriptedServer, place: Path) -> None:
    inner = agent.session(file_session_store=place, session_id="inner", auto_save=True)

    def ask(what: str) -> str:
        """Asks somebody else."""
        return inner.send(what).text

    outer = agent.session(file_session_store=place, session_id="outer", auto_save=True, tools=[ask])
    server.enqueue(reply(calls=[Call("a", "ask", {"what": "inner?"})]), reply("inner!"), reply("outer!"))
    assert outer.send("outer?").text == "outer!"
    assert stored(place, "inner") == ["inner?", "inner!"]
    assert texts(outer.history()) == ["outer?", "call a", "result a", "outer!"]


def test_context_variables_of_the_caller_reach_the_tools(agent: Agent, server: ScriptedServer) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")

    def look() -> str:
        """Looks."""
        return var.get()

    session = agent.session(tools=[look])
    var.set("of the caller")
    server.enqueue(reply(calls=[Call("a", "look")]), reply("done"))
    session.send("go")
    assert session.history()[2]["content"][0]["content"] == "of the caller"


def test_agents_made_from_text_and_files(server: ScriptedServer, tmp_path: Path) -> None:
    path = tmp_path / "agent.hcl"
    path.write_text(hcl(server))
    for agent in (Agent.create(path), Agent.create(str(path)), Agent.create(hcl(server))):
        assert agent.config.default_model == "openai/m-1"
    assert repr(Agent.create(path)) == f"<Agent {path}>"
    with pytest.raises(ConfigError) as raised:
        Agent.create(tmp_path / "nothing.hcl")
    assert raised.value.path == str(tmp_path / "nothing.hcl")

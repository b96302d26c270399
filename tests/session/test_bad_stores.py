"""Stores that raise, give nonsense or never return: each a named error, and nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from perdure import (
    Agent,
    AsyncAgent,
    ConfigError,
    MemorySessionStore,
    SessionDelta,
    SessionNotFoundError,
    StoreError,
)
from turn.scripted import ScriptedServer, reply

from .conftest import text, texts
from .test_user_stores import Appending, AsyncPlain, Plain


class Weird(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text either")


@pytest.mark.parametrize("error", [KeyError("k"), OSError(28, "full"), StopIteration(), StopAsyncIteration(), Weird()])
@pytest.mark.parametrize("method", ["save", "load", "delete", "list", "exists"])
@pytest.mark.parametrize("base", [Plain, AsyncPlain])
async def test_what_a_store_raises(agent: Agent, base: Any, method: str, error: Exception) -> None:
    def broken(*_: Any) -> Any:
        raise error

    async def async_broken(*_: Any) -> Any:
        raise error

    store = base()
    setattr(store, method, async_broken if base is AsyncPlain else broken)

    async def use(agent: AsyncAgent) -> None:
        session = await agent.session(session_store=store, session_id="s", auto_save=True)
        await session.append(text("one"))
        await agent.list_sessions(session_store=store)
        await agent.delete_session("s", session_store=store)
        await agent.resume_session("s", session_store=store)

    def sync_use() -> None:
        session = agent.session(session_store=store, session_id="t", auto_save=True)
        session.append(text("one"))
        agent.list_sessions(session_store=store)
        agent.delete_session("t", session_store=store)
        agent.resume_session("t", session_store=store)

    wanted: Any = StoreError
    with pytest.raises(wanted, match=rf"{method}\(\) failed: ") as raised:
        await use(AsyncAgent(agent.config))
    if not isinstance(error, StopIteration | StopAsyncIteration):
        assert raised.value.__cause__ is error
    if isinstance(error, OSError):
        assert raised.value.errno == 28
    with pytest.raises(wanted, match=rf"{method}\(\) failed: "):
        await asyncio.to_thread(sync_use)


@pytest.mark.parametrize("nonsense", [{}, "text", 1, [1], b"x", object()])
def test_nonsense_from_a_store(agent: Agent, nonsense: Any) -> None:
    def store(method: str) -> Any:
        made = Plain()
        setattr(made, method, lambda *_: nonsense)
        return made

    for method, use in (
        ("load", lambda s: agent.resume_session("s", session_store=s)),
        ("delete", lambda s: agent.delete_session("s", session_store=s)),
        ("exists", lambda s: agent.session(session_store=s, session_id="s")),
        ("list", lambda s: agent.list_sessions(session_store=s)),
        ("infos", lambda s: list(agent.sessions(session_store=s))),
    ):
        with pytest.raises(StoreError, match=rf"Plain\.{method}\(\) gave a {type(nonsense).__name__}"):
            use(store(method))
    session = agent.session(session_store=store("save"), session_id="s")
    session.append(text("one"))
    receipt = session.save()
    assert receipt.revision == 1 and receipt.location == "Plain", "a save may give anything"


def test_more_nonsense(agent: Agent) -> None:
    class Other(Plain):
        def load(self, id: str) -> Any:
            from perdure import SessionData

            return SessionData("other")

    with pytest.raises(StoreError, match="gave session 'other'"):
        agent.resume_session("s", session_store=Other())

    class Circles(Plain):
        def infos(self, limit: int, cursor: str | None) -> Any:
            return [], "again"

    with pytest.raises(StoreError, match="cursor"):
        list(agent.sessions(session_store=Circles()))

    class NotOne:
        def save(self, data: Any) -> None: ...

    with pytest.raises(ConfigError, match="load"):
        agent.session(session_store=NotOne())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="call it"):
        agent.session(session_store=Plain)

    class ListFails(Plain):
        def list(self) -> Any:
            raise OSError("no list")

    with pytest.raises(SessionNotFoundError):
        agent.resume_session("s", session_store=ListFails())


class Hanging(Plain):
    """Its save does not return before it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on, self.saving = threading.Event(), threading.Event()

    def save(self, data: Any) -> None:
        self.saving.set()
        self.go_on.wait(60)
        super().save(data)


class AsyncHanging(AsyncPlain):
    def __init__(self) -> None:
        super().__init__()
        self.hang = True

    async def save(self, data: Any) -> None:  # type: ignore[override]
        if self.hang:
            await asyncio.sleep(3600)
        await super().save(data)


async def test_a_sync_store_that_never_returns_does_not_hang_an_async_session(async_agent: AsyncAgent) -> None:
    store = Hanging()
    session = await async_agent.session(session_store=store, session_id="s", auto_save=True, store_timeout=0.2)
    started = time.monotonic()
    with pytest.raises(StoreError, match=r"did not answer within 0\.2 s \(store_timeout\)"):
        await session.append(text("one"))
    with pytest.raises(StoreError, match="not come to its end"):
        await session.append(text("two"))
    assert time.monotonic() - started < 20
    store.go_on.set()
    await session.append(text("three"))
    loaded = store.load("s")
    assert loaded is not None and texts(loaded.messages) == ["one", "two", "three"]
    await session.close()


async def test_a_save_that_ends_too_late_is_no_conflict_with_oneself(async_agent: AsyncAgent) -> None:
    class Late(Appending):
        go_on = threading.Event()

        def append(self, delta: SessionDelta, *, step: bool = False) -> Any:
            self.go_on.wait(60)
            return super().append(delta, step=step)

    store = Late()
    session = await async_agent.session(session_store=store, session_id="s", auto_save=True, store_timeout=0.2)
    with pytest.raises(StoreError, match="did not answer"):
        await session.append(text("one"))
    threading.Timer(0.05, store.go_on.set).start()
    await session.append(text("two"))
    assert [d[:2] for d in store.deltas] == [(0, 1), (1, 1)] and session.data.revision == 2
    await session.close()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_async_store_that_never_returns(
    agent: Agent, server: ScriptedServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = AsyncHanging()
    options: dict[str, Any] = {"session_store": store, "session_id": "s", "auto_save": True, "store_timeout": 0.1}
    server.enqueue(reply("hello"))
    if kind == "sync":
        session = agent.session(**options)
        assert session.send("hi").text == "hello"
        assert isinstance(session.last_save_error, StoreError) and "store_timeout" in caplog.text
        store.hang = False
        session.save()
    else:

        async def run() -> None:
            session = await AsyncAgent(agent.config).session(**options)
            assert (await session.send("hi")).text == "hello"
            assert isinstance(session.last_save_error, StoreError) and "store_timeout" in caplog.text
            store.hang = False
            await session.close()

        asyncio.run(run())
    assert texts(Plain.load(store, "s").messages) == ["hi", "hello"]  # type: ignore[union-attr]


@pytest.mark.parametrize("threadsafe", [False, True])
def test_a_program_ends_although_its_store_never_returns(threadsafe: bool) -> None:
    code = f"""
import asyncio, time
from perdure import AsyncAgent, StoreError
class Store:
    threadsafe = {threadsafe}
    def save(self, data): time.sleep(3600)
    def load(self, id): return None
    def delete(self, id): return False
    def list(self): return []
    def exists(self, id): return False
async def main():
    agent = await AsyncAgent.create("max_tool_rounds = 1")
    session = await agent.session(session_store=Store(), auto_save=True, store_timeout=0.1)
    try:
        await session.append({{"role": "user", "content": "one"}})
    except StoreError:
        print("named")
asyncio.run(main())
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (child.returncode, child.stdout) == (0, "named\n")
    assert child.stderr.count("\n") == 1 and "last one wins" in child.stderr


async def test_stores_do_not_need_the_loops_default_executor(async_agent: AsyncAgent) -> None:
    stop = threading.Event()
    loop = asyncio.get_running_loop()
    busy = [loop.run_in_executor(None, stop.wait, 60) for _ in range(40)]
    try:
        for store in (Plain(), MemorySessionStore()):
            session = await async_agent.session(session_store=store, session_id="s", auto_save=True)
            await asyncio.wait_for(session.append(text("one")), 20)
            await session.close()
    finally:
        stop.set()
        await asyncio.gather(*busy)


def test_an_error_is_one_warning_without_content(
    agent: Agent, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Plain):
        def save(self, data: Any) -> None:
            raise OSError(28, "No space left on device")

    server.enqueue(reply("hello"))
    agent.session(session_store=Full(), session_id="s", auto_save=True).send("a private prompt")
    records = [r for r in caplog.records if r.name == "perdure" and "not saved" in r.getMessage()]
    assert len(records) == 3 and all(r.levelno == logging.WARNING and r.exc_info is None for r in records)
    assert "private" not in caplog.text and "hello" not in caplog.text

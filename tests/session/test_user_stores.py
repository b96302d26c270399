"""Stores that a user wrote: five methods, sync and async, from both kinds of session."""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Agent,
    AsyncAgent,
    MemorySessionStore,
    SaveReceipt,
    SessionConflictError,
    SessionData,
    SessionDelta,
    SessionNotFoundError,
)
from turn.scripted import Call, ScriptedServer, reply

from .conftest import text, texts


class Plain:
    """The five methods and nothing else."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.threads: set[int] = set()

    def save(self, data: SessionData) -> None:
        self.threads.add(threading.get_ident())
        self.kept[data.id] = data.to_json()

    def load(self, id: str) -> SessionData | None:
        return SessionData.from_json(self.kept[id]) if id in self.kept else None

    def delete(self, id: str) -> bool:
        return self.kept.pop(id, None) is not None

    def list(self) -> list[str]:
        return list(self.kept)

    def exists(self, id: str) -> bool:
        return id in self.kept


class AsyncPlain(Plain):
    """The same, awaited; each method really waits."""

    def __init__(self) -> None:
        super().__init__()
        self.loops: set[Any] = set()

    async def save(self, data: SessionData) -> None:  # type: ignore[override]
        self.loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0.001)
        super().save(data)

    async def load(self, id: str) -> SessionData | None:  # type: ignore[override]
        await asyncio.sleep(0.001)
        return super().load(id)

    async def delete(self, id: str) -> bool:  # type: ignore[override]
        await asyncio.sleep(0.001)
        return super().delete(id)

    async def list(self) -> list[str]:  # type: ignore[override, valid-type]
        await asyncio.sleep(0.001)
        return super().list()

    async def exists(self, id: str) -> bool:  # type: ignore[override]
        await asyncio.sleep(0.001)
        return super().exists(id)


class Appending(Plain):
    """Keeps one list of messages and a head; compares revisions."""

    revisions = True

    def __init__(self) -> None:
        super().__init__()
        self.heads: dict[str, dict[str, Any]] = {}
        self.messages: dict[str, list[bytes]] = {}  # type: ignore[valid-type]
        self.deltas: list[tuple[int, int, bool]] = []  # type: ignore[valid-type]

    def save(self, data: SessionData) -> None:
        delta = data.delta()
        if delta is not None:
            self.append(delta)
            data.settle(delta)

    def append(self, delta: SessionDelta, *, step: bool = False) -> SaveReceipt:
        self.threads.add(threading.get_ident())
        self.deltas.append((delta.first_index, len(delta.messages), step))
        id, head = delta.session_id, self.heads.get(delta.session_id)
        found = None if head is None else head["perdure"]["revision"]
        if found != delta.base_revision:
            raise SessionConflictError("conflict", expected=delta.base_revision, found=found)
        self.messages.setdefault(id, [])[delta.first_index :] = delta.messages
        self.heads[id] = json.loads(delta.head)
        assert self.heads[id]["perdure"]["revision"] == delta.revision
        assert len(self.messages[id]) == delta.message_count == len(delta.session)
        return SaveReceipt(delta.revision, 1, 1, 0.0, "here")

    def load(self, id: str) -> SessionData | None:
        if id not in self.heads:
            return None
        return SessionData.from_dict({**self.heads[id], "messages": [json.loads(m) for m in self.messages[id]]})

    def exists(self, id: str) -> bool:
        return id in self.heads

    def list(self) -> list[str]:  # type: ignore[valid-type]
        return list(self.heads)

    def delete(self, id: str) -> bool:
        self.messages.pop(id, None)
        return self.heads.pop(id, None) is not None


class AsyncAppending(Appending):
    """Only its append is async: any mixture is fine."""

    async def append(self, delta: SessionDelta, *, step: bool = False) -> SaveReceipt:  # type: ignore[override]
        await asyncio.sleep(0.001)
        return super().append(delta, step=step)


class Sqlite(Plain):
    """A connection that may be used on the thread that made it and on no other."""

    def __init__(self) -> None:
        super().__init__()
        self.db = sqlite3.connect(":memory:")
        self.db.execute("CREATE TABLE s (id TEXT PRIMARY KEY, json BLOB)")

    def save(self, data: SessionData) -> None:
        self.db.execute("INSERT OR REPLACE INTO s VALUES (?, ?)", (data.id, data.to_json()))

    def load(self, id: str) -> SessionData | None:
        row = self.db.execute("SELECT json FROM s WHERE id = ?", (id,)).fetchone()
        return None if row is None else SessionData.from_json(row[0])

    def delete(self, id: str) -> bool:
        return self.db.execute("DELETE FROM s WHERE id = ?", (id,)).rowcount > 0

    def list(self) -> list[str]:  # type: ignore[valid-type]
        return [row[0] for row in self.db.execute("SELECT id FROM s")]

    def exists(self, id: str) -> bool:
        return self.db.execute("SELECT 1 FROM s WHERE id = ?", (id,)).fetchone() is not None


STORES = [Plain, AsyncPlain, Appending, AsyncAppending]
KEPT = ["hi", "call a", "result a", "hello", "note"]


def act() -> str:
    """Acts."""
    return "done"


@pytest.mark.parametrize("make", [*STORES, Sqlite])
def test_from_a_sync_session(agent: Agent, server: ScriptedServer, make: Callable[[], Any]) -> None:
    store = make()
    with agent.session(session_store=store, session_id="s", auto_save=True, tools=[act]) as session:
        server.enqueue(reply(calls=[Call("a", "act")]), reply("hello"))
        session.send("hi")
        session.append(text("note"))
        assert session.last_save_error is None
        server.enqueue(reply("x"))
        assert list(session.stream("stream"))[-1].type == "end" and session.last_save_error is None
        session.rewind(5)
    if not isinstance(store, AsyncPlain | AsyncAppending | Sqlite):
        assert store.threads == {threading.get_ident()}, "called on the thread that uses the session, also in a turn"
    if isinstance(store, AsyncPlain):
        assert len(store.loops) == 1
    session = agent.resume_session("s", session_store=store)
    assert texts(session.history()) == KEPT and session.usage.total_tokens == 54
    assert agent.list_sessions(session_store=store) == ["s"]
    infos = list(agent.sessions(session_store=store))
    assert [(info.id, info.message_count, info.first_prompt) for info in infos] == [("s", 5, "hi")]
    assert agent.fork_session("s", "t", 1, session_store=store) == "t"
    assert texts(agent.resume_session("t", session_store=store).history()) == ["hi"]
    with pytest.raises(SessionNotFoundError) as raised:
        agent.resume_session("tt", session_store=store)
    assert raised.value.close_ids == ("t",)
    assert agent.delete_session("s", session_store=store) and not agent.delete_session("s", session_store=store)


@pytest.mark.parametrize("make", STORES)
async def test_from_an_async_session(async_agent: AsyncAgent, server: ScriptedServer, make: Callable[[], Any]) -> None:
    store = make()
    async with await async_agent.session(session_store=store, session_id="s", auto_save=True, tools=[act]) as session:
        server.enqueue(reply(calls=[Call("a", "act")]), reply("hello"))
        await session.send("hi")
        await session.append(text("note"))
        assert session.last_save_error is None
    if isinstance(store, AsyncPlain):
        assert store.loops == {asyncio.get_running_loop()}
    elif not isinstance(store, AsyncAppending):
        assert len(store.threads) == 1 and threading.get_ident() not in store.threads, "one thread, not the loop's"
    resumed = await async_agent.resume_session("s", session_store=store)
    assert texts(resumed.history()) == KEPT
    assert await async_agent.list_sessions(session_store=store) == ["s"]
    assert [info.id async for info in async_agent.sessions(session_store=store)] == ["s"]
    assert await async_agent.fork_session("s", "t", session_store=store) == "t"
    assert await async_agent.delete_session("s", session_store=store)


def test_steps_are_told_apart_and_cost_what_is_new(agent: Agent, server: ScriptedServer) -> None:
    store = Appending()
    session = agent.session(session_store=store, session_id="s", auto_save=True, tools=[act])
    server.enqueue(reply(calls=[Call("a", "act")]), reply("hello"))
    session.send("hi")
    assert store.deltas == [(0, 1, True), (1, 1, True), (2, 1, True), (3, 1, True), (4, 0, False)]
    session.rewind(2)
    assert store.deltas[-1] == (2, 0, False)


def test_of_two_writers_a_store_with_revisions_refuses_the_second(agent: Agent) -> None:
    store = Appending()
    one = agent.session(session_store=store, session_id="s", auto_save=True)
    one.append(text("1"))
    two = agent.resume_session("s", session_store=store, auto_save=True)
    one.append(text("2"))
    with pytest.raises(SessionConflictError):
        two.append(text("3"))
    two.save(force=True)
    loaded = store.load("s")
    assert loaded is not None and texts(loaded.messages) == ["1", "3"]


def test_a_store_without_revisions_is_last_writer_wins_said_once(
    agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    store = Plain()
    one = agent.session(session_store=store, session_id="s", auto_save=True)
    one.append(text("1"))
    two = agent.resume_session("s", session_store=store, auto_save=True)
    one.append(text("2"))
    two.append(text("3"))
    loaded = store.load("s")
    assert loaded is not None and texts(loaded.messages) == ["1", "3"]
    assert caplog.text.count("the last one wins") == 1 and "Plain" in caplog.text


def test_a_users_store_is_never_closed(agent: Agent) -> None:
    class Closing(MemorySessionStore):
        def close(self) -> None:
            raise AssertionError("not yours")

    agent.session(session_store=Closing(), session_id="s").close()


def test_a_store_is_called_by_one_thread_at_a_time(agent: Agent) -> None:
    class Alone(Plain):
        inside = 0

        def save(self, data: SessionData) -> None:
            assert not self.inside
            self.inside += 1
            threading.Event().wait(0.002)
            super().save(data)
            self.inside -= 1

    store, errors = Alone(), []

    def use(id: str) -> None:
        try:
            session = agent.session(session_store=store, session_id=id, auto_save=True)
            for n in range(10):
                session.append(text(str(n)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(f"s{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and len(store.kept) == 4


def test_a_callback_may_use_the_session(agent: Agent) -> None:
    class Once(MemorySessionStore):
        failed = False

        def append(self, delta: SessionDelta, *, step: bool = False) -> SaveReceipt:
            if not self.failed:
                self.failed = True
                raise OSError("once")
            return super().append(delta, step=step)

    store = Once()
    session: Any = None
    session = agent.session(
        session_store=store, session_id="s", auto_save=True, on_save_error=lambda error: session.save()
    )
    with pytest.raises(OSError):
        session.append(text("one"))
    assert store.exists("s") and session.last_save_error is None


def test_paths_and_urls_reach_the_same_sessions(agent: Agent, tmp_path: Path) -> None:
    agent.session(session_store=f"file://{tmp_path}/x", session_id="s", auto_save=True).append(text("one"))
    assert agent.list_sessions(file_session_store=tmp_path / "x") == ["s"]


async def test_a_stores_thread_ends_with_the_store(async_agent: AsyncAgent) -> None:
    def serving() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "perdure-store"}

    before = serving()
    store = Plain()
    session = await async_agent.session(session_store=store, session_id="s")
    await session.append({"role": "user", "content": "x"})
    await session.save()
    await session.close()
    (mine,) = serving() - before
    del session, store
    for _ in range(200):
        gc.collect()
        if not mine.is_alive():
            break
        await asyncio.sleep(0.05)
    assert not mine.is_alive()

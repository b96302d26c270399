"""Streams: their events, leaving them early, and what that leaves behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from perdure import Agent, AsyncAgent, ModelError, SessionBusyError
from turn.scripted import Call, ScriptedServer, failure, reply

from .conftest import stored, text, texts


def test_the_events_of_a_turn(agent: Agent, server: ScriptedServer, place: Path) -> None:
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    session = agent.session(file_session_store=place, session_id="s", auto_save=True, tools=[add])
    server.enqueue(reply("let ", "me", calls=[Call("x", "add", {"a": 1, "b": 2})]), reply("3"))
    events = list(session.stream("1 + 2?"))
    shown = [(e.type, e.text or e.revision or e.tool_input) for e in events[:-1]]
    assert shown == [
        ("saved", 1),
        ("text_delta", "let "),
        ("text_delta", "me"),
        ("saved", 2),
        ("tool_start", {"a": 1, "b": 2}),
        ("saved", 3),
        ("tool_end", "3"),
        ("text_delta", "3"),
        ("saved", 4),
        ("saved", 5),
    ]
    start, end = events[4], events[6]
    assert (start.tool_use_id, start.tool_name) == (end.tool_use_id, end.tool_name) == ("x", "add")
    assert end.is_error is False
    assert events[-1].type == "end" and events[-1].result is not None and events[-1].result.text == "3"


def test_an_error_is_an_event_and_raised(agent: Agent, server: ScriptedServer, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(failure(400))
    stream = session.stream("hi")
    events = [next(stream), next(stream)]
    assert [e.type for e in events] == ["saved", "error"]
    assert stored(place) == [], "the prompt is taken back before the error is shown"
    with pytest.raises(ModelError) as raised:
        next(stream)
    assert raised.value is events[1].error
    with pytest.raises(StopIteration):
        next(stream)


def test_an_aside_can_be_streamed(agent: Agent, server: ScriptedServer) -> None:
    session = agent.session()
    server.enqueue(reply("a", "b"))
    assert [e.text for e in session.stream("?", history=[]) if e.text] == ["a", "b"]
    server.enqueue(failure(400))
    with pytest.raises(ModelError):
        list(session.stream("?", history=[]))
    assert len(session.history()) == 0


@pytest.mark.parametrize("way", ["close", "break", "session"])
def test_leaving_a_stream_early_ends_the_turn(agent: Agent, server: ScriptedServer, place: Path, way: str) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(reply("one", "two", hang_after=3))
    if way == "break":
        for event in session.stream("hi"):
            if event.type == "text_delta":
                break
    else:
        stream = session.stream("hi")
        while next(stream).type != "text_delta":
            pass
        assert session.running
        (stream if way == "close" else session).close()
    assert not session.running
    assert server.disconnected.wait(10), "the connection to the model is closed"
    assert stored(place) == ["hi"], "the model had begun to answer"
    if way == "session":
        assert list(stream) == []
        session = agent.resume_session("s", file_session_store=place, auto_save=True)
    server.enqueue(reply("hello"))
    session.continue_turn()
    assert stored(place) == ["hi", "hello"]


def test_leaving_before_the_model_said_anything_takes_the_prompt_back(
    agent: Agent, server: ScriptedServer, place: Path
) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    stream = session.stream("hi")
    assert next(stream).type == "saved" and stored(place) == ["hi"]
    stream.close()
    assert stored(place) == [] and len(session.history()) == 0 and not server.requests
    session.stream("never started")
    assert not session.running


def test_leaving_between_two_tools_leaves_a_valid_history(agent: Agent, server: ScriptedServer, place: Path) -> None:
    def act() -> str:
        """Acts."""
        return "done"

    session = agent.session(file_session_store=place, session_id="s", auto_save=True, tools=[act])
    server.enqueue(reply(calls=[Call("a", "act"), Call("b", "act")]))
    for event in session.stream("go"):
        if event.type == "tool_end":
            break
    assert stored(place) == texts(session.history()) == ["go", "call a", "call b", "result a", "result b"]
    assert [m["content"][0]["is_error"] for m in session.history()[2:]] == [False, True]


def test_a_turn_goes_on_only_as_far_as_it_is_looked_at(agent: Agent, server: ScriptedServer, place: Path) -> None:
    ran: list[int] = []

    def act() -> str:
        """Acts."""
        ran.append(1)
        return "done"

    session = agent.session(file_session_store=place, session_id="s", auto_save=True, tools=[act])
    server.enqueue(reply(calls=[Call("a", "act")]))
    stream = session.stream("go")
    while next(stream).type != "tool_start":
        pass
    time.sleep(0.1)
    assert not ran and stored(place) == ["go", "call a"]
    stream.close()


def test_a_send_beside_ones_own_open_stream_does_not_wait_for_ever(agent: Agent, server: ScriptedServer) -> None:
    session = agent.session()
    server.enqueue(reply("one"))
    stream = session.stream("hi")
    next(stream)
    for use in (lambda: session.send("x"), session.continue_turn, lambda: next(session.stream("x"))):
        with pytest.raises(SessionBusyError, match="stream"):
            use()
    with pytest.raises(SessionBusyError):
        session.append(text("x"))
    assert list(stream)[-1].type == "end"
    server.enqueue(reply("two"))
    assert session.send("x").text == "two"


def test_the_session_is_free_when_the_end_is_shown(agent: Agent, server: ScriptedServer) -> None:
    session = agent.session()
    server.enqueue(reply("one"))
    for event in session.stream("hi"):
        if event.type == "end":
            session.append(text("note"))
    assert texts(session.history()) == ["hi", "one", "note"]


def test_many_open_streams_do_not_get_in_each_others_way(agent: Agent, server: ScriptedServer, place: Path) -> None:
    # More than a default executor of asyncio has threads.
    sessions = [agent.session(file_session_store=place, session_id=f"s{n}", auto_save=True) for n in range(40)]
    server.enqueue(*(reply("a", "b") for _ in sessions))
    streams = [session.stream("hi") for session in sessions]
    for stream in streams:
        assert next(stream).type == "saved"
    threads = threading.active_count()
    for stream in streams:
        assert list(stream)[-1].type == "end"
    assert threads < 40 + 32, "an open stream costs no thread"
    assert all(stored(place, session.session_id) == ["hi", "ab"] for session in sessions)


async def test_async_streams_end_when_they_are_left(
    async_agent: AsyncAgent, server: ScriptedServer, place: Path
) -> None:
    async with await async_agent.session(file_session_store=place, session_id="s", auto_save=True) as session:
        server.enqueue(reply("one", hang_after=2))
        async with aclosing(session.stream("hi")) as stream:
            async for event in stream:
                if event.type == "text_delta":
                    break
        assert not session.running and stored(place) == ["hi"]
        server.enqueue(reply("one", hang_after=2))
        async for event in session.stream("more"):
            if event.type == "text_delta":
                break
        # Nothing keeps the stream: the event loop is about to close it.
        await session.append(text("note"))
        assert stored(place) == ["hi", "more", "note"]
        server.enqueue(reply("one", hang_after=2))
        stream = session.stream("again")
        async for event in stream:
            if event.type == "text_delta":
                break
        with pytest.raises(SessionBusyError, match="stream"):
            await session.send("x")
        with pytest.raises(SessionBusyError):
            await session.append(text("x"))
    assert stored(place) == ["hi", "more", "note", "again"], "closing the session closes its stream"
    gc.collect()


async def test_async_a_second_send_waits_and_close_refuses(async_agent: AsyncAgent, server: ScriptedServer) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> str:
        """Waits."""
        inside.set()
        await go_on.wait()
        return "ok"

    session = await async_agent.session(tools=[wait])
    server.enqueue(reply(calls=[Call("a", "wait")]), reply("first"), reply("second"))
    first = asyncio.ensure_future(session.send("one"))
    await inside.wait()
    second = asyncio.ensure_future(session.send("two"))
    await asyncio.sleep(0.05)
    for use in (session.close, session.reload, lambda: session.append(text("x")), lambda: session.rewind(0)):
        with pytest.raises(SessionBusyError):
            await use()
    assert len(server.requests) == 1
    go_on.set()
    assert [(await first).text, (await second).text] == ["first", "second"]
    assert texts(session.history()) == ["one", "call a", "result a", "first", "two", "second"]
    await session.close()

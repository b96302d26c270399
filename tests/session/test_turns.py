"""Turns of a sync session: asides, continuing, one at a time, threads, what a turn brings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from perdure import Agent, ModelError, SerializationError, SessionBusyError, ToolRoundsError, Usage
from perdure.turn.repair import INTERRUPTED
from turn.scripted import Call, ScriptedServer, failure, reply

from .conftest import hcl, stored, text, texts


def test_an_explicit_history_is_neither_used_recorded_nor_saved(
    agent: Agent, server: ScriptedServer, place: Path
) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(reply("hello"))
    session.send("hi")
    before, data = (place / "s.json").read_bytes(), session.data.to_json()
    server.enqueue(reply(calls=[Call("a", "ls")]), reply("aside"))
    result = session.send("what?", history=[text("elsewhere")])
    assert result.text == "aside" and result.tool_calls_count == 1
    assert texts(result.messages) == ["what?", "call a", "result a", "aside"]
    assert [m["content"] for m in server.requests[1].messages] == ["elsewhere\n\nwhat?"]
    server.enqueue(failure(400))
    with pytest.raises(ModelError):
        session.send("what?", history=[])
    assert session.data.to_json() == data and (place / "s.json").read_bytes() == before


def test_what_a_turn_brings(agent: Agent, server: ScriptedServer, work: Path) -> None:
    (work / "file.txt").write_text("x")
    server.enqueue(
        reply("look", calls=[Call("a", "ls"), Call("b", "ls")], usage=(10, 2)), reply("one", " file", cached=4)
    )
    session = agent.session(work)
    result = session.send("what is here?")
    assert result.text == "one file" and result.tool_calls_count == 2
    assert result.usage == Usage(21, 9, 30, 4, None) == session.usage
    assert texts(result.messages) == ["what is here?", "look", "call a", "call b", "result a", "result b", "one file"]
    assert list(result.messages) == list(session.history())
    assert "file.txt" in session.history()[2]["content"][0]["content"]
    context = session.data.context_usage
    assert context["used_tokens"] == 18 and context["turns"] == 1


def test_continue_turn_needs_something_to_continue(agent: Agent, server: ScriptedServer) -> None:
    session = agent.session()
    with pytest.raises(SerializationError, match="no prompt"):
        session.continue_turn()
    server.enqueue(reply("hello"))
    session.send("hi")
    with pytest.raises(SerializationError, match="no prompt"):
        session.continue_turn()
    assert len(server.requests) == 1 and texts(session.history()) == ["hi", "hello"]


def test_continue_turn_answers_a_prompt_that_was_appended(agent: Agent, server: ScriptedServer, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    session.append({"role": "user", "content": "hi"})
    server.enqueue(failure(400))
    with pytest.raises(ModelError):
        session.continue_turn()
    assert stored(place) == texts(session.history()) == ["hi"], "nobody's prompt to take back"
    server.enqueue(reply("hello"))
    result = session.continue_turn()
    assert texts(result.messages) == ["hello"] and stored(place) == ["hi", "hello"]


def test_continue_turn_keeps_the_results_of_calls_it_ran_when_the_model_fails(
    agent: Agent, server: ScriptedServer, place: Path, work: Path
) -> None:
    session = agent.session(work, file_session_store=place, session_id="s", auto_save=True)
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "ls", "input": {}}]}
    session.append(text("go"), call)
    server.enqueue(failure(400))
    with pytest.raises(ModelError):
        session.continue_turn()
    assert stored(place) == ["go", "call a", "result a"]
    assert session.history()[2]["content"][0]["content"] != INTERRUPTED, "the tool was run, and its result stays"
    server.enqueue(reply("done"))
    session.continue_turn()
    assert stored(place) == ["go", "call a", "result a", "done"]


def test_tool_rounds_that_are_used_up_can_be_continued(
    agent: Agent, server: ScriptedServer, place: Path, work: Path
) -> None:
    session = agent.session(work, file_session_store=place, session_id="s", auto_save=True, max_tool_rounds=1)
    server.enqueue(reply(calls=[Call("a", "ls")]), reply(calls=[Call("b", "ls")]))
    with pytest.raises(ToolRoundsError, match="continue_turn"):
        session.send("go")
    assert stored(place) == ["go", "call a", "result a", "call b", "result b"]
    server.enqueue(reply("done"))
    assert session.continue_turn().text == "done"


def test_bad_prompts_are_refused_before_anything_happens(agent: Agent, server: ScriptedServer) -> None:
    session = agent.session()
    for prompt in ("", [], [{"type": "tool_use"}], 3, None):
        with pytest.raises(SerializationError, match="prompt"):
            session.send(prompt)  # type: ignore[arg-type]
    assert not server.requests and len(session.history()) == 0


CHILD = """
import sys, time
from perdure import Agent
agent = Agent.create(sys.argv[1])
def slow() -> str:
    "Slow."
    print("in tool", flush=True)
    time.sleep(60)
    return "never"
session = agent.session(session_id="s", auto_save=True, tools=[slow], file_session_store=sys.argv[2])
session.send("go")
"""


@pytest.mark.parametrize("where", ["before the reply", "in the reply", "in a tool"])
def test_a_turn_that_was_killed_can_be_resumed_and_continued(
    agent: Agent, server: ScriptedServer, place: Path, where: str
) -> None:
    calling = reply(calls=[Call("a", "slow"), Call("b", "slow")])
    server.enqueue(
        {"before the reply": reply(hang_before=True), "in the reply": reply("half", hang_after=2)}.get(where, calling)
    )
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, hcl(server), str(place)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        if where == "in a tool":
            assert child.stdout.readline() == "in tool\n"
        else:
            assert server.asked.wait(30)
        os.kill(child.pid, signal.SIGKILL)
    kept = ["go", "call a", "call b"] if where == "in a tool" else ["go"]
    assert stored(place) == kept, "every finished step was on disk"
    session = agent.resume_session("s", file_session_store=place, auto_save=True)
    repaired = kept + ["result a", "result b"] * (where == "in a tool")
    assert texts(session.history()) == repaired and stored(place) == kept
    server.enqueue(reply("done"))
    assert session.continue_turn().text == "done"
    assert stored(place) == [*repaired, "done"]


def test_one_turn_at_a_time_a_second_send_waits(agent: Agent, server: ScriptedServer) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> str:
        """Waits."""
        inside.set()
        assert go_on.wait(30)
        return "ok"

    session = agent.session(tools=[wait])
    server.enqueue(reply(calls=[Call("a", "wait")]), reply("first"), reply("second"))
    results: dict[str, Any] = {}

    def send(prompt: str) -> None:
        results[prompt] = session.send(prompt).text

    threads = [threading.Thread(target=send, args=(p,)) for p in ("one", "two")]
    threads[0].start()
    assert inside.wait(30)
    threads[1].start()
    with pytest.raises(SessionBusyError):
        session.append(text("x"))
    time.sleep(0.1)
    assert len(server.requests) == 1 and session.running
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert results == {"one": "first", "two": "second"}
    assert texts(session.history()) == ["one", "call a", "result a", "first", "two", "second"]
    assert not session.running


def test_threads_share_a_session(agent: Agent, server: ScriptedServer, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(*(reply("answer") for _ in range(4)))
    errors: list[BaseException] = []

    def use(n: int) -> None:
        try:
            session.send(f"prompt {n}")
            for _ in range(5):
                try:
                    session.append(text(f"note {n}"))
                except SessionBusyError:
                    session.save()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    session.save()
    said = texts(session.history())
    assert stored(place) == said and said.count("answer") == 4
    for n in range(4):
        assert said[said.index(f"prompt {n}") + 1] == "answer", "no turn was cut in two"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_goes_on_with_an_open_session(agent: Agent, server: ScriptedServer, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(reply("hello"), reply("to the child"))
    session.send("hi")
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # the child must not outlive a test that fails
        try:
            session.append(text("of the child"))
            session.send("child")
            session.close()
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert stored(place) == ["hi", "hello", "of the child", "child", "to the child"]
    session.reload()
    server.enqueue(reply("to the parent"))
    session.send("parent")
    assert stored(place)[-2:] == ["parent", "to the parent"]
    session.close()

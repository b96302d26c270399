"""What is on disk at which moment of a turn, and what a save that fails means."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Agent,
    ConfigError,
    FileSessionStore,
    MemorySessionStore,
    ModelError,
    Session,
    SessionConflictError,
    SessionCorruptError,
    SessionData,
    SessionDelta,
    SessionExistsError,
    SessionLockedError,
    StoreError,
)
from turn.scripted import Call, Request, Script, ScriptedServer, failure, reply

from .conftest import hcl, stored, text, texts


class Watching(ScriptedServer):
    """Notes what is on disk whenever a model is called."""

    def __init__(self, look: Callable[[], Any]) -> None:
        super().__init__()
        self.look = look
        self.seen: list[Any] = []

    def take(self, request: Request) -> Script:
        self.seen.append(self.look())
        return super().take(request)


class Failing(MemorySessionStore):
    """A store that fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception | None] = []
        self.saves = 0

    def append(self, delta: SessionDelta, *, step: bool = False) -> Any:
        self.saves += 1
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        return super().append(delta, step=step)


def test_prompt_reply_result_and_turn_are_on_disk_before_anything_else_happens(
    make_agent: Callable[[str], Agent], place: Path, work: Path
) -> None:
    at_tools: list[list[str]] = []

    def look(n: int) -> str:
        """Looks."""
        at_tools.append(stored(place))
        return f"seen {n}"

    with Watching(lambda: stored(place)) as server:
        server.enqueue(reply("let me", calls=[Call("a", "look", {"n": 1}), Call("b", "look", {"n": 2})]), reply("done"))
        agent = make_agent(hcl(server))
        session = agent.session(work, file_session_store=place, session_id="s", auto_save=True, tools=[look])
        result = session.send("go")
        session.close()
    assert result.text == "done" and result.tool_calls_count == 2
    assert server.seen[0] == ["go"], "the prompt is stored before the model is called"
    asked = ["go", "let me", "call a", "call b"]
    assert at_tools == [asked, [*asked, "result a"]], "reply and first result before the tool after them"
    assert server.seen[1] == [*asked, "result a", "result b"]
    assert stored(place) == [*asked, "result a", "result b", "done"]
    assert not (place / "s.journal").exists() or not (place / "s.journal").stat().st_size, "the turn's end folds"
    assert session.usage.total_tokens == 36
    loaded = FileSessionStore(place).load("s")
    assert loaded is not None and loaded.context_usage["turns"] == 1 and loaded.total_usage["total_tokens"] == 36


def test_without_auto_save_nothing_is_written_until_save(agent: Agent, server: ScriptedServer, place: Path) -> None:
    server.enqueue(reply("hello"))
    session = agent.session(file_session_store=place, session_id="s")
    session.send("hi")
    session.append(text("more"))
    assert list(place.iterdir()) == []
    receipt = session.save()
    assert receipt.revision == 1 and receipt.new_bytes > 0 and receipt.location
    assert stored(place) == ["hi", "hello", "more"]
    assert session.save().bytes_written == 0


def test_a_session_that_was_never_used_leaves_no_file(agent: Agent, place: Path) -> None:
    with agent.session(file_session_store=place, session_id="s", auto_save=True):
        pass
    assert list(place.iterdir()) == []
    assert agent.list_sessions(file_session_store=place) == []


def test_a_failing_auto_save_is_told_and_goes_out_later(
    agent: Agent, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    store, told = Failing(), []
    session = agent.session(session_store=store, session_id="s", auto_save=True, on_save_error=told.append)
    full = OSError(errno.ENOSPC, "No space left on device")
    store.errors = [full, full, full]
    server.enqueue(reply("hello"))
    assert session.send("hi").text == "hello", "the failure does not come out of the turn"
    assert store.load("s") is None
    assert isinstance(session.last_save_error, StoreError) and session.last_save_error.errno == errno.ENOSPC
    assert len(told) == 3 and told[-1] is session.last_save_error
    warnings = [r for r in caplog.records if r.name == "perdure" and r.levelno == logging.WARNING]
    assert len(warnings) == 3 and "No space left" in warnings[0].getMessage()
    server.enqueue(reply("again"))
    session.send("more")
    loaded = store.load("s")
    assert loaded is not None and texts(loaded.messages) == ["hi", "hello", "more", "again"]
    assert session.last_save_error is None


def test_an_on_save_error_that_raises_does_not_hurt(
    agent: Agent, server: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    def angry(error: Exception) -> None:
        raise KeyError("secret text")

    store = Failing()
    store.errors = [OSError("x")]
    session = agent.session(session_store=store, session_id="s", auto_save=True, on_save_error=angry)
    server.enqueue(reply("hello"))
    session.send("hi")
    assert "on_save_error raised KeyError" in caplog.text and "secret text" not in caplog.text


PERMANENT = [
    SessionConflictError("c", expected=1, found=2),
    SessionExistsError("e"),
    SessionLockedError("l", pid=1),
    SessionCorruptError("d", path="p"),
]


@pytest.mark.parametrize("error", PERMANENT, ids=lambda e: type(e).__name__)
def test_a_permanent_error_at_the_prompt_raises_before_any_model_call(
    agent: Agent, server: ScriptedServer, error: Exception
) -> None:
    store = Failing()
    session = agent.session(session_store=store, session_id="s", auto_save=True)
    store.errors = [error]
    with pytest.raises(type(error)) as raised:
        session.send("hi")
    assert raised.value is error and session.last_save_error is error
    assert not server.requests and len(session.history()) == 0, "no model call, and the prompt is the caller's again"
    server.enqueue(reply("hello"))
    assert session.send("hi").text == "hello", "the next send tries again"


@pytest.mark.parametrize("error", PERMANENT, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("way_out", ["reload", "fork", "force", "save"])
def test_a_permanent_error_later_in_a_turn_raises_at_the_next_send(
    agent: Agent, server: ScriptedServer, error: Exception, way_out: str
) -> None:
    store = Failing()
    session = agent.session(session_store=store, session_id="s", auto_save=True)
    store.errors = [None, error]
    server.enqueue(reply("hello"))
    assert session.send("hi").text == "hello"
    assert store.saves == 2, "after it no further save is tried in that turn"
    for _ in range(2):
        with pytest.raises(type(error)):
            session.send("more")
        with pytest.raises(type(error)):
            session.continue_turn()
    assert len(server.requests) == 1 and texts(session.history()) == ["hi", "hello"]
    if way_out == "reload":
        session.reload()
        assert texts(session.history()) == ["hi"]
    elif way_out == "fork":
        copy = session.fork()
        loaded = store.load(copy)
        assert loaded is not None and texts(loaded.messages) == ["hi", "hello"]
        assert loaded.parent is not None and loaded.parent["id"] == "s"
    else:
        session.save(force=way_out == "force")
    assert way_out == "fork" or session.last_save_error is None
    server.enqueue(reply("again"))
    session.send("more")
    loaded = store.load("s")
    assert loaded is not None and texts(loaded.messages) == texts(session.history())


def test_an_aside_goes_on_beside_a_permanent_error(agent: Agent, server: ScriptedServer) -> None:
    store = Failing()
    session = agent.session(session_store=store, session_id="s", auto_save=True)
    store.errors = [None, PERMANENT[0]]
    server.enqueue(reply("hello"), reply("aside"))
    session.send("hi")
    assert session.send("what?", history=[]).text == "aside"


def test_append_under_auto_save_saves_and_raises(agent: Agent) -> None:
    store = Failing()
    session = agent.session(session_store=store, session_id="s", auto_save=True)
    session.append(text("one"), {"role": "assistant", "content": "two"})
    loaded = store.load("s")
    assert loaded is not None and list(loaded.messages) == [text("one"), text("two", "assistant")]
    store.errors = [OSError("broken")]
    with pytest.raises(StoreError, match="broken"):
        session.append(text("three"))
    assert len(session.history()) == 3 and isinstance(session.last_save_error, StoreError)
    session.append(text("four"))
    loaded = store.load("s")
    assert loaded is not None and texts(loaded.messages) == ["one", "two", "three", "four"]


def test_append_adds_all_messages_or_none(agent: Agent) -> None:
    session = agent.session()
    with pytest.raises(TypeError, match=r"messages\[1\]"):
        session.append(text("one"), {"role": "user", "content": [{"type": "text", "text": b"bytes"}]})
    with pytest.raises(TypeError, match=r"messages\[0\]"):
        session.append("not a message")  # type: ignore[arg-type]
    assert len(session.history()) == 0


def test_save_without_a_store_is_a_config_error(agent: Agent) -> None:
    with pytest.raises(ConfigError, match="no store"):
        agent.session().save()


def test_save_notices_that_the_session_was_deleted(agent: Agent, place: Path) -> None:
    for store in (MemorySessionStore(), FileSessionStore(place)):
        session = agent.session(session_store=store, session_id="s")
        session.append(text("one"))
        session.save()
        assert agent.delete_session("s", session_store=store)
        with pytest.raises(SessionConflictError) as raised:
            session.save()
        assert raised.value.found is None
        session.save(force=True)
        assert store.exists("s")


def test_a_forced_save_overwrites_and_later_ones_are_right(agent: Agent, place: Path) -> None:
    for store in (MemorySessionStore(), FileSessionStore(place)):
        mine = agent.session(session_store=store, session_id="s")
        mine.append(text("1"), text("2"), text("3"))
        mine.save()
        other = agent.resume_session("s", session_store=store)
        other.append(text("other"))
        other.save()
        with pytest.raises(SessionConflictError):
            mine.append(text("4"))
            mine.save()
        mine.save(force=True)
        mine.rewind(1)
        mine.append(text("5"), text("6"), text("7"))
        mine.save()
        loaded = store.load("s")
        assert loaded is not None and texts(loaded.messages) == ["1", "5", "6", "7"]


def test_a_forced_save_that_fails_forces_nothing_later(agent: Agent) -> None:
    store = Failing()
    mine = agent.session(session_store=store, session_id="s")
    mine.append(text("mine"))
    mine.save()
    other = agent.resume_session("s", session_store=store)
    other.append(text("other"))
    other.save()
    mine.append(text("more"))
    store.errors = [OSError("disk full")]
    with pytest.raises(StoreError):
        mine.save(force=True)
    with pytest.raises(SessionConflictError):
        mine.save()


def test_a_prompt_that_was_not_answered_is_taken_back_also_on_disk(
    agent: Agent, server: ScriptedServer, place: Path
) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(reply("hello"))
    session.send("hi")
    server.enqueue(failure(400))
    with pytest.raises(ModelError):
        session.send("more")
    assert texts(session.history()) == stored(place) == ["hi", "hello"]
    assert not (place / "s.journal").exists() or not (place / "s.journal").stat().st_size


def test_what_the_model_has_begun_to_answer_stays(agent: Agent, server: ScriptedServer, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(reply("half a", " reply", cut_after=2))
    with pytest.raises(ModelError):
        session.send("hi")
    assert texts(session.history()) == stored(place) == ["hi"]
    server.enqueue(reply("whole"))
    assert session.continue_turn().text == "whole"
    assert texts(session.history()) == stored(place) == ["hi", "whole"]


def test_finished_steps_stay_when_the_model_fails_later(
    agent: Agent, server: ScriptedServer, place: Path, work: Path
) -> None:
    session = agent.session(work, file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(reply(calls=[Call("a", "ls")]), failure(401))
    with pytest.raises(ModelError) as raised:
        session.send("hi")
    assert raised.value.status == 401
    assert texts(session.history()) == stored(place) == ["hi", "call a", "result a"]
    server.enqueue(reply("listed"))
    result = session.continue_turn()
    assert result.text == "listed" and texts(result.messages) == ["listed"]
    assert stored(place) == ["hi", "call a", "result a", "listed"]


def test_what_is_wrong_with_the_model_shows_before_anything_is_kept(place: Path) -> None:
    agent = Agent.create('default_model = "openai/m"\nproviders {\n  name = "openai"\n}')
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    with pytest.raises(ConfigError, match="api_key"):
        session.send("hi")
    assert len(session.history()) == 0 and list(place.iterdir()) == []


def test_close_saves_what_is_pending_and_raises_if_it_cannot(agent: Agent, server: ScriptedServer) -> None:
    store = Failing()
    session = agent.session(session_store=store, session_id="s", auto_save=True)
    server.enqueue(reply("hello"))
    store.errors = [OSError("full")] * 3
    session.send("hi")
    store.errors = [OSError("still full")]
    with pytest.raises(StoreError, match="still full"):
        session.close()
    session.close()
    loaded = store.load("s")
    assert loaded is not None and texts(loaded.messages) == ["hi", "hello"]
    session.close()
    for use in (session.save, session.reload, session.continue_turn, lambda: session.append(text("x"))):
        with pytest.raises(ConfigError, match="closed"):
            use()


def test_close_saves_fields_that_were_assigned(agent: Agent) -> None:
    store = MemorySessionStore()
    with agent.session(session_store=store, session_id="s", auto_save=True) as session:
        session.name, session.tags, session.tasks = "title", ["a"], [{"content": "do"}]
    loaded = store.load("s")
    assert isinstance(loaded, SessionData)
    assert (loaded.config["name"], loaded.tags, loaded.tasks) == ("title", ["a"], [{"content": "do"}])


def test_close_without_auto_save_says_what_is_lost(agent: Agent, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with agent.session(file_session_store=place, session_id="s") as session:
        session.append(text("one"))
    assert "closed with unsaved changes" in caplog.text
    caplog.clear()
    with agent.session(file_session_store=place, session_id="t") as session:
        session.append(text("one"))
        session.save()
    with agent.resume_session("t", file_session_store=place, tools=["ls"]):
        pass
    assert not caplog.records


def test_leaving_a_block_with_an_error_shows_that_error(agent: Agent, caplog: pytest.LogCaptureFixture) -> None:
    store = Failing()
    session = agent.session(session_store=store, session_id="s", auto_save=True)
    with pytest.raises(ZeroDivisionError), session:
        store.errors = [OSError("full"), OSError("full")]
        with pytest.raises(StoreError):
            session.append(text("one"))
        raise ZeroDivisionError
    assert "not saved at its end" in caplog.text


def test_a_save_in_the_middle_of_a_turn_is_allowed(agent: Agent, server: ScriptedServer, place: Path) -> None:
    sessions: list[Session] = []

    def keep() -> str:
        """Saves."""
        return str(sessions[0].save().revision)

    session = agent.session(file_session_store=place, session_id="s", tools=[keep])
    sessions.append(session)
    server.enqueue(reply(calls=[Call("a", "keep")]), reply("done"))
    session.send("go")
    assert stored(place) == ["go", "call a"]
    result = session.history()[2]["content"][0]
    assert not result["is_error"] and result["content"] == "1"

"""Opening, resuming, forking, listing and deleting sessions, and where agent.hcl keeps them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Agent,
    ConfigError,
    FileSessionStore,
    InvalidSessionIdError,
    MemorySessionStore,
    SessionBusyError,
    SessionCorruptError,
    SessionExistsError,
    SessionInfo,
    SessionNotFoundError,
    SessionOptions,
    StoreError,
)
from perdure.turn.repair import INTERRUPTED
from turn.scripted import Call, ScriptedServer, reply

from .conftest import hcl, stored, text, texts

Make = Callable[[str], Agent]


def saved(agent: Agent, place: Path, id: str = "s", *messages: Any, **options: Any) -> None:
    with agent.session(file_session_store=place, session_id=id, **options) as session:
        session.append(*(messages or (text("one"), text("two", "assistant"))))
        session.save()


def test_an_id_that_exists_raises(agent: Agent, place: Path) -> None:
    saved(agent, place)
    with pytest.raises(SessionExistsError, match="resume") as raised:
        agent.session(file_session_store=place, session_id="s")
    assert raised.value.session_id == "s"


def test_resume_true_gets_or_creates(agent: Agent, place: Path) -> None:
    options = SessionOptions(file_session_store=place, session_id="s", resume=True, auto_save=True)
    agent.session(options=options).append(text("one"))
    session = agent.session(options=options)
    assert texts(session.history()) == ["one"]
    with pytest.raises(ConfigError, match="session_id"):
        agent.session(file_session_store=place, resume=True)


def test_a_store_that_cannot_be_opened_raises_at_once(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        agent.session(file_session_store=tmp_path / "file")
    with pytest.raises(ConfigError, match="auto_save"):
        agent.session(auto_save=True)
    with pytest.raises(ConfigError, match="both"):
        agent.session(file_session_store=tmp_path, session_store=MemorySessionStore())
    with pytest.raises(ConfigError, match="workspace"):
        agent.session(tmp_path / "nothing")


def test_new_ids_sort_by_time(agent: Agent) -> None:
    ids = [agent.session().session_id for _ in range(20)]
    assert ids == sorted(ids) and len(set(ids)) == 20


def test_resume_restores_everything(agent: Agent, server: ScriptedServer, place: Path, work: Path) -> None:
    tasks = [{"content": "build", "status": "open"}]
    session = agent.session(
        work,
        SessionOptions(file_session_store=place, session_id="s", name="title", tags=["a"], tasks=tasks),
        system_prompt="be brief",
        model="openai/m-2",
        auto_save=True,
        tools=["ls"],
    )
    server.enqueue(reply("hello", usage=(20, 5), cached=3))
    session.send("hi")
    before = session.data
    session.close()
    time.sleep(1.1)  # times are whole seconds
    resumed = agent.resume_session("s", file_session_store=place, auto_save=True)
    after = resumed.data
    assert resumed.history() == before.messages
    assert (resumed.name, resumed.tags, resumed.tasks) == ("title", ["a"], tasks)
    assert (after.config, after.created_at, after.revision) == (before.config, before.created_at, before.revision)
    assert resumed.usage == session.usage and resumed.usage.total_tokens == 25
    assert resumed.usage.cache_read_tokens == 3 and resumed.usage.cache_write_tokens is None
    assert resumed.workspace == work.resolve()
    assert before.tool_names == ["ls"]
    assert after.tool_names == ["read", "write", "edit", "ls", "glob", "grep", "bash"], "rebuilt from what is there now"
    server.enqueue(reply("again", usage=(30, 6)))
    resumed.send("more")
    assert server.requests[-1].body["model"] == "m-2", "a session goes on with its model"
    assert server.requests[-1].messages[0]["content"] == "be brief"
    assert resumed.usage.total_tokens == 61 and resumed.data.created_at == before.created_at


def test_resume_takes_overrides_and_stores_them_with_the_next_save(
    agent: Agent, server: ScriptedServer, place: Path, work: Path
) -> None:
    saved(agent, place, name="old", system_prompt="old prompt", tags=["old"])
    before = (place / "s.json").read_bytes()
    new = SessionOptions(name="new", system_prompt="new prompt", tags=["new"], tasks=[{"t": 1}], planning_enabled=True)
    session = agent.resume("s", new, file_session_store=place, model="openai/m-2", workspace=work, auto_save=True)
    assert (session.name, session.tags, session.tasks) == ("new", ["new"], [{"t": 1}])
    assert session.workspace == work.resolve()
    assert (place / "s.json").read_bytes() == before
    server.enqueue(reply("ok"))
    session.send("go")
    assert server.requests[0].body["model"] == "m-2" and server.requests[0].messages[0]["content"] == "new prompt"
    loaded = FileSessionStore(place).load("s")
    assert loaded is not None and loaded.config["planning_enabled"] is True
    assert (loaded.config["name"], loaded.config["system_prompt"], loaded.model_name) == (
        "new",
        "new prompt",
        "openai/m-2",
    )


def test_a_model_that_is_gone_gives_way_to_the_default(
    agent: Agent, server: ScriptedServer, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(agent, place, model="openai/m-2")
    data = FileSessionStore(place).load("s")
    assert data is not None
    data.model_name = "gone/x"
    FileSessionStore(place).save(data)
    server.enqueue(reply("ok"))
    agent.resume_session("s", file_session_store=place).send("go")
    assert server.requests[0].body["model"] == "m-1"
    assert "gone/x" in caplog.text and "openai/m-1" in caplog.text


def test_everything_but_a_turn_works_without_a_model(place: Path) -> None:
    agent = Agent.create('max_tool_rounds = 3\nproviders {\n  name = "openai"\n}')
    saved(agent, place)
    session = agent.resume_session("s", file_session_store=place, auto_save=True)
    session.append(text("three"))
    session.rewind(1)
    session.reload()
    assert agent.list_sessions(file_session_store=place) == ["s"]
    with pytest.raises(ConfigError, match="no model is chosen"):
        session.send("hi")


def test_an_unknown_session_names_those_that_look_like_it(agent: Agent, place: Path) -> None:
    saved(agent, place, "my-session")
    with pytest.raises(SessionNotFoundError, match="my-session") as raised:
        agent.resume_session("my-sesion", file_session_store=place)
    assert raised.value.close_ids == ("my-session",) and isinstance(raised.value, LookupError)
    with pytest.raises(SessionNotFoundError) as raised:
        agent.fork_session("zzz", file_session_store=place)
    assert raised.value.close_ids == ()
    with pytest.raises(ConfigError, match="no store to look in"):
        agent.resume_session("my-session")
    with pytest.raises(ConfigError, match="session_id"):
        agent.resume_session("a", file_session_store=place, session_id="b")


@pytest.mark.parametrize("id", ["", "a\0b", "x" * 5000, 3])
def test_bad_ids_are_refused_everywhere(agent: Agent, place: Path, id: Any) -> None:
    for use in (
        lambda: agent.session(file_session_store=place, session_id=id),
        lambda: agent.resume_session(id, file_session_store=place),
        lambda: agent.delete_session(id, file_session_store=place),
        lambda: agent.fork_session(id, file_session_store=place),
        lambda: agent.fork_session("s", id, file_session_store=place),
    ):
        with pytest.raises(InvalidSessionIdError):
            use()


@pytest.mark.parametrize("id", ["..", "/etc/passwd", "CON", "trailing. ", "😀", "a/b", "a_b", "x" * 4096])
def test_strange_ids_are_ids(agent: Agent, place: Path, id: str) -> None:
    saved(agent, place, id)
    assert agent.list_sessions(file_session_store=place) == [id]
    assert texts(agent.resume_session(id, file_session_store=place).history()) == ["one", "two"]
    assert all(path.parent == place for path in place.rglob("*"))
    assert agent.delete_session(id, file_session_store=place)


def test_a_damaged_session_raises_and_stays_as_it_is(agent: Agent, place: Path) -> None:
    saved(agent, place)
    path = place / "s.json"
    damaged = path.read_bytes()[:-40]
    path.write_bytes(damaged)
    with pytest.raises(SessionCorruptError) as raised:
        agent.resume_session("s", file_session_store=place)
    assert raised.value.path == str(path) and raised.value.line
    with pytest.raises(SessionExistsError):
        agent.session(file_session_store=place, session_id="s")
    assert path.read_bytes() == damaged


def interrupted(*calls: str) -> dict[str, Any]:
    blocks = [{"type": "tool_use", "id": id, "name": "ls", "input": {}} for id in calls]
    return {"role": "assistant", "content": blocks}


def test_resume_repairs_dangling_calls_in_memory_and_stores_that_with_the_next_save(
    agent: Agent, server: ScriptedServer, place: Path
) -> None:
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]}
    saved(agent, place, "s", text("one"), interrupted("a", "b"), result)
    before = (place / "s.json").read_bytes()
    with agent.resume_session("s", file_session_store=place, auto_save=True) as session:
        block = session.history()[-1]["content"][0]
        assert block == {"type": "tool_result", "tool_use_id": "b", "content": INTERRUPTED, "is_error": True}
    assert (place / "s.json").read_bytes() == before, "a look at a session changes nothing"
    session = agent.resume_session("s", file_session_store=place, auto_save=True)
    server.enqueue(reply("ok"))
    session.send("go on")
    assert stored(place) == ["one", "call a", "call b", "result a", "result b", "go on", "ok"]
    sent = server.requests[0].messages
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "tool", "user"]


def test_reload_repairs_too_and_gives_up_what_was_not_saved(agent: Agent, place: Path) -> None:
    saved(agent, place, "s", text("one"), interrupted("a"))
    session = agent.resume_session("s", file_session_store=place)
    session.append(text("lost"))
    session.reload()
    assert texts(session.history()) == ["one", "call a", "result a"]
    agent.delete_session("s", file_session_store=place)
    with pytest.raises(SessionNotFoundError):
        session.reload()
    assert len(session.history()) == 3


@pytest.mark.parametrize("after_rewind", [False, True])
def test_a_prompt_repairs_what_the_user_left_dangling(
    agent: Agent, server: ScriptedServer, place: Path, after_rewind: bool
) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    server.enqueue(reply("hello"))
    session.send("hi")
    session.append(interrupted("a"))
    if after_rewind:
        result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]}
        session.append(result)
        server.enqueue(reply("fine"))
        session.send("next")
        session.rewind(3)
    server.enqueue(reply("ok"))
    session.send("go on")
    assert stored(place) == ["hi", "hello", "call a", "result a", "go on", "ok"]


def test_rewind_keeps_the_first_messages(agent: Agent, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s", auto_save=True)
    session.append(text("1"), text("2"), text("3"))
    session.rewind(1)
    assert stored(place) == texts(session.history()) == ["1"]
    for wrong in (2, -1):
        with pytest.raises(ValueError):
            session.rewind(wrong)
    session.append(text("4"))
    assert stored(place) == ["1", "4"]


def test_history_is_a_view_of_its_moment(agent: Agent) -> None:
    session = agent.session()
    session.append(text("1"))
    history = session.history()
    session.append(text("2"))
    assert len(history) == 1 and len(session.history()) == 2
    history[0]["role"] = "changed"
    assert session.history()[0]["role"] == "user"


def test_fork_copies_the_first_messages(agent: Agent, place: Path) -> None:
    saved(agent, place, name="title")
    new = agent.fork_session("s", "t", 1, file_session_store=place)
    assert new == "t" and stored(place, "t") == ["one"]
    loaded = FileSessionStore(place).load("t")
    assert loaded is not None and loaded.parent is not None
    assert loaded.parent["id"] == "s" and loaded.parent["at"] == 1 and loaded.config["name"] == "title"
    other = agent.fork_session("s", file_session_store=place)
    assert stored(place, other) == ["one", "two"]
    with pytest.raises(SessionExistsError):
        agent.fork_session("s", "t", file_session_store=place)
    for wrong in (3, -1, True, "1"):
        with pytest.raises(ValueError, match="at"):
            agent.fork_session("s", "u", wrong, file_session_store=place)  # type: ignore[arg-type]
    assert stored(place) == ["one", "two"]


def test_fork_of_what_is_in_memory(agent: Agent, place: Path) -> None:
    session = agent.session(file_session_store=place, session_id="s")
    session.append(text("1"), text("2"))
    assert session.fork("t", at=1) == "t" and stored(place, "t") == ["1"]
    assert stored(place, session.fork()) == ["1", "2"]
    with pytest.raises(SessionExistsError):
        session.fork("t")
    with pytest.raises(ValueError):
        session.fork(at=3)
    assert not (place / "s.json").exists()


def test_delete_is_for_good(agent: Agent, place: Path) -> None:
    saved(agent, place)
    assert agent.delete_session("s", file_session_store=place) is True
    assert agent.delete_session("s", file_session_store=place) is False
    assert list(place.iterdir()) == []


def test_a_running_session_cannot_be_forked_deleted_or_changed(
    agent: Agent, server: ScriptedServer, place: Path, tmp_path: Path
) -> None:
    refused: list[str] = []

    def meddle() -> str:
        """Meddles."""
        for use in (
            lambda: agent.fork_session("s", file_session_store=place),
            lambda: agent.delete_session("s", file_session_store=place),
            lambda: session.append(text("x")),
            lambda: session.rewind(0),
            session.reload,
            session.fork,
            session.close,
            lambda: session.send("x"),
            session.continue_turn,
            lambda: next(session.stream("x")),
        ):
            with pytest.raises(SessionBusyError) as raised:
                use()
            refused.append(str(raised.value))
        # Another session of that name, somewhere else, is another matter.
        assert not agent.delete_session("s", file_session_store=tmp_path / "elsewhere")
        return "ok"

    session = agent.session(file_session_store=place, session_id="s", auto_save=True, tools=[meddle])
    server.enqueue(reply(calls=[Call("a", "meddle")]), reply("done"))
    assert session.send("go").text == "done"
    assert len(refused) == 10 and session.history()[2]["content"][0]["content"] == "ok"
    assert texts(session.history()) == ["go", "call a", "result a", "done"]
    session.append(text("x"))


def test_sessions_lists_newest_first_with_limit_and_cursor(agent: Agent, place: Path) -> None:
    ids = [f"s{n}" for n in range(7)]
    for id in ids:
        saved(agent, place, id, text(f"prompt of {id}"), name=f"name of {id}", tags=[id])
    infos = list(agent.sessions(file_session_store=place))
    assert [info.id for info in infos] == ids[::-1] and all(isinstance(info, SessionInfo) for info in infos)
    newest = infos[0]
    assert (newest.name, newest.tags, newest.first_prompt) == ("name of s6", ("s6",), "prompt of s6")
    assert newest.message_count == 1 and newest.revision == 1 and newest.bytes == (place / "s6.json").stat().st_size
    assert newest.updated_at.tzinfo is not None
    page = agent.sessions(3, file_session_store=place)
    assert [info.id for info in page] == ids[:3:-1] and page.cursor
    rest = agent.sessions(None, page.cursor, file_session_store=place)
    assert [info.id for info in rest] == ids[3::-1] and rest.cursor is None
    assert list(agent.sessions(0, file_session_store=place)) == []
    for wrong in (-1, True, "3"):
        with pytest.raises(ValueError):
            agent.sessions(wrong, file_session_store=place)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        list(agent.sessions(cursor="nonsense", file_session_store=place))


def test_more_sessions_than_a_page_and_an_iteration_that_is_left(agent: Agent) -> None:
    store = MemorySessionStore()
    for n in range(120):
        session = agent.session(session_store=store, session_id=f"s{n}")
        session.append(text("x"))
        session.save()
    assert [info.id for info in agent.sessions(session_store=store)] == [f"s{n}" for n in reversed(range(120))]
    assert len(list(agent.sessions(70, session_store=store))) == 70
    for info in agent.sessions(session_store=store):
        assert info.id == "s119"
        break


def test_places_named_in_agent_hcl(make_agent: Make, server: ScriptedServer, tmp_path: Path, work: Path) -> None:
    def kept(extra: str, **options: Any) -> Agent:
        agent = make_agent(hcl(server, extra))
        agent.session(work, session_id="s", auto_save=True, **options).append(text("one"))
        return agent

    kept('sessions_dir = "kept"')
    assert stored(work / "kept") == ["one"], "relative to the workspace"
    agent = kept(f'storage_url = "file://{tmp_path}/by%20url"')
    assert stored(tmp_path / "by url") == ["one"] and agent.list_sessions() == ["s"]
    assert texts(agent.resume_session("s").history()) == ["one"]
    for extra in ('storage_backend = "memory"', 'storage_url = "memory://"'):
        agent = kept(extra)
        assert texts(agent.resume_session("s").history()) == ["one"], "all sessions of an agent share its memory"
        assert kept(extra, resume=True).list_sessions() == ["s"]
    kept(f'storage_backend = "file"\n sessions_dir = "{tmp_path}/file"\n storage_url = "memory://"')
    assert stored(tmp_path / "file") == ["one"]
    agent = make_agent(hcl(server, 'sessions_dir = "kept"'))
    assert agent.list_sessions(workspace=work) == ["s"]
    assert [info.id for info in agent.sessions(workspace=work)] == ["s"]
    assert stored(work / "kept", agent.fork_session("s", "t", workspace=work)) == ["one"]
    assert agent.delete_session("t", workspace=work)
    mine = MemorySessionStore()
    agent.session(work, session_store=mine, session_id="m", auto_save=True).append(text("one"))
    assert mine.exists("m"), "options win over agent.hcl"


@pytest.mark.parametrize(
    "url", ["redis://:password-1234@h/0", "file://host/path", "file:///p?x=1", "file://", "file:///", "http://[x"]
)
def test_urls_without_a_store_are_refused(make_agent: Make, tmp_path: Path, url: str) -> None:
    path = tmp_path / "agent.hcl"
    path.write_text(f'storage_url = "{url}"')
    for use, option, where in (
        (lambda: Agent.create(path).session(), "storage_url", str(path)),
        (lambda: make_agent("max_tool_rounds = 1").session(session_store=url), "session_store", None),
    ):
        with pytest.raises(ConfigError) as raised:
            use()
        assert raised.value.option == option and raised.value.path == where
        assert "password-1234" not in str(raised.value)


def test_options_win_over_agent_hcl_and_overrides_over_options(make_agent: Make, server: ScriptedServer) -> None:
    agent = make_agent(hcl(server, 'system_prompt = "of the file"\n temperature = 0.25'))
    asked = []
    for options, override in ((None, None), ("of options", None), ("of options", "of the call")):
        server.enqueue(reply("ok"))
        agent.session(options=SessionOptions(system_prompt=options), system_prompt=override).send("hi")
        asked.append((server.requests[-1].messages[0]["content"], server.requests[-1].body["temperature"]))
    assert asked == [("of the file", 0.25), ("of options", 0.25), ("of the call", 0.25)]


def test_a_workspace_that_is_gone_is_told(
    agent: Agent, place: Path, work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with agent.session(work, file_session_store=place, session_id="s", auto_save=True) as session:
        session.append(text("one"))
    work.rmdir()
    monkeypatch.chdir(place)
    assert agent.resume_session("s", file_session_store=place).workspace == place.resolve()
    assert str(work) in caplog.text

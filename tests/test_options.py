"""SessionOptions: keywords, builder, precedence, and what is refused."""

from __future__ import annotations

import copy
import inspect
import math
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from perdure import options as options_module
from perdure.config import AgentConfig
from perdure.errors import ConfigError, InvalidSessionIdError
from perdure.options import ResolvedOptions, SessionOptions, check_session_id, new_session_id


class Store:
    """The five methods and nothing else."""

    def save(self, data: object) -> None: ...
    def load(self, session_id: str) -> None: ...
    def delete(self, session_id: str) -> bool:
        return False

    def list(self) -> list[str]:
        return []

    def exists(self, session_id: str) -> bool:
        return False


def confirm(name: str, tool_input: dict[str, Any]) -> bool:
    return True


STORE = Store()
# Every option but one of the two stores, with a value that is not its default.
VALUES: dict[str, Any] = {
    "session_id": "my-session",
    "file_session_store": "sessions",
    "session_store": STORE,
    "auto_save": True,
    "journal": True,
    "durability": "process",
    "resume": True,
    "model": "openai/gpt-4o",
    "system_prompt": "Be brief.",
    "temperature": 0.5,
    "max_tool_rounds": 7,
    "tool_timeout": 1.5,
    "tools": ("read", confirm),
    "permissive": True,
    "confirm": confirm,
    "name": "Auth",
    "tags": ("a", "b"),
    "planning_enabled": True,
    "tasks": ({"id": "1", "content": "x"},),
    "on_save_error": print,
    "redact": str.upper,
    "store_timeout": 2.5,
    "lock_timeout": 3.5,
}
NAMES = list(VALUES)


def test_the_lists_of_options_agree() -> None:
    fields = list(SessionOptions.__dataclass_fields__)
    assert fields == NAMES
    assert list(options_module._CHECKS) == fields
    assert list(ResolvedOptions.__dataclass_fields__) == fields
    builders = {name for name in dir(SessionOptions) if name.startswith("with_")}
    assert builders == {f"with_{name}" for name in fields}
    assert set(options_module._CONFIG_OPTIONS) == set(AgentConfig.__dataclass_fields__) & set(fields)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_as_keyword_and_builder(name: str) -> None:
    value = VALUES[name]
    empty = SessionOptions()
    by_keyword = SessionOptions(**{name: value})
    by_builder = getattr(empty, f"with_{name}")(value)
    assert by_keyword == by_builder
    assert by_keyword.given() == {name: value}
    assert getattr(by_keyword, name) == value
    assert empty.given() == {}, "a builder changes nothing in place"
    assert getattr(by_keyword, f"with_{name}")(None) == empty
    assert SessionOptions(**{name: None}) == empty
    builder = getattr(SessionOptions, f"with_{name}")
    assert inspect.getdoc(builder)
    # A builder takes what the keyword takes.
    parameter = list(inspect.signature(builder).parameters.values())[1]
    assert parameter.annotation == SessionOptions.__annotations__[name]
    with pytest.raises(AttributeError):
        setattr(by_keyword, name, value)


def test_builders_chain_and_on_off_options_need_no_argument() -> None:
    built = (
        SessionOptions()
        .with_file_session_store(Path("d"))
        .with_session_id("i")
        .with_auto_save()
        .with_journal()
        .with_resume()
        .with_permissive()
        .with_planning_enabled()
    )
    assert built == SessionOptions(
        file_session_store="d",
        session_id="i",
        auto_save=True,
        journal=True,
        resume=True,
        permissive=True,
        planning_enabled=True,
    )


def test_options_survive_copy_and_pickle() -> None:
    given = {name: value for name, value in VALUES.items() if name != "session_store"}
    whole = SessionOptions(**given)
    assert copy.deepcopy(whole) == copy.copy(whole) == whole
    assert pickle.loads(pickle.dumps(whole)) == whole


def test_unknown_names_are_refused_with_a_suggestion() -> None:
    wrong: dict[str, Any] = {"auto_sav": True}
    with pytest.raises(ConfigError, match="unknown option 'auto_sav'; did you mean 'auto_save'") as caught:
        SessionOptions(**wrong)
    assert caught.value.option == "auto_sav"
    camel: dict[str, Any] = {"fileSessionStore": "d"}
    with pytest.raises(ConfigError, match="did you mean 'file_session_store'"):
        SessionOptions(**camel)
    with pytest.raises(ConfigError, match="did you mean 'tool_timeout'"):
        SessionOptions().merged({"tool_timout": 1})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("auto_save", 1, "auto_save must be true or false, not 1"),
        ("auto_save", "yes", "auto_save must be true or false, not str"),
        ("journal", 0, "true or false"),
        ("durability", "ful", "did you mean 'full'?"),
        ("durability", True, '"full" or "process"'),
        ("max_tool_rounds", 0, "at least 1, not 0"),
        ("max_tool_rounds", True, "whole number"),
        ("max_tool_rounds", 1.0, "whole number"),
        ("tool_timeout", -0.5, "a number of at least 0, not -0.5"),
        ("tool_timeout", math.inf, "not inf"),
        ("store_timeout", math.nan, "not nan"),
        ("lock_timeout", "3", "not str"),
        ("lock_timeout", 10**400, "a number of at least 0, not int"),
        ("temperature", True, "not True"),
        ("model", "", "model must not be empty"),
        ("model", 5, "model must be a string, not 5"),
        ("system_prompt", b"x", "not bytes"),
        ("name", 3, "name must be a string"),
        ("tools", "bash", "tools must be a sequence of tool names and functions, not str"),
        ("tools", ["bsh"], "did you mean 'bash'?"),
        ("tools", [5], "the name of a built-in tool or a function, not 5"),
        ("tools", ["read", "read"], "two tools with the name 'read'"),
        ("tools", [confirm, confirm], "two tools with the name 'confirm'"),
        ("tags", "ab", "a sequence of strings, not str"),
        ("tags", ["a", 1], "tags: each item must be a string, not 1"),
        ("tags", {"a"}, "not set"),
        ("tasks", [1], "tasks: each item must be a dict, not 1"),
        ("tasks", {"id": 1}, "a sequence of dicts, not dict"),
        ("confirm", True, "confirm must be a function"),
        ("on_save_error", "log", "on_save_error must be a function"),
        ("redact", True, "there is no built-in redactor"),
        ("redact", "x", "redact must be a function"),
        ("file_session_store", "", "not empty"),
        ("file_session_store", " ", "not empty"),
        ("file_session_store", b"d", "file_session_store must be a path, not bytes"),
        ("file_session_store", "a\0b", "without NUL"),
        ("file_session_store", "redis://h", "a URL goes to session_store"),
        ("file_session_store", STORE, "must be a path, not Store"),
        ("session_store", "sessions", "a directory goes to file_session_store"),
        ("session_store", Path("d"), "a directory goes to file_session_store"),
        ("session_store", Store, "not the class Store: call it"),
        ("session_store", object(), "object has no method save, load, delete, list, exists"),
    ],
)
def test_values_that_do_not_fit(name: str, value: object, words: str) -> None:
    changes: dict[str, Any] = {name: value}
    for make in (lambda: SessionOptions(**changes), lambda: SessionOptions().merged(changes)):
        with pytest.raises(ConfigError) as caught:
            make()
        assert words in str(caught.value)
        assert str(caught.value.option).startswith(name)


def test_values_are_made_immutable() -> None:
    tags, tasks, tools = ["a"], [{"id": "1", "sub": ["x"]}], ["read"]
    made = SessionOptions(tags=tags, tasks=tasks, tools=tools)
    tags.append("b")
    tools.append("bash")
    tasks[0]["sub"].append("y")  # type: ignore[attr-defined]
    assert (made.tags, made.tools, made.tasks) == (("a",), ("read",), ({"id": "1", "sub": ["x"]},))
    timeout = SessionOptions(tool_timeout=3).tool_timeout
    assert (timeout, type(timeout)) == (3.0, float)


def test_one_store_only() -> None:
    with pytest.raises(ConfigError, match="a session has one store"):
        SessionOptions(file_session_store="d", session_store=STORE)
    with pytest.raises(ConfigError, match="a session has one store"):
        SessionOptions(file_session_store="d").with_session_store(STORE)
    with pytest.raises(ConfigError, match="a session has one store"):
        SessionOptions().merged({"file_session_store": "d", "session_store": STORE})
    # A call's store takes the place of the options' store, whatever its kind.
    base = SessionOptions(file_session_store="d", model="a/b")
    assert base.merged({"session_store": STORE}).given() == {"session_store": STORE, "model": "a/b"}
    other = SessionOptions(session_store=STORE)
    assert other.merged({"file_session_store": "e"}).given() == {"file_session_store": "e"}
    assert other.merged({"file_session_store": None}) == other


def test_repr_shows_what_is_given_and_no_secrets() -> None:
    shown = repr(
        SessionOptions(
            session_id="i",
            session_store="postgresql://me:canary@db/x",
            system_prompt="canary",
            tasks=[{"content": "canary"}],
        )
    )
    assert shown == (
        "SessionOptions(session_id='i', session_store='postgresql:…', system_prompt=<6 characters>, tasks=<1 tasks>)"
    )
    resolved = SessionOptions(
        session_store="postgresql://me:canary@db/x", system_prompt="canary", tasks=[{"content": "canary"}]
    ).resolve(AgentConfig())
    assert "canary" not in repr(resolved)


def test_precedence_is_call_then_options_then_config_then_default() -> None:
    config = AgentConfig(max_tool_rounds=1, tool_timeout=1.0, auto_save=True, journal=True, sessions_dir="from-config")
    given = SessionOptions(max_tool_rounds=2, tool_timeout=2.0, auto_save=False)
    resolved = given.merged({"max_tool_rounds": 3, "tool_timeout": None}).resolve(config)
    assert resolved.max_tool_rounds == 3
    assert resolved.tool_timeout == 2.0
    assert resolved.auto_save is False, "False is a given value"
    assert resolved.journal is True
    assert resolved.store_timeout == 60.0
    assert resolved.file_session_store == "from-config"


def test_every_key_of_the_config_arrives() -> None:
    config = AgentConfig(
        sessions_dir="d",
        tools=("read",),
        **{name: VALUES[name] for name in options_module._CONFIG_OPTIONS if name != "tools"},
    )
    resolved = SessionOptions().resolve(config)
    for name in options_module._CONFIG_OPTIONS:
        assert getattr(resolved, name) == getattr(config, name) != getattr(SessionOptions(), name)


def test_the_defaults() -> None:
    resolved = SessionOptions().resolve(AgentConfig())
    assert len(resolved.session_id) == 26
    assert resolved == ResolvedOptions(
        session_id=resolved.session_id,
        file_session_store=None,
        session_store=None,
        auto_save=False,
        journal=False,
        durability="full",
        resume=False,
        model=None,
        system_prompt=None,
        temperature=None,
        max_tool_rounds=50,
        tool_timeout=120.0,
        tools=None,
        permissive=False,
        confirm=None,
        name="",
        tags=(),
        planning_enabled=False,
        tasks=(),
        on_save_error=None,
        redact=None,
        store_timeout=60.0,
        lock_timeout=0.0,
    )
    assert not resolved.has_store


@pytest.mark.parametrize("name", [name for name in NAMES if name != "file_session_store"])
def test_every_option_arrives(name: str) -> None:
    given = {"session_id": "i", name: VALUES[name]}
    resolved = SessionOptions(**given).resolve(AgentConfig(sessions_dir="d"))
    assert getattr(resolved, name) == VALUES[name]


def test_redact_false_takes_back_a_function() -> None:
    given = SessionOptions(redact=str.upper)
    assert given.merged({"redact": False}).resolve(AgentConfig()).redact is None
    assert given.merged({"redact": None}).resolve(AgentConfig()).redact is str.upper


def test_which_store_is_used() -> None:
    def stores(given: SessionOptions, **config: Any) -> tuple[object, object]:
        resolved = given.resolve(AgentConfig(**config))
        return resolved.file_session_store, resolved.session_store

    assert stores(SessionOptions(), sessions_dir="d") == ("d", None)
    assert stores(SessionOptions(), storage_url="sqlite:///x") == (None, "sqlite:///x")
    assert stores(SessionOptions(), storage_backend="memory") == (None, "memory://")
    assert stores(SessionOptions(session_store=STORE), sessions_dir="d") == (None, STORE)
    assert stores(SessionOptions(file_session_store="e"), storage_url="sqlite:///x") == ("e", None)
    # What agent.hcl leaves open does not matter when the options name a store.
    both = {"sessions_dir": "d", "storage_url": "sqlite:///x"}
    assert stores(SessionOptions(session_store=STORE), **both) == (None, STORE)
    with pytest.raises(ConfigError, match="both are given"):
        stores(SessionOptions(), **both)


def test_auto_save_needs_a_store() -> None:
    with pytest.raises(ConfigError) as caught:
        SessionOptions(auto_save=True).resolve(AgentConfig(path="agent.hcl"))
    for word in ("file_session_store", "session_store", "sessions_dir", "storage_url", "agent.hcl"):
        assert word in str(caught.value)
    with pytest.raises(ConfigError, match="auto_save"):
        SessionOptions().resolve(AgentConfig(auto_save=True))
    assert SessionOptions(auto_save=True, file_session_store="d").resolve(AgentConfig()).auto_save


def test_options_that_would_do_nothing_are_refused() -> None:
    for changes in ({"journal": True}, {"durability": "process"}):
        given = SessionOptions(session_store=STORE, **changes)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"{next(iter(changes))} goes with file_session_store"):
            given.resolve(AgentConfig())
    SessionOptions(session_store=STORE, journal=False, durability="full").resolve(AgentConfig(journal=True))
    with pytest.raises(ConfigError, match="resume needs the session_id"):
        SessionOptions(resume=True, file_session_store="d").resolve(AgentConfig())


@pytest.mark.parametrize("good", ["a", "a" * 4096, "..", "/etc/passwd", "😀" * 4096, "CON", "a. ", "a/b"])
def test_ids_that_are_ids(good: str) -> None:
    assert check_session_id(good) is good
    assert SessionOptions(session_id=good).session_id is good


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("", "empty"),
        ("a" * 4097, "4096 characters, not 4097"),
        ("a\0b", "NUL"),
        ("a\ud800", "lone surrogate"),
        (5, "not int"),
        (None, "not NoneType"),
        (b"a", "not bytes"),
    ],
)
def test_ids_that_are_none(bad: object, words: str) -> None:
    with pytest.raises(InvalidSessionIdError, match=words) as caught:
        check_session_id(bad)
    assert isinstance(caught.value, ValueError)
    if bad is not None:
        wrong: dict[str, Any] = {"session_id": bad}
        with pytest.raises(InvalidSessionIdError, match=words):
            SessionOptions(**wrong)


def test_new_ids_sort_by_time_and_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[list[str]] = [[] for _ in range(4)]

    def make(ids: list[str]) -> None:
        ids += (new_session_id() for _ in range(2000))

    threads = [threading.Thread(target=make, args=(ids,)) for ids in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [one for ids in made for one in ids]
    assert len(set(every)) == 8000
    assert all(ids == sorted(ids) for ids in made)
    assert all(len(one) == 26 and set(one) <= set("0123456789abcdefghjkmnpqrstvwxyz") for one in every)
    newest = max(every)
    stamp = 0
    for letter in newest[:10]:
        stamp = stamp << 5 | "0123456789abcdefghjkmnpqrstvwxyz".index(letter)
    assert abs(stamp - time.time() * 1000) < 60_000
    # A clock that goes back does not make ids that sort before.
    monkeypatch.setattr(time, "time_ns", lambda: 10**15)
    assert newest < new_session_id() < new_session_id()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_other_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    new_session_id()
    reader, writer = os.pipe()
    # Held as by a thread in the middle of making an id, which the child does not have.
    with options_module._ids._lock:
        child = os.fork()
        if child == 0:
            os.write(writer, new_session_id().encode())
            os._exit(0)
    deadline = time.monotonic() + 10
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child hangs on a lock that nobody holds")
        time.sleep(0.005)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)
    assert len(theirs) == 26
    assert theirs != new_session_id()


def test_annotations_can_be_read() -> None:
    # What a documentation tool does; the protocol needs the compiled core, so its name is given.
    names = {"SessionStore": object, "Confirm": object, "Tools": object}
    assert set(get_type_hints(SessionOptions, localns=names)) >= set(NAMES)

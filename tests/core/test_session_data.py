"""`SessionData`: fields, messages, copies, JSON, and what a store is told to write."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from core_helpers import session, text, texts

from perdure import (
    FileSessionStore,
    InvalidSessionIdError,
    SerializationError,
    SessionCorruptError,
    SessionData,
)

FIELDS = {
    "config": dict,
    "state": str,
    "context_usage": dict,
    "total_usage": dict,
    "tool_names": list,
    "tasks": list,
}


def test_a_new_session() -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    data = SessionData("s")
    assert (data.id, data.revision, data.lineage, data.parent, data.first_prompt) == ("s", 0, None, None, None)
    assert (len(data), list(data.messages), data.tags, data.model_name) == (0, [], [], None)
    assert bool(data)
    for name, kind in FIELDS.items():
        assert type(getattr(data, name)) is kind
    assert data.keys() == [
        "config", "state", "context_usage", "total_usage", "tool_names",
        "thinking_enabled", "thinking_budget", "created_at", "updated_at", "tasks",
    ]  # fmt: skip
    assert before <= data.created_at == data.updated_at <= datetime.now(timezone.utc)
    assert repr(data) == '<SessionData "s" revision=0 messages=0>'


def test_fields_are_kept(store: FileSessionStore) -> None:
    given: dict[str, Any] = {
        "messages": (text("hello"),),
        "config": {"name": "n", "other": [1]},
        "state": "Paused",
        "tasks": [{"title": "t"}],
        "tool_names": ("read", "bash"),
        "model_name": "openai/gpt-4o",
        "tags": ["a", "b"],
        "created_at": 12,
        "updated_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))),
        "own": {"free": None},
    }
    data = SessionData("s", **given)
    store.save(data)
    again = store.load("s")
    assert again is not None
    for copy in (data, again, SessionData.from_json(data.to_json()), SessionData.from_dict(data.to_dict())):
        assert copy.messages == [text("hello")]
        assert copy.config == given["config"]
        assert (copy.state, copy.tasks, copy.tags) == ("Paused", [{"title": "t"}], ["a", "b"])
        assert copy.tool_names == ["read", "bash"]
        assert copy.model_name == copy.get("model_name") == "openai/gpt-4o"
        assert copy.created_at == datetime(1970, 1, 1, 0, 0, 12, tzinfo=timezone.utc)
        assert copy.updated_at == datetime(2026, 1, 2, 1, 4, 5, tzinfo=timezone.utc)
        assert copy.get("own") == {"free": None}
        assert copy.keys()[-2:] == ["model_name", "own"]


def test_values_are_taken_and_given_as_copies() -> None:
    tasks = [{"title": "t"}]
    data = SessionData("s", tasks=tasks)
    tasks[0]["title"] = "changed"
    data.tasks.append("changed")
    data.config["name"] = "changed"
    assert data.tasks == [{"title": "t"}]
    assert data.config["name"] == ""


def test_set_and_get() -> None:
    data = SessionData("s")
    assert data.get("mood") is None
    assert data.get("mood", 3) == 3
    data.set("mood", None)
    assert data.get("mood", 3) is None
    data.set('odd "key"\n\ud800', [1])
    assert data.get('odd "key"\n\ud800') == [1]
    assert data.keys()[-1] == 'odd "key"\n\ud800'
    data.tags = ("x",)
    assert data.tags == ["x"]
    for name in ("id", "perdure", "messages", "revision"):
        with pytest.raises(SerializationError, match=name):
            data.set(name, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", []), ("config", None), ("tasks", {}), ("tasks", "abc"), ("tool_names", 1), ("state", None),
        ("context_usage", 1), ("total_usage", "x"), ("tags", "abc"), ("tags", [1]), ("tags", None),
        ("created_at", "now"), ("created_at", True), ("created_at", -1), ("created_at", 1e300),
        ("created_at", float("nan")), ("updated_at", datetime(2026, 1, 1)),
        ("id", "x"), ("revision", 4), ("perdure", {}),
    ],
)  # fmt: skip
def test_refused_fields_are_named(name: str, value: Any) -> None:
    with pytest.raises(SerializationError, match=name) as caught:
        SessionData("s", **{name: value})
    assert caught.value.path == name
    data = SessionData("s")
    before = data.to_json()
    if name in FIELDS or name in ("tags",):
        with pytest.raises(SerializationError, match=name):
            setattr(data, name, value)
    assert data.to_json() == before


@pytest.mark.parametrize("id", ["", "a\0b", "x" * 4097, "\ud800", None, 3, b"bytes"])
def test_what_is_no_id(id: Any, store: FileSessionStore) -> None:
    for use in (SessionData, store.load, store.delete, store.exists, SessionData("s").fork):
        with pytest.raises(InvalidSessionIdError, match="not a session id"):
            use(id)
    assert isinstance(InvalidSessionIdError(""), ValueError)


def test_append_is_all_or_nothing() -> None:
    data = session("s", "one")
    with pytest.raises(SerializationError) as caught:
        data.append(text("two"), {"role": "user", "content": [1, {"when": object()}]})
    assert caught.value.path == "messages[2].content[1].when"
    with pytest.raises(SerializationError, match=r"messages\[1\]: a message is a dict, not a list"):
        data.append([text("two")])  # type: ignore[arg-type]
    assert texts(data) == ["one"]
    data.append()
    data.append(text("two"), text("three"))
    assert texts(data) == ["one", "two", "three"]


def test_truncate_and_replace() -> None:
    data = session("s", "a", "b", "c", "d")
    data.replace(-1, text("D"))
    data.replace(0, text("A"))
    assert texts(data) == ["A", "b", "c", "D"]
    data.truncate(4)
    data.truncate(2)
    assert texts(data) == ["A", "b"]
    for count in (3, -1, 2**70, -(2**70)):
        with pytest.raises(ValueError, match="messages of 2"):
            data.truncate(count)
    for index in (2, -3, 2**70):
        with pytest.raises(IndexError, match="no message"):
            data.replace(index, text("x"))
    data.truncate(0)
    assert len(data) == 0


def test_freeze_is_independent() -> None:
    data = session("s", "a")
    frozen = data.freeze()
    data.append(text("b"))
    data.state = "Other"
    frozen.append(text("c"))
    assert (texts(data), texts(frozen)) == (["a", "b"], ["a", "c"])
    assert (data.state, frozen.state) == ("Other", "Active")


def test_fork(store: FileSessionStore) -> None:
    data = session("s", "a", "b", "c")
    store.save(data)
    fork = data.fork("t", 2)
    assert (fork.id, texts(fork), fork.revision, fork.lineage) == ("t", ["a", "b"], 0, None)
    assert fork.parent == {"id": "s", "lineage": data.lineage, "revision": 1, "at": 2}
    store.save(fork)
    assert fork.lineage not in (None, data.lineage)
    assert texts(data.fork("u")) == ["a", "b", "c"]
    assert len(data.fork("u", 0)) == 0
    for at in (4, -1, 2**70):
        with pytest.raises(ValueError, match="messages of 3"):
            data.fork("u", at)


def test_first_prompt() -> None:
    assert session("s", "hello", "more").first_prompt == "hello"
    assert session("s", "😀" * 300).first_prompt == "😀" * 200
    data = SessionData("s", messages=[{"role": "assistant", "content": "no"}, {"role": "user", "content": "yes"}])
    assert data.first_prompt == "yes"


def test_changes_move_the_time() -> None:
    changes: list[Any] = [
        lambda d: d.append(text("x")),
        lambda d: d.truncate(0),
        lambda d: d.replace(0, text("x")),
        lambda d: d.set("new", 1),
        lambda d: setattr(d, "state", "Other"),
        lambda d: setattr(d, "tags", ["x"]),
    ]
    for change in changes:
        data = SessionData("s", messages=[text("a")], updated_at=5)
        change(data)
        assert data.updated_at.year >= 2026
    data = SessionData("s", messages=[text("a")], updated_at=5)
    data.append()
    data.truncate(1)
    data.state = data.state
    assert data.updated_at.timestamp() == 5


def test_times_that_datetime_cannot_hold() -> None:
    for written, year in ((10**30, 9999), (1.5, 1970), ("1e300", 9999)):
        data = SessionData.from_json(f'{{"id": "s", "created_at": {written}, "messages": []}}'.encode())
        assert data.created_at.year == year


# --- JSON


def test_json_forms_agree() -> None:
    data = session("s", "a", "é\u2028😀\ud800")
    written = data.to_json()
    plain = data.to_dict()
    assert json.loads(written) == plain
    assert list(plain)[:2] == ["id", "perdure"]
    assert list(plain)[-1] == "messages"
    for source in (written, bytearray(written), written.decode()):
        again = SessionData.from_json(source)
        assert again.to_json() == written
        assert (again.revision, again.lineage) == (0, None)


def test_from_json_of_a_stored_session_keeps_its_base(store: FileSessionStore) -> None:
    data = session("s", "a")
    store.save(data)
    copy = SessionData.from_json(data.to_json())
    assert (copy.revision, copy.lineage) == (1, data.lineage)
    copy.append(text("b"))
    assert store.save(copy).revision == 2


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"", SessionCorruptError), (b"[]", SessionCorruptError), (b"{}", SessionCorruptError),
        ("\ud800", TypeError), (3, TypeError), (None, TypeError), ([1, 2], TypeError),
    ],
)  # fmt: skip
def test_from_json_of_something_else(source: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        SessionData.from_json(source)


def test_from_dict_errors_name_the_place() -> None:
    with pytest.raises(SerializationError) as caught:
        SessionData.from_dict({"id": "s", "messages": [{"a": object()}]})
    assert caught.value.path is not None
    assert caught.value.path.endswith("messages[0].a")
    with pytest.raises(SessionCorruptError, match="messages"):
        SessionData.from_dict({"id": "s"})
    assert SessionData.from_dict({"id": "s", "messages": [{"a": {1}}]}, default=list).messages[0] == {"a": [1]}


def test_todos_are_tasks() -> None:
    assert SessionData.from_json(b'{"id": "s", "todos": [1], "messages": []}').tasks == [1]
    both = SessionData.from_json(b'{"id": "s", "todos": [1], "tasks": [2], "messages": []}')
    assert both.tasks == [2]
    assert "todos" not in both.keys()  # noqa: SIM118


# --- deltas


def test_delta_of_a_new_session() -> None:
    data = session("s", "a", "b")
    delta = data.delta()
    assert delta is not None
    assert (delta.session_id, delta.base_revision, delta.revision) == ("s", None, 1)
    assert (delta.first_index, delta.message_count, len(delta.messages)) == (0, 2, 2)
    assert [json.loads(m) for m in delta.messages] == list(data.messages)
    assert json.loads(delta.head)["perdure"]["lineage"] == delta.lineage == delta.session.lineage
    assert (delta.session.revision, texts(delta.session)) == (1, ["a", "b"])
    data.settle(delta)
    assert (data.revision, data.lineage) == (1, delta.lineage)
    assert data.delta() is None
    assert data.delta(always=True) is not None


@pytest.mark.parametrize(
    ("change", "first", "new"),
    [
        (lambda d: d.append(text("x")), 3, 1),
        (lambda d: d.truncate(1), 1, 0),
        (lambda d: d.replace(1, text("B")), 1, 2),
        (lambda d: (d.truncate(2), d.append(text("x"), text("y"))), 2, 2),
        (lambda d: (d.append(text("x")), d.truncate(3)), 3, 0),
        (lambda d: setattr(d, "state", "Other"), 3, 0),
    ],
)
def test_delta_of_a_change(change: Any, first: int, new: int) -> None:
    data = SessionData("s", messages=[text("a"), text("b"), text("c")], updated_at=5)
    taken = data.delta()
    assert taken is not None
    data.settle(taken)
    change(data)
    delta = data.delta()
    assert delta is not None
    assert (delta.base_revision, delta.revision, delta.lineage) == (1, 2, taken.lineage)
    assert (delta.first_index, len(delta.messages)) == (first, new)


def test_what_comes_after_the_delta_stays_unsaved() -> None:
    data = session("s", "a")
    delta = data.delta()
    assert delta is not None
    data.append(text("b"))
    assert texts(delta.session) == ["a"]
    data.settle(delta)
    rest = data.delta()
    assert rest is not None
    assert (rest.first_index, len(rest.messages), rest.revision) == (1, 1, 2)


def test_a_failed_delta_is_taken_again() -> None:
    data = session("s", "a")
    delta = data.delta()
    assert delta is not None
    data.settle(delta, saved=False)
    again = data.delta()
    assert again is not None
    assert (again.revision, again.lineage, again.first_index) == (1, delta.lineage, 0)


def test_detach_and_rebase(store: FileSessionStore) -> None:
    data = session("s", "a")
    store.save(data)
    copy = data.freeze()
    copy.detach()
    assert (copy.revision, copy.lineage) == (0, None)
    other = session("s", "other")
    other.rebase(data)
    assert (other.revision, other.lineage) == (1, data.lineage)
    assert store.save(other).revision == 2
    assert texts(store.load("s")) == ["other"]


def test_a_delta_settles_only_its_own_session() -> None:
    data, other = session("s", "a"), session("t", "b", "c")
    delta = other.delta()
    assert delta is not None
    with pytest.raises(ValueError, match="another session"):
        data.settle(delta)
    assert data.delta() is not None

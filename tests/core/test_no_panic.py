"""Odd arguments to every public method: an error of perdure's or of Python's own, never a panic, never a crash."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from core_helpers import session, tree

from perdure import FileSessionStore, PerdureError, SessionData
from perdure import _core as core

ALLOWED = (PerdureError, TypeError, ValueError, IndexError, StopIteration, AttributeError)


class Liar:
    """Raises from everything that is asked of it."""

    def _fail(self, *args: object) -> Any:
        raise ValueError("liar")

    __index__ = __len__ = __iter__ = __getitem__ = __eq__ = __str__ = __repr__ = __fspath__ = __float__ = _fail
    __hash__ = object.__hash__


def odd_values() -> list[Any]:
    data = session("other", "x")
    return [
        None, True, -1, 0, 1, 2**63 - 1, 2**63, -(2**63), 2**70, -(2**70), 0.5, float("nan"), float("inf"), 1e300,
        "", "s", "\0", "\ud800", "x" * 5000, "/", "🚀", b"", b"\xff", bytearray(b"x"), [], [None], (), {}, {"a": 1},
        {1: 2}, {"a": float("nan")}, set(), object(), object, Liar(), iter([1]), lambda *a: 1, data, data.delta(),
        data.messages, iter(data.messages), slice(None), slice(2**70, -(2**70), 2**62), range(3), Exception("x"),
    ]  # fmt: skip


def methods(thing: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    names = [
        "__getitem__", "__contains__", "__eq__", "__len__", "__iter__", "__next__", "__repr__", "__bool__", "__exit__",
        "__length_hint__", "__init__", "__hash__", "__reduce__", "__delattr__", "__lt__",
    ]  # fmt: skip
    for name in [*(n for n in dir(thing) if not n.startswith("_")), *names]:
        method = getattr(thing, name, None)
        if callable(method):
            yield name, method


def tried(call: Callable[[], object], what: str) -> None:
    try:
        call()
    except ALLOWED as error:
        assert "bug in perdure" not in str(error)
    except Exception as error:  # a RuntimeError, an OverflowError: not what a caller expects
        pytest.fail(f"{what}: {error!r}")
    except BaseException as error:  # a panic is a BaseException
        pytest.fail(f"{what}: PANIC {error!r}")


@pytest.fixture(params=["data", "empty", "delta", "messages", "part", "iterator", "store", "module", "classes"])
def thing(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    """A maker of fresh objects: what one odd call does must not hide the next."""
    store = FileSessionStore(tmp_path / "d")
    store.save(session("s", "one"))

    class Classes:
        SessionData, FileSessionStore = core.SessionData, core.FileSessionStore
        from_json, from_dict = core.SessionData.from_json, core.SessionData.from_dict

    kinds: dict[str, Callable[[], Any]] = {
        "data": lambda: session("s", *"abcdefghij"),
        "empty": lambda: SessionData("s"),
        "delta": lambda: session("s", "a").delta(),
        "messages": lambda: session("s", *"abcdefghij").messages,
        "part": lambda: session("s", *"abcdefghij").messages[8:2:-3],
        "iterator": lambda: iter(session("s", "a").messages),
        "store": lambda: store,
        "module": lambda: core,
        "classes": Classes,
    }
    return kinds[request.param]


def test_odd_arguments(thing: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # FileSessionStore("x") makes a directory where it is told to: in here.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    values = odd_values()
    for name, _ in methods(thing()):

        def call(*args: Any, _name: str = name, **options: Any) -> Any:
            return getattr(thing(), _name)(*args, **options)

        tried(call, f"{name}()")
        for value in values:
            described = f"{name}({type(value).__name__})"
            tried(lambda value=value: call(value), described)
            tried(lambda value=value: call("s", value), described)
            tried(lambda value=value: call(value, session("s")), described)
            options = (
                "default",
                "at",
                "limit",
                "cursor",
                "create",
                "force",
                "step",
                "saved",
                "durability",
                "lock_timeout",
            )
            for option in (*options, "always", "config", "tags", "created_at", "messages", "\ud800", "journal"):
                tried(lambda value=value, o=option: call("s", **{o: value}), f"{name}({option}=)")
                tried(lambda value=value, o=option: call(**{o: value}), f"{name}({option}=)")
        for one, other in itertools.product(values[:14], repeat=2):
            tried(lambda one=one, other=other: call(one, other), f"{name}({one!r:.40}, {other!r:.40})")
            tried(lambda one=one, other=other: call({}, one, other), f"{name}(dict, {one!r:.40}, {other!r:.40})")


def test_odd_attributes() -> None:
    for value in odd_values():
        for name in dir(SessionData):
            if not name.startswith("__"):
                tried(lambda name=name, value=value: setattr(session("s", "a"), name, value), f"{name} = {type(value)}")
                tried(lambda name=name: delattr(session("s", "a"), name), f"del {name}")


def test_the_store_is_unhurt(store: FileSessionStore) -> None:
    """After all sorts of refused saves what is stored is what was stored."""
    store.save(session("s", "one"))
    before = tree(store.path)["s.json"]
    calls: list[Any] = [store.save, store.append, store.delete, store.release, store.load, store.exists]
    for value in odd_values():
        if isinstance(value, str) and value == "s":
            continue
        for call in calls:
            tried(lambda call=call, value=value: call(value), f"{call.__name__}({type(value).__name__})")
    assert tree(store.path)["s.json"] == before
    store.close()


def test_methods_were_found() -> None:
    """The tests above are worth something only if they find the methods."""
    names = {name for name, _ in methods(session("s"))}
    assert {"append", "truncate", "replace", "fork", "get", "set", "settle", "to_json", "from_dict"} <= names
    assert inspect.isroutine(session("s").append)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
def test_a_nest_of_hooks_and_a_small_stack() -> None:
    """The deepest values that are allowed, on a thread with a small stack."""
    import threading

    value: Any = 0
    for _ in range(511):
        value = [value]
    results = []

    def work() -> None:
        data = SessionData("s", messages=[{"a": value}])
        results.append(data.messages[0] == {"a": value})
        results.append(SessionData.from_json(data.to_json()).to_json() == data.to_json())

    old = threading.stack_size(512 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(old)
    assert results == [True, True]

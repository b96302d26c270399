"""`FileSessionStore` against `PythonFileSessionStore`: two programs that were written from docs/format.md alone.

Each reads what the other wrote, and for the same values both write the same lines.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from core_helpers import MESSAGE, same
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import FileSessionStore, PythonFileSessionStore, SessionConflictError, SessionData, SessionExistsError

pytest.importorskip("fcntl", reason="the pure-Python store needs POSIX")

# In memory where that is possible: what is compared are bytes, not syncs.
QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
# Case twins are left out: on a file system that keeps them apart the two stores differ on purpose.
IDS = st.sampled_from(["s", "a b", "a/b", "x" * 200, "CON", ".", "ünï", "😀" * 70])
APPEND = st.tuples(st.just("append"), st.lists(MESSAGE, min_size=1, max_size=3))
TRUNCATE = st.tuples(st.just("truncate"), st.integers(0, 5))
REPLACE = st.tuples(st.just("replace"), st.integers(0, 5), MESSAGE)
FIELD = st.tuples(st.just("field"), st.sampled_from(["model_name", "own", "thinking_budget"]), MESSAGE)
CHANGE = APPEND | TRUNCATE | REPLACE | FIELD
STEPS = st.lists(st.tuples(CHANGE, st.sampled_from(["save", "step", "none"])), max_size=6)


def apply(data: SessionData, model: dict[str, Any], change: Any) -> None:
    """The same change to a `SessionData` and to a plain dict."""
    messages = model["messages"]
    if change[0] == "append":
        data.append(*change[1])
        messages += change[1]
    elif change[0] == "truncate":
        count = min(change[1], len(messages))
        data.truncate(count)
        del messages[count:]
    elif change[0] == "replace" and messages:
        at = change[1] % len(messages)
        data.replace(at, change[2])
        messages[at] = change[2]
    elif change[0] == "field":
        data.set(change[1], change[2])
        model[change[1]] = change[2]
    model["updated_at"] = data.get("updated_at")


def fresh(id: str) -> tuple[SessionData, dict[str, Any]]:
    """A session, and the plain dict of it without its `perdure` field: fresh for the pure-Python store."""
    data = SessionData(id)
    model = data.to_dict()
    del model["perdure"]
    return data, model


def comparable(raw: bytes) -> list[bytes]:
    """The lines of a snapshot, without what is random in them (and the checksum over it)."""
    raw = re.sub(rb'"lineage": "[0-9a-f]{32}"', b'"lineage": "-"', raw)
    return re.sub(rb'"crc32c": (null|"[0-9a-f]{8}")', b'"crc32c": -', raw).split(b"\n")


def plain(session: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in session.items() if key not in ("perdure", "messages")}
    return {**rest, "messages": list(session["messages"])}


@settings(max_examples=200)
@given(id=IDS, steps=STEPS)
def test_both_write_the_same_lines_and_read_each_other(id: str, steps: Any) -> None:
    with tempfile.TemporaryDirectory(dir=QUICK) as directory:
        rust, python = FileSessionStore(f"{directory}/r"), PythonFileSessionStore(f"{directory}/p")
        data, model = fresh(id)
        saved = False
        for change, how in [(("append", []), "save"), *steps, (("append", [{"end": 1}]), "save")]:
            apply(data, model, change)
            if how == "none":
                continue
            if how == "step" and saved:
                delta = data.delta()
                if delta is None:
                    continue
                rust.append(delta, step=True)
                data.settle(delta)
            elif saved and data.delta() is None:
                continue
            else:
                rust.save(data)
            python.save_dict(model)
            saved = True
            # Each store reads the other's directory, the journal of a step too.
            theirs = PythonFileSessionStore(f"{directory}/r").load_dict(id)
            ours = FileSessionStore(f"{directory}/p").load(id)
            assert theirs is not None
            assert ours is not None
            for copy in (theirs, ours.to_dict(), data.to_dict()):
                assert same(plain(dict(copy)), plain(model))
            assert theirs["perdure"]["revision"] == model["perdure"]["revision"] == data.revision == ours.revision
        (name,) = [path.name for path in Path(directory, "r").iterdir() if path.suffix == ".json"]
        lines = comparable(Path(directory, "r", name).read_bytes())
        assert lines == comparable(Path(directory, "p", name).read_bytes())
        assert rust.list() == python.list() == [id]
        rust.close()


@settings(max_examples=40)
@given(turns=st.lists(st.tuples(st.booleans(), st.lists(MESSAGE, min_size=1, max_size=2)), min_size=1, max_size=6))
def test_both_go_on_from_the_others_file(turns: Any) -> None:
    with tempfile.TemporaryDirectory(dir=QUICK) as directory:
        rust, python = FileSessionStore(directory), PythonFileSessionStore(directory)
        rust.save(SessionData("s"))
        expected: list[Any] = []
        for by_rust, messages in turns:
            if by_rust:
                data = rust.load("s")
                assert data is not None
                data.append(*messages)
                rust.save(data)
            else:
                session = python.load_dict("s")
                assert session is not None
                session["messages"] += messages
                python.save_dict(session)
            expected += messages
        data, session = rust.load("s"), python.load_dict("s")
        assert data is not None
        assert session is not None
        assert same(list(data.messages), expected)
        assert same(session["messages"], expected)
        assert data.revision == session["perdure"]["revision"] == len(turns) + 1
        assert data.lineage == session["perdure"]["lineage"]
        rust.close()


def test_both_name_the_same_conflicts(tmp_path: Path) -> None:
    rust, python = FileSessionStore(tmp_path), PythonFileSessionStore(tmp_path)
    data, model = fresh("s")
    rust.save(data)
    with pytest.raises(SessionExistsError):
        python.save_dict(model)
    ours, theirs = rust.load("s"), python.load_dict("s")
    assert ours is not None
    assert theirs is not None
    theirs["messages"].append({"a": 1})
    python.save_dict(theirs)
    ours.append({"b": 1})
    with pytest.raises(SessionConflictError) as caught:
        rust.save(ours)
    assert (caught.value.expected, caught.value.found) == (1, 2)
    python.delete("s")
    with pytest.raises(SessionConflictError) as caught:
        rust.save(ours)
    assert caught.value.found is None
    rust.save(data, create=True)
    with pytest.raises(SessionConflictError):
        python.save_dict(theirs)


def test_listings_agree(tmp_path: Path) -> None:
    rust, python = FileSessionStore(tmp_path), PythonFileSessionStore(tmp_path)
    for number, id in enumerate(["s", "a/b", "ü", "x" * 300]):
        data = SessionData(id, messages=[{"role": "user", "content": f"prompt {number}"}], tags=["t", id])
        (rust if number % 2 else python).save(data)
    mine, their = rust.infos(), python.infos()
    assert mine[1] is their[1] is None
    assert mine[0] == their[0]
    assert json.dumps(rust.list()) == json.dumps(python.list())


def test_a_save_through_the_protocol_is_the_same(tmp_path: Path) -> None:
    rust, python = FileSessionStore(tmp_path / "r"), PythonFileSessionStore(tmp_path / "p")
    data = SessionData("s", messages=[{"role": "user", "content": "\ud800 é \x85"}], own=[1.0, -0.0, 2**70])
    copy = data.freeze()
    rust.save(data)
    python.save(copy)
    assert comparable((tmp_path / "r" / "s.json").read_bytes()) == comparable((tmp_path / "p" / "s.json").read_bytes())

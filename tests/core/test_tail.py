"""A long session is opened by its end: what is shown is right, and the rest is checked before it counts."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
from core_helpers import child, loaded, text, tree

from perdure import FileSessionStore, SessionConflictError, SessionCorruptError, SessionData

COUNT = 400


def long_session(store: FileSessionStore, id: str = "s", count: int = COUNT) -> SessionData:
    data = SessionData(id, messages=[text(f"{n} " + "x" * 500) for n in range(count)], tags=["a"])
    store.save(data)
    return data


def test_the_end_is_there_and_the_rest_comes_when_asked_for(store: FileSessionStore) -> None:
    whole = long_session(store)
    data = loaded(store)
    first = data._first_loaded
    assert 0 < first < COUNT - 20
    history = data.messages
    assert (len(data), len(history), data.revision, data.tags, data.id) == (COUNT, COUNT, 1, ["a"], "s")
    assert list(history[-20:]) == list(whole.messages[-20:])
    assert history[first] == whole.messages[first]
    assert history[-1] == whole.messages[-1]
    assert data.lineage == whole.lineage
    assert repr(data) == repr(whole)
    assert data._first_loaded == first, "nothing of this needs the rest"
    assert history[first - 1] == whole.messages[first - 1]
    assert data._first_loaded == 0
    assert list(history) == list(data.messages) == list(whole.messages)
    assert data.to_json() == whole.to_json()


def test_a_view_stays_what_it_was(store: FileSessionStore) -> None:
    whole = long_session(store)
    data = loaded(store)
    view, end = data.messages, data.messages[-3:]
    data.truncate(10)
    data.append(text("new"))
    assert (len(view), len(data)) == (COUNT, 11)
    assert list(view) == list(whole.messages)
    assert list(end) == list(whole.messages[-3:])


def test_it_can_be_changed_and_saved(store: FileSessionStore) -> None:
    long_session(store)
    data = loaded(store)
    data.append(text("more"))
    assert store.save(data).revision == 2
    assert len(loaded(store)) == COUNT + 1
    assert store.save_many([loaded(store)])[0].revision == 2, "unchanged"
    assert loaded(store).fork("copy", 1).messages[0] == data.messages[0]


def test_small_sessions_and_those_with_a_journal_are_read_as_a_whole(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path, journal=True)
    long_session(store, count=10)
    assert loaded(store)._first_loaded == 0
    data = long_session(store, "t")
    data.append(text("in the journal"))
    store.save(data)
    assert loaded(store, "t")._first_loaded == 0
    assert loaded(store, "t").messages[-1] == text("in the journal")


def test_somebody_replaces_the_file_meanwhile(store: FileSessionStore) -> None:
    whole = long_session(store)
    data = loaded(store)
    other = loaded(store)
    other.truncate(5)
    store.save(other)
    assert list(data.messages) == list(whole.messages), "what was opened stays"
    data.append(text("late"))
    with pytest.raises(SessionConflictError):
        store.save(data)


@pytest.mark.parametrize("use", ["first message", "append", "save", "fork", "to_json", "iterate"])
def test_damage_in_the_part_that_was_not_read(store: FileSessionStore, use: str) -> None:
    long_session(store)
    path = store.path / "s.json"
    raw = path.read_bytes().replace(b'"50 ', b'"50\x01', 1)
    path.write_bytes(raw)
    data = loaded(store)
    assert data.messages[-1]["content"][0]["text"].startswith(f"{COUNT - 1} ")
    before = tree(store.path)
    with pytest.raises(SessionCorruptError, match=r"s\.json:\d+:\d+"):
        match use:
            case "first message":
                data.messages[0]
            case "append":
                data.append(text("more"))
            case "save":
                store.save(data)
            case "fork":
                data.fork("copy")
            case "to_json":
                data.to_json()
            case "iterate":
                list(data.messages)
    assert tree(store.path) == before
    assert len(data) == COUNT


def test_a_file_edited_by_hand_is_told_of_when_it_is_read(
    store: FileSessionStore, caplog: pytest.LogCaptureFixture
) -> None:
    long_session(store)
    path = store.path / "s.json"
    path.write_bytes(path.read_bytes().replace(b'"50 x', b'"50 y', 1))
    data = loaded(store)
    with caplog.at_level(logging.WARNING, "perdure"):
        assert data.messages[50]["content"][0]["text"].startswith("50 yx")
    assert "changed outside perdure" in caplog.text


def test_a_file_that_is_written_to_after_it_was_opened(store: FileSessionStore) -> None:
    long_session(store)
    data = loaded(store)
    path = store.path / "s.json"
    raw = path.read_bytes().replace(b'"50 x', b'"50 y', 1)
    with path.open("r+b") as file:  # the same file, not a new one under its name
        file.write(raw)
    os.utime(path, ns=(1, 1))
    with pytest.raises(SessionCorruptError, match="load it again"):
        data.messages[0]
    assert loaded(store).messages[50]["content"][0]["text"].startswith("50 yx")


@pytest.mark.parametrize("cut", [1, 3, 8, 100, 60_000])
def test_a_file_without_its_end_is_refused_at_once(store: FileSessionStore, cut: int) -> None:
    long_session(store)
    path = store.path / "s.json"
    path.write_bytes(path.read_bytes()[:-cut])
    if cut == 1:  # only the last line feed
        assert len(loaded(store)) == COUNT
        return
    with pytest.raises(SessionCorruptError):
        store.load("s")


def test_what_others_wrote_is_read_as_a_whole(store: FileSessionStore) -> None:
    fields = json.loads(long_session(store).to_json())
    (store.path / "s.json").write_text(json.dumps(fields, indent=2))
    data = loaded(store)
    assert data._first_loaded == 0
    assert len(data) == COUNT


def test_open_sessions_do_not_use_up_the_descriptors(tmp_path: Path) -> None:
    code = """
import resource, sys
from perdure import FileSessionStore, SessionData
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
store = FileSessionStore(sys.argv[1])
message = {"role": "user", "content": "x" * 1000}
for n in range(300):
    store.save(SessionData(f"s{n}", messages=[message] * 100))
store.close()
held = [store.load(f"s{n}") for n in range(300)]
assert sum(1 for data in held if data._first_loaded) > 0
assert all(data.messages[0] == message and len(data) == 100 for data in held)
again = [store.load(f"s{n}") for n in range(10)]
assert all(data._first_loaded for data in again), "what was read as a whole gave its descriptor back"
"""
    done = child(code, tmp_path)
    assert done.returncode == 0, done.stderr

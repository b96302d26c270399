"""`FileSessionStore(dir, journal=True)`: a save is a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from core_helpers import loaded, session, text, texts, tree
from journal_helpers import journal_store, lines, plain_state, reopened, size, state

from perdure import (
    ConfigError,
    FileSessionStore,
    PythonFileSessionStore,
    SessionConflictError,
    SessionData,
    SessionExistsError,
)


@pytest.fixture
def journaled(tmp_path: Path) -> FileSessionStore:
    """A store in journal mode on an empty directory."""
    return journal_store(tmp_path / "sessions")


# --- lines


def test_the_first_save_is_a_snapshot_and_every_other_a_line(journaled: FileSessionStore) -> None:
    data = session("s", "one")
    assert journaled.save(data).revision == 1
    snapshot = (journaled.path / "s.json").read_bytes()
    assert snapshot == data.to_json()
    assert size(journaled.path) == 0
    for number in range(2, 6):
        data.append(text(f"message {number}"))
        assert journaled.save(data).revision == data.revision == number
        header, *saves = lines(journaled.path)
        assert (header["journal"], header["id"], header["lineage"]) == (1, "s", data.lineage)
        assert (header["base_revision"], header["snapshot_bytes"]) == (1, len(snapshot))
        assert header["snapshot_crc32c"] == json.loads(snapshot)["perdure"]["crc32c"]
        assert [line["revision"] for line in saves] == list(range(2, number + 1))
        assert saves[-1]["from"] == number - 1
        assert saves[-1]["messages"] == [text(f"message {number}")]
        assert "unsynced" not in saves[-1]
        assert (journaled.path / "s.json").read_bytes() == snapshot
        assert state(loaded(journaled)) == state(data) == plain_state(journaled.path)
    assert sorted(tree(journaled.path)) == ["s.journal", "s.json", "s.lock"]


def test_a_line_says_its_length_first(journaled: FileSessionStore) -> None:
    data = session("s", "one")
    journaled.save(data)
    data.append(text("zwei 😀"))
    journaled.save(data)
    for line in (journaled.path / "s.journal").read_bytes().splitlines():
        begin = f'{{"bytes": {json.loads(line)["bytes"]}, "crc32c": "{json.loads(line)["crc32c"]}", '.encode()
        assert line.startswith(begin)
        assert len(line) == len(begin) + json.loads(line)["bytes"] + 1


def test_an_unchanged_save_writes_nothing(journaled: FileSessionStore) -> None:
    data = session("s", "one")
    journaled.save(data)
    data.append(text("two"))
    journaled.save(data)
    before, stats = tree(journaled.path), journaled.stats()
    for copy in (data, loaded(journaled)):
        receipt = journaled.save(copy)
        assert (receipt.revision, receipt.bytes_written, receipt.new_bytes) == (2, 0, 0)
    assert tree(journaled.path) == before
    assert journaled.stats() == stats


def cut_and_append(data: SessionData) -> None:
    data.truncate(2)
    data.append(text("C"), text("D"))


def test_rewinds_edits_and_heads_are_lines(journaled: FileSessionStore) -> None:
    data = session("s", *"abcdef")
    data.set("own", {"kept": [1.0, None]})
    journaled.save(data)
    steps: list[tuple[Any, int, int]] = [
        (lambda: data.truncate(4), 4, 0),
        (lambda: data.replace(1, text("B")), 1, 3),
        (lambda: cut_and_append(data), 2, 2),
        (lambda: setattr(data, "tags", ["x", "y"]), 4, 0),
        (lambda: data.set("own", 5), 4, 0),
        (lambda: data.set("new", "\u2028\x85"), 4, 0),
        (lambda: setattr(data, "config", {**data.config, "name": "n"}), 4, 0),
        (lambda: data.truncate(0), 0, 0),
        (lambda: data.append(text("last")), 0, 1),
    ]
    for change, start, count in steps:
        change()
        journaled.save(data)
        line = lines(journaled.path)[-1]
        assert (line["revision"], line["from"], len(line["messages"])) == (data.revision, start, count)
        assert state(loaded(journaled)) == state(data) == plain_state(journaled.path)
    assert len(lines(journaled.path)) == 1 + len(steps)
    saved = lines(journaled.path)[1:]
    assert saved[3]["head"]["perdure"]["tags"] == ["x", "y"]
    assert {key for line in saved for key in line["head"]} <= {"perdure", "own", "new", "config", "updated_at"}
    later = reopened(journaled)
    assert state(loaded(later)) == state(data) == plain_state(later.path)
    assert texts(data) == ["last"]


def test_a_head_field_that_went_is_removed(journaled: FileSessionStore) -> None:
    """A copy without the field, saved over what is stored."""
    data = session("s", "one")
    data.set("gone", 1)
    journaled.save(data)
    copy = session("s", "one", "two")
    copy.rebase(loaded(journaled))
    journaled.save(copy)
    line = lines(journaled.path)[-1]
    assert (line["removed"], line["from"]) == (["gone"], 0)
    assert "gone" not in state(loaded(journaled))
    assert state(loaded(journaled)) == plain_state(journaled.path)
    assert texts(loaded(reopened(journaled))) == ["one", "two"]


def test_a_copy_with_its_head_in_another_order_goes_on(tmp_path: Path) -> None:
    """What is written as a line has to be the state that a reader finds, whatever it came from."""
    store = journal_store(tmp_path / "d")
    first = SessionData("s", a=1, b=2)
    store.save(first)
    copy = SessionData("s", b=2, a=1)
    copy.rebase(loaded(store))
    store.save(copy)
    before = copy.freeze()
    store.close()
    # Another directory, so that no identity of a file says that it is the same.
    (tmp_path / "d").rename(tmp_path / "moved")
    moved = journal_store(tmp_path / "moved")
    before.append(text("more"))
    assert moved.save(before).revision == 3


def test_durability_process_says_so_in_each_line(tmp_path: Path) -> None:
    store = journal_store(tmp_path, durability="process")
    data = session("s", "one")
    first = store.save(data)
    assert first.sync_seconds > 0, "a first snapshot is synced all the same"
    data.append(text("two"))
    receipt = store.save(data)
    assert receipt.sync_seconds == 0
    assert lines(tmp_path)[-1]["unsynced"] is True
    assert store.checkpoint("s").sync_seconds > 0
    assert texts(loaded(reopened(store))) == ["one", "two"]


def test_the_option_is_shown(tmp_path: Path) -> None:
    store = journal_store(tmp_path)
    assert store.journal is True
    assert FileSessionStore(tmp_path).journal is False
    assert repr(store) == f'FileSessionStore("{tmp_path}", journal=True, durability="full")'
    with pytest.raises(TypeError):
        FileSessionStore(tmp_path, journal="yes")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="durability"):
        FileSessionStore(tmp_path, journal=True, durability="none")


# --- what else it does


def test_life_of_a_session(journaled: FileSessionStore) -> None:
    data = session("s", "one")
    journaled.save(data)
    data.append(text("two"))
    journaled.save(data)
    with pytest.raises(SessionExistsError):
        journaled.save(session("s", "new"))
    assert journaled.delete("s")
    assert (journaled.load("s"), journaled.exists("s"), journaled.delete("s"), journaled.list()) == (
        None, False, False, [],
    )  # fmt: skip
    assert tree(journaled.path) == {}
    data.append(text("three"))
    with pytest.raises(SessionConflictError) as caught:
        journaled.save(data)
    assert (caught.value.expected, caught.value.found) == (2, None)
    assert journaled.save(data, create=True).revision == 1
    assert texts(loaded(reopened(journaled))) == ["one", "two", "three"]


def test_conflicts_and_force(journaled: FileSessionStore) -> None:
    data = session("s", "one")
    journaled.save(data)
    stale = loaded(journaled)
    data.append(text("two"))
    journaled.save(data)
    stale.append(text("other"))
    before = tree(journaled.path)
    with pytest.raises(SessionConflictError) as caught:
        journaled.save(stale)
    assert (caught.value.expected, caught.value.found) == (1, 2)
    assert tree(journaled.path) == before
    assert journaled.save(stale, force=True).revision == 3
    assert texts(loaded(journaled)) == ["one", "other"]
    with pytest.raises(SessionConflictError):
        journaled.save(data)
    data.rebase(loaded(journaled))
    assert journaled.save(data).revision == 4
    assert texts(loaded(reopened(journaled))) == ["one", "two"] == plain_texts(journaled.path)


def plain_texts(directory: Path) -> list[str]:
    return [message["content"][0]["text"] for message in plain_state(directory)["messages"]]


def test_two_handles_of_one_session(journaled: FileSessionStore) -> None:
    """Of one process: they share the lock, and compare as ever."""
    journaled.save(session("s", "one"))
    a, b = loaded(journaled), loaded(journaled)
    for number, copy in enumerate((a, b, a, b)):
        if number:
            copy = loaded(journaled)
        copy.append(text(str(number)))
        journaled.save(copy)
    a.append(text("late"))
    with pytest.raises(SessionConflictError):
        journaled.save(a)
    assert texts(loaded(journaled)) == ["one", "0", "1", "2", "3"]


def test_steps_and_saves_are_both_lines(journaled: FileSessionStore) -> None:
    data = session("s", "one")
    journaled.save(data)
    for number in range(4):
        data.append(text(str(number)))
        delta = data.delta()
        assert delta is not None
        receipt = journaled.append(delta, step=number % 2 == 0)
        data.settle(delta)
        assert receipt.revision == data.revision == number + 2
    assert [line["revision"] for line in lines(journaled.path)[1:]] == [2, 3, 4, 5]


def test_a_file_that_is_not_ours_gets_a_snapshot_first(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"id": "s", "messages": [{"role": "user", "content": "theirs"}]}')
    store = journal_store(tmp_path)
    data = loaded(store)
    data.append(text("ours"))
    assert store.save(data).revision == 1
    assert size(tmp_path) == 0
    assert len(loaded(store)) == 2
    data.append(text("more"))
    store.save(data)
    assert len(lines(tmp_path)) == 2


def test_snapshot_mode_takes_over(tmp_path: Path) -> None:
    """The same directory, opened without journal mode later: the first save folds, and so does one of no change."""
    for change in (True, False):
        directory = tmp_path / str(change)
        store = journal_store(directory)
        data = session("s", *["h" * 100] * 40)
        store.save(data)
        data.append(text("two"))
        store.save(data)
        store.close()
        assert size(directory) > 0
        plain = FileSessionStore(directory)
        data = loaded(plain)
        if change:
            data.append(text("three"))
        assert plain.save(data).revision == (3 if change else 2)
        assert (directory / "s.json").read_bytes() == data.to_json()
        plain.close()
        assert sorted(tree(directory)) == ["s.json"]


def test_the_pure_python_store_takes_over(tmp_path: Path) -> None:
    store = journal_store(tmp_path)
    data = session("s", *["h" * 100] * 40)
    store.save(data)
    data.append(text("two"))
    store.save(data)
    store.close()
    python = PythonFileSessionStore(tmp_path)
    theirs = python.load_dict("s")
    assert theirs is not None
    theirs["messages"].append(text("three"))
    assert python.save_dict(theirs).revision == 3
    assert sorted(tree(tmp_path)) == ["s.json"]
    data.append(text("late"))
    with pytest.raises(SessionConflictError) as caught:
        store.save(data)
    assert (caught.value.expected, caught.value.found) == (2, 3)
    assert texts(loaded(store))[-2:] == ["two", "three"]


# --- listing


def test_listings_see_the_journal(journaled: FileSessionStore) -> None:
    for number in range(3):
        journaled.save(session(f"s{number}", f"prompt {number}"))
        os.utime(journaled.path / f"s{number}.json", (1_800_000_000 + number,) * 2)
    data = loaded(journaled, "s1")
    data.append(text("more"))
    data.tags = ["late"]
    data.config = {**data.config, "name": "renamed"}
    journaled.save(data)
    os.utime(journaled.path / "s1.journal", (1_900_000_000,) * 2)
    infos, cursor = journaled.infos()
    assert cursor is None
    assert [info.id for info in infos] == ["s1", "s2", "s0"], "newest first, by snapshot or journal"
    info = infos[0]
    assert (info.name, info.tags, info.message_count, info.revision) == ("renamed", ("late",), 2, 2)
    assert info.bytes == size(journaled.path, "s1.json") + size(journaled.path, "s1.journal")
    page, cursor = journaled.infos(1)
    assert [info.id for info in page] == ["s1"]
    assert [info.id for info in journaled.infos(5, cursor)[0]] == ["s2", "s0"]
    assert PythonFileSessionStore(journaled.path).infos()[0] == infos

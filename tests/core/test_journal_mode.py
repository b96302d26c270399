"""`FileSessionStore(dir, journal=True)`: a save is a line, and when the lines are folded into the snapshot."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from core_helpers import loaded, session, text, texts, tree
from journal_helpers import journal_store, lines, plain_state, size, state

from perdure import (
    ConfigError,
    FileSessionStore,
    PythonFileSessionStore,
    SessionConflictError,
    SessionData,
    SessionExistsError,
    SessionNotFoundError,
    StoreStats,
)

SMALL = 64 * 1024
"""A journal up to this size is not folded for its size, however small its snapshot is."""


@pytest.fixture
def journaled(tmp_path: Path) -> FileSessionStore:
    """A store in journal mode on an empty directory."""
    return journal_store(tmp_path / "sessions")


def reopened(store: FileSessionStore) -> FileSessionStore:
    """What a process that comes later has; the pure-Python store reads the same by then."""
    store.close()
    return journal_store(store.path)


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


# --- folds


def grow(store: FileSessionStore, data: SessionData, block: int) -> tuple[int, int]:
    """Saves lines of about `block` bytes until one is a snapshot; the journal's length before and with it."""
    before = (store.path / "s.json").stat().st_ino
    while True:
        journal = size(store.path)
        data.append(text("x" * block))
        receipt = store.save(data)
        if (store.path / "s.json").stat().st_ino != before:
            assert receipt.bytes_written == size(store.path, "s.json")
            assert size(store.path) == 0
            return journal, journal + block
        assert receipt.bytes_written < block + 1000


@pytest.mark.parametrize(("history", "bound"), [(0, SMALL), (100, 200_000)])
def test_it_folds_when_the_journal_outgrows_twice_the_snapshot(
    journaled: FileSessionStore, history: int, bound: int
) -> None:
    data = session("s", *["h" * 1000] * history)
    journaled.save(data)
    bound = max(2 * size(journaled.path, "s.json"), SMALL)
    journal, next = grow(journaled, data, 3000)
    assert journal <= bound < next + 1000
    assert (journaled.path / "s.json").read_bytes() == data.to_json()
    # And again, from the larger snapshot.
    bound = max(2 * size(journaled.path, "s.json"), SMALL)
    journal, next = grow(journaled, data, 5000)
    assert journal <= bound < next + 1000
    assert state(loaded(journaled)) == state(data) == plain_state(journaled.path)


def test_a_fold_by_size_makes_one_revision(journaled: FileSessionStore) -> None:
    data = session("s", "one")
    journaled.save(data)
    for number in range(2, 100):
        data.append(text("x" * 3000))
        assert journaled.save(data).revision == number
    assert loaded(journaled).revision == 99
    assert journaled.stats().snapshots >= 2


def test_checkpoint(journaled: FileSessionStore) -> None:
    data = session("s", "one")
    journaled.save(data)
    data.append(text("two"))
    journaled.save(data)
    receipt = journaled.checkpoint("s")
    assert (receipt.revision, receipt.new_bytes) == (2, 0)
    assert receipt.location == str(journaled.path / "s.json")
    raw = (journaled.path / "s.json").read_bytes()
    assert raw == data.to_json()
    assert receipt.bytes_written == len(raw)
    assert size(journaled.path) == 0
    again = journaled.checkpoint("s")
    assert (again.revision, again.bytes_written) == (2, 0)
    # The session in memory goes on from there, with a journal of its own.
    data.append(text("three"))
    assert journaled.save(data).revision == 3
    assert lines(journaled.path)[0]["base_revision"] == 2
    assert texts(loaded(reopened(journaled))) == ["one", "two", "three"]


def test_checkpoint_of_what_is_not_there(journaled: FileSessionStore) -> None:
    with pytest.raises(SessionNotFoundError) as caught:
        journaled.checkpoint("nobody")
    assert caught.value.session_id == "nobody"
    assert str(journaled.path) in str(caught.value)
    journaled.save(session("s", "one"))
    journaled.delete("s")
    with pytest.raises(SessionNotFoundError):
        journaled.checkpoint("s")
    assert tree(journaled.path) == {}


def test_checkpoint_of_a_store_in_snapshot_mode(store: FileSessionStore) -> None:
    """Also what the steps of a turn left."""
    data = session("s", "one")
    store.save(data)
    data.append(text("two"))
    delta = data.delta()
    assert delta is not None
    store.append(delta, step=True)
    data.settle(delta)
    assert store.checkpoint("s").revision == 2
    assert (store.path / "s.json").read_bytes() == data.to_json()
    data.append(text("three"))
    assert store.save(data).revision == 3


@pytest.mark.parametrize("way", ["close", "release", "with"])
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_the_end_folds_a_journal_over_a_quarter(tmp_path: Path, way: str, large: bool) -> None:
    store = journal_store(tmp_path)
    data = session("s", *["h" * 1000] * 40)
    store.save(data)
    snapshot = size(tmp_path, "s.json")
    data.append(text("x" * (snapshot // 2 if large else snapshot // 8)))
    store.save(data)
    assert (size(tmp_path) > snapshot / 4) is large
    if way == "close":
        store.close()
    elif way == "release":
        store.release(data)
    else:
        with store:
            pass
    assert sorted(tree(tmp_path)) == (["s.json"] if large else ["s.journal", "s.json"])
    assert ((tmp_path / "s.json").read_bytes() == data.to_json()) is large
    assert state(loaded(journal_store(tmp_path))) == state(data) == plain_state(tmp_path)
    # A released session is taken up again by its next save, with a line on what is there.
    data.append(text("more"))
    assert store.save(data).revision == 3
    assert [line["revision"] for line in lines(tmp_path)[1:]] == ([3] if large else [2, 3])


def test_the_interpreters_end_folds_too(tmp_path: Path) -> None:
    from core_helpers import child

    code = (
        "import sys, perdure\n"
        "store = perdure.FileSessionStore(sys.argv[1], journal=True)\n"
        "data = perdure.SessionData('s')\n"
        "for n in range(3):\n"
        "    data.append({'n': n, 'x': 'x' * 1000})\n"
        "    store.save(data)\n"
    )
    done = child(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(tree(tmp_path)) == ["s.json"]
    assert len(loaded(FileSessionStore(tmp_path))) == 3


def test_a_fold_that_fails_at_the_end_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = journal_store(tmp_path / "d")
    data = session("s", "one")
    store.save(data)
    data.append(text("x" * 5000))
    store.save(data)
    (tmp_path / "d").rename(tmp_path / "away")
    with caplog.at_level(logging.WARNING, "perdure"):
        store.close()
    (record,) = caplog.records
    assert "journal" in record.getMessage()
    assert "nothing is lost" in record.getMessage()
    assert "xxx" not in caplog.text
    assert texts(loaded(journal_store(tmp_path / "away")))[-1] == "x" * 5000


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


# --- receipts


def test_receipts_and_stats_add_up_to_the_files(journaled: FileSessionStore) -> None:
    data = session("s", *["h" * 500] * 10)
    total, new, syncs, kinds = 0, 0, 0.0, {"line": 0, "snapshot": 0}
    inode = 0
    assert journaled.stats() == StoreStats(0, 0, 0, 0, 0, 0.0)
    assert journaled.stats().write_amplification == 0
    for number in range(60):
        before, saved = size(journaled.path), len(data) if number else 0
        data.append(text(f"{number} " + "y" * 3000))
        receipt = journaled.save(data)
        assert receipt.new_bytes == sum(len(data.messages.raw(at)) for at in range(saved, len(data)))
        assert 0 < receipt.sync_seconds <= receipt.seconds
        assert receipt.location == str(journaled.path / "s.json")
        folded = (journaled.path / "s.json").stat().st_ino != inode
        inode = (journaled.path / "s.json").stat().st_ino
        grown = size(journaled.path, "s.json") if folded else size(journaled.path) - before
        assert receipt.bytes_written == grown
        kinds["snapshot" if folded else "line"] += 1
        total, new, syncs = total + receipt.bytes_written, new + receipt.new_bytes, syncs + receipt.sync_seconds
    stats = journaled.stats()
    assert (stats.saves, stats.lines, stats.snapshots) == (60, kinds["line"], kinds["snapshot"])
    assert kinds["snapshot"] == 2, "the run has to hold a fold"
    assert (stats.bytes_written, stats.new_bytes) == (total, new)
    assert stats.sync_seconds == pytest.approx(syncs, rel=1e-3)
    assert stats.write_amplification == total / new
    assert 1 < stats.write_amplification < 4
    # Folds at a checkpoint and at the end are counted, too.
    total += journaled.checkpoint("s").bytes_written
    data.append(text("z" * 80_000))
    total += journaled.save(data).bytes_written
    journaled.close()
    assert size(journaled.path) == 0
    total += size(journaled.path, "s.json")
    assert journaled.stats().bytes_written == total
    assert journaled.stats().snapshots == stats.snapshots + 2
    assert journaled.stats().lines == stats.lines + 1

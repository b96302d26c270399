"""What others do to a session's files: a hand, a backup, a removed directory, a clock. Nothing is overwritten."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from core_helpers import loaded, session, text, texts, tree
from journal_helpers import (
    HISTORY,
    closed_session,
    goes_on,
    header,
    journal_store,
    plain_state,
    refused,
    sealed,
    snapshot_bytes,
    state,
    step,
)  # fmt: skip

from perdure import PerdureError, SessionConflictError, SessionCorruptError, StoreError

# --- the snapshot under a journal, or under an open session


def edited(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"message 0", b"message X"))


def edited_to_another_length(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"message 0", b"a message by hand"))


def edited_in_place(path: Path) -> None:
    """The same inode, the same length, the same time."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(path.read_bytes().rindex(b"message 0"))
        file.write(b"message X")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("edit", [edited, edited_to_another_length, edited_in_place])
def test_a_snapshot_edited_by_hand_under_a_journal(tmp_path: Path, edit: Callable[[Path], None]) -> None:
    closed_session(tmp_path)
    edit(tmp_path / "s.json")
    said = refused(tmp_path)
    assert "s.json" in said and "s.journal" in said
    # What the message says helps.
    (tmp_path / "s.journal").rename(tmp_path / "away")
    assert len(loaded(journal_store(tmp_path))) == 2


@pytest.mark.parametrize("lines", [0, 3])
@pytest.mark.parametrize("edit", [edited, edited_to_another_length])
def test_a_snapshot_edited_by_hand_under_an_open_session(
    tmp_path: Path, edit: Callable[[Path], None], lines: int
) -> None:
    store = journal_store(tmp_path)
    data = session("s", HISTORY[0])
    store.save(data)
    for number in range(lines):
        data.append(text(str(number)))
        store.save(data)
    edit(tmp_path / "s.json")
    before = tree(tmp_path)
    data.append(text("more"))
    for _ in range(2):
        with pytest.raises((SessionConflictError, SessionCorruptError)) as caught:
            store.save(data)
        assert isinstance(caught.value, SessionCorruptError if lines else SessionConflictError)
        assert tree(tmp_path) == before
    if lines:
        with pytest.raises(SessionCorruptError):
            store.checkpoint("s")
        with pytest.raises(SessionCorruptError):
            store.save(data, force=True)
        assert tree(tmp_path) == before
        # The old one put back: nothing is lost.
        (tmp_path / "s.json").write_bytes(re.sub(b"message X|a message by hand", b"message 0", before["s.json"]))
        assert store.save(data).revision == 2 + lines
        assert texts(loaded(store)) == [HISTORY[0], *map(str, range(lines)), "more"]
    else:
        data.rebase(loaded(store))
        assert store.save(data).revision == 2


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_a_snapshot_restored_from_a_backup(tmp_path: Path, is_open: bool) -> None:
    """Revision 3 put back while the journal stands on revision 6."""
    store = journal_store(tmp_path / "d")
    data = session("s", "0")
    for number in range(1, 4):
        store.save(data)
        data.append(text(str(number)))
    store.checkpoint("s")
    backup = (tmp_path / "d" / "s.json").read_bytes()
    for number in range(4, 8):
        store.save(data)
        data.append(text(str(number)))
        if number == 5:
            store.checkpoint("s")
    if not is_open:
        store = journal_store(shutil.copytree(tmp_path / "d", tmp_path / "closed"))
        data = loaded(store)
        data.append(text("new"))
    directory = store.path
    now = (directory / "s.json").read_bytes()
    (directory / "s.json").write_bytes(backup)
    before = tree(directory)
    with pytest.raises(SessionCorruptError) as caught:
        store.save(data)
    assert "s.journal" in str(caught.value) and "s.json" in str(caught.value)
    with pytest.raises(SessionCorruptError):
        store.load("s")
    assert {name: raw for name, raw in tree(directory).items() if name != "s.lock"} == {
        name: raw for name, raw in before.items() if name != "s.lock"
    }
    (directory / "s.json").write_bytes(now)
    store.save(data)
    assert texts(loaded(store)) == texts(data)


def test_a_backup_of_both_files_is_the_session_of_then(tmp_path: Path) -> None:
    """Put back under an open session: somebody else changed it. Put back at rest: it loads."""
    store = journal_store(tmp_path)
    data = session("s", "0")
    store.save(data)
    data.append(text("1"))
    store.save(data)
    backup = {name: raw for name, raw in tree(tmp_path).items() if name != "s.lock"}
    for number in range(2, 5):
        data.append(text(str(number)))
        store.save(data)
    for name, raw in backup.items():
        (tmp_path / name).write_bytes(raw)
    data.append(text("more"))
    with pytest.raises(SessionConflictError) as caught:
        store.save(data)
    assert (caught.value.expected, caught.value.found) == (5, 2)
    assert texts(loaded(store)) == ["0", "1"]
    other = loaded(store)
    other.append(text("from then"))
    assert store.save(other).revision == 3
    assert plain_state(tmp_path) == state(other)


def test_a_snapshot_removed_under_an_open_session(tmp_path: Path) -> None:
    for lines in (0, 2):
        store = journal_store(tmp_path / str(lines))
        data = session("s", "0")
        store.save(data)
        for number in range(lines):
            data.append(text(str(number)))
            store.save(data)
        (store.path / "s.json").unlink()
        before = tree(store.path)
        data.append(text("more"))
        with pytest.raises(SessionCorruptError if lines else SessionConflictError):
            store.save(data)
        assert tree(store.path) == before


def test_a_journal_removed_under_an_open_session(tmp_path: Path) -> None:
    """What it held was acknowledged: going on as if nothing was missing would lose it in silence."""
    store = journal_store(tmp_path)
    data = session("s", "0")
    store.save(data)
    data.append(text("1"))
    store.save(data)
    (tmp_path / "s.journal").unlink()
    data.append(text("2"))
    with pytest.raises(SessionConflictError) as caught:
        store.save(data)
    assert (caught.value.expected, caught.value.found) == (2, 1)
    assert store.save(data, force=True).revision == 2
    assert texts(loaded(store)) == ["0", "1", "2"]


def test_a_journal_cut_or_continued_under_an_open_session(tmp_path: Path) -> None:
    store = journal_store(tmp_path)
    data = session("s", "0")
    store.save(data)
    for number in range(3):
        data.append(text(str(number)))
        store.save(data)
    raw = (tmp_path / "s.journal").read_bytes()
    (tmp_path / "s.journal").write_bytes(raw + b"{torn")
    data.append(text("3"))
    assert store.save(data).revision == 5, "a torn tail is put aside"
    assert [path.read_bytes() for path in tmp_path.glob("*.torn-*")] == [b"{torn"]
    (tmp_path / "s.journal").write_bytes(raw)
    data.append(text("4"))
    with pytest.raises(SessionConflictError) as caught:
        store.save(data)
    assert (caught.value.expected, caught.value.found) == (5, 4)


# --- the directory


def test_the_directory_is_removed_under_an_open_session(tmp_path: Path) -> None:
    store = journal_store(tmp_path / "d")
    data = session("s", "0")
    store.save(data)
    data.append(text("1"))
    store.save(data)
    shutil.rmtree(tmp_path / "d")
    data.append(text("2"))
    for call in (lambda: store.save(data), lambda: store.checkpoint("s"), lambda: store.save(session("t"))):
        with pytest.raises(PerdureError) as caught:
            call()
        assert isinstance(caught.value, (StoreError, SessionConflictError)) or "no session" in str(caught.value)
    assert not (tmp_path / "d").exists(), "nothing comes back by itself"
    assert (len(data), data.revision) == (3, 2)
    # Made again by hand: the session is not there, and says so, until it is stored knowingly.
    (tmp_path / "d").mkdir()
    with pytest.raises(SessionConflictError) as conflict:
        store.save(data)
    assert (conflict.value.expected, conflict.value.found) == (2, None)
    store.save(data, force=True)
    data.append(text("3"))
    store.save(data)
    assert texts(loaded(store)) == ["0", "1", "2", "3"]
    assert plain_state(tmp_path / "d") == state(data)


def test_the_directory_is_moved_under_an_open_session(tmp_path: Path) -> None:
    store = journal_store(tmp_path / "d")
    data = session("s", "0")
    store.save(data)
    data.append(text("1"))
    store.save(data)
    (tmp_path / "d").rename(tmp_path / "moved")
    before = tree(tmp_path / "moved")
    data.append(text("2"))
    with pytest.raises(StoreError) as caught:
        store.save(data)
    assert caught.value.errno == 2
    assert str(tmp_path / "d") in str(caught.value)
    assert tree(tmp_path / "moved") == before, "it is not written where nobody looks for it"
    # Where it is now it can be gone on with, also by the very session.
    moved = journal_store(tmp_path / "moved")
    assert moved.save(data).revision == 3
    assert texts(loaded(moved)) == ["0", "1", "2"]
    moved.close()
    # And moved back, the store finds it again.
    (tmp_path / "moved").rename(tmp_path / "d")
    data.append(text("3"))
    assert store.save(data).revision == 4
    assert texts(loaded(store)) == ["0", "1", "2", "3"]


def test_another_directory_in_its_place(tmp_path: Path) -> None:
    """With another session of the same name in it."""
    store = journal_store(tmp_path / "d")
    data = session("s", "0")
    store.save(data)
    (tmp_path / "d").rename(tmp_path / "moved")
    journal_store(tmp_path / "d").save(session("s", "somebody else's"))
    data.append(text("1"))
    with pytest.raises(SessionConflictError):
        store.save(data)
    assert texts(loaded(journal_store(tmp_path / "d"))) == ["somebody else's"]
    assert texts(loaded(journal_store(tmp_path / "moved"))) == ["0"]


# --- the clock


def test_a_clock_that_goes_back(tmp_path: Path) -> None:
    """Times of files and lines decide nothing but the order of a listing."""
    store = journal_store(tmp_path)
    data = session("s", "0")
    store.save(data)
    for number in range(1, 5):
        data.append(text(str(number)))
        store.save(data)
        for name in ("s.json", "s.journal"):
            if number != 3:
                os.utime(tmp_path / name, (10_000 - number, 10_000 - number))
        assert texts(loaded(store)) == list(map(str, range(number + 1)))
    assert store.infos()[0][0].revision == 5
    store.close()
    goes_on(tmp_path, list("01234"))


def test_a_line_from_the_future(tmp_path: Path) -> None:
    snapshot = snapshot_bytes(revision=7, messages=1)
    future = step(8, 1, text("b")).replace("1795344690", "4102444800")
    (tmp_path / "s.json").write_bytes(snapshot)
    (tmp_path / "s.journal").write_bytes(sealed(header(snapshot), future))
    store = journal_store(tmp_path)
    data = loaded(store)
    assert data.revision == 8
    data.append(text("c"))
    assert store.save(data).revision == 9
    first, second = (json.loads(line) for line in (tmp_path / "s.journal").read_bytes().splitlines()[1:])
    assert first["at"] > second["at"]
    assert len(loaded(store)) == 3
    assert plain_state(tmp_path) == state(data)

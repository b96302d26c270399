"""The lock in journal mode: kept while a session is open, given up when it is closed or its holder dies."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from core_helpers import loaded, session, text, texts, tree
from journal_helpers import journal_store, lines, other, plain_state, size, state
from test_fork import forked

from perdure import FileSessionStore, PythonFileSessionStore, SessionConflictError, SessionLockedError

PATIENCE = 8.0
"""Under what a holder that only saves is waited for: who is told sooner was told at once."""


def locked(answer: Any, pid: int) -> None:
    """Another process is told whose the session is."""
    assert isinstance(answer, dict), answer
    assert (answer["error"], answer["session_id"]) == ("SessionLockedError", "s")
    assert (answer["pid"], answer["host"]) == (pid, socket.gethostname())


def note(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "s.lock").read_text())
    return content


def test_it_is_kept_while_the_session_is_open(tmp_path: Path) -> None:
    store = journal_store(tmp_path)
    data = session("s")
    store.save(data)
    data.append(text("one"))
    store.save(data)
    assert (note(tmp_path)["pid"], note(tmp_path)["hold"]) == (os.getpid(), "open")
    with other(tmp_path) as there:
        started = time.monotonic()
        assert there.do("load", "s") == ["one"], "reading takes no lock"
        before = tree(tmp_path)
        locked(there.do("append", "s", "theirs"), os.getpid())
        locked(there.do("checkpoint", "s"), os.getpid())
        locked(there.do("delete", "s"), os.getpid())
        assert time.monotonic() - started < PATIENCE
        assert tree(tmp_path) == before
        data.append(text("two"))
        store.save(data)
        assert there.do("texts", "s") == ["one", "two"], "a reader sees each line"
        # Other sessions are free.
        assert there.do("append", "t", "theirs") == 1
        with pytest.raises(SessionLockedError) as caught:
            store.save(session("t", "mine"), force=True)
        assert (caught.value.session_id, caught.value.pid) == ("t", there.pid)
        assert caught.value.host == socket.gethostname()
        assert caught.value.since is not None and abs(caught.value.since - time.time()) < 60


def test_loading_alone_takes_no_lock(tmp_path: Path) -> None:
    store = journal_store(tmp_path)
    store.save(session("s", "one"))
    store.close()
    data = loaded(store)
    assert sorted(tree(tmp_path)) == ["s.json"]
    with other(tmp_path) as there:
        assert there.do("load", "s") == ["one"]
        assert there.do("append", "s", "two") == 2
        data.append(text("late"))
        with pytest.raises(SessionLockedError):
            store.save(data)


@pytest.mark.parametrize("way", ["release", "close"])
def test_closing_gives_it_up(tmp_path: Path, way: str) -> None:
    store = journal_store(tmp_path)
    data = session("s", "one")
    store.save(data)
    with other(tmp_path) as there:
        locked(there.do("append", "s", "theirs"), os.getpid())
        if way == "release":
            store.release(data)
        else:
            store.close()
        assert there.do("load", "s") == ["one"]
        assert there.do("append", "s", "two") == 2
        data.append(text("late"))
        with pytest.raises(SessionLockedError):
            store.save(data)
        assert there.do(way, *(["s"] if way == "release" else [])) is None
        with pytest.raises(SessionConflictError) as conflict:
            store.save(data)
        assert (conflict.value.expected, conflict.value.found) == (1, 2)
        # A save that failed keeps nothing.
        assert there.do("append", "s", "three") == 3


def test_it_is_waited_for_as_told(tmp_path: Path) -> None:
    patient = journal_store(tmp_path, lock_timeout=30)
    hasty = journal_store(tmp_path, lock_timeout=0.3)
    with other(tmp_path) as there:
        there.do("append", "s", "one")
        data = loaded(patient)
        data.append(text("two"))
        started = time.monotonic()
        with pytest.raises(SessionLockedError):
            hasty.save(data)
        assert 0.3 <= time.monotonic() - started < PATIENCE
        timer = threading.Timer(0.3, there.do, ["release", "s"])
        timer.start()
        assert patient.save(data).revision == 2
        timer.join()
    assert texts(loaded(patient)) == ["one", "two"]


@pytest.mark.parametrize("first", ["checkpoint", "snapshot-mode save"])
def test_a_lock_that_is_kept_says_so_whatever_was_done_before(tmp_path: Path, first: str) -> None:
    """Others are told at once, and do not wait as for one that just saves."""
    store = journal_store(tmp_path)
    data = session("s", "one")
    if first == "checkpoint":
        FileSessionStore(tmp_path).save(data)
        store.close()
        store.checkpoint("s")
    else:
        FileSessionStore(tmp_path).save(data)
    data.append(text("two"))
    store.save(data)
    assert note(tmp_path)["hold"] == "open"
    with other(tmp_path) as there:
        started = time.monotonic()
        locked(there.do("append", "s", "theirs"), os.getpid())
        assert time.monotonic() - started < PATIENCE


def test_a_store_in_snapshot_mode_gives_way_and_does_not_fold(tmp_path: Path) -> None:
    with other(tmp_path) as there:
        there.do("append", "s", "one")
        there.do("append", "s", "two")
        store = FileSessionStore(tmp_path)
        data = loaded(store)
        before = tree(tmp_path)
        with pytest.raises(SessionLockedError):
            store.save(data)
        data.append(text("three"))
        with pytest.raises(SessionLockedError):
            store.save(data)
        with pytest.raises(SessionLockedError):
            store.delete("s")
        with pytest.raises(SessionLockedError):
            PythonFileSessionStore(tmp_path).save(data)
        with pytest.raises(SessionLockedError):
            PythonFileSessionStore(tmp_path).delete("s")
        assert tree(tmp_path) == before


# --- a holder that dies, stops, or is elsewhere


def test_the_next_one_takes_over_from_a_killed_holder(tmp_path: Path) -> None:
    for number in range(3):
        with other(tmp_path) as there:
            if number:
                there.do("load", "s")
            for content in "ab":
                there.do("append", "s", f"{number}{content}")
            there.kill()
        assert size(tmp_path) > 0
        assert (tmp_path / "s.lock").exists()
    store = journal_store(tmp_path)
    data = loaded(store)
    assert texts(data) == ["0a", "0b", "1a", "1b", "2a", "2b"]
    data.append(text("mine"))
    started = time.monotonic()
    assert store.save(data).revision == 7
    assert time.monotonic() - started < PATIENCE
    assert note(tmp_path)["pid"] == os.getpid()
    assert state(data) == state(loaded(store)) == plain_state(tmp_path)
    assert [line["revision"] for line in lines(tmp_path)[1:]] == [2, 3, 4, 5, 6, 7], "it goes on in the same journal"
    store.checkpoint("s")
    store.close()
    assert sorted(tree(tmp_path)) == ["s.json"]


def test_leftovers_of_a_killed_holder_are_merged_and_swept(tmp_path: Path) -> None:
    """A snapshot that was being written, and the beginning of a line."""
    with other(tmp_path) as there:
        there.do("append", "s", "one")
        there.do("append", "s", "two")
        there.kill()
    temp = f".s.{note(tmp_path)['temp']}.tmp"
    (tmp_path / temp).write_text('{"id": "s", "perd')
    with (tmp_path / "s.journal").open("ab") as journal:
        journal.write(b'{"bytes": 170, "crc32c": "c4')
    store = journal_store(tmp_path)
    data = loaded(store)
    data.append(text("three"))
    assert store.save(data).revision == 3
    store.checkpoint("s")
    store.close()
    (aside,) = [name for name in tree(tmp_path) if name != "s.json"]
    assert aside.startswith("s.journal.torn-")
    assert tree(tmp_path)[aside] == b'{"bytes": 170, "crc32c": "c4'
    assert texts(loaded(store)) == ["one", "two", "three"]


def test_a_stopped_holder_keeps_it_and_goes_on(tmp_path: Path) -> None:
    store = journal_store(tmp_path, lock_timeout=0.2)
    with other(tmp_path) as there:
        there.do("append", "s", "one")
        os.kill(there.pid, signal.SIGSTOP)
        data = loaded(store)
        data.append(text("mine"))
        for _ in range(2):
            with pytest.raises(SessionLockedError) as caught:
                store.save(data)
            assert caught.value.pid == there.pid
        os.kill(there.pid, signal.SIGCONT)
        assert there.do("append", "s", "two") == 2
        there.do("close")
    with pytest.raises(SessionConflictError):
        store.save(data)
    assert texts(loaded(store)) == ["one", "two"]


@pytest.mark.parametrize("pid", [4711, os.getpid()], ids=["another", "the same number"])
def test_a_holder_on_another_host(tmp_path: Path, pid: int) -> None:
    """Where the file system carries locks between hosts, the note names the one that holds it."""
    store = journal_store(tmp_path)
    store.save(session("s", "one"))
    store.close()
    path = tmp_path / "s.lock"
    owner = {"pid": pid, "host": "elsewhere.example", "since": 1795344689, "hold": "open", "temp": "0" * 16}
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(owner) + "\n")
        file.flush()
        data = loaded(store)
        data.append(text("two"))
        started = time.monotonic()
        with pytest.raises(SessionLockedError, match=rf"process {pid} on elsewhere\.example") as caught:
            store.save(data)
        assert time.monotonic() - started < PATIENCE
        assert (caught.value.pid, caught.value.host, caught.value.since) == (pid, "elsewhere.example", 1795344689)
        assert json.loads(path.read_text()) == owner
    # A note alone holds nothing.
    assert store.save(data).revision == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"pid": -1, "host": 3, "hold": []}', "\0" * 100, "x" * 9000]
)
def test_any_note_in_the_lock_file(tmp_path: Path, content: str) -> None:
    store = journal_store(tmp_path, lock_timeout=0)
    (tmp_path / "s.lock").write_text(content)
    data = session("s", "one")
    store.save(data)
    assert note(tmp_path)["pid"] == os.getpid()
    data.append(text("two"))
    store.save(data)
    assert texts(loaded(store)) == ["one", "two"]


def test_a_lock_file_that_was_removed_is_made_again(tmp_path: Path) -> None:
    """By a person who tidies up. Whoever comes first has the session then; the other one is told."""
    store = journal_store(tmp_path)
    data = session("s", "one")
    store.save(data)
    (tmp_path / "s.lock").unlink()
    data.append(text("two"))
    assert store.save(data).revision == 2
    assert note(tmp_path)["pid"] == os.getpid()
    (tmp_path / "s.lock").unlink()
    with other(tmp_path) as there:
        there.do("load", "s")
        assert there.do("append", "s", "theirs") == 3
        data.append(text("three"))
        with pytest.raises(SessionLockedError):
            store.save(data)
        there.do("close")
        with pytest.raises(SessionConflictError):
            store.save(data)
    assert texts(loaded(store)) == ["one", "two", "theirs"]


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_none(tmp_path: Path) -> None:
    """Whoever waited gets the lock of a file that its holder removed, while a third one has the new file's."""
    store = journal_store(tmp_path, lock_timeout=30)
    path, saved = tmp_path / "s.lock", threading.Event()
    owner = json.dumps({"pid": 4711, "host": "elsewhere", "since": 1795344689, "hold": "open"})

    def save() -> None:
        store.save(session("s", "one"))
        saved.set()

    path.write_text(owner)
    with path.open() as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        waiting = threading.Thread(target=save)
        waiting.start()
        assert not saved.wait(0.2)
        path.unlink()
        path.write_text(owner)
        new = path.open()
        fcntl.flock(new, fcntl.LOCK_EX)
    assert not saved.wait(0.3), "it holds the lock of a file that is gone"
    new.close()
    waiting.join(30)
    assert saved.is_set()
    assert note(tmp_path)["pid"] == os.getpid()


# --- forks


def test_a_forked_child_neither_uses_nor_unlocks_it(tmp_path: Path) -> None:
    store = journal_store(tmp_path / "d")
    data = session("s", "one")
    store.save(data)
    data.append(text("two"))
    store.save(data)

    def work() -> None:
        assert texts(loaded(store)) == ["one", "two"]
        data.append(text("child"))
        with pytest.raises(SessionLockedError) as caught:
            store.save(data)
        assert caught.value.pid == os.getppid()
        with pytest.raises(SessionLockedError):
            store.checkpoint("s")
        store.release(data)
        assert store.save(session("child", "its own")).revision == 1
        store.close()
        with (tmp_path / "d" / "s.lock").open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    forked(work)
    with other(tmp_path / "d") as there:
        locked(there.do("append", "s", "theirs"), os.getpid())
    data.append(text("three"))
    assert store.save(data).revision == 3
    assert len(lines(tmp_path / "d")) == 3, "the parent goes on in its journal"
    assert texts(loaded(store, "child")) == ["its own"]


def test_a_forked_child_takes_over_what_its_parent_gives_up(tmp_path: Path) -> None:
    store = journal_store(tmp_path)
    data = session("s", "one")
    store.save(data)
    data.append(text("two"))
    store.save(data)
    store.close()

    def work() -> None:
        data.append(text("child"))
        assert store.save(data).revision == 3
        assert note(tmp_path)["pid"] == os.getpid()

    forked(work)
    data.append(text("late"))
    with pytest.raises(SessionConflictError):
        store.save(data)
    assert texts(loaded(store)) == ["one", "two", "child"]


def test_a_child_that_exits_as_a_program_does(tmp_path: Path) -> None:
    """With all that the interpreter does at its end: the parent's lock, journal and snapshot stay as they are."""
    import subprocess
    import sys

    code = """
import os, sys, warnings
warnings.simplefilter("ignore")
import perdure
store = perdure.FileSessionStore(sys.argv[1], journal=True)
data = perdure.SessionData("s")
for n in range(3):
    data.append({"n": n, "x": "x" * 1000})
    store.save(data)
names = sorted(os.listdir(sys.argv[1]))
if os.fork() == 0:
    sys.exit(0)
assert os.wait()[1] == 0
assert sorted(os.listdir(sys.argv[1])) == names == ["s.journal", "s.json", "s.lock"], os.listdir(sys.argv[1])
data.append({"n": 3})
assert store.save(data).revision == 4
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(loaded(FileSessionStore(tmp_path))) == 4


# --- stores of one process


def test_a_journal_and_a_snapshot_store_of_one_process(tmp_path: Path) -> None:
    journal, snapshot = journal_store(tmp_path), FileSessionStore(tmp_path)
    data = session("s", "one")
    journal.save(data)
    expected = ["one"]
    for number in range(12):
        data.append(text(str(number)))
        expected.append(str(number))
        store = (journal, journal, snapshot)[number % 3]
        assert store.save(data).revision == number + 2
        if store is snapshot:
            assert (tmp_path / "s.json").read_bytes() == data.to_json()
            assert size(tmp_path) == 0
        else:
            assert size(tmp_path) > 0
        assert texts(loaded(journal)) == texts(loaded(snapshot)) == expected
        assert plain_state(tmp_path) == state(data)
    with other(tmp_path) as there:
        locked(there.do("append", "s", "theirs"), os.getpid())
    journal.close()
    snapshot.close()
    assert sorted(tree(tmp_path)) == ["s.json"]


def test_two_journal_stores_of_one_process_on_threads(tmp_path: Path) -> None:
    a, b = journal_store(tmp_path), journal_store(tmp_path / "." / "..", lock_timeout=1)
    b = journal_store(b.path / tmp_path.name)
    a.save(session("s"))
    errors: list[BaseException] = []

    def work(store: FileSessionStore, name: str) -> None:
        try:
            for number in range(25):
                while True:
                    data = loaded(store)
                    data.append(text(f"{name}{number}"))
                    try:
                        store.save(data)
                        break
                    except SessionConflictError:
                        pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(store, name)) for store, name in ((a, "a"), (b, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    data = loaded(a)
    assert data.revision == 51
    assert sorted(texts(data)) == sorted(f"{name}{number}" for name in "ab" for number in range(25))
    assert plain_state(tmp_path) == state(data)

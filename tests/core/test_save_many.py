"""`save_many`: a receipt or an error each, in order, whatever happens to the others."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from core_helpers import child, loaded, session, text, texts, tree
from journal_helpers import journal_store, lines, other, plain_state, size, state

from perdure import (
    FileSessionStore,
    PerdureError,
    SaveReceipt,
    SessionConflictError,
    SessionCorruptError,
    SessionData,
    SessionExistsError,
    SessionLockedError,
)


@pytest.fixture(params=["journal", "snapshot", "process"])
def many(request: pytest.FixtureRequest, tmp_path: Path) -> FileSessionStore:
    """A store in each mode."""
    options: dict[str, Any] = {"journal": request.param != "snapshot"}
    if request.param == "process":
        options["durability"] = "process"
    return FileSessionStore(tmp_path / "sessions", **options)


def receipts(results: list[SaveReceipt | PerdureError]) -> list[SaveReceipt]:
    """All of them, if all went well."""
    assert all(isinstance(result, SaveReceipt) for result in results), results
    return [result for result in results if isinstance(result, SaveReceipt)]


def test_many_sessions(many: FileSessionStore) -> None:
    datas = [session(f"s{number:03}", f"prompt {number}") for number in range(200)]
    for revision in (1, 2, 3):
        results = receipts(many.save_many(datas))
        assert [result.location for result in results] == [str(many.path / f"{data.id}.json") for data in datas]
        assert {result.revision for result in results} == {data.revision for data in datas} == {revision}
        for number, (data, result) in enumerate(zip(datas, results, strict=True)):
            assert result.new_bytes == len(data.messages.raw(len(data) - 1))
            assert 0 <= result.sync_seconds <= result.seconds < 60
            data.append(text(f"{revision} {number}"))
    assert many.list() == [data.id for data in datas]
    for number, data in enumerate(datas):
        assert texts(loaded(many, data.id)) == [f"prompt {number}", f"1 {number}", f"2 {number}"]
    stats = many.stats()
    assert (stats.saves, stats.snapshots) == (600, 200 if many.journal else 600)
    many.close()
    for data in datas[::40]:
        assert len(plain_state(many.path, data.id)["messages"]) == 3


def test_bytes_are_those_of_the_files(tmp_path: Path) -> None:
    store = journal_store(tmp_path)
    datas = [session(f"s{number}", "x" * number * 100) for number in range(20)]
    first = receipts(store.save_many(datas))
    assert [result.bytes_written for result in first] == [size(tmp_path, f"{data.id}.json") for data in datas]
    for data in datas:
        data.append(text("more"))
    second = receipts(store.save_many(datas))
    assert [result.bytes_written for result in second] == [size(tmp_path, f"{data.id}.journal") for data in datas]
    assert store.stats().bytes_written == sum(result.bytes_written for result in first + second)


def test_none_and_unchanged_ones(many: FileSessionStore) -> None:
    assert many.save_many([]) == []
    assert many.save_many(iter(())) == []
    datas = [session(f"s{number}", "one") for number in range(3)]
    many.save_many(datas)
    before = tree(many.path)
    datas[1].append(text("two"))
    results = receipts(many.save_many(datas))
    assert [(result.revision, result.bytes_written > 0) for result in results] == [(1, False), (2, True), (1, False)]
    after = tree(many.path)
    assert {name for name in after if after[name] != before.get(name)} == {"s1.journal" if many.journal else "s1.json"}


def test_any_iterable(many: FileSessionStore) -> None:
    made: list[SessionData] = []

    def sessions() -> Iterator[SessionData]:
        for number in range(5):
            made.append(session(f"s{number}", str(number)))
            yield made[-1]

    assert len(receipts(many.save_many(sessions()))) == 5
    assert [data.revision for data in made] == [1] * 5
    for data in made:
        data.append(text("x"))
    assert {result.revision for result in receipts(many.save_many(dict.fromkeys(made)))} == {2}
    assert {result.revision for result in receipts(many.save_many(tuple(made)))} == {2}


def test_a_generator_that_raises_saves_nothing(many: FileSessionStore) -> None:
    def sessions() -> Iterator[SessionData]:
        yield session("s", "one")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        many.save_many(sessions())
    assert many.list() == []


@pytest.mark.parametrize("wrong", [None, 3, "s", b"s", [session("s")], session("s").to_dict(), session("s").delta()])
def test_what_is_no_session_saves_nothing(many: FileSessionStore, wrong: Any) -> None:
    good = session("good", "one")
    with pytest.raises(TypeError):
        many.save_many([good, wrong, session("other")])
    assert (many.list(), good.revision) == ([], 0)
    if not isinstance(wrong, (list, dict, str, bytes)):
        with pytest.raises(TypeError):
            many.save_many(wrong)


def test_arguments(many: FileSessionStore) -> None:
    data: Any = session("s")
    for call in (
        lambda: many.save_many(),  # type: ignore[call-arg]
        lambda: many.save_many(datas=[data]),  # type: ignore[call-arg]
        lambda: many.save_many([data], True),  # type: ignore[call-arg]
        lambda: many.save_many([data], step=True),  # type: ignore[call-arg]
        lambda: many.save_many([data], create="yes"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            call()
    assert many.list() == []


def test_errors_in_between(tmp_path: Path) -> None:
    """Each in its place, named as `save` names it; the others are saved, and nothing is overwritten."""
    store = journal_store(tmp_path)
    for id in ("taken", "stale", "gone", "damaged", "edited"):
        store.save(session(id, "stored"))
    stale = loaded(store, "stale")
    theirs = loaded(store, "stale")
    theirs.append(text("theirs"))
    store.save(theirs)
    gone = loaded(store, "gone")
    store.delete("gone")
    damaged = loaded(store, "damaged")
    (tmp_path / "damaged.json").write_text('{"id": ')
    edited = loaded(store, "edited")
    (tmp_path / "edited.json").write_bytes((tmp_path / "edited.json").read_bytes().replace(b"stored", b"edited"))
    (tmp_path / "folder.json").mkdir()
    with other(tmp_path) as there:
        there.do("append", "theirs", "one")
        bad = [session("taken", "mine"), stale, gone, damaged, edited, session("theirs"), session("folder")]
        good = [session(f"good{number}", str(number)) for number in range(len(bad) + 1)]
        for data in bad[1:5]:
            data.append(text("more"))
        before = {name: raw for name, raw in tree(tmp_path).items() if name.endswith((".json", ".journal"))}
        mixed = [good[0], *(data for pair in zip(bad, good[1:], strict=True) for data in pair)]
        results = store.save_many(mixed)
        expected = (
            SessionExistsError, SessionConflictError, SessionConflictError, SessionCorruptError, SessionConflictError,
            SessionLockedError, SessionCorruptError,
        )  # fmt: skip
        assert [type(result) for result in results[1::2]] == list(expected)
        for data, error in zip(bad, results[1::2], strict=True):
            assert isinstance(error, PerdureError)
            assert error.__traceback__ is None
            assert data.id in str(error)
            if isinstance(error, SessionLockedError):
                assert error.pid == there.pid
            elif isinstance(error, SessionConflictError):
                assert (error.session_id, error.expected) == (data.id, 1)
            # The same as from `save`, and as often as one asks.
            with pytest.raises(type(error)):
                store.save(data)
        for number, (data, result) in enumerate(zip(good, results[::2], strict=True)):
            assert isinstance(result, SaveReceipt)
            assert (result.revision, result.location) == (1, str(tmp_path / f"good{number}.json"))
            assert texts(loaded(store, data.id)) == [str(number)]
        after = tree(tmp_path)
        assert {name: after[name] for name in before} == before
    # An error of the caller's is one that can be raised.
    error = results[1]
    assert isinstance(error, SessionExistsError)
    with pytest.raises(SessionExistsError):
        raise error


def test_create_and_force(many: FileSessionStore) -> None:
    many.save_many([session("a", "old"), session("b", "old")])
    results = many.save_many([session("a", "new"), session("c", "new")], create=True)
    assert isinstance(results[0], SessionExistsError)
    assert isinstance(results[1], SaveReceipt)
    results = many.save_many([session("a", "new"), session("d", "new")], force=True)
    assert [result.revision for result in receipts(results)] == [2, 1]
    assert [texts(loaded(many, id)) for id in "abcd"] == [["new"], ["old"], ["new"], ["new"]]


def test_the_same_session_more_than_once(many: FileSessionStore) -> None:
    """One of them saves it, the others find nothing to do; a copy of it conflicts."""
    data = session("s", "one")
    results = receipts(many.save_many([data] * 10))
    assert {result.revision for result in results} == {1}
    assert sum(result.bytes_written > 0 for result in results) == 1
    data.append(text("two"))
    results = receipts(many.save_many([data, session("t"), data]))
    assert [result.revision for result in results] == [2, 1, 2]
    copies = [loaded(many) for _ in range(8)]
    for number, copy in enumerate(copies):
        copy.append(text(f"copy {number}"))
    mixed = many.save_many(copies)
    (winner,) = [copy for copy, result in zip(copies, mixed, strict=True) if isinstance(result, SaveReceipt)]
    assert sum(isinstance(result, SessionConflictError) for result in mixed) == 7
    assert texts(loaded(many)) == texts(winner)


def test_two_thousand_sessions(tmp_path: Path) -> None:
    store = journal_store(tmp_path, durability="process")
    datas = [session(f"s{number:04}", f"prompt {number}") for number in range(2000)]
    receipts(store.save_many(datas, create=True))
    for data in datas:
        data.append(text("two"))
    results = receipts(store.save_many(data for data in datas))
    assert {result.revision for result in results} == {2}
    assert store.list() == [data.id for data in datas]
    infos, _ = store.infos(2000)
    assert {(info.message_count, info.revision) for info in infos} == {(2, 2)}
    store.close()
    assert not list(tmp_path.glob("*.lock"))
    assert state(loaded(store, "s1234")) == plain_state(tmp_path, "s1234")


def test_other_threads_go_on_meanwhile(tmp_path: Path) -> None:
    """The interpreter is free while it saves, and several calls at once share the threads."""
    store = journal_store(tmp_path)
    groups = [[session(f"{group}-{number}", "0") for number in range(40)] for group in range(6)]
    ticks, stop = [], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.0005)

    def work(group: list[SessionData]) -> None:
        for number in range(5):
            results.extend(store.save_many(group))
            for data in group:
                data.append(text(str(number)))

    results: list[SaveReceipt | PerdureError] = []
    threads = [threading.Thread(target=work, args=(group,)) for group in groups]
    ticker = threading.Thread(target=tick)
    ticker.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    stop.set()
    ticker.join()
    assert len(receipts(results)) == 6 * 40 * 5
    assert len(ticks) > 20
    for group in groups:
        for data in group:
            assert texts(loaded(store, data.id)) == ["0", "0", "1", "2", "3"]


INTERRUPTED = """
import os, signal, sys, threading, time, perdure
store = perdure.FileSessionStore(sys.argv[1], journal=True, lock_timeout=30)
datas = [perdure.SessionData(f"s{n:03}", messages=[{"n": n}]) for n in range(300)]
blocked = perdure.SessionData("blocked")
threading.Timer(float(sys.argv[2]), os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    done = store.save_many([*datas[:150], *[blocked] * int(sys.argv[3]), *datas[150:]])
    print("done", len(done))
except KeyboardInterrupt:
    print("interrupted")
time.sleep(float(sys.argv[2]) / 4)  # an interrupt that comes late must not end the checks below
# Nothing is half: what says it is saved is there, what is there is whole; and one can go on.
for n, data in enumerate(datas):
    stored = store.load(data.id)
    assert data.revision == (0 if stored is None else 1), data.id
    assert stored is None or stored.messages == [{"n": n}]
again = store.save_many(datas)
assert [receipt.revision for receipt in again] == [1] * 300
assert len(store.list()) == 300
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGINT")
@pytest.mark.parametrize("is_blocked", [False, True], ids=["running", "waiting for a lock"])
def test_ctrl_c(tmp_path: Path, is_blocked: bool) -> None:
    if not is_blocked:
        done = child(INTERRUPTED, tmp_path, 0.02, 0)
        assert done.returncode == 0, done.stderr
        assert done.stdout in ("interrupted\n", "done 300\n")
        return
    with other(tmp_path) as there:
        there.do("append", "blocked", "theirs")
        started = time.monotonic()
        code = INTERRUPTED.replace("== 300\n", "== 301\n")
        done = child(code, tmp_path, 0.6, 1)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "interrupted\n"
        assert time.monotonic() - started < 20, "Ctrl-C ends the wait for a lock"
        assert there.do("append", "blocked", "more") == 2


def test_nothing_of_it_is_kept(tmp_path: Path) -> None:
    """The sessions are let go of when the call is over."""
    store = journal_store(tmp_path)
    data = session("s", "one")
    before = sys.getrefcount(data)
    store.save_many([data] * 5)
    assert sys.getrefcount(data) == before
    assert lines(tmp_path) == []


def test_signals_are_as_before(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    journal_store(tmp_path).save_many([session("s")])
    assert signal.getsignal(signal.SIGINT) is handler

"""Threads that share a session, a store, or both. Nothing is lost, nothing panics, nothing deadlocks."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from core_helpers import loaded, session, text, texts

from perdure import FileSessionStore, SessionConflictError, SessionData

THREADS = 6
ROUNDS = 40


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(old)


def together(*works: Callable[[], object]) -> None:
    """Runs functions in threads that start at the same moment; the first error is raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        try:
            barrier.wait()
            work()
        except BaseException as error:  # a panic is a BaseException
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def test_appends_of_many_threads(store: FileSessionStore) -> None:
    data = SessionData("s")

    def append(name: int) -> Callable[[], None]:
        return lambda: [data.append(text(f"{name} {n}"), text(f"{name} {n}b")) for n in range(ROUNDS)] and None

    together(*map(append, range(THREADS)))
    store.save(data)
    found = texts(loaded(store))
    assert Counter(found) == Counter(f"{t} {n}{b}" for t in range(THREADS) for n in range(ROUNDS) for b in ("", "b"))
    for name in range(THREADS):
        own = [entry for entry in found if entry.startswith(f"{name} ")]
        assert own == [f"{name} {n}{b}" for n in range(ROUNDS) for b in ("", "b")]
    # The messages of one append stay together.
    assert all(found[at] + "b" == found[at + 1] for at in range(0, len(found), 2))


def test_append_while_saving(store: FileSessionStore) -> None:
    data = SessionData("s")
    done = threading.Event()

    def append() -> None:
        for number in range(ROUNDS * 5):
            data.append(text(str(number)))
        done.set()

    def save() -> None:
        while not done.is_set():
            revision = store.save(data).revision
            stored = loaded(store)
            assert stored.revision >= revision
            assert texts(stored) == [str(n) for n in range(len(stored))]

    together(append, save)
    store.save(data)
    assert texts(loaded(store)) == [str(n) for n in range(ROUNDS * 5)]
    assert store.save(data).bytes_written == 0


def test_many_savers_of_one_session(store: FileSessionStore) -> None:
    """Each save writes all that was appended before it, or finds it written; conflicts are named, never silent."""
    data = SessionData("s")
    store.save(data)

    def work(name: int) -> Callable[[], None]:
        def run() -> None:
            for number in range(ROUNDS // 4):
                data.append(text(f"{name} {number}"))
                while True:
                    try:
                        store.save(data)
                        break
                    except SessionConflictError:
                        # Another thread saved this very session between this one's look and its write.
                        continue
                assert f"{name} {number}" in texts(loaded(store))

        return run

    together(*map(work, range(THREADS)))
    assert Counter(texts(loaded(store))) == Counter(f"{t} {n}" for t in range(THREADS) for n in range(ROUNDS // 4))


def test_many_sessions_in_one_store(store: FileSessionStore) -> None:
    def work(name: int) -> Callable[[], None]:
        def run() -> None:
            data = session(f"s{name}")
            for number in range(ROUNDS // 4):
                data.append(text(str(number)))
                assert store.save(data).revision == number + 1
                assert f"s{name}" in store.list()
            store.release(data)

        return run

    together(*map(work, range(THREADS)))
    assert store.list() == [f"s{n}" for n in range(THREADS)]
    for name in range(THREADS):
        assert len(loaded(store, f"s{name}")) == ROUNDS // 4


def test_everything_at_once(tmp_path: Path) -> None:
    """Saves, loads, deletes, listings and closes of the same few sessions through several handles."""
    handles = [FileSessionStore(tmp_path / "d") for _ in range(3)]
    stop = threading.Event()

    def write(at: int) -> Callable[[], None]:
        def run() -> None:
            for number in range(ROUNDS):
                data = session(f"s{number % 3}", "x" * 100)
                handles[at % 3].save(data, force=True)
                if number % 5 == at:
                    handles[at % 3].delete(data.id)

        return run

    def read() -> None:
        while not stop.is_set():
            for handle in handles:
                for id in handle.list():
                    data = handle.load(id)
                    assert data is None or texts(data) == ["x" * 100]
                handle.infos()
                handle.close()

    reader = threading.Thread(target=lambda: together(read))
    reader.start()
    try:
        together(*map(write, range(3)))
    finally:
        stop.set()
        reader.join(60)
    for handle in handles:
        handle.close()
    assert all(path.suffix == ".json" for path in (tmp_path / "d").iterdir())


def test_all_methods_of_one_session_at_once() -> None:
    data = session("s", *map(str, range(20)))

    def write() -> None:
        for number in range(ROUNDS * 5):
            data.append(text("new"))
            data.truncate(10)
            data.replace(number % 10, text("replaced"))
            data.set("own", number)
            data.tags = [str(number)]

    def read() -> None:
        for _ in range(ROUNDS * 5):
            view = data.messages
            assert len(list(view)) == len(view)
            assert all(message["role"] == "user" for message in view[::2])
            SessionData.from_json(data.to_json())
            data.fork("t", 10).freeze()
            delta = data.delta(always=True)
            assert delta is not None
            assert len(delta.messages) == delta.message_count - delta.first_index
            assert data.get("own", 0) >= 0

    together(write, read, read)
    assert len(data) == 10

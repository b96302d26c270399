"""A process that forks with an open store, and one that is spawned."""

from __future__ import annotations

import os

import pytest

if not hasattr(os, "fork"):
    pytest.skip("no fork here", allow_module_level=True)

import fcntl
import multiprocessing
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from core_helpers import loaded, session, text, texts, tree

from perdure import FileSessionStore, SessionConflictError


def forked(work: Callable[[], object]) -> None:
    """Runs a function in a forked child and waits for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(30)
            work()
            status = 0
        except BaseException:  # the child must not go on as a second pytest
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"


def test_the_child_works_and_both_go_on(store: FileSessionStore) -> None:
    data = session("s", "parent")
    store.save(data)

    def work() -> None:
        assert texts(loaded(store)) == ["parent"]
        store.save(session("child", "its own"))
        copy = loaded(store)
        copy.append(text("child"))
        assert store.save(copy).revision == 2
        store.close()

    forked(work)
    assert store.list() == ["child", "s"]
    data.append(text("too late"))
    with pytest.raises(SessionConflictError):
        store.save(data)
    data = loaded(store)
    data.append(text("parent again"))
    assert store.save(data).revision == 3
    store.close()
    assert sorted(tree(store.path)) == ["child.json", "s.json"]


def test_the_child_inherits_the_session_too(store: FileSessionStore) -> None:
    data = session("s", "one")
    store.save(data)

    def work() -> None:
        data.append(text("two"))
        assert store.save(data).revision == 2

    forked(work)
    assert texts(loaded(store)) == ["one", "two"]
    assert len(data) == 1


def test_the_parents_lock_is_not_released(tmp_path: Path) -> None:
    """While the parent is in the middle of a save a child closes, drops and exits; the lock stays the parent's."""
    store = FileSessionStore(tmp_path / "d")
    store.save(session("s", "one"))
    path = tmp_path / "d" / "s.lock"
    # The engine unlocks after every save but keeps the file open: it is that very open file which is locked here.
    numbers = [int(link.name) for link in Path("/proc/self/fd").iterdir()]
    own = [fd for fd in numbers if os.path.realpath(f"/proc/self/fd/{fd}") == str(path)]
    assert len(own) == 1
    fcntl.flock(own[0], fcntl.LOCK_EX)

    def work() -> None:
        store.close()
        store.list()
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    forked(work)
    with path.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(own[0], fcntl.LOCK_UN)


def test_a_child_of_a_child(store: FileSessionStore) -> None:
    store.save(session("s", "one"))

    def child() -> None:
        store.save(session("a", "child"))

        def grandchild() -> None:
            store.save(session("b", "grandchild"))
            assert store.list() == ["a", "b", "s"]

        forked(grandchild)
        store.save(session("c", "child again"))

    forked(child)
    assert store.list() == ["a", "b", "c", "s"]


def count_up(directory: str, name: int, rounds: int) -> None:
    """Adds to one session from many processes, taking a conflict as the call to load again."""
    store = FileSessionStore(directory)
    for number in range(rounds):
        while True:
            data = loaded(store)
            data.append(text(f"{name} {number}"))
            try:
                store.save(data)
                break
            except SessionConflictError:
                time.sleep(0.001)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_processes_lose_nothing(store: FileSessionStore, method: str) -> None:
    store.save(session("s"))
    context = multiprocessing.get_context(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        workers = [context.Process(target=count_up, args=(str(store.path), n, 8)) for n in range(3)]
        for worker in workers:
            worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    data = loaded(store)
    assert data.revision == 25
    assert sorted(texts(data)) == sorted(f"{n} {m}" for n in range(3) for m in range(8))

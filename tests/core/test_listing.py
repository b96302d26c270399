"""`list` and `infos`: what they say of many sessions, of sessions in the middle of a turn, and while others write."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from core_helpers import loaded, session, text
from hypothesis import given
from hypothesis import strategies as st

from perdure import FileSessionStore, SessionData, SessionInfo


def step(store: FileSessionStore, data: SessionData) -> None:
    """What a turn does in between: a line in the journal."""
    delta = data.delta()
    assert delta is not None
    store.append(delta, step=True)
    data.settle(delta)


def pages(store: FileSessionStore, limit: int) -> Iterator[list[SessionInfo]]:
    cursor: str | None = None
    while True:
        before = cursor
        page, cursor = store.infos(limit, before)
        yield page
        if cursor is None:
            return
        assert cursor != before


def agrees(store: FileSessionStore, info: SessionInfo) -> None:
    """What a listing says of a session is what the session itself says."""
    data = loaded(store, info.id)
    assert info.name == data.config.get("name", "")
    assert (info.tags, info.revision, info.message_count) == (tuple(data.tags), data.revision, len(data))
    assert (info.created_at, info.updated_at) == (data.created_at, data.updated_at)


def write_many(directory: Path, count: int, journals: int) -> list[str]:
    """Directories of this size are made by copying: a session's id is in nothing that its checksum covers."""
    store = FileSessionStore(directory, durability="process")
    for number in range(journals):
        data = session(f"j{number:05}", f"prompt {number}")
        store.save(data)
        data.append(text("more"))
        data.tags = [str(number)]
        step(store, data)
    store.save(session("m00000", "prompt", "reply"))
    store.close()
    first = (directory / "m00000.json").read_bytes()
    for number in range(1, count - journals):
        (directory / f"m{number:05}.json").write_bytes(first.replace(b'"m00000"', f'"m{number:05}"'.encode(), 1))
    return [f"j{n:05}" for n in range(journals)] + [f"m{n:05}" for n in range(count - journals)]


def test_ten_thousand_sessions(tmp_path: Path) -> None:
    ids = write_many(tmp_path, 10_000, 300)
    newest = [*ids[5:300:7], *ids[4000:9000:311]]
    for number, id in enumerate(newest):
        for ending in ("json", "journal"):
            path = tmp_path / f"{id}.{ending}"
            if path.exists():
                os.utime(path, (1_900_000_000 - number, 1_900_000_000 - number))
    store = FileSessionStore(tmp_path)
    assert store.list() == ids
    page, cursor = store.infos(len(newest))
    assert [info.id for info in page] == newest
    assert cursor is not None
    for info in page:
        agrees(store, info)
    seen = [info.id for page in pages(store, 1500) for info in page]
    assert seen[: len(newest)] == newest
    assert sorted(seen) == ids


def test_a_turn_shows_step_by_step(store: FileSessionStore) -> None:
    data = session("s", "Refactor auth")
    data.config = {**data.config, "name": "first name"}
    store.save(data)
    for number in range(3):
        data.append(text("step", "assistant"), {"role": "tool", "number": number})
        data.tags = [f"step {number}"]
        data.config = {**data.config, "name": f"name {number}"}
        step(store, data)
        (info,), _ = store.infos()
        agrees(store, info)
        assert (info.name, info.tags, info.message_count) == (f"name {number}", (f"step {number}",), 3 + 2 * number)
        assert (info.first_prompt, info.revision) == ("Refactor auth", 2 + number)
        files = [store.path / f"s.{ending}" for ending in ("json", "journal")]
        assert info.bytes == sum(path.stat().st_size for path in files)
    data.truncate(0)
    data.append(text("another prompt"))
    step(store, data)
    (info,), _ = store.infos()
    agrees(store, info)
    assert (info.first_prompt, info.message_count) == ("another prompt", 1)
    before = info
    store.save(data)  # the end of the turn: into the snapshot
    (info,), _ = store.infos()
    assert (info.first_prompt, info.message_count, info.revision) == ("another prompt", 1, before.revision)


@pytest.mark.parametrize(
    ("tail", "count"),
    [
        pytest.param(b"", 3, id="whole"),
        pytest.param(b'{"bytes": 500, "crc', 3, id="short"),
        pytest.param(
            b'{"bytes": 999999999999999999, "crc32c": "00000000", "x": "' + b"x" * 99_999, 3, id="long-by-its-own-word"
        ),
        pytest.param(b"\0" * 40, 3, id="NULs"),
        pytest.param(b"\0" * 40 + b"\n", 3, id="NULs-and-LF"),
        pytest.param(b"{}\n", None, id="not-a-line"),
        pytest.param(b"x\n" * 40, None, id="not-lines"),
    ],
)
def test_the_end_of_a_journal(store: FileSessionStore, tail: bytes, count: int | None) -> None:
    """A torn tail was never acknowledged; anything else that does not belong there makes the session corrupt."""
    data = session("s", "one")
    store.save(data)
    for number in range(2):
        data.append(text(str(number)))
        step(store, data)
    store.close()
    with (store.path / "s.journal").open("ab") as journal:
        journal.write(tail)
    infos, _ = FileSessionStore(store.path).infos()
    assert [info.message_count for info in infos] == ([] if count is None else [count])


def test_heads_in_which_something_is_wrong(store: FileSessionStore) -> None:
    """They are shown or left out; nothing raises, and nothing worse."""
    store.save(session("s", "one"))
    store.close()
    raw = (store.path / "s.json").read_bytes()
    for number, (old, new) in enumerate(
        [
            (b'"name": ""', b'"name": "\xff\xfe"'),
            (b'"name": ""', b'"name": "\\ud800"'),
            (b'"name": ""', b'"name": 7'),
            (b'"tags": []', b'"tags": ["\xff"]'),
            (b'"tags": []', b'"tags": {}'),
            (b'"created_at": ', b'"created_at": 99999999999999999999'),
            (b'"updated_at": ', b'"updated_at": -'),
            (b'"message_count": 1', b'"message_count": 18446744073709551615'),
            (b'"messages_bytes": ', b'"messages_bytes": 1844674407370955'),
            (b'"revision": 1', b'"revision": 9007199254740991'),
            (b'"first_prompt": "one"', b'"first_prompt": {"a": [' + b"[" * 600),
            (b"{\n", b"{\n\n\n" + b" " * 5000),
        ]
    ):
        assert raw.count(old) >= 1
        name = f"x{number:02}"
        changed = raw.replace(b'"id": "s"', f'"id": "{name}"'.encode()).replace(old, new, 1)
        (store.path / f"{name}.json").write_bytes(changed)
    listed = store.list()
    shown = [info.id for info in store.infos()[0]]
    assert "s" in listed
    assert "s" in shown
    loadable = [id for id in listed if is_loadable(store, id)]
    assert set(loadable) <= set(shown)


def is_loadable(store: FileSessionStore, id: str) -> bool:
    try:
        return store.load(id) is not None
    except Exception:
        return False


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=25), st.integers(1, 7))
def test_pages_are_the_listing(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], limit: int
) -> None:
    store = FileSessionStore(tmp_path_factory.mktemp("pages"), durability="process")
    sessions: dict[str, SessionData] = {}
    for number, kind in changes:
        id = f"s{number}"
        data = sessions.get(id)
        if data is None:
            data = sessions[id] = session(id, "prompt")
            store.save(data)
        elif kind == 0:
            assert store.delete(id)
            del sessions[id]
        else:
            data.append(text("more"))
            if kind == 1:
                store.save(data)
            else:
                step(store, data)
    everything, _ = store.infos(99)
    assert [info for page in pages(store, limit) for info in page] == everything
    assert sorted(info.id for info in everything) == store.list() == sorted(sessions)
    for info in everything:
        agrees(store, info)


def test_what_is_not_changed_is_on_one_page_while_others_write(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path, durability="process")
    quiet = {f"quiet{number:03}" for number in range(150)}
    for number, id in enumerate(sorted(quiet)):
        store.save(session(id, "prompt"))
        if number % 5 == 0:
            store.save(session(f"busy{number}", "prompt"))
    over = threading.Event()
    failures: list[str] = []

    def write(name: str) -> None:
        try:
            data = loaded(store, name)
            while not over.is_set():
                data.append(text("more"))
                step(store, data)
                if len(data) % 4 == 0:
                    store.save(data)
                if len(data) % 7 == 0:
                    data.truncate(1)
        except BaseException:
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=write, args=(f"busy{number}",)) for number in (0, 5, 50)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            seen = [info.id for page in pages(store, 20) for info in page]
            assert sorted(id for id in seen if id in quiet) == sorted(quiet)
            assert len(store.list()) == 180
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_lists_with_threads_of_its_own(tmp_path: Path) -> None:
    """No child waits for a thread of its parent, which may be in the middle of a listing when it forks."""
    write_many(tmp_path, 200, 20)
    store = FileSessionStore(tmp_path)
    expected = store.list()
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            store.infos(60)

    tasks = Path("/proc/self/task")

    def child() -> None:
        assert store.infos(20)[1] is not None
        if tasks.exists():
            assert len(list(tasks.iterdir())) > 1, "it believes that it has its parent's threads"
        assert [info.id for page in pages(store, 50) for info in page] == everything
        assert store.list() == expected

    def child_with_a_child() -> None:
        child()
        forked(child)
        child()

    everything = [info.id for info in store.infos(999)[0]]
    forked(child)  # the parent's threads are idle
    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(40):
            forked(child_with_a_child if number % 10 == 0 else child)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    child()


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
            sys.stdout.flush()
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"

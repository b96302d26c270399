"""`MemorySessionStore`, with real `SessionData` from the core."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from plain_helpers import text

from perdure._core import SessionData
from perdure.errors import InvalidSessionIdError, SessionConflictError, SessionExistsError
from perdure.stores.memory import MemorySessionStore
from perdure.stores.protocol import (
    AppendStore,
    ListingStore,
    RevisionStore,
    SearchStore,
    SessionStore,
    ThreadsafeStore,
)


@pytest.fixture
def store() -> MemorySessionStore:
    return MemorySessionStore()


def make(id: str = "s", *messages: str, **fields: Any) -> SessionData:
    data = SessionData(id, **fields)
    data.append(*(text("user", message) for message in messages))
    return data


def load(store: MemorySessionStore, id: str = "s") -> SessionData:
    data = store.load(id)
    assert data is not None
    return data


def texts(data: SessionData) -> list[str]:
    return [message["content"][0]["text"] for message in data.messages]


def test_it_is_a_store_with_these_capabilities(store: MemorySessionStore) -> None:
    for protocol in (SessionStore, AppendStore, ListingStore, SearchStore, RevisionStore, ThreadsafeStore):
        assert isinstance(store, protocol)
    assert store.revisions
    assert store.threadsafe


def test_life_of_a_session(store: MemorySessionStore) -> None:
    assert (store.load("s"), store.exists("s"), store.delete("s"), store.list()) == (None, False, False, [])
    data = make("s", "one")
    receipt = store.save(data)
    assert (receipt.revision, data.revision, receipt.location) == (1, 1, "memory")
    assert 0 < receipt.new_bytes < receipt.bytes_written
    again = store.save(data)
    assert (again.revision, again.bytes_written, again.new_bytes) == (1, 0, 0)
    data.append(text("assistant", "two"))
    assert texts(load(store)) == ["one"]
    assert store.save(data).revision == 2
    loaded = load(store)
    assert (texts(loaded), loaded.revision, loaded.to_dict()) == (["one", "two"], 2, data.to_dict())
    loaded.append(text("user", "three"))
    loaded.truncate(1)
    assert texts(load(store)) == ["one", "two"]
    assert store.save(loaded).revision == 3
    assert texts(load(store)) == ["one"]
    assert store.delete("s")
    assert (store.load("s"), store.exists("s"), store.delete("s"), store.list()) == (None, False, False, [])


def test_compare_and_swap(store: MemorySessionStore) -> None:
    first = make("s", "one")
    store.save(first)
    with pytest.raises(SessionExistsError):
        store.save(make("s", "other"))
    second = load(store)
    second.append(text("user", "two"))
    store.save(second)
    first.append(text("user", "lost?"))
    with pytest.raises(SessionConflictError) as caught:
        store.save(first)
    assert (caught.value.expected, caught.value.found) == (1, 2)
    assert first.revision == 1
    assert texts(load(store)) == ["one", "two"]
    store.delete("s")
    second.append(text("user", "three"))
    with pytest.raises(SessionConflictError) as caught:
        store.save(second)
    assert (caught.value.expected, caught.value.found) == (2, None)
    store.save(make("s", "new"))
    third = load(store)
    third.append(text("user", "more"))
    store.save(third)
    with pytest.raises(SessionConflictError):
        store.save(second)  # the same revision, another lineage
    assert texts(load(store)) == ["new", "more"]


def test_an_unchanged_session_that_was_deleted_is_not_brought_back(store: MemorySessionStore) -> None:
    data = make("s", "one")
    store.save(data)
    store.delete("s")
    with pytest.raises(SessionConflictError) as caught:
        store.save(data)
    assert caught.value.found is None


def test_append_leaves_settling_to_the_caller(store: MemorySessionStore) -> None:
    data = make("s", "one")
    delta = data.delta()
    assert delta is not None
    store.append(delta, step=True)
    assert data.revision == 0
    data.settle(delta)
    assert data.revision == 1
    data.append(text("user", "two"))
    delta = data.delta()
    assert delta is not None
    assert delta.first_index == 1
    receipt = store.append(delta)
    assert receipt.new_bytes == len(delta.messages[0])
    with pytest.raises(SessionConflictError):
        store.append(delta)


def test_infos_newest_first_in_pages(store: MemorySessionStore) -> None:
    for id in "abcde":
        store.save(make(id, f"hello {id}", "more"))
    data = load(store, "b")
    data.append(text("user", "x"))
    store.save(data)
    every, end = store.infos()
    assert ([info.id for info in every], end) == (list("bedca"), None)
    assert (every[0].message_count, every[0].revision, every[0].first_prompt) == (3, 2, "hello b")
    assert (every[1].message_count, every[1].revision) == (2, 1)
    assert every[0].bytes > every[1].bytes
    assert every[0].created_at == data.created_at
    for limit in range(1, 7):
        pages, cursor = [], None
        while True:
            page, cursor = store.infos(limit, cursor)
            assert 1 <= len(page) <= limit
            pages += page
            if cursor is None:
                break
        assert pages == every
    with pytest.raises(ValueError, match="limit"):
        store.infos(0)
    with pytest.raises(ValueError, match="cursor"):
        store.infos(1, "x")


def test_sizes_after_a_rewind(store: MemorySessionStore) -> None:
    data = make("s", "one", "two " * 1000)
    store.save(data)
    data.truncate(1)
    store.save(data)
    store.save(make("t", "one"))
    sizes = {info.id: (info.bytes, info.message_count) for info in store.infos()[0]}
    assert sizes["s"][1] == 1
    assert abs(sizes["s"][0] - sizes["t"][0]) < 100


def test_search(store: MemorySessionStore) -> None:
    data = make("s", "The quick brown fox", "lazy " * 50 + "dog")
    data.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "Fox hole"}]})
    store.save(data)
    store.save(make("t", "no animals"))
    assert [(hit.session_id, hit.index) for hit in store.search("FOX")] == [("s", 0), ("s", 2)]
    assert [hit.index for hit in store.search("fox quick")] == [0]
    (hit,) = store.search("dog")
    assert hit.snippet.endswith("lazy dog")
    assert len(hit.snippet) < 130
    assert len(store.search("fox", limit=1)) == 1
    assert store.search("cat") == []
    for query, limit in (("", 1), (" ", 1), ("x", 0)):
        with pytest.raises(ValueError, match="at least"):
            store.search(query, limit)


def test_threads_lose_no_update(store: MemorySessionStore) -> None:
    store.save(make("s"))
    failures: list[BaseException] = []

    def count(name: str) -> None:
        try:
            done = 0
            while done < 50:
                data = load(store)
                data.append(text("user", name))
                try:
                    store.save(data)
                except SessionConflictError:
                    continue
                done += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=count, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    said = texts(load(store))
    assert {name: said.count(name) for name in "abc"} == {"a": 50, "b": 50, "c": 50}
    assert load(store).revision == 151


@pytest.mark.parametrize("id", ["", "a\0b", "x" * 4097])
def test_bad_ids(store: MemorySessionStore, id: str) -> None:
    for call in (store.load, store.delete, store.exists):
        with pytest.raises(InvalidSessionIdError):
            call(id)


def test_an_edit_after_a_forced_save_is_saved() -> None:
    """The forced save's copy counted its rebase as an edit, and so hid the session's next one."""
    store = MemorySessionStore()
    other = SessionData("s", messages=[{"n": 0}])
    store.save(other)
    data = SessionData("s", messages=[{"n": 1}, {"n": 2}, {"n": 3}])
    store.save(data, force=True)
    data.truncate(1)
    data.append({"n": 4}, {"n": 5})
    store.save(data)
    loaded = store.load("s")
    assert loaded is not None
    assert loaded.messages == [{"n": 1}, {"n": 4}, {"n": 5}]

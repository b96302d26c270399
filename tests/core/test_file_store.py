"""`FileSessionStore` as its user calls it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from core_helpers import loaded, session, text, texts, tree

from perdure import (
    ConfigError,
    FileSessionStore,
    SaveReceipt,
    SessionConflictError,
    SessionData,
    SessionExistsError,
    SessionInfo,
)
from perdure.stores.protocol import (
    AppendStore,
    ClosableStore,
    HealthStore,
    ListingStore,
    RevisionStore,
    SessionStore,
    ThreadsafeStore,
)


def test_it_has_the_capabilities(store: FileSessionStore) -> None:
    capabilities = (
        SessionStore, AppendStore, ListingStore, HealthStore, ClosableStore, RevisionStore, ThreadsafeStore,
    )  # fmt: skip
    for protocol in capabilities:
        assert isinstance(store, protocol)


def test_life_of_a_session(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    store = FileSessionStore(directory)
    assert (store.load("s"), store.exists("s"), store.delete("s"), store.list()) == (None, False, False, [])
    data = session("s", "one")
    first = store.save(data)
    assert (first.revision, data.revision, store.exists("s"), store.list()) == (1, 1, True, ["s"])
    data.append(text("two"))
    second = store.save(data)
    assert (second.revision, texts(loaded(store))) == (2, ["one", "two"])
    assert loaded(store).lineage == data.lineage
    assert store.delete("s")
    assert (store.load("s"), store.exists("s"), store.delete("s"), store.list()) == (None, False, False, [])
    store.close()
    assert tree(directory) == {}


def test_receipts(store: FileSessionStore) -> None:
    data = session("s", "one", "two")
    receipt = store.save(data)
    path = store.path / "s.json"
    assert isinstance(receipt, SaveReceipt)
    assert receipt.location == str(path)
    assert receipt.bytes_written == path.stat().st_size
    assert receipt.new_bytes == len(data.messages.raw(0)) + len(data.messages.raw(1))
    assert 0 < receipt.seconds < 60
    data.append(text("three"))
    receipt = store.save(data)
    assert receipt.new_bytes == len(data.messages.raw(2))
    data.truncate(1)
    assert store.save(data).new_bytes == 0


def test_an_unchanged_save_writes_nothing(store: FileSessionStore) -> None:
    data = session("s", "one")
    store.save(data)
    before = (store.path / "s.json").stat()
    receipt = store.save(data)
    assert (receipt.revision, receipt.bytes_written, receipt.new_bytes) == (1, 0, 0)
    copy = loaded(store)
    assert store.save(copy).bytes_written == 0
    after = (store.path / "s.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_the_file(store: FileSessionStore) -> None:
    data = session("my-session", "Refactor auth")
    data.tags = ["x"]
    store.save(data)
    raw = (store.path / "my-session.json").read_bytes()
    assert raw == data.to_json()
    lines = raw.decode().split("\n")
    assert lines[0:2] == ["{", '  "id": "my-session",']
    assert lines[-5:] == [
        '  "messages": [',
        '    {"role": "user", "content": [{"type": "text", "text": "Refactor auth"}]}',
        "  ]", "}", "",
    ]  # fmt: skip
    perdure = json.loads(raw)["perdure"]
    assert list(perdure) == [
        "format", "lineage", "revision", "message_count", "messages_bytes", "first_prompt", "tags", "parent", "crc32c",
    ]  # fmt: skip
    assert raw[-3 - perdure["messages_bytes"] : -3].startswith(b'  "messages": [')
    assert (perdure["message_count"], perdure["first_prompt"], perdure["tags"]) == (1, "Refactor auth", ["x"])


def test_a_directory_at_rest_shows_sessions_only(store: FileSessionStore) -> None:
    for id in ("a", "b"):
        data = session(id, "one")
        store.save(data)
        data.append(text("two"))
        delta = data.delta()
        assert delta is not None
        store.append(delta, step=True)
        data.settle(delta)
        assert (store.path / f"{id}.journal").stat().st_size > 0
        data.append(text("three"))
        store.save(data)
        assert (store.path / f"{id}.journal").stat().st_size == 0
    store.close()
    assert sorted(tree(store.path)) == ["a.json", "b.json"]


# --- conflicts


def test_a_fresh_session_does_not_overwrite(store: FileSessionStore) -> None:
    store.save(session("s", "one"))
    before = tree(store.path)["s.json"]
    for options in ({}, {"create": True}):
        with pytest.raises(SessionExistsError, match='"s" exists already') as caught:
            store.save(session("s", "other"), **options)
        assert caught.value.session_id == "s"
    assert tree(store.path)["s.json"] == before


def test_an_older_copy_does_not_overwrite(store: FileSessionStore) -> None:
    data = session("s", "one")
    store.save(data)
    old = loaded(store)
    data.append(text("two"))
    store.save(data)
    old.append(text("other"))
    with pytest.raises(SessionConflictError, match="revision 2") as caught:
        store.save(old)
    assert (caught.value.session_id, caught.value.expected, caught.value.found) == ("s", 1, 2)
    assert texts(loaded(store)) == ["one", "two"]
    assert (old.revision, texts(old)) == (1, ["one", "other"])
    old.rebase(loaded(store))
    assert store.save(old).revision == 3
    assert texts(loaded(store)) == ["one", "other"]


def test_a_deleted_session_does_not_come_back(store: FileSessionStore) -> None:
    data = session("s", "one")
    store.save(data)
    store.delete("s")
    for change in (lambda: None, lambda: data.append(text("two"))):
        change()
        with pytest.raises(SessionConflictError, match="deleted") as caught:
            store.save(data)
        assert (caught.value.expected, caught.value.found) == (1, None)
    assert store.list() == []
    assert store.save(data, create=True).revision == 1
    assert texts(loaded(store)) == ["one", "two"]


def test_another_session_in_its_place(store: FileSessionStore) -> None:
    data = session("s", "one")
    store.save(data)
    store.delete("s")
    store.save(session("s", "somebody else's"))
    data.append(text("two"))
    with pytest.raises(SessionConflictError, match="another session"):
        store.save(data)
    assert texts(loaded(store)) == ["somebody else's"]


def test_a_file_changed_by_hand(store: FileSessionStore, caplog: pytest.LogCaptureFixture) -> None:
    data = session("s", "one")
    store.save(data)
    path = store.path / "s.json"
    path.write_bytes(path.read_bytes().replace(b'"one"', b'"two"'))
    data.append(text("more"))
    with pytest.raises(SessionConflictError, match="outside perdure"):
        store.save(data)
    with caplog.at_level(logging.WARNING, "perdure"):
        data = loaded(store)
    assert "changed outside perdure" in caplog.text
    assert str(path) in caplog.text
    assert "two" not in caplog.text
    assert texts(data) == ["two"]
    data.append(text("more"))
    store.save(data)
    caplog.clear()
    assert texts(loaded(store)) == ["two", "more"]
    assert caplog.text == ""


def test_a_touched_file_is_no_conflict(store: FileSessionStore) -> None:
    data = session("s", "one")
    store.save(data)
    path = store.path / "s.json"
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(raw)  # a copy that was put back: another inode and time, the same content
    data.append(text("two"))
    assert store.save(data).revision == 2


def test_force(store: FileSessionStore) -> None:
    store.save(session("s", "old", "older"))
    lineage = loaded(store).lineage
    data = session("s", "new")
    receipt = store.save(data, force=True)
    assert receipt.revision == 2
    assert data.lineage == lineage
    assert texts(loaded(store)) == ["new"]
    store.delete("s")
    assert store.save(data, force=True).revision >= 1
    assert texts(loaded(store)) == ["new"]


def test_two_stores_on_one_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    one, other = FileSessionStore(tmp_path / "real"), FileSessionStore(tmp_path / "link")
    data = session("s", "one")
    one.save(data)
    data.append(text("two"))
    assert other.save(data).revision == 2
    assert texts(loaded(one)) == ["one", "two"]


# --- append


def test_append_does_what_save_does(store: FileSessionStore) -> None:
    data = session("s", "one")
    delta = data.delta()
    assert delta is not None
    receipt = store.append(delta)
    data.settle(delta)
    assert (receipt.revision, data.revision) == (1, 1)
    data.replace(0, text("ONE"))
    data.append(text("two"))
    delta = data.delta()
    assert delta is not None
    assert store.append(delta).revision == 2
    data.settle(delta)
    assert texts(loaded(store)) == ["ONE", "two"]
    assert store.save(data).bytes_written == 0


def test_steps_cost_the_step_and_are_folded(store: FileSessionStore) -> None:
    data = session("s", *["x" * 1000] * 100)
    store.save(data)
    snapshot = (store.path / "s.json").read_bytes()
    for number in range(5):
        data.append(text(f"step {number}"))
        delta = data.delta()
        assert delta is not None
        receipt = store.append(delta, step=True)
        data.settle(delta)
        assert receipt.revision == number + 2
        assert receipt.bytes_written < 1000
        assert len(loaded(store)) == 101 + number
        assert (store.path / "s.json").read_bytes() == snapshot
    receipt = store.save(data)
    assert receipt.bytes_written > 100_000
    assert (store.path / "s.json").read_bytes() == data.to_json()
    assert texts(loaded(store))[-1] == "step 4"


def test_a_delta_is_stored_once(store: FileSessionStore) -> None:
    data = session("s", "one")
    delta = data.delta()
    assert delta is not None
    store.append(delta)
    with pytest.raises(SessionExistsError):
        store.append(delta)


# --- listing


def test_infos(store: FileSessionStore) -> None:
    for number in range(5):
        data = session(f"s{number}", f"prompt {number}", "more")
        data.config = {**data.config, "name": f"name {number}"}
        data.tags = ["t"]
        store.save(data)
        stamp = 1_800_000_000 + number
        os.utime(store.path / f"s{number}.json", (stamp, stamp))
    page, cursor = store.infos(2)
    assert [info.id for info in page] == ["s4", "s3"]
    info = page[0]
    assert isinstance(info, SessionInfo)
    assert (info.name, info.tags, info.message_count, info.revision) == ("name 4", ("t",), 2, 1)
    assert (info.first_prompt, info.bytes) == ("prompt 4", (store.path / "s4.json").stat().st_size)
    assert info.created_at == loaded(store, "s4").created_at
    assert info.updated_at == loaded(store, "s4").updated_at
    pages = [[info.id for info in page]]
    while cursor is not None:
        page, cursor = store.infos(2, cursor)
        pages.append([info.id for info in page])
    assert pages == [["s4", "s3"], ["s2", "s1"], ["s0"]]
    assert [info.id for info in store.infos()[0]] == ["s4", "s3", "s2", "s1", "s0"]
    assert store.infos(2**70)[1] is None


def test_infos_of_a_session_with_a_journal(store: FileSessionStore) -> None:
    data = session("s", "one")
    store.save(data)
    data.append(text("two"))
    data.tags = ["late"]
    delta = data.delta()
    assert delta is not None
    store.append(delta, step=True)
    (info,), _ = store.infos()
    assert (info.message_count, info.revision, info.tags) == (2, 2, ("late",))


def test_infos_arguments(store: FileSessionStore) -> None:
    for limit in (0, -1, -(2**70)):
        with pytest.raises(ValueError, match="limit"):
            store.infos(limit)
    for cursor in ("", "x", "\ud800", "99" * 99 + ":s"):
        with pytest.raises(ValueError):
            store.infos(5, cursor)


def test_list_leaves_out_what_is_no_session(store: FileSessionStore) -> None:
    store.save(session("s", "one"))
    (store.path / "note.json").write_text('{"a": 1}')
    (store.path / "broken.json").write_text("{")
    (store.path / "notes.txt").write_text("x")
    (store.path / ".hidden.json").write_text('{"id": "hidden", "messages": []}')
    (store.path / "folder.json").mkdir()
    assert store.list() == ["s"]
    assert [info.id for info in store.infos()[0]] == ["s"]


# --- subclasses


class Counting(FileSessionStore):
    """A subclass with arguments and state of its own, as with any Python class."""

    def __init__(self, directory: Path, name: str, **options: Any) -> None:
        super().__init__(directory, **options)
        self.name = name
        self.saves = 0

    def save(self, data: SessionData, /, *, create: bool = False, force: bool = False) -> SaveReceipt:
        self.saves += 1
        return super().save(data, create=create, force=force)


def test_a_subclass(tmp_path: Path) -> None:
    store = Counting(tmp_path, "mine", durability="process")
    store.save(session("s", "one"))
    assert (store.name, store.saves, store.durability, store.list()) == ("mine", 1, "process", ["s"])
    assert isinstance(store, SessionStore)
    assert store.revisions
    assert store.threadsafe


def test_a_subclass_that_forgets_its_base() -> None:
    class Forgetful(FileSessionStore):
        def __init__(self) -> None:
            pass

    store = Forgetful()
    assert repr(store) == "<FileSessionStore, not opened>"
    for call in (store.list, store.close, store.health_check, lambda: store.save(SessionData("s")), lambda: store.path):
        with pytest.raises(ValueError, match="super"):
            call()


def test_a_store_is_opened_once(store: FileSessionStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="open already"):
        store.__init__(tmp_path / "other")  # type: ignore[misc]
    with pytest.raises(TypeError):
        FileSessionStore()  # type: ignore[call-arg]

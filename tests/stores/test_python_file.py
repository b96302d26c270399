"""`PythonFileSessionStore`: saving, loading, journals, bad files, A3S files, listings."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from plain_helpers import A3S, LINEAGE, snapshot_bytes, text, tree

from perdure.errors import (
    SerializationError,
    SessionConflictError,
    SessionCorruptError,
    SessionExistsError,
    StoreError,
)
from perdure.stores.protocol import ListingStore, RevisionStore, SessionStore, ThreadsafeStore
from perdure.stores.python_file import PythonFileSessionStore, new_session_dict


@pytest.fixture
def store(tmp_path: Path) -> PythonFileSessionStore:
    return PythonFileSessionStore(tmp_path)


def load(store: PythonFileSessionStore, id: str = "s") -> Any:
    session = store.load_dict(id)
    assert session is not None
    return session


def seen(store: PythonFileSessionStore, id: str = "s") -> Any:
    return (store.load_dict(id), store.exists(id), store.delete(id), store.list())


def texts(session: Any) -> list[str]:
    return [message["content"][0]["text"] for message in session["messages"]]


# --- saving and loading


def test_it_is_a_store(store: PythonFileSessionStore) -> None:
    for protocol in (SessionStore, ListingStore, RevisionStore, ThreadsafeStore):
        assert isinstance(store, protocol)


def test_life_of_a_session(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    store = PythonFileSessionStore(directory)
    assert (store.load_dict("s"), store.exists("s"), store.delete("s"), store.list()) == (
        None,
        False,
        False,
        [],
    )
    assert store.infos() == ([], None)
    assert list(tmp_path.iterdir()) == []

    session = new_session_dict("s", messages=[text("user", "one")], config={"name": "n"})
    receipt = store.save_dict(session)
    file = directory / "s.json"
    assert [p.name for p in directory.iterdir()] == ["s.json"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [stat.S_IMODE(d.stat().st_mode) for d in (directory, directory.parent)] == [0o700] * 2
    assert (receipt.revision, receipt.bytes_written, receipt.location) == (1, file.stat().st_size, str(file))
    assert receipt.new_bytes == len(json.dumps(text("user", "one")))
    assert session["perdure"]["revision"] == 1
    assert len(bytes.fromhex(session["perdure"]["lineage"])) == 16

    session["messages"].append(text("assistant", "two"))
    receipt = store.save_dict(session)
    assert (receipt.revision, receipt.new_bytes) == (2, len(json.dumps(text("assistant", "two"))))
    loaded = load(store)
    assert loaded == session
    assert loaded["config"]["name"] == "n"
    assert store.exists("s")
    assert store.list() == ["s"]
    assert store.delete("s")
    assert list(directory.iterdir()) == []
    assert (store.load_dict("s"), store.exists("s"), store.delete("s"), store.list()) == (
        None,
        False,
        False,
        [],
    )


def test_existing_modes_stay(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    PythonFileSessionStore(tmp_path).save_dict(new_session_dict("s"))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


def test_compare_and_swap(store: PythonFileSessionStore) -> None:
    first = new_session_dict("s")
    store.save_dict(first)
    with pytest.raises(SessionExistsError) as exists:
        store.save_dict(new_session_dict("s"))
    assert exists.value.session_id == "s"
    second = load(store)
    store.save_dict(second)
    with pytest.raises(SessionConflictError) as conflict:
        store.save_dict(first)
    assert (conflict.value.expected, conflict.value.found) == (1, 2)
    assert first["perdure"]["revision"] == 1
    store.delete("s")
    with pytest.raises(SessionConflictError) as conflict:
        store.save_dict(second)
    assert (conflict.value.expected, conflict.value.found) == (2, None)
    assert store.list() == []
    again = new_session_dict("s")
    store.save_dict(again)
    store.save_dict(again)
    with pytest.raises(SessionConflictError, match="another session"):
        store.save_dict(second)
    assert load(store)["perdure"]["lineage"] == again["perdure"]["lineage"]


def test_create_makes_a_copy_with_a_lineage_of_its_own(store: PythonFileSessionStore, tmp_path: Path) -> None:
    session = new_session_dict("s", messages=[text("user", "x")])
    store.save_dict(session)
    session["perdure"]["tags"] = ["kept"]
    store.save_dict(session)
    with pytest.raises(SessionExistsError):
        store.save_dict(load(store), create=True)
    copy = load(store)
    other = PythonFileSessionStore(tmp_path / "other")
    other.save_dict(copy, create=True)
    assert copy["perdure"]["revision"] == 1
    assert copy["perdure"]["tags"] == ["kept"]
    assert copy["perdure"]["lineage"] != session["perdure"]["lineage"]
    assert load(other)["messages"] == session["messages"]
    other.save_dict(copy)


def test_a_malformed_perdure_field_is_refused(store: PythonFileSessionStore) -> None:
    for perdure in (None, 5, {"lineage": LINEAGE}, {"format": 1, "lineage": "x", "revision": 1}):
        with pytest.raises(SerializationError) as caught:
            store.save_dict({"id": "s", "messages": [], "perdure": perdure})
        assert caught.value.path == "perdure"


def test_a_vanished_directory_is_a_conflict_not_a_new_start(tmp_path: Path) -> None:
    store = PythonFileSessionStore(tmp_path / "d")
    session = new_session_dict("s")
    store.save_dict(session)
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(SessionConflictError, match="is gone"):
        store.save_dict(session)
    assert not (tmp_path / "d").exists()
    assert store.list() == []


def test_the_directory_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(StoreError, match="not a directory"):
        PythonFileSessionStore(tmp_path / "f")
    with pytest.raises(StoreError, match="Not a directory"):
        PythonFileSessionStore(tmp_path / "f" / "deeper").save_dict(new_session_dict("s"))


def test_case_only_twins_are_refused_naming_both(store: PythonFileSessionStore, tmp_path: Path) -> None:
    store.save_dict(new_session_dict("Foo"))
    # What a file system that takes small letters and capitals for the same shows under the other name.
    (tmp_path / "Foo.json").rename(tmp_path / "foo.json")
    with pytest.raises(SessionExistsError, match=r"(?s)'foo'.*'Foo'"):
        store.save_dict(new_session_dict("foo"))
    assert [p.name for p in tmp_path.iterdir()] == ["foo.json"]


# --- changed outside


def test_an_outside_change_warns_and_conflicts_with_older_copies(
    store: PythonFileSessionStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "s.json"
    file.write_bytes(snapshot_bytes(state="Active"))
    early = load(store)
    touched = load(store)
    assert caplog.records == []
    os.utime(file, (1, 1))
    store.save_dict(touched)  # the same content in spite of another time
    file.write_bytes(snapshot_bytes(state="Active"))
    early = load(store)
    file.write_bytes(file.read_bytes().replace(b"message 1", b"edited!!!"))
    with pytest.raises(SessionConflictError, match="changed outside"):
        store.save_dict(early)
    assert b"edited!!!" in file.read_bytes()
    assert texts(load(store)) == ["message 0", "edited!!!"]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("perdure", logging.WARNING)
    assert str(file) in record.getMessage()
    assert "CRC" in record.getMessage()
    assert "edited" not in record.getMessage()
    caplog.clear()
    load(PythonFileSessionStore(tmp_path, check_crc=False))
    assert caplog.records == []


def test_a_reformatted_file_loads_with_a_warning(
    store: PythonFileSessionStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session = json.loads(snapshot_bytes(state="Active"))
    (tmp_path / "s.json").write_text(json.dumps(session, indent=4))
    loaded = load(store)
    assert loaded == session
    assert len(caplog.records) == 1
    assert store.list() == ["s"]
    store.save_dict(loaded)
    assert load(store)["perdure"]["revision"] == 8


def test_outside_changes_of_files_without_a_crc_show_too(
    store: PythonFileSessionStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "s.json"
    plain = snapshot_bytes(crc=False)
    changes = {
        "it has 3 messages, its head says 2": plain.replace(b"[\n", b'[\n    {"role": "user"},\n'),
        "laid out in another way": plain.replace(b'"messages": [', b'"messages":  ['),
    }
    for expected, content in changes.items():
        file.write_bytes(content)
        load(store)
        assert expected in caplog.records.pop().getMessage()
    file.write_bytes(plain)
    load(store)
    assert caplog.records == []


# --- A3S Code's files


@pytest.mark.parametrize("name", ["plain", "tools"])
def test_a3s_files_load_with_nothing_lost_and_save(store: PythonFileSessionStore, tmp_path: Path, name: str) -> None:
    shutil.copy(A3S / f"{name}.json", tmp_path)
    want = json.loads((A3S / f"{name}.json").read_bytes())
    session = load(store, name)
    twin = load(store, name)
    assert session == want
    assert list(session) == list(want)
    assert (tmp_path / f"{name}.json").read_bytes() == (A3S / f"{name}.json").read_bytes()
    (info,), _ = store.infos()
    assert (info.id, info.revision, info.message_count) == (name, 0, len(want["messages"]))
    with pytest.raises(SessionExistsError):
        store.save_dict(dict(session))
    assert store.save_dict(session).revision == 1
    again = load(store, name)
    assert {key: again[key] for key in want} == want
    assert list(again) == ["id", "perdure", *(k for k in want if k not in ("id", "messages")), "messages"]
    with pytest.raises(SessionConflictError) as caught:
        store.save_dict(twin)
    assert (caught.value.expected, caught.value.found) == (0, 1)
    assert store.save_dict(again).revision == 2


def test_an_a3s_file_that_changed_since_it_was_loaded(store: PythonFileSessionStore, tmp_path: Path) -> None:
    file = tmp_path / "plain.json"
    shutil.copy(A3S / "plain.json", file)
    session = load(store, "plain")
    os.utime(file, (1, 1))
    again = load(store, "plain")
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(SessionConflictError, match="changed outside"):
        store.save_dict(again)
    shutil.copy(A3S / "plain.json", file)
    store.save_dict(session)  # other inode time, same content


def test_a3s_names_are_found_and_kept(store: PythonFileSessionStore, tmp_path: Path) -> None:
    data = (A3S / "plain.json").read_bytes().replace(b'"id": "plain"', b'"id": "a/b"')
    (tmp_path / "a_b.json").write_bytes(data)
    assert store.list() == ["a/b"]
    session = load(store, "a/b")
    assert store.load_dict("a_b") is None
    with pytest.raises(SessionExistsError, match=r"(?s)'a_b'.*'a/b'"):
        store.save_dict(new_session_dict("a_b"))
    with pytest.raises(SessionExistsError):
        store.save_dict(new_session_dict("a/b"))
    store.save_dict(session)
    assert list(tree(tmp_path)) == ["a_b.json"]
    assert load(store, "a/b") == session
    assert store.delete("a/b")
    assert tree(tmp_path) == {}


def test_a_slash_beside_an_underscore(store: PythonFileSessionStore, tmp_path: Path) -> None:
    for id in ("a/b", "a_b", "a\\b"):
        store.save_dict(new_session_dict(id, state=id))
    assert store.list() == sorted(["a/b", "a_b", "a\\b"])
    assert [load(store, id)["state"] for id in ("a/b", "a_b", "a\\b")] == ["a/b", "a_b", "a\\b"]
    assert sorted(tree(tmp_path)) == ["a%2Fb.json", "a%5Cb.json", "a_b.json"]


@pytest.mark.parametrize("padding", [True, False])
def test_a3s_later_layout_is_pointed_to_import(store: PythonFileSessionStore, tmp_path: Path, padding: bool) -> None:
    code = base64.urlsafe_b64encode(b"later").decode()
    assert code.endswith("=")
    file = tmp_path / "v1" / "sessions" / f"id_{code if padding else code.rstrip('=')}.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    for call in (store.load_dict, store.exists, lambda id: store.save_dict(new_session_dict(id))):
        with pytest.raises(StoreError, match="perdure import") as caught:
            call("later")
        assert str(file) in str(caught.value)
    assert store.load_dict("other") is None


# --- listings


def test_infos_newest_first_in_pages(store: PythonFileSessionStore, tmp_path: Path) -> None:
    times = {"a": 3, "b": 5, "c": 5, "d": 1, "e": 9}
    for id, at in times.items():
        session = new_session_dict(id, config={"name": id.upper()}, messages=[text("user", f"hello {id}")])
        session["created_at"] = 1795344689
        store.save_dict(session)
        os.utime(tmp_path / f"{id}.json", ns=(at * 10**9, at * 10**9))
    (tmp_path / "noise.json").write_text("[]")
    (tmp_path / "copy.json").write_bytes((tmp_path / "a.json").read_bytes())
    (tmp_path / "note.txt").write_text("x")
    every, end = store.infos()
    assert ([info.id for info in every], end) == (["e", "b", "c", "a", "d"], None)
    assert (every[0].name, every[0].first_prompt, every[0].message_count) == ("E", "hello e", 1)
    assert every[0].bytes == (tmp_path / "e.json").stat().st_size
    assert every[0].created_at.isoformat() == "2026-11-22T10:51:29+00:00"
    for limit in range(1, 7):
        pages, cursor = [], None
        while True:
            page, cursor = store.infos(limit, cursor)
            assert 1 <= len(page) <= limit
            pages += page
            if cursor is None:
                break
        assert pages == every, limit
    assert store.list() == ["a", "b", "c", "d", "e"]


def test_infos_reads_no_messages(store: PythonFileSessionStore, tmp_path: Path) -> None:
    store.save_dict(new_session_dict("s", messages=[text("user", "x" * 200_000), text("user", "unread")]))
    file = tmp_path / "s.json"
    file.write_bytes(file.read_bytes().replace(b'"unread"}', b'"unread?>'))
    (info,), _ = store.infos()
    assert (info.id, info.message_count) == ("s", 2)
    with pytest.raises(SessionCorruptError):
        store.load_dict("s")


@pytest.mark.parametrize("cursor", ["", "x", "é", "bm9uc2Vuc2U=", base64.urlsafe_b64encode(b'["a", 1]').decode()])
def test_foreign_cursors(store: PythonFileSessionStore, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        store.infos(5, cursor)
    with pytest.raises(ValueError, match="limit"):
        store.infos(0)

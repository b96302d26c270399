"""`PythonFileSessionStore` and what it may find on disk: journals, damaged files, no files at all."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from plain_helpers import LINEAGE, header, sealed, snapshot_bytes, step, text, tree

from perdure.errors import (
    SerializationError,
    SessionConflictError,
    SessionCorruptError,
)
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


# --- journals

SNAPSHOT = snapshot_bytes(state="Active", gone=1)
TAGS = {"tags": ["t"], "parent": None}
JOURNAL = sealed(
    header(SNAPSHOT),
    step(
        8,
        2,
        text("user", "third"),
        text("assistant", "fourth"),
        head={"updated_at": 5, "perdure": {"tags": ["t"]}},
    ),
    step(9, 3, head={"new": "é\u2028"}, removed=["gone"]),
    step(10, 1, text("user", "replaced")),
)


def put(directory: Path, snapshot: bytes | None = SNAPSHOT, journal: bytes | None = JOURNAL) -> None:
    for name, data in (("s.json", snapshot), ("s.journal", journal)):
        if data is not None:
            (directory / name).write_bytes(data)


def test_a_journal_is_applied_and_folded_by_the_next_save(
    store: PythonFileSessionStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path)
    session = load(store)
    assert texts(session) == ["message 0", "replaced"]
    assert session["updated_at"] == 5
    assert session["new"] == "é\u2028"
    assert "gone" not in session
    assert session["perdure"]["tags"] == ["t"]
    assert session["perdure"]["revision"] == 10
    assert session["perdure"]["message_count"] == 2
    (info,), _ = store.infos()
    assert (info.revision, info.message_count, info.tags) == (10, 2, ("t",))
    assert tree(tmp_path) == {"s.json": SNAPSHOT, "s.journal": JOURNAL}
    store.save_dict(session)
    assert list(tree(tmp_path)) == ["s.json"]
    assert load(store) == session
    assert session["perdure"]["revision"] == 11
    assert caplog.records == []


def test_steps_of_a_journal_one_by_one(store: PythonFileSessionStore, tmp_path: Path) -> None:
    lines = JOURNAL.splitlines(keepends=True)
    seen = []
    for count in range(len(lines) + 1):
        put(tmp_path, journal=b"".join(lines[:count]))
        session = load(store)
        seen.append((session["perdure"]["revision"], texts(session)))
    two = ["message 0", "message 1"]
    assert seen == [
        (7, two),
        (7, two),
        (8, [*two, "third", "fourth"]),
        (9, [*two, "third"]),
        (10, ["message 0", "replaced"]),
    ]


@pytest.mark.parametrize("filler", [b"", b"\0", b"\0" * 600, b"\0" * 20 + b"\n"], ids=["cut", "nul", "nuls", "line"])
def test_a_journal_torn_at_every_byte(
    store: PythonFileSessionStore, tmp_path: Path, filler: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    ends = [0]
    for line in JOURNAL.splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    for cut in range(len(JOURNAL)):
        put(tmp_path, journal=JOURNAL[:cut] + filler)
        whole = sum(end <= cut for end in ends[1:])
        assert load(store)["perdure"]["revision"] == 7 + max(whole - 1, 0), cut


def test_a_torn_tail_is_reported_and_put_aside_by_the_next_save(
    store: PythonFileSessionStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torn = JOURNAL[-40:-1]
    put(tmp_path, journal=JOURNAL[:-1])
    before = tree(tmp_path)
    session = load(store)
    assert session["perdure"]["revision"] == 9
    assert tree(tmp_path) == before
    assert "s.journal" in caplog.records[0].getMessage()
    store.save_dict(session)
    aside = [name for name in tree(tmp_path) if name.startswith("s.journal.torn-")]
    assert len(aside) == 1
    assert tree(tmp_path)[aside[0]].endswith(torn)
    assert load(store) == session


def test_a_torn_tail_is_put_aside_by_a_delete_too(store: PythonFileSessionStore, tmp_path: Path) -> None:
    put(tmp_path, journal=JOURNAL[:-1])
    assert store.delete("s")
    ((name, content),) = tree(tmp_path).items()
    assert name.startswith("s.journal.torn-")
    assert JOURNAL.endswith(content + b"\n")


def test_a_fold_by_somebody_else_is_no_conflict(store: PythonFileSessionStore, tmp_path: Path) -> None:
    put(tmp_path)
    session = load(store)
    put(tmp_path, snapshot=snapshot_bytes(revision=10, messages=2), journal=b"")
    assert store.save_dict(session).revision == 11


@pytest.mark.parametrize("first", [JOURNAL[:30], b"\0" * 50, b"\0" * 50 + b"\n", b""])
def test_a_journal_whose_header_is_torn_is_empty(store: PythonFileSessionStore, tmp_path: Path, first: bytes) -> None:
    put(tmp_path, snapshot=None, journal=first)
    assert store.load_dict("s") is None
    assert not store.exists("s")
    session = new_session_dict("s")
    store.save_dict(session)
    store.save_dict(session)
    assert sorted(name.partition("-")[0] for name in tree(tmp_path)) == (
        ["s.journal.torn", "s.json"] if first else ["s.json"]
    )


def damaged(at: bytes, by: bytes) -> bytes:
    assert JOURNAL.count(at) == 1
    return JOURNAL.replace(at, by)


LINES = JOURNAL.splitlines(keepends=True)
BAD_JOURNALS = {
    "a flipped byte in the middle": damaged(b"third", b"thIrd"),
    "a flipped byte in the last line": damaged(b"replaced", b"replAced"),
    "a wrong length": LINES[0] + LINES[1].replace(b'{"bytes": ', b'{"bytes": 1', 1),
    "a leading zero": LINES[0] + LINES[1].replace(b'{"bytes": ', b'{"bytes": 0', 1),
    "a dropped line": LINES[0] + LINES[2] + LINES[3],
    "swapped lines": LINES[0] + LINES[2] + LINES[1],
    "no header": b"".join(LINES[1:]),
    "an empty line": LINES[0] + b"\n" + LINES[1],
    "a NUL line in the middle": LINES[0] + LINES[1] + b"\0\0\n" + LINES[2],
    "not a journal": b"hello\n",
    "revision does not follow": sealed(header(SNAPSHOT), step(9, 2)),
    "starts behind the end": sealed(header(SNAPSHOT), step(8, 3)),
    "changes the id": sealed(header(SNAPSHOT), step(8, 2, head={"id": "t"})),
    "a message is no object": sealed(header(SNAPSHOT), step(8, 2, 5)),
    "another lineage": sealed(header(SNAPSHOT, lineage="f" * 32), step(8, 2)),
    "another session": sealed(header(SNAPSHOT, id="t"), step(8, 2)),
    "another snapshot": sealed(header(snapshot_bytes(state="Else")), step(8, 2)),
    "another base": sealed(header(SNAPSHOT, revision=8), step(9, 2)),
    "a newer format": sealed(header(SNAPSHOT).replace('"journal": 1', '"journal": 2')),
}


@pytest.mark.parametrize("name", BAD_JOURNALS)
def test_bad_journals_are_corrupt_and_left_alone(store: PythonFileSessionStore, tmp_path: Path, name: str) -> None:
    put(tmp_path, journal=None)
    session = load(store)
    put(tmp_path, journal=BAD_JOURNALS[name])
    before = tree(tmp_path)
    for call in (store.load_dict, store.exists, store.delete):
        with pytest.raises(SessionCorruptError) as caught:
            call("s")
        assert caught.value.session_id == "s"
        assert caught.value.path == str(tmp_path / "s.journal")
        assert "s.journal" in str(caught.value)
    with pytest.raises(SessionCorruptError):
        store.save_dict(session)
    assert tree(tmp_path) == before
    assert store.list() == ["s"]


def test_a_journal_without_a_snapshot_is_corrupt_not_missing(store: PythonFileSessionStore, tmp_path: Path) -> None:
    put(tmp_path, snapshot=None)
    for call in (store.load_dict, store.exists, store.delete):
        with pytest.raises(SessionCorruptError, match=r"s\.journal.*s\.json"):
            call("s")
    with pytest.raises(SessionCorruptError):
        store.save_dict(new_session_dict("s"))
    assert tree(tmp_path) == {"s.journal": JOURNAL}


def test_a_folded_journal_is_ignored_and_swept(store: PythonFileSessionStore, tmp_path: Path) -> None:
    put(tmp_path, snapshot=snapshot_bytes(revision=10, messages=3))
    session = load(store)
    assert (session["perdure"]["revision"], len(session["messages"])) == (10, 3)
    store.save_dict(session)
    assert list(tree(tmp_path)) == ["s.json"]


def test_an_empty_journal_counts_as_none(store: PythonFileSessionStore, tmp_path: Path) -> None:
    put(tmp_path, journal=b"")
    session = load(store)
    store.save_dict(session)
    assert list(tree(tmp_path)) == ["s.json"]


@pytest.mark.parametrize("snapshot", [SNAPSHOT, None], ids=["snapshot left", "snapshot gone"])
def test_a_tombstone_wins_and_the_delete_is_finished(
    store: PythonFileSessionStore, tmp_path: Path, snapshot: bytes | None
) -> None:
    stone = sealed(header(SNAPSHOT), step(8, 2), '"deleted": true, "revision": 9, "at": 1795344691')
    put(tmp_path, snapshot=snapshot, journal=stone)
    assert store.load_dict("s") is None
    assert (store.exists("s"), store.list(), store.infos()[0]) == (False, [], [])
    fresh = new_session_dict("s", messages=[text("user", "fresh")])
    store.save_dict(fresh)
    assert texts(load(store)) == ["fresh"]
    assert list(tree(tmp_path)) == ["s.json"]
    put(tmp_path, snapshot=snapshot, journal=stone)
    if snapshot is None:
        (tmp_path / "s.json").unlink()
    assert not store.delete("s")
    assert tree(tmp_path) == {}


def test_a_delete_that_is_cut_short_still_deletes(
    store: PythonFileSessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_finish_delete", crash)
        with pytest.raises(KeyboardInterrupt):
            store.delete("s")
    assert tree(tmp_path)["s.json"] == SNAPSHOT
    stone = tree(tmp_path)["s.journal"]
    assert stone.startswith(JOURNAL)
    assert store.load_dict("s") is None
    assert store.list() == []


# --- bad files

BAD_FILES: dict[str, tuple[bytes, int | None, int | None]] = {
    "empty": (b"", 1, 1),
    "white space": (b" \n ", 1, 1),
    "truncated": (SNAPSHOT[:-10], None, None),
    "not UTF-8": (SNAPSHOT.replace(b"Active", b"Activ\xff"), 4, 18),
    "not JSON": (b'{"id": "s", "messages": [}', 1, 26),
    "NaN": (b'{"id": "s",\n "x": ["NaN", NaN], "messages": []}', 2, 15),
    "a control character": (b'{"id": "s", "x": "\x01", "messages": []}', 1, 19),
    "an array": (b"[1, 2]", 1, 1),
    "a long row of brackets": (b"[" * 10_000_000, 1, 1),
    "deep": (b'{"id": "s", "messages": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 1, 1),
    "513 deep": (b'{"id": "s", "messages": [{"x": ' + b"[" * 512 + b"]" * 512 + b"}]}", None, None),
    "no id": (b'{"messages": []}', None, None),
    "an empty id": (b'{"id": "", "messages": []}', None, None),
    "a number as id": (b'{"id": 5, "messages": []}', None, None),
    "no messages": (b'{"id": "s"}', None, None),
    "messages is an object": (b'{"id": "s", "messages": {}}', None, None),
    "a message is a string": (b'{"id": "s", "messages": [{}, "x"]}', None, None),
    "perdure is a list": (b'{"id": "s", "perdure": [], "messages": []}', None, None),
    "no lineage": (SNAPSHOT.replace(LINEAGE.encode(), b"x"), None, None),
    "no revision": (SNAPSHOT.replace(b'"revision": 7', b'"revision": "7"'), None, None),
    "revision 0": (SNAPSHOT.replace(b'"revision": 7', b'"revision": 0'), None, None),
    "a newer format": (SNAPSHOT.replace(b'"format": 1', b'"format": 2'), None, None),
    "another id": (SNAPSHOT.replace(b'"id": "s"', b'"id": "t"'), None, None),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named_and_left_alone(store: PythonFileSessionStore, tmp_path: Path, name: str) -> None:
    data, line, column = BAD_FILES[name]
    file = tmp_path / "s.json"
    put(tmp_path, journal=None)
    session = load(store)
    file.write_bytes(data)
    calls: list[Any] = [store.load_dict, store.exists, store.delete]
    for call in calls:
        with pytest.raises(SessionCorruptError) as caught:
            call("s")
        assert caught.value.path == str(file)
        assert caught.value.session_id == "s"
        assert str(file) in str(caught.value)
        if line is not None:
            assert (caught.value.line, caught.value.column) == (line, column)
            assert f"{file}:{line}" in str(caught.value) or not data.strip()
    for copy in (session, new_session_dict("s")):
        with pytest.raises(SessionCorruptError):
            store.save_dict(copy)
    assert store.list() == []
    assert store.infos() == ([], None)
    assert tree(tmp_path) == {"s.json": data}


def test_damage_in_the_messages_alone(store: PythonFileSessionStore, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    put(tmp_path, journal=None)
    session = load(store)
    file.write_bytes(SNAPSHOT.replace(b"message 1", b"message \xff"))
    before = tree(tmp_path)
    for call in (store.load_dict, store.delete):
        with pytest.raises(SessionCorruptError, match="not UTF-8") as caught:
            call("s")
        assert (caught.value.line, caught.value.column) == (8, 68)
    with pytest.raises(SessionConflictError):
        store.save_dict(session)
    assert tree(tmp_path) == before


def test_a_file_truncated_at_every_byte_is_never_taken_for_whole(store: PythonFileSessionStore, tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    file.write_bytes(SNAPSHOT)
    session = load(store)
    for cut in range(len(SNAPSHOT) - 1):  # without the last LF it is still whole JSON
        file.write_bytes(SNAPSHOT[:cut])
        with pytest.raises(SessionCorruptError):
            store.load_dict("s")
        with pytest.raises(SessionCorruptError):
            store.save_dict(session)
    assert tree(tmp_path) == {"s.json": SNAPSHOT[: len(SNAPSHOT) - 2]}


def make_symlink(path: Path) -> None:
    target = path.parent / "elsewhere"
    target.write_bytes(SNAPSHOT)
    path.symlink_to(target)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, make_symlink, make_socket])
@pytest.mark.parametrize("ending", ["json", "journal"])
@pytest.mark.timeout(20)
def test_things_that_are_no_files(
    store: PythonFileSessionStore, tmp_path: Path, make: Any, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, journal=None)
    session = load(store)
    if ending == "json":
        (tmp_path / "s.json").unlink()
    path = tmp_path / f"s.{ending}"
    make(path if make is not make_socket else Path(path.name))
    for call in (store.load_dict, store.exists, store.delete):
        with pytest.raises(SessionCorruptError, match="move it away") as caught:
            call("s")
        assert caught.value.path == str(path)
    with pytest.raises(SessionCorruptError):
        store.save_dict(session)
    assert not path.is_file() or path.is_symlink()
    assert store.list() == (["s"] if ending == "journal" else [])


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" * 4301, "-" + "1" * 4301])
def test_numbers_that_python_cannot_hold(store: PythonFileSessionStore, tmp_path: Path, number: str) -> None:
    data = b'{"id": "s", "messages": [{"a": 1.5}, {"x y": [0, %s]}]}' % number.encode()
    (tmp_path / "s.json").write_bytes(data)
    with pytest.raises(SerializationError) as caught:
        store.load_dict("s")
    assert caught.value.path == 'messages[1]["x y"][1]'
    assert tree(tmp_path) == {"s.json": data}


def test_duplicate_keys_last_wins(store: PythonFileSessionStore, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_bytes(b'{"id": "s", "a": 1, "messages": [{"k": 1, "k": 2}], "a": 3}')
    session = load(store)
    assert (session["a"], session["messages"]) == (3, [{"k": 2}])

"""`PythonFileSessionStore` with `SessionData`, and against `FileSessionStore` on the same directory."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_helpers import A3S, text, tree

from perdure._core import FileSessionStore, SessionData
from perdure.errors import SessionConflictError, SessionCorruptError, SessionExistsError, StoreError
from perdure.stores import _plain_disk as disk
from perdure.stores._plain_names import stem_of
from perdure.stores.python_file import PythonFileSessionStore, new_session_dict

CRC = re.compile(rb'"crc32c": (null|"[0-9a-f]{8}")\}')


def make(id: str = "s", *messages: str) -> SessionData:
    data = SessionData(id)
    data.append(*(text("user", message) for message in messages))
    return data


def load(store: Any, id: str = "s") -> SessionData:
    data = store.load(id)
    assert data is not None
    return data


def texts(data: SessionData) -> list[str]:
    return [message["content"][0]["text"] for message in data.messages]


def without_layout(session: dict[str, Any]) -> dict[str, Any]:
    """Without what describes the bytes of a file and not the session."""
    perdure = {k: v for k, v in session["perdure"].items() if k not in ("messages_bytes", "crc32c")}
    return {**session, "perdure": perdure}


@pytest.fixture
def store(tmp_path: Path) -> PythonFileSessionStore:
    return PythonFileSessionStore(tmp_path)


def test_life_of_session_data(store: PythonFileSessionStore, tmp_path: Path) -> None:
    assert store.load("s") is None
    data = make("s", "one")
    assert store.save(data).revision == 1
    written = tree(tmp_path)
    again = store.save(data)
    assert (again.revision, again.bytes_written, again.location) == (1, 0, str(tmp_path / "s.json"))
    assert tree(tmp_path) == written
    stale = load(store)
    data.append(text("assistant", "two"))
    receipt = store.save(data)
    assert (receipt.revision, data.revision) == (2, 2)
    assert receipt.new_bytes == len(json.dumps(text("assistant", "two")))
    assert texts(load(store)) == ["one", "two"]
    assert load(store).lineage == data.lineage
    for attempt in (stale, stale):
        with pytest.raises(SessionConflictError) as caught:
            store.save(attempt)
        attempt.append(text("user", "x"))
        assert (caught.value.expected, caught.value.found) == (1, 2)
    with pytest.raises(SessionExistsError):
        store.save(make("s", "other"))
    store.delete("s")
    with pytest.raises(SessionConflictError) as caught:
        store.save(data)
    assert caught.value.found is None


def test_create_and_force(store: PythonFileSessionStore) -> None:
    data = make("s", "one")
    store.save(data)
    with pytest.raises(SessionExistsError):
        store.save(data, create=True)
    stale = load(store)
    data.append(text("user", "two"))
    store.save(data)
    store.save(stale, force=True)
    assert (texts(load(store)), load(store).revision, stale.revision) == (["one"], 3, 3)
    assert load(store).lineage == data.lineage
    stale.append(text("user", "three"))
    store.save(stale)
    store.delete("s")
    store.save(stale, create=True)
    assert (load(store).revision, stale.revision) == (1, 1)
    assert load(store).lineage != data.lineage
    store.delete("s")
    store.save(stale, force=True)
    assert texts(load(store)) == ["one", "three"]
    with pytest.raises(TypeError, match="SessionData"):
        store.save({"id": "s"}, force=True)


def test_a_fresh_sessions_dict_is_fresh(store: PythonFileSessionStore) -> None:
    d = make("s", "one").to_dict()
    store.save(d)
    with pytest.raises(SessionExistsError):
        store.save(make("s", "one").to_dict())
    loaded = store.load_dict("s")
    assert loaded is not None
    assert without_layout(load(store).to_dict()) == without_layout(loaded)
    assert list(new_session_dict("s")) == [key for key in make("s").to_dict() if key != "perdure"]


def test_an_outside_change_conflicts_with_session_data(store: PythonFileSessionStore, tmp_path: Path) -> None:
    store.save(make("s", "one"))
    loaded, saved = load(store), load(store)
    saved.append(text("user", "two"))
    store.save(saved)
    file = tmp_path / "s.json"
    file.write_bytes(file.read_bytes().replace(b'"Active"', b'"Edited"'))
    for data in (loaded, saved):
        data.append(text("user", "three"))
        with pytest.raises(SessionConflictError):
            store.save(data)
    assert load(store).state == "Edited"
    store.save(saved, force=True)
    saved.append(text("user", "four"))
    store.save(saved)
    assert texts(load(store)) == ["one", "two", "three", "four"]


def test_after_a_failed_directory_sync_session_data_does_not_conflict_with_itself(
    store: PythonFileSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make("s", "one")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_directory", fail)
        with pytest.raises(StoreError):
            store.save(data)
    data.append(text("user", "two"))
    assert store.save(data).revision == 2


# --- the same directory, two implementations


def test_one_writes_the_other_continues(store: PythonFileSessionStore, tmp_path: Path) -> None:
    core = FileSessionStore(tmp_path)
    writers = [core, store]
    data = make("s", "0")
    core.save(data)
    for turn in range(1, 7):
        data = load(writers[turn % 2])
        assert texts(data) == [str(at) for at in range(turn)]
        data.append(text("user", str(turn)))
        assert writers[turn % 2].save(data).revision == turn + 1
        core.close()
    assert store.list() == core.list() == ["s"]
    assert store.delete("s")
    assert core.load("s") is None


def test_steps_that_the_core_left_in_its_journal(store: PythonFileSessionStore, tmp_path: Path) -> None:
    core = FileSessionStore(tmp_path)
    data = make("s", "zero")
    core.save(data)
    for step in range(1, 4):
        data.append(text("user", f"step {step}"))
        delta = data.delta()
        assert delta is not None
        core.append(delta, step=True)
        data.settle(delta)
        assert (tmp_path / "s.journal").stat().st_size
        seen = load(store)
        assert (texts(seen), seen.revision) == (
            ["zero", *(f"step {at}" for at in range(1, step + 1))],
            step + 1,
        )
        assert seen.to_dict()["perdure"]["first_prompt"] == "zero"
    data.truncate(1)
    data.set("extra", [1, "é"])
    data.tags = ["t"]
    delta = data.delta()
    assert delta is not None
    core.append(delta, step=True)
    seen = load(store)
    assert (texts(seen), seen.get("extra"), seen.tags) == (["zero"], [1, "é"], ["t"])
    expected = core.load("s")
    assert expected is not None
    mine = store.load_dict("s")
    assert mine is not None
    theirs = expected.to_dict()
    assert without_layout(mine) == without_layout(theirs)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("s.json", "s.journal"):
        shutil.copy(tmp_path / name, other)
    copy = PythonFileSessionStore(other)
    data = load(copy)
    data.append(text("user", "folded"))
    copy.save(data)
    assert list(tree(other)) == ["s.json"]
    assert texts(load(FileSessionStore(other))) == ["zero", "folded"]


def test_the_cores_files_have_the_crc_of_the_format(
    store: PythonFileSessionStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    FileSessionStore(tmp_path).save(make("s", "one", "two é"))
    assert store.load_dict("s") is not None
    assert caplog.records == []
    file = tmp_path / "s.json"
    file.write_bytes(file.read_bytes().replace(b"two", b"owt"))
    assert store.load_dict("s") is not None
    assert "CRC" in caplog.records[0].getMessage()


strings = st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=8).filter(
    lambda value: re.search("[\ud800-\udbff][\udc00-\udfff]", value) is None
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(strings, inner, max_size=3),
    max_leaves=8,
)
bodies = st.lists(
    st.dictionaries(strings, values, max_size=3)
    | strings.map(lambda content: text("user", content))
    | strings.map(lambda content: {"role": "user", "content": content}),
    max_size=4,
)


@given(bodies, values)
@settings(max_examples=150, deadline=None)
def test_both_write_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, messages: list[Any], extra: Any) -> None:
    plain_dir, core_dir = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("core")
    data = SessionData("s")
    data.set("extra", extra)
    data.append(*messages)
    mine = data.freeze()
    FileSessionStore(core_dir).save(data)
    PythonFileSessionStore(plain_dir).save(mine)

    def normal(directory: Path) -> bytes:
        content = CRC.sub(b'"crc32c": null}', (directory / "s.json").read_bytes(), count=1)
        return re.sub(rb'"lineage": "[0-9a-f]{32}"', b"", content, count=1)

    assert normal(plain_dir) == normal(core_dir)


@given(
    st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=80)
    | st.text(alphabet="aA.%-_/\\é~ cConNuUlL1", min_size=1, max_size=6)
    | st.text("ab%é", min_size=170, max_size=260)
)
@settings(max_examples=100, deadline=None)
def test_both_give_a_session_the_same_name(tmp_path_factory: pytest.TempPathFactory, id: str) -> None:
    directory = tmp_path_factory.mktemp("core")
    with FileSessionStore(directory) as core:
        core.save(make(id, "x"))
    assert [path.name for path in directory.iterdir()] == [f"{stem_of(id)}.json"]
    assert texts(load(PythonFileSessionStore(directory), id)) == ["x"]


@pytest.mark.parametrize("name", ["plain", "tools"])
def test_a3s_files_through_both(store: PythonFileSessionStore, tmp_path: Path, name: str) -> None:
    shutil.copy(A3S / f"{name}.json", tmp_path)
    want = json.loads((A3S / f"{name}.json").read_bytes())
    data = load(store, name)
    data.append(text("user", "more"))
    mine = store.load_dict(name)
    assert mine is not None
    theirs = load(FileSessionStore(tmp_path), name).to_dict()
    assert {key: theirs[key] for key in want} == {key: mine[key] for key in want} == want


def test_infos_agree(store: PythonFileSessionStore, tmp_path: Path) -> None:
    core = FileSessionStore(tmp_path)
    for at, id in enumerate("dacb"):
        data = make(id, f"hello {id}", "x")
        core.save(data)
        os.utime(tmp_path / f"{id}.json", (at // 2, at // 2))
    shutil.copy(A3S / "plain.json", tmp_path)
    os.utime(tmp_path / "plain.json", (9, 9))
    core.close()
    assert store.infos() == core.infos()
    first, cursor = store.infos(2)
    assert [info.id for info in first] == [info.id for info in core.infos(2)[0]]
    assert cursor is not None


def test_a_corrupt_file_is_the_same_error_for_both(store: PythonFileSessionStore, tmp_path: Path) -> None:
    for content in (
        b"",
        b"{",
        b"[]",
        b'{"id": "t", "messages": []}',
        b'{"id": "s"}',
        b'{"id": "s",\n "x": \xff}',
    ):
        (tmp_path / "s.json").write_bytes(content)
        errors = []
        for reader in (store, FileSessionStore(tmp_path)):
            with pytest.raises(SessionCorruptError) as caught:
                reader.load("s")
            errors.append(caught.value.path)
        assert errors[0] == errors[1]

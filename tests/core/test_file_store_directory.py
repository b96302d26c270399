"""The directory of a `FileSessionStore`: modes, paths, opening and closing, options."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from core_helpers import child, loaded, session, text, texts, tree

from perdure import ConfigError, FileSessionStore, StoreError


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_modes(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        store = FileSessionStore(tmp_path / "new" / "deep")
        data = session("s", "one")
        store.save(data)
        data.append(text("two"))
        delta = data.delta()
        assert delta is not None
        store.append(delta, step=True)
    finally:
        os.umask(old)
    for directory in (tmp_path / "new", tmp_path / "new" / "deep"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for name in ("s.json", "s.journal", "s.lock"):
        assert stat.S_IMODE((store.path / name).stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="POSIX modes")
def test_an_existing_mode_is_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    store = FileSessionStore(tmp_path)
    store.save(session("s", "one"))
    store.health_check()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = FileSessionStore("relative")
    monkeypatch.chdir("/")
    assert store.save(session("s", "one")).location == str(tmp_path / "relative" / "s.json")
    assert store.path == tmp_path / "relative"
    assert FileSessionStore(str(tmp_path / "relative")).list() == ["s"]
    assert repr(store) == f'FileSessionStore("{tmp_path}/relative", journal=False, durability="full")'


def test_opening_changes_nothing(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path)
    store.save(session("s", "one"))
    store.close()
    (tmp_path / ".s.0123456789abcdef.tmp").write_text("left behind")
    (tmp_path / "t.journal").write_text("torn")
    before = tree(tmp_path)
    other = FileSessionStore(tmp_path)
    other.load("s")
    other.list()
    other.infos()
    other.exists("t")
    other.health_check()
    other.close()
    assert tree(tmp_path) == before


def test_health_check(store: FileSessionStore) -> None:
    store.health_check()
    assert tree(store.path) == {}
    store.path.rmdir()
    with pytest.raises(StoreError) as caught:
        store.health_check()
    assert caught.value.errno == 2
    assert isinstance(caught.value, OSError)
    assert str(store.path) in str(caught.value)


def test_context_manager_and_close(tmp_path: Path) -> None:
    with FileSessionStore(tmp_path) as store:
        data = session("s", "one")
        store.save(data)
        assert (tmp_path / "s.lock").exists()
    assert sorted(tree(tmp_path)) == ["s.json"]
    data.append(text("two"))
    store.save(data)  # a closed store opens again
    store.release(data)
    assert sorted(tree(tmp_path)) == ["s.json"]
    store.close()
    store.close()
    with pytest.raises(ZeroDivisionError), FileSessionStore(tmp_path):
        raise ZeroDivisionError


def test_the_interpreter_closes_what_is_open(tmp_path: Path) -> None:
    code = "import sys, perdure; s = perdure.FileSessionStore(sys.argv[1]); s.save(perdure.SessionData('s'))"
    done = child(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(tree(tmp_path)) == ["s.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"durability": "none"}, "durability"), ({"durability": ""}, "durability"),
        ({"lock_timeout": -1}, "lock_timeout"),
        ({"lock_timeout": float("nan")}, "lock_timeout"),
    ],
)  # fmt: skip
def test_bad_options(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FileSessionStore(tmp_path / "d", **options)
    assert not (tmp_path / "d").exists()


def test_durability_process(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path, durability="process")
    assert store.durability == "process"
    data = session("s", "one")
    store.save(data)
    data.append(text("two"))
    delta = data.delta()
    assert delta is not None
    store.append(delta, step=True)
    assert texts(loaded(store)) == ["one", "two"]

"""Bad ids, directories and files: each gives its named error, and nothing is lost, hung or overwritten."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from core_helpers import AS_ROOT, child, loaded, session, text, texts, tree

from perdure import (
    FileSessionStore,
    InvalidSessionIdError,
    PerdureError,
    SessionConflictError,
    SessionCorruptError,
    SessionData,
    SessionExistsError,
    StoreError,
)

POSIX = pytest.mark.skipif(os.name != "posix", reason="POSIX file kinds")

# --- ids


@pytest.mark.parametrize(
    ("id", "stem"),
    [
        ("..", "%2E%2E"), (".", "%2E"), (".hidden", "%2Ehidden"), ("/etc/passwd", "%2Fetc%2Fpasswd"),
        ("../../up", "%2E.%2F..%2Fup"), ("a/b", "a%2Fb"), ("a\\b", "a%5Cb"), ("a b", "a%20b"), ("a:b", "a%3Ab"),
        ("CON", "%43ON"), ("con.txt", "%63on.txt"), ("lpt1", "%6Cpt1"), ("CONSOLE", "CONSOLE"), ("a.", "a%2E"),
        ("a ", "a%20"), (" ", "%20"), ("😀", "%F0%9F%98%80"), ("ä", "%C3%A4"), ("a\n", "a%0A"), ("%41", "%2541"),
        ("a.b-c_D9", "a.b-c_D9"), ("*?\"<>|", "%2A%3F%22%3C%3E%7C"),
    ],
)  # fmt: skip
def test_ids_stay_in_the_directory(id: str, stem: str, tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path / "inner" / "d")
    receipt = store.save(session(id, "one"))
    assert receipt.location == str(store.path / f"{stem}.json")
    assert texts(loaded(store, id)) == ["one"]
    assert (store.list(), store.exists(id)) == ([id], True)
    assert [info.id for info in store.infos()[0]] == [id]
    assert store.delete(id)
    store.close()
    assert tree(tmp_path) == {}


def test_a_long_id(store: FileSessionStore) -> None:
    ids = ["x" * 4096, "x" * 4095 + "y", "😀" * 4096]
    for id in ids:
        store.save(session(id, id[-3:]))
    assert store.list() == sorted(ids)
    for id in ids:
        assert texts(loaded(store, id)) == [id[-3:]]
        with pytest.raises(InvalidSessionIdError, match=r"4,?096"):
            store.load(id + "x")
    assert max(len(path.name) for path in store.path.iterdir()) <= 200
    with pytest.raises(InvalidSessionIdError, match=r"4,?096") as caught:
        SessionData("x" * 5000)
    assert len(str(caught.value)) < 300


def test_ids_that_differ_only_in_case(store: FileSessionStore) -> None:
    """Where the file system keeps the names apart so does the store; where it does not, the second one is refused."""
    store.save(session("Alice", "one"))
    before = tree(store.path)["Alice.json"]
    if not (store.path / "alice.json").exists():
        store.save(session("alice", "two"))
        assert (texts(loaded(store, "Alice")), texts(loaded(store, "alice"))) == (["one"], ["two"])
        assert store.delete("alice")
        # What a file system without case looks like to the store: our name, with the other's session in it.
        (store.path / "Alice.json").rename(store.path / "alice.json")
    with pytest.raises(SessionExistsError) as caught:
        store.save(session("alice", "two"))
    assert '"alice"' in str(caught.value)
    assert '"Alice"' in str(caught.value)
    assert (store.load("alice"), store.exists("alice"), store.delete("alice")) == (None, False, False)
    assert before in tree(store.path).values()


def test_a_slash_beside_its_a3s_name(store: FileSessionStore) -> None:
    store.save(session("a_b", "underscore"))
    store.save(session("a/b", "slash"))
    assert (texts(loaded(store, "a_b")), texts(loaded(store, "a/b"))) == (["underscore"], ["slash"])
    assert store.delete("a/b")
    assert store.list() == ["a_b"]


def test_a_session_under_a3s_name_keeps_it(store: FileSessionStore) -> None:
    path = store.path / "a_b.json"
    path.write_text('{"id": "a/b", "messages": [{"role": "user", "content": [{"type": "text", "text": "one"}]}]}')
    data = loaded(store, "a/b")
    data.append(text("two"))
    assert store.save(data).location == str(path)
    assert texts(loaded(store, "a/b")) == ["one", "two"]
    assert store.list() == ["a/b"]


def test_a_name_that_another_session_has(store: FileSessionStore) -> None:
    """What A3S Code named a_b.json is the session a/b; there is no session a_b, and none can be made beside it."""
    (store.path / "a_b.json").write_text('{"id": "a/b", "messages": []}')
    assert (store.load("a_b"), store.exists("a_b"), store.delete("a_b")) == (None, False, False)
    with pytest.raises(SessionExistsError) as caught:
        store.save(session("a_b", "new"))
    assert '"a/b"' in str(caught.value)


# --- the file of a session


def refused(store: FileSessionStore, raw: bytes, *, id: str = "s") -> SessionCorruptError:
    """A damaged file is reported and left alone, whatever is tried."""
    path = store.path / f"{id}.json"
    path.write_bytes(raw)
    with pytest.raises(SessionCorruptError) as caught:
        store.load(id)
    for force in (False, True):
        with pytest.raises(SessionCorruptError):
            store.save(session(id, "new"), force=force)
    with pytest.raises(SessionCorruptError):
        store.delete(id)
    assert store.exists(id)
    assert store.list() == []
    assert store.infos() == ([], None)
    assert path.read_bytes() == raw
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "empty"), (b" \n", "empty"), (b"\0" * 100, "object|value|JSON"), (b"null", "object"), (b"[]", "object"),
        (b"{}", '"id"'), (b'{"id": "s"}', '"messages"'), (b'{"messages": []}', '"id"'),
        (b'{"id": 3, "messages": []}', '"id"'), (b'{"id": "", "messages": []}', "id"),
        (b'{"id": "s", "messages": {}}', "array"), (b'{"id": "s", "messages": null}', "array"),
        (b'{"id": "s", "messages": [1]}', "message"), (b'{"id": "s", "messages": [[]]}', "message"),
        (b'{"id": "s", "messages": []} x', "behind"), (b'{"id": "s", "messages": []}{}', "behind"),
        (b'{"id": "s", "config": 1, "messages": []}', "config"), (b'{"id": "s", "tasks": {}, "messages": []}', "tasks"),
        (b'{"id": "s", "created_at": "x", "messages": []}', "created_at"),
        (b'{"id": "s", "perdure": 1, "messages": []}', "perdure"),
        (b'{"id": "s", "perdure": {"format": 9}, "messages": []}', "format 9"),
        (b'{"id": "s", "perdure": {"format": 1, "lineage": "X"}, "messages": []}', "lineage"),
        (b'{"id": "s", "perdure": {"format": 1, "revision": -1}, "messages": []}', "revision"),
        (b'{"id": "s", "perdure": {"format": 1, "tags": "x"}, "messages": []}', "tags"),
        (b"\xff\xfe{}", "UTF-8"), (b'{"id": "s", "messages": [{"a": "\xff"}]}', "UTF-8"),
        ('{"id": "s", "messages": []}'.encode("utf-16"), "UTF-8"), (b"\xef\xbb\xbf{}", "object|BOM"),
        (b"%PDF-1.7\n", "object"),
    ],
)  # fmt: skip
def test_what_is_no_session(raw: bytes, message: str, store: FileSessionStore) -> None:
    error = refused(store, raw)
    assert re.search(message, str(error)), str(error)


def test_a_file_cut_at_every_byte(store: FileSessionStore) -> None:
    data = session("s", "héllo\n", "two")
    data.append({"n": [1.5, None, {"x": "\ud800"}]})
    store.save(data)
    store.close()
    raw = (store.path / "s.json").read_bytes()
    for cut in range(len(raw) - 1):  # without its last line end it is still whole
        (store.path / "s.json").write_bytes(raw[:cut])
        with pytest.raises(SessionCorruptError) as caught:
            store.load("s")
        assert caught.value.path == str(store.path / "s.json")
        assert cut == 0 or (caught.value.line is not None and caught.value.column is not None)
    refused(store, raw[: len(raw) // 2])
    (store.path / "s.json").write_bytes(raw[:-1])
    assert len(loaded(store)) == 3


def test_a_byte_changed_anywhere_never_panics(store: FileSessionStore) -> None:
    store.save(session("s", "one", "two"))
    store.close()
    path = store.path / "s.json"
    raw = path.read_bytes()
    for at in range(len(raw)):
        for byte in (b"\0", b'"', b"{", b"\xff")[at % 4 :: 4]:
            path.write_bytes(raw[:at] + byte + raw[at + 1 :])
            try:
                data = store.load("s")
                assert data is None or data.to_dict()
            except PerdureError:
                pass
            store.list()
            store.infos()


@POSIX
def test_what_is_no_file(store: FileSessionStore, tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    target.write_text('{"id": "s", "messages": []}')
    path = store.path / "s.json"
    kinds: list[Any] = [
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to(target),
        lambda: path.symlink_to(tmp_path / "nowhere"),
        lambda: path.symlink_to(path),
        lambda: path.symlink_to("/dev/zero"),
    ]
    for make in kinds:
        make()
        for call in (lambda: store.load("s"), lambda: store.save(session("s", "x")), lambda: store.delete("s")):
            with pytest.raises(SessionCorruptError, match="not a regular file") as caught:
                call()
            assert caught.value.path == str(path)
        assert store.list() == []
        assert store.infos() == ([], None)
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            path.rmdir()
    assert target.read_text() == '{"id": "s", "messages": []}'


@POSIX
@pytest.mark.parametrize("ending", ["journal", "lock"])
def test_journal_and_lock_that_are_no_files(store: FileSessionStore, tmp_path: Path, ending: str) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    data = session("s", "one")
    store.save(data)
    store.close()
    path = store.path / f"s.{ending}"
    kinds: list[Any] = [path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(target)]
    for make in kinds:
        make()
        data.append(text("more"))
        with pytest.raises((SessionCorruptError, StoreError)) as caught:
            store.save(data)
        assert str(store.path / "s.") in str(caught.value)
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            path.rmdir()
    assert target.read_text() == "mine"
    store.save(data)
    assert len(loaded(store)) == 4


def test_a_flood_of_brackets(store: FileSessionStore) -> None:
    with (store.path / "s.json").open("wb") as file:
        for _ in range(64):
            file.write(b"[" * 2**20)
    with (store.path / "t.json").open("wb") as file:
        file.write(b'{"id": "t", "messages": [{"a": ')
        for _ in range(64):
            file.write(b"[" * 2**20)
    code = """
import resource, sys, time, perdure
store = perdure.FileSessionStore(sys.argv[1])
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
for id in "st":
    try:
        store.load(id)
    except perdure.SessionCorruptError as error:
        print(error)
print(store.list(), store.infos())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert peak < 80 * 1024, f"{peak} KiB"
assert time.monotonic() - started < 10
"""
    done = child(code, store.path)
    assert (done.returncode, done.stderr) == (0, "")
    one, other, listing = done.stdout.splitlines()
    assert "s.json:1:1" in one
    assert "t.json:1:" in other
    assert "deep" in other or "nest" in other
    assert listing == "[] ([], None)"


# --- the directory


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_text("mine")
    for place in (path, path / "inner"):
        with pytest.raises(StoreError) as caught:
            FileSessionStore(place)
        assert str(path) in str(caught.value)
        assert caught.value.errno in (17, 20, None)
    assert path.read_text() == "mine"


def test_a_directory_that_vanishes(store: FileSessionStore) -> None:
    data = session("s", "one")
    store.save(data)
    shutil.rmtree(store.path)
    data.append(text("two"))
    for call in (lambda: store.save(data), store.list, store.infos, store.health_check):
        with pytest.raises((StoreError, SessionConflictError)) as caught:
            call()
        assert str(store.path) in str(caught.value) or isinstance(caught.value, SessionConflictError)
    assert not store.path.exists()
    assert texts(data) == ["one", "two"]
    store.path.mkdir()
    store.save(data, create=True)
    assert texts(loaded(store)) == ["one", "two"]


def test_a_directory_that_moves(tmp_path: Path) -> None:
    """Engines are shared by device and inode: a moved directory, or a new one with an old inode, has to get its own."""
    old = FileSessionStore(tmp_path / "a")
    old.save(session("s", "one"))
    (tmp_path / "a").rename(tmp_path / "b")
    store = FileSessionStore(tmp_path / "b")
    assert store.path == tmp_path / "b"
    assert texts(loaded(store)) == ["one"]


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that other users can reach (pytest's own is private)."""
    path = Path(tempfile.mkdtemp(prefix="perdure-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def unprivileged(work: Callable[[], object]) -> str:
    """What a function raises in a forked child that has no rights beyond anybody's.

    A fork, because the interpreter's own files may well be out of that user's reach.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        pid = os.fork()
    if pid == 0:
        answer = "nothing was raised"
        try:
            if AS_ROOT:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
        except StoreError as error:
            answer = f"{error.errno} {error}"
        except BaseException as error:  # the child must not go on as a second pytest
            answer = repr(error)
        finally:
            os.write(writer, answer.encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as answers:
        return answers.read()


@POSIX
def test_a_directory_that_may_not_be_written(public: Path) -> None:
    directory = public / "d"
    store = FileSessionStore(directory)
    store.save(session("s", "one"))
    store.save(session("private", "one"))
    store.close()
    directory.chmod(0o555)
    (directory / "s.json").chmod(0o644)
    (directory / "private.json").chmod(0o000)
    before = [path.name for path in directory.iterdir()]

    def change() -> None:
        store = FileSessionStore(directory)
        data = loaded(store)
        assert texts(data) == ["one"]
        assert store.list() == ["s"]
        data.append(text("two"))
        store.save(data)

    works: list[Callable[[], object]] = [
        lambda: FileSessionStore(directory / "new"),
        lambda: FileSessionStore(directory).save(session("t")),
        lambda: FileSessionStore(directory).delete("s"),
        lambda: FileSessionStore(directory).health_check(),
        lambda: FileSessionStore(directory).load("private"),
        change,
    ]
    for work in works:
        answer = unprivileged(work)
        assert answer.startswith("13 "), answer
        assert str(directory) in answer
    assert [path.name for path in directory.iterdir()] == before
    directory.chmod(0o755)
    assert texts(loaded(store)) == ["one"]


# --- a full disk


FILL = """
import os, resource, sys, perdure
directory, limit = sys.argv[1], int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
store = perdure.FileSessionStore(directory)
data = perdure.SessionData("s")
for number in range(10_000):
    data.append({"role": "user", "content": f"{number} " + "x" * 10_000})
    try:
        if sys.argv[3] == "step" and data.revision:
            delta = data.delta()
            store.append(delta, step=True)
            data.settle(delta)
        else:
            store.save(data)
    except perdure.StoreError as error:
        assert error.errno in (27, 28), error
        assert directory in str(error) and "xxx" not in str(error)
        break
else:
    sys.exit("the disk never was full")
# Nothing was lost, nothing lies about, and the session in memory is as it was.
stored = store.load("s")
assert len(stored) == stored.revision == number, (len(stored), number)
assert stored.messages == data.messages[:number]
assert len(data) == number + 1 and data.revision == number
names = os.listdir(directory)
assert not [name for name in names if name.endswith(".tmp")], names
# With room again it goes on where it was.
if limit:
    print(number)
    sys.exit()
for name in names:
    if name.startswith("ballast"):
        os.unlink(f"{directory}/{name}")
data.truncate(number)
data.append({"role": "user", "content": "short"})
store.save(data)
assert len(store.load("s")) == number + 1
print(number)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A file system of 1 MiB where we may mount one, else a limit on the size of files."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = AS_ROOT and sys.platform == "linux" and shutil.which("mount") is not None
    if mounted:
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "perdure-test", path]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield path, 0 if mounted else 600_000
    finally:
        if mounted:
            subprocess.run(["umount", path], check=True)


@POSIX
@pytest.mark.parametrize("mode", ["save", "step"])
def test_a_full_disk_in_the_middle_of_a_save(small_disk: tuple[Path, int], mode: str) -> None:
    directory, limit = small_disk
    if not limit:
        (directory / "ballast").write_bytes(b"x" * 600_000)
    done = child(FILL, directory, limit, mode)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 10

"""`PythonFileSessionStore` when things go wrong: two processes, full disks, kills, no rights."""

from __future__ import annotations

import errno
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plain_helpers import text, tree

from perdure.errors import SessionConflictError, SessionExistsError, SessionLockedError, StoreError
from perdure.stores import _plain_disk as disk
from perdure.stores.python_file import PythonFileSessionStore, new_session_dict

ROOT = Path(sys.modules["perdure.errors"].__file__ or "").parent.parent


def python(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    """A real second process with the store imported."""
    prelude = "import os, sys, time\nfrom perdure.stores.python_file import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def load(store: PythonFileSessionStore, id: str = "s") -> Any:
    session = store.load_dict(id)
    assert session is not None
    return session


# --- locks

HOLD = """
from perdure.stores._plain_lock import session_lock
with session_lock(os.path.join(sys.argv[1], "s.lock"), "s", 0):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(directory: Path) -> subprocess.Popen[str]:
    process = python(HOLD, directory, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_holds_the_lock(tmp_path: Path) -> None:
    store = PythonFileSessionStore(tmp_path)
    session = new_session_dict("s", messages=[text("user", "one")])
    store.save_dict(session)
    other = hold(tmp_path)
    try:
        began = int(time.time())
        for call in (lambda: store.save_dict(session), lambda: store.delete("s")):
            with pytest.raises(SessionLockedError) as caught:
                call()
            assert (caught.value.pid, caught.value.host) == (other.pid, socket.gethostname())
            assert caught.value.since is not None
            assert abs(caught.value.since - began) < 30
            assert str(other.pid) in str(caught.value)
        assert load(store) == session
        store.save_dict(new_session_dict("t"))

        patient = PythonFileSessionStore(tmp_path, lock_timeout=0.2)
        started = time.monotonic()
        with pytest.raises(SessionLockedError):
            patient.save_dict(session)
        assert 0.2 <= time.monotonic() - started < 5
        patient = PythonFileSessionStore(tmp_path, lock_timeout=30)
        assert other.stdin is not None
        threading.Timer(0.2, other.stdin.close).start()
        assert patient.save_dict(session).revision == 2
    finally:
        other.kill()
        other.wait()
        for pipe in (other.stdin, other.stdout, other.stderr):
            assert pipe is not None
            pipe.close()
    assert sorted(tree(tmp_path)) == ["s.json", "t.json"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    other = hold(tmp_path)
    other.kill()
    other.communicate()
    assert list(tree(tmp_path)) == ["s.lock"]
    PythonFileSessionStore(tmp_path).save_dict(new_session_dict("s"))
    assert list(tree(tmp_path)) == ["s.json"]


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("elsewhere")])
def test_a_lock_path_that_is_no_file(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "s.lock")
    with pytest.raises(StoreError, match=r"s\.lock"):
        PythonFileSessionStore(tmp_path).save_dict(new_session_dict("s"))
    assert tree(tmp_path) == {}


COUNT = """
from perdure.errors import SessionConflictError
store = PythonFileSessionStore(sys.argv[1], lock_timeout=30)
done = 0
while done < 25:
    session = store.load_dict("s")
    session["messages"].append({"role": "user", "content": sys.argv[2]})
    try:
        store.save_dict(session)
    except SessionConflictError:
        continue
    done += 1
"""


def test_two_processes_and_threads_lose_no_update(tmp_path: Path) -> None:
    store = PythonFileSessionStore(tmp_path, lock_timeout=30)
    store.save_dict(new_session_dict("s"))
    others = [python(COUNT, tmp_path, name) for name in ("a", "b")]
    failures: list[BaseException] = []

    def count(name: str) -> None:
        done = 0
        try:
            while done < 25:
                session = load(store)
                session["messages"].append({"role": "user", "content": name})
                try:
                    store.save_dict(session)
                except SessionConflictError:
                    continue
                done += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=count, args=(name,)) for name in ("c", "d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in others:
        finish(other)
    assert failures == []
    session = load(store)
    said = [message["content"] for message in session["messages"]]
    assert {name: said.count(name) for name in "abcd"} == dict.fromkeys("abcd", 25)
    assert session["perdure"]["revision"] == 101
    assert list(tree(tmp_path)) == ["s.json"]


def test_threads_of_one_process_wait_for_each_other_without_a_time_out(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            store = PythonFileSessionStore(tmp_path)
            for _ in range(20):
                try:
                    store.save_dict(store.load_dict("s") or new_session_dict("s"))
                except (SessionConflictError, SessionExistsError):
                    pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


FORK = """
from perdure.stores._plain_lock import session_lock
with session_lock(os.path.join(sys.argv[1], "s.lock"), "s", 0):
    if os.fork() == 0:
        store = PythonFileSessionStore(sys.argv[1])
        try:
            store.save_dict(new_session_dict("s"))
        except Exception as error:
            print(type(error).__name__, error.pid == os.getppid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    time.sleep(0.5)
    os.kill(os.getpid(), 9)
"""


def test_a_forked_child_neither_has_nor_keeps_nor_gives_up_the_lock(tmp_path: Path) -> None:
    parent = python(FORK, tmp_path, stdin=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "SessionLockedError True\n"
    assert parent.wait() == -signal.SIGKILL
    PythonFileSessionStore(tmp_path).save_dict(new_session_dict("s"))  # the child is still alive
    parent.communicate()


# --- kills


SAVE_FOREVER = """
store = PythonFileSessionStore(sys.argv[1])
session = store.load_dict("s") or new_session_dict("s")
print("ready", flush=True)
while True:
    session["messages"].append({"role": "user", "content": f"{len(session['messages'])} " + "x" * 20_000})
    store.save_dict(session)
    print(session["perdure"]["revision"], flush=True)
"""


def test_kill_9_in_mid_save_leaves_old_or_new(tmp_path: Path) -> None:
    store = PythonFileSessionStore(tmp_path)
    for round in range(6):
        process = python(SAVE_FOREVER, tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.013 * round)
        process.kill()
        said = [int(line) for line in process.communicate()[0].splitlines() if line.strip()]
        session = store.load_dict("s")
        if session is None:
            assert not said
            continue
        revision = session["perdure"]["revision"]
        assert revision in (max(said, default=revision), max(said, default=revision) + 1)
        assert [int(m["content"].split()[0]) for m in session["messages"]] == list(range(revision))
    assert load(store)["perdure"]["revision"] > 6
    store.save_dict(load(store))


# --- disks


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """As the system reports it when a file may not grow: needs no mount and no root."""
    store = PythonFileSessionStore(tmp_path)
    session = new_session_dict("s", messages=[text("user", "one")])
    store.save_dict(session)
    before = tree(tmp_path)
    session["messages"].append(text("user", "x" * 100_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        with pytest.raises(StoreError, match="File too large") as caught:
            store.save_dict(session)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    assert tree(tmp_path) == before
    assert session["perdure"]["revision"] == 1
    store.save_dict(session)
    assert load(store) == session


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", tmp_path]).returncode:
        pytest.skip("needs the right to mount a small file system")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    store = PythonFileSessionStore(small_disk)
    session = new_session_dict("s")
    with pytest.raises(StoreError, match="No space left") as caught:
        while True:
            session["messages"].append(text("user", "x" * 5000))
            store.save_dict(session)
    assert caught.value.errno == errno.ENOSPC
    assert str(small_disk) in str(caught.value)
    stored = load(store)
    assert stored["messages"] == session["messages"][:-1]
    assert list(tree(small_disk)) == ["s.json"]
    del session["messages"][2:]
    store.save_dict(session)
    assert load(store) == session


READ_ONLY = """
import fcntl
from perdure.errors import StoreError
os.setgid(65534); os.setuid(65534)
store = PythonFileSessionStore(sys.argv[1])
session = store.load_dict("s")
for call in (lambda: store.save_dict(session), lambda: store.delete("s"),
             lambda: store.save_dict(new_session_dict("new"))):
    try:
        call()
    except StoreError as error:
        print(error.errno, sys.argv[1] in str(error))
"""


def test_a_directory_without_the_right_to_write(tmp_path: Path) -> None:
    # Root may write everywhere, so the store works in a child that gives its rights up.
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    directory = Path(tempfile.mkdtemp())
    try:
        PythonFileSessionStore(directory).save_dict(new_session_dict("s"))
        directory.chmod(0o755)
        (directory / "s.json").chmod(0o644)
        before = tree(directory)
        assert finish(python(READ_ONLY, directory)) == f"{errno.EACCES} True\n" * 3
        assert tree(directory) == before
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("step", ["write_all", "sync", "rename"])
def test_a_failure_before_the_rename_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store = PythonFileSessionStore(tmp_path)
    session = new_session_dict("s")
    store.save_dict(session)
    before = tree(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(disk.os if step == "rename" else disk, step, fail)
        with pytest.raises(StoreError) as caught:
            store.save_dict(session)
    assert caught.value.errno == errno.EIO
    assert tree(tmp_path) == before
    assert session["perdure"]["revision"] == 1
    assert store.save_dict(session).revision == 2


def test_after_a_failed_directory_sync_a_session_does_not_conflict_with_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PythonFileSessionStore(tmp_path)
    session = new_session_dict("s")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for revision in (2, 4):
        with monkeypatch.context() as patch:
            patch.setattr(disk, "sync_directory", fail)
            with pytest.raises(StoreError):
                store.save_dict(session)
        assert store.save_dict(session).revision == revision


def test_a_journal_that_cannot_be_removed_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = PythonFileSessionStore(tmp_path)
    session = new_session_dict("s")
    store.save_dict(session)
    (tmp_path / "s.journal").touch()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "empty_and_remove", fail)
    assert store.save_dict(session).revision == 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "s.journal" in record.getMessage()

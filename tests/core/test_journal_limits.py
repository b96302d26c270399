"""Journal mode at its limits: full disks, read-only ones, few descriptors, large messages, many lines, threads."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from core_helpers import AS_ROOT, child, loaded, session, text, texts, tree
from journal_helpers import journal_store, lines, other, plain_state, size, state

from perdure import FileSessionStore, SessionConflictError, SessionData, StoreError

MOUNTS = AS_ROOT and sys.platform == "linux" and shutil.which("mount") is not None


# --- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "perdure-test", path]
    if not MOUNTS or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


class Ballast:
    """Takes what is free on a disk, but for some pages of it, and gives it back."""

    def __init__(self, disk: Path) -> None:
        self._path = disk / "ballast"
        self._disk = disk

    def leave(self, pages: int) -> None:
        self.free()
        free = os.statvfs(self._disk)
        self._path.write_bytes(b"x" * max(0, (free.f_bavail - pages) * free.f_bsize))

    def free(self) -> None:
        self._path.unlink(missing_ok=True)


def is_full(error: StoreError, disk: Path) -> None:
    assert error.errno == errno.ENOSPC
    assert str(disk) in str(error)
    assert "xxx" not in str(error), "no content of a message"


@pytest.mark.parametrize("durability", ["full", "process"])
def test_a_full_disk_in_an_append(small_disk: Path, durability: str) -> None:
    """Nothing acknowledged is lost, the file is as it was, and the same session goes on when there is room."""
    store = journal_store(small_disk / "d", durability=durability)
    data = session("s", "begin")
    store.save(data)
    data.append(text("one"))
    store.save(data)
    ballast = Ballast(small_disk)
    for number in range(4):
        ballast.leave(number)
        before = tree(store.path)
        data.append(text("x" * 30_000))
        for _ in range(2):
            with pytest.raises(StoreError) as caught:
                store.save(data)
            is_full(caught.value, small_disk)
            assert tree(store.path) == before
        assert texts(loaded(store)) == texts(data)[:-1]
        assert plain_state(store.path) == state(loaded(store))
        data.truncate(len(data) - 1)
        data.append(text("short"))
        ballast.free()
        revision = data.revision
        assert store.save(data).revision == revision + 1
        assert texts(loaded(store)) == texts(data)
    assert plain_state(store.path) == state(data)
    assert sorted(tree(store.path)) == ["s.journal", "s.json", "s.lock"]


def test_a_full_disk_in_a_fold(small_disk: Path) -> None:
    store = journal_store(small_disk / "d")
    data = session("s", "begin")
    store.save(data)
    ballast = Ballast(small_disk)
    # By size: the save that would fold is refused, what was acknowledged stays in the journal.
    while size(store.path) < 60_000:
        data.append(text("x" * 5000))
        store.save(data)
    ballast.leave(5)
    before = tree(store.path)
    data.append(text("x" * 5000))
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            store.save(data)
        is_full(caught.value, small_disk)
        assert tree(store.path) == before, "no temp file is left, either"
    # At a checkpoint.
    with pytest.raises(StoreError) as caught:
        store.checkpoint("s")
    is_full(caught.value, small_disk)
    assert tree(store.path) == before
    assert texts(loaded(store)) == texts(data)[:-1]
    # What still fits is saved.
    last = data.messages[len(data) - 1]
    data.truncate(len(data) - 1)
    data.append(text("fits"))
    store.save(data)
    data.append(last)
    ballast.free()
    store.save(data)
    assert size(store.path) == 0
    assert (store.path / "s.json").read_bytes() == data.to_json()
    assert plain_state(store.path) == state(data)


def test_a_full_disk_in_the_fold_at_the_end(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is a warning; the journal stays, and the lock is given up."""
    store = journal_store(small_disk / "d")
    data = session("s", "begin")
    store.save(data)
    for _ in range(3):
        data.append(text("x" * 10_000))
        store.save(data)
    ballast = Ballast(small_disk)
    ballast.leave(2)
    store.close()
    (record,) = caplog.records
    assert "nothing is lost" in record.getMessage() and "xxx" not in record.getMessage()
    assert sorted(tree(store.path)) == ["s.journal", "s.json"]
    with other(store.path) as there:
        ballast.free()
        assert len(there.do("load", "s")) == 4
        assert there.do("append", "s", "theirs") == 5
    assert len(loaded(store)) == 5


def test_a_full_disk_in_the_first_save(small_disk: Path) -> None:
    store = journal_store(small_disk / "d")
    ballast = Ballast(small_disk)
    ballast.leave(1)
    data = session("s", "x" * 10_000)
    with pytest.raises(StoreError) as caught:
        store.save(data)
    is_full(caught.value, small_disk)
    assert (store.load("s"), store.list(), data.revision) == (None, [], 0)
    assert not [name for name in tree(store.path) if name.endswith((".tmp", ".json"))]
    ballast.free()
    assert store.save(data).revision == 1


# --- a directory that may not be written


def test_a_read_only_file_system(small_disk: Path) -> None:
    """Turned read-only under an open session, as a failing disk is."""
    store = journal_store(small_disk / "d")
    data = session("s", *["h" * 100] * 50)
    store.save(data)
    data.append(text("two"))
    store.save(data)
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    before = tree(store.path)
    works: list[Callable[[], object]] = [
        lambda: store.save(data),
        lambda: store.save(session("t")),
        lambda: store.checkpoint("s"),
        lambda: store.delete("s"),
    ]
    data.append(text("three"))
    for work in works:
        with pytest.raises(StoreError) as caught:
            work()
        assert caught.value.errno == errno.EROFS
        assert str(store.path) in str(caught.value)
    assert texts(loaded(store))[-1] == "two", "reading needs no right to write"
    assert store.list() == ["s"]
    assert [info.revision for info in store.infos()[0]] == [2]
    assert tree(store.path) == before
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert store.save(data).revision == 3


# --- descriptors


FEW = """
import os, resource, sys, perdure
sessions, rounds = int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
store = perdure.FileSessionStore(sys.argv[1], journal=True, durability="process")
datas = [perdure.SessionData(f"s{n:05}", messages=[{"n": n}]) for n in range(sessions)]
most = 0
for start in range(0, sessions, 500):
    assert all(isinstance(r, perdure.SaveReceipt) for r in store.save_many(datas[start:start + 500]))
    most = max(most, len(os.listdir("/proc/self/fd")))
for round in range(rounds):
    for n, data in enumerate(datas):
        data.append({"round": round, "n": n})
        assert store.save(data).revision == round + 2
        if n % 97 == 0:
            most = max(most, len(os.listdir("/proc/self/fd")))
assert 20 < most < 200, most
# Room for others was left.
for _ in range(40):
    os.dup(0)
assert len(store.list()) == sessions
for n, data in enumerate(datas):
    stored = store.load(data.id)
    assert stored.revision == rounds + 1 and stored.messages == data.messages, data.id
    assert stored.messages == [{"n": n}, *({"round": r, "n": n} for r in range(rounds))]
store.close()
assert not [name for name in os.listdir(sys.argv[1]) if name.endswith((".lock", ".tmp"))]
print(most)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_ten_thousand_open_sessions_under_a_limit_of_256_descriptors(tmp_path: Path) -> None:
    done = child(FEW, tmp_path, 10_000, 1)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_was_let_go_for_others_is_taken_up_again(tmp_path: Path) -> None:
    """A session whose descriptors went to others may have been saved by another process in the meantime."""
    code = """
import resource, subprocess, sys, perdure
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
store = perdure.FileSessionStore(sys.argv[1], journal=True)
data = perdure.SessionData("first", messages=[{"n": 0}])
store.save(data)
data.append({"n": 1})
store.save(data)
for n in range(40):
    store.save(perdure.SessionData(f"s{n}"))
mine = "import sys, perdure; s = perdure.FileSessionStore(sys.argv[1], journal=True); d = s.load('first'); "
subprocess.run([sys.executable, "-c", mine + "d.append({'theirs': 1}); s.save(d)", sys.argv[1]], check=True)
data.append({"n": 2})
try:
    store.save(data)
except perdure.SessionConflictError as error:
    print(error.expected, error.found)
assert [m for m in store.load("first").messages] == [{"n": 0}, {"n": 1}, {"theirs": 1}]
"""
    done = child(code, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 3\n", "")


# --- large ones, and many


def available() -> int:
    """Memory that can be had, in MiB."""
    with Path("/proc/meminfo").open() as file:
        (line,) = (line for line in file if line.startswith("MemAvailable"))
    return int(line.split()[1]) // 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.timeout(300)
def test_one_message_of_a_gibibyte(tmp_path: Path) -> None:
    """Or of a quarter of one, where memory is short."""
    length = (1 << 30) if available() > 9000 and shutil.disk_usage(tmp_path).free > 4 << 30 else 1 << 28
    code = """
import os, sys, perdure
length = int(sys.argv[2])
store = perdure.FileSessionStore(sys.argv[1], journal=True)
data = perdure.SessionData("s", messages=[{"n": 0}])
store.save(data)
data.append({"role": "user", "content": "x" * length})
receipt = store.save(data)
assert receipt.new_bytes > length and receipt.bytes_written > length, receipt
data.append({"n": 2})
store.save(data)
del data
data = store.load("s")
assert data.revision == 3 and len(data) == 3
assert len(data.messages.raw(1)) > length
assert data.messages[2] == {"n": 2}
assert data.messages.raw(1).count(b"x") == length
data.truncate(1)
assert store.save(data).bytes_written < 1000
store.checkpoint("s")
store.close()
assert os.path.getsize(os.path.join(sys.argv[1], "s.json")) < 5000
"""
    command = [sys.executable, "-c", code, tmp_path, str(length)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("torn", [False, True], ids=["whole", "torn"])
def test_twenty_thousand_lines_load(tmp_path: Path, torn: bool) -> None:
    """Also with a block missing, behind which all lines that were never synced have to be looked at."""
    store = journal_store(tmp_path / "d", durability="process")
    # A snapshot of some size, so that the lines stay lines.
    data = SessionData("s", messages=[text("h" * 2_500_000)])
    store.save(data)
    for number in range(20_000):
        data.append({"n": number})
        store.save(data)
    # As a crash leaves it.
    directory = shutil.copytree(store.path, tmp_path / "crash")
    if torn:
        with (directory / "s.journal").open("r+b") as journal:
            raw = journal.read()
            journal.seek(raw.index(b"\n", 100_000) + 50)
            journal.write(b"\0" * 20)
    later = loaded(journal_store(directory))
    assert (later.revision == 20_001) is not torn
    assert len(later) == later.revision > 500
    assert [message["n"] for message in later.messages[1:]] == list(range(len(later) - 1))
    later.append({"n": "more"})
    journal_store(directory).save(later)
    assert len(list(directory.glob("*.torn-*"))) == torn
    assert state(loaded(journal_store(directory))) == state(later)


# --- threads


@pytest.fixture
def _switch_often() -> Iterator[None]:
    old = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(old)


def together(*works: Callable[[], object]) -> None:
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # a panic is a BaseException
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(90)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("_switch_often")
def test_two_threads_on_one_session(tmp_path: Path) -> None:
    """They share the object: every message is saved once, and each save sees its own."""
    store = journal_store(tmp_path)
    data = session("s")

    def work(name: str) -> None:
        for number in range(60):
            data.append(text(f"{name}{number}"))
            store.save(data)
            assert f"{name}{number}" in texts(loaded(store))

    together(lambda: work("a"), lambda: work("b"))
    stored = loaded(store)
    assert state(stored) == state(data) == plain_state(tmp_path)
    for name in "ab":
        assert [said for said in texts(stored) if said[0] == name] == [f"{name}{n}" for n in range(60)]
    saves = [line["revision"] for line in lines(tmp_path)[1:]]
    assert saves == sorted(set(saves)) and saves[-1] == stored.revision


@pytest.mark.usefixtures("_switch_often")
def test_thirty_two_threads_on_eight_sessions(tmp_path: Path) -> None:
    """Each with a handle of its own: of two that meet one is told. Folds, closes and readers in between."""
    store = journal_store(tmp_path, durability="process")
    for number in range(8):
        store.save(session(f"s{number}"))
    rounds = 15
    stop = threading.Event()

    def work(thread: int) -> None:
        chance = random.Random(thread)
        id = f"s{thread % 8}"
        for number in range(rounds):
            while True:
                data = loaded(store, id)
                data.append(text(f"{thread}-{number}"))
                try:
                    store.save(data)
                    break
                except SessionConflictError:
                    time.sleep(chance.random() / 500)
            if number % 5 == thread % 5:
                store.checkpoint(id)
            if number % 7 == thread % 7:
                store.release(data)

    def read() -> None:
        seen = dict.fromkeys(range(8), 0)
        while not stop.is_set():
            for number in range(8):
                count = len(loaded(FileSessionStore(tmp_path), f"s{number}"))
                assert count >= seen[number], "a reader sees a session grow"
                seen[number] = count
            assert len(store.infos()[0]) == 8
            time.sleep(0.002)

    reader = threading.Thread(target=together, args=(read,))
    reader.start()
    together(*[lambda thread=thread: work(thread) for thread in range(32)])
    stop.set()
    reader.join(60)
    for number in range(8):
        data = loaded(store, f"s{number}")
        assert data.revision == 4 * rounds + 1
        assert sorted(texts(data)) == sorted(f"{t}-{n}" for t in range(number, 32, 8) for n in range(rounds))
        assert plain_state(tmp_path, f"s{number}") == state(data)
    store.close()
    assert not list(tmp_path.glob("*.lock"))

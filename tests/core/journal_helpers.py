"""What the tests of journal mode share: what lies on the disk, and another process with sessions open.

Run as a program it is that other process: a store on the directory of its first argument, told line by line what to do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from core_helpers import loaded, session, text, texts, tree

from perdure import FileSessionStore, PerdureError, PythonFileSessionStore, SessionCorruptError, SessionData

sys.path.insert(0, str(Path(__file__).parent.parent / "stores"))

from plain_helpers import crc32c, header, sealed, snapshot_bytes, step

__all__ = [
    "HISTORY", "SAVES", "Other", "closed_session", "crc32c", "goes_on", "header", "journal_store", "lines", "other",
    "plain_state", "refused", "reopened", "sealed", "size", "snapshot_bytes", "state", "step", "stripped",
]  # fmt: skip

NEWLINE = b"\n"


def journal_store(directory: Path | str, **options: Any) -> FileSessionStore:
    return FileSessionStore(directory, journal=True, **options)


def reopened(store: FileSessionStore) -> FileSessionStore:
    """What a process that comes later has; the pure-Python store reads the same by then."""
    store.close()
    return journal_store(store.path)


def size(directory: Path, name: str = "s.journal") -> int:
    """Length of a file, 0 if it is not there."""
    path = directory / name
    return path.stat().st_size if path.exists() else 0


def lines(directory: Path, id: str = "s") -> list[dict[str, Any]]:
    """The lines of a journal, the header first."""
    path = directory / f"{id}.journal"
    raw = path.read_bytes() if path.exists() else b""
    assert raw.endswith(NEWLINE) or not raw
    return [json.loads(line) for line in raw.splitlines()]


def state(data: SessionData | None) -> dict[str, Any]:
    """Everything that a session is, but for what describes the bytes of a snapshot."""
    assert data is not None
    return stripped(data.to_dict())


def plain_state(directory: Path | str, id: str = "s") -> dict[str, Any]:
    """The same, read by the pure-Python store."""
    found = PythonFileSessionStore(directory).load_dict(id)
    assert found is not None
    return stripped(dict(found))


def stripped(session: dict[str, Any]) -> dict[str, Any]:
    perdure = {k: v for k, v in session["perdure"].items() if k not in ("messages_bytes", "crc32c")}
    head = {key: value for key, value in session.items() if key not in ("perdure", "messages")}
    return {**head, "perdure": dict(sorted(perdure.items())), "messages": list(session["messages"])}


# --- sessions at rest, and what is found when they are damaged

SAVES = 4
HISTORY = [f"message {number} " + "x" * 20 for number in range(SAVES + 3)]


def closed_session(directory: Path, id: str = "s", saves: int = SAVES, **options: Any) -> list[int]:
    """A closed session of a snapshot and some lines; the journal's length after each of them, the header's first."""
    store = journal_store(directory, **options)
    # Long enough for the lines to stay at the end.
    data = SessionData(id, messages=[text(HISTORY[0]), text(HISTORY[1])], own="o" * 8000)
    store.save(data)
    ends = []
    for number in range(saves):
        data.append(text(HISTORY[2 + number]))
        store.save(data)
        ends.append(size(directory, f"{id}.journal"))
    store.close()
    assert sorted(path.name for path in directory.iterdir() if path.name.startswith(id)) == [
        f"{id}.journal", f"{id}.json",
    ]  # fmt: skip
    raw = (directory / f"{id}.journal").read_bytes()
    return [raw.index(b"\n") + 1, *ends]


def refused(directory: Path, id: str = "s") -> str:
    """Everything says that the session is damaged, and nothing changes a byte; gives what is said."""
    before = tree(directory)
    store = journal_store(directory)
    with pytest.raises(SessionCorruptError) as caught:
        store.load(id)
    for attempt in (
        lambda: store.save(session(id, "new")),
        lambda: store.save(session(id, "new"), create=True),
        lambda: store.save(session(id, "new"), force=True),
        lambda: store.checkpoint(id),
        lambda: store.delete(id),
        lambda: FileSessionStore(directory).save(session(id, "new"), force=True),
    ):
        with pytest.raises(SessionCorruptError):
            attempt()
    assert store.exists(id), "damaged is not gone"
    store.close()
    assert tree(directory) == before
    assert caught.value.path in {str(directory / f"{id}.json"), str(directory / f"{id}.journal")}
    assert str(directory / f"{id}.json") in str(caught.value) or str(directory / f"{id}.journal") in str(caught.value)
    return str(caught.value)


def goes_on(directory: Path, expected: list[str]) -> None:
    """The session is what is expected, and can be gone on with; both stores agree before and after."""
    store = journal_store(directory)
    data = loaded(store)
    assert texts(data) == expected
    assert state(data) == plain_state(directory)
    data.append(text("more"))
    store.save(data)
    assert texts(loaded(store)) == [*expected, "more"]
    assert state(loaded(store)) == plain_state(directory)
    store.checkpoint("s")
    store.close()
    assert (directory / "s.json").read_bytes() == data.to_json()


# --- another process


class Other:
    """Another process with a journal-mode store."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid

    def say(self, command: str, *arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the other process ended with {self._process.wait()}"
        return json.loads(line)

    def do(self, command: str, *arguments: Any) -> Any:
        """What came of it: a revision, texts or None; the error's class name and attributes as a dict."""
        self.say(command, *arguments)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def other(directory: Path, **options: Any) -> Iterator[Other]:
    arguments = [str(directory), json.dumps({"journal": True, **options})]
    with subprocess.Popen(
        [sys.executable, __file__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        there = Other(process)
        try:
            assert there.answer() == "ready"
            yield there
        finally:
            process.kill()


def serve(store: FileSessionStore) -> None:
    """Does what the lines on standard input say."""
    sessions: dict[str, SessionData] = {}

    def append(id: str, *contents: str) -> int:
        sessions.setdefault(id, SessionData(id)).append(*map(text, contents))
        return store.save(sessions[id]).revision

    def load(id: str) -> list[str]:
        sessions[id] = loaded(store, id)
        return texts(sessions[id])

    commands: dict[str, Any] = {
        "append": append,
        "load": load,
        "texts": lambda id: texts(store.load(id)),
        "release": lambda id: store.release(sessions[id]),
        "checkpoint": lambda id: store.checkpoint(id).revision,
        "delete": store.delete,
        "close": store.close,
    }
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = commands[command](*arguments)
        except PerdureError as error:
            attributes = {name: getattr(error, name, None) for name in ("session_id", "pid", "host", "found")}
            answer = {"error": type(error).__name__, **attributes}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(FileSessionStore(os.fspath(sys.argv[1]), **json.loads(sys.argv[2])))

"""What is measured: one save of a session of N messages, by several writers, and the floor under all of them.

Each contender owns a directory and a session of N messages, and offers `change()` (not timed) and `save()` (timed).
"""

# Plain calls of the system on plain strings: pathlib would be part of what is measured.
# ruff: noqa: PTH104

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

import orjson

from perdure import FileSessionStore, PythonFileSessionStore, SessionData
from perdure.stores.python_file import new_session_dict

NEW_MESSAGES = 2  # a turn: a prompt and a reply

# About 1 KiB as JSON: escapes, newlines, non-ASCII, as source code and chat have them.
_TEXT = (
    'Please refactor `auth.py`:\n\tdef login(user, password):\n\t\treturn check("x\\y", user)\n'
    "Grüße aus München – naïve café, 日本語のテキスト, emoji 🚀.\r\n"
)


def message(number: int) -> dict[str, Any]:
    """A message of about 1 KiB; no two are equal."""
    text = f"{number}: " + _TEXT * 5
    return {"role": "user" if number % 2 == 0 else "assistant", "content": [{"type": "text", "text": text}]}


class Contender(Protocol):
    """One way to save a session."""

    def cut(self, count: int) -> None:
        """Back to the first `count` messages, stored so."""

    def change(self) -> None:
        """A turn: two more messages."""

    def save(self) -> None:
        """Makes the session durable."""


class Perdure:
    """`FileSessionStore.save` of a `SessionData`."""

    def __init__(self, directory: Path, count: int) -> None:
        self.store = FileSessionStore(directory)
        self.data = SessionData("bench", messages=[message(n) for n in range(count)])
        self.store.save(self.data)

    def cut(self, count: int) -> None:
        self.data.truncate(count)
        self.store.save(self.data)

    def change(self) -> None:
        at = len(self.data)
        self.data.append(*(message(at + n) for n in range(NEW_MESSAGES)))

    def save(self) -> None:
        self.store.save(self.data)


class PerdureWithAppend(Perdure):
    """The same with `append`, the encoding of the two messages, inside of the measured time."""

    def change(self) -> None:
        at = len(self.data)
        self.new = [message(at + n) for n in range(NEW_MESSAGES)]

    def save(self) -> None:
        self.data.append(*self.new)
        self.store.save(self.data)


class PurePython:
    """`PythonFileSessionStore.save_dict`: `json.dumps` of every message at every save, the same file format."""

    def __init__(self, directory: Path, count: int) -> None:
        self.store = PythonFileSessionStore(directory)
        self.session = new_session_dict("bench")
        self.session["messages"] = [message(n) for n in range(count)]
        self.store.save_dict(self.session)

    def cut(self, count: int) -> None:
        del self.session["messages"][count:]
        self.store.save_dict(self.session)

    def change(self) -> None:
        messages = self.session["messages"]
        messages.extend([message(len(messages) + n) for n in range(NEW_MESSAGES)])

    def save(self) -> None:
        self.store.save_dict(self.session)


def write_durably(directory: str, name: str, pieces: list[bytes]) -> None:
    """Temp file, write, fsync, rename, fsync of the directory: what any durable whole-file save has to do."""
    temp = f"{directory}/.{name}.tmp"
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        left = list(pieces)
        while left:
            count = os.writev(fd, left[: os.sysconf("SC_IOV_MAX")])
            while left and count >= len(left[0]):
                count -= len(left.pop(0))
            if left:
                left[0] = left[0][count:]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temp, f"{directory}/{name}")
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Plain:
    def __init__(self, directory: Path, count: int) -> None:
        directory.mkdir()
        self.directory = str(directory)
        self.session = new_session_dict("bench")
        self.session["messages"] = [message(n) for n in range(count)]

    def cut(self, count: int) -> None:
        del self.session["messages"][count:]
        self.save()

    def save(self) -> None:
        raise NotImplementedError

    def change(self) -> None:
        messages = self.session["messages"]
        messages.extend([message(len(messages) + n) for n in range(NEW_MESSAGES)])


class Json(_Plain):
    """`json.dumps` of the whole session, written durably. No lock, no checksum, no look at what is stored."""

    def save(self) -> None:
        raw = json.dumps(self.session, ensure_ascii=False).encode("utf-8", "surrogatepass")
        write_durably(self.directory, "bench.json", [raw])


class Orjson(_Plain):
    """The same with `orjson`."""

    def save(self) -> None:
        write_durably(self.directory, "bench.json", [orjson.dumps(self.session)])


class Floor:
    """The raw calls on ready bytes: those that `Perdure` writes at the same point of its life."""

    def __init__(self, directory: Path, count: int) -> None:
        directory.mkdir()
        self.directory = str(directory)
        self.data = SessionData("bench", messages=[message(n) for n in range(count)])
        self.raw = self.data.to_json()

    def cut(self, count: int) -> None:
        self.data.truncate(count)
        self.raw = self.data.to_json()
        self.save()

    def change(self) -> None:
        at = len(self.data)
        self.data.append(*(message(at + n) for n in range(NEW_MESSAGES)))
        self.raw = self.data.to_json()

    def save(self) -> None:
        write_durably(self.directory, "bench.json", [self.raw])


CONTENDERS: dict[str, type[Contender]] = {
    "floor": Floor,
    "FileSessionStore": Perdure,
    "append + FileSessionStore": PerdureWithAppend,
    "orjson": Orjson,
    "json": Json,
    "PythonFileSessionStore": PurePython,
}

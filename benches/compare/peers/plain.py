"""Plain writers, and the floor under all: what a program does that uses no store at all."""

# Plain calls of the system on plain strings: pathlib would be part of what is measured.
# ruff: noqa: PTH104, PTH123

from __future__ import annotations

import json
import os
from abc import abstractmethod
from pathlib import Path
from typing import Any

from compare.peers.base import Message, Peer, Session


def _write_all(fd: int, raw: bytes) -> None:
    left = memoryview(raw)
    while left:
        left = left[os.write(fd, left) :]


def _lines(messages: list[Message]) -> bytes:
    return b"".join(json.dumps(item, ensure_ascii=False).encode() + b"\n" for item in messages)


class LineSession(Session):
    """A file of JSON lines, open for appending."""

    def __init__(self, path: Path, messages: list[Message]) -> None:
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        _write_all(self.fd, _lines(messages))
        os.fsync(self.fd)
        _sync_directory(str(path.parent))

    def save(self, turn: list[Message]) -> None:
        _write_all(self.fd, _lines(turn))
        os.fdatasync(self.fd)

    def stored(self) -> int:
        return len([json.loads(line) for line in self.path.read_bytes().splitlines()])

    def close(self) -> None:
        os.close(self.fd)


class FloorSession(LineSession):
    """The same with bytes that are ready: nothing durable can do less."""

    def prepare(self, messages: list[Message]) -> bytes:
        return _lines(messages)

    def save(self, turn: bytes) -> None:  # type: ignore[override]
        os.write(self.fd, turn)
        os.fdatasync(self.fd)


class _Lines(Peer):
    kind: type[LineSession]

    def open(self, name: str, messages: list[Message]) -> LineSession:
        return self.kind(self.directory / f"{name}.jsonl", messages)


class Jsonl(_Lines):
    kind = LineSession


class Floor(_Lines):
    kind = FloorSession


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class FileSession(Session):
    """The whole session as one JSON file, replaced durably at every turn."""

    def __init__(self, peer: WholeFile, name: str, messages: list[Message]) -> None:
        self.peer = peer
        self.directory = str(peer.directory)
        self.path, self.temp = f"{self.directory}/{name}.json", f"{self.directory}/.{name}.json.tmp"
        self.session: dict[str, Any] = {"id": name, "messages": []}
        self.save(messages)

    def save(self, turn: list[Message]) -> None:
        self.session["messages"].extend(turn)
        raw = self.peer.dumps(self.session)
        fd = os.open(self.temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, raw)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(self.temp, self.path)
        _sync_directory(self.directory)

    def stored(self) -> int:
        with open(self.path, "rb") as file:
            return len(json.load(file)["messages"])


class WholeFile(Peer):
    @abstractmethod
    def dumps(self, session: dict[str, Any]) -> bytes: ...

    def open(self, name: str, messages: list[Message]) -> FileSession:
        return FileSession(self, name, messages)


class Json(WholeFile):
    def dumps(self, session: dict[str, Any]) -> bytes:
        return json.dumps(session, ensure_ascii=False).encode()


class Orjson(WholeFile):
    packages = ("orjson",)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        import orjson

        self._dumps = orjson.dumps

    def dumps(self, session: dict[str, Any]) -> bytes:
        return self._dumps(session)


class Msgspec(WholeFile):
    packages = ("msgspec",)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        import msgspec

        self._encode = msgspec.json.Encoder().encode

    def dumps(self, session: dict[str, Any]) -> bytes:
        return self._encode(session)

"""Perdure itself: sessions in snapshot mode and in journal mode, and the store in pure Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compare.peers.base import Message, Peer, Session
from perdure import Agent, FileSessionStore, PythonFileSessionStore, SessionOptions
from perdure.stores.python_file import new_session_dict


class PerdureSession(Session):
    """`Session.append` and `Session.save`, as a program uses them: the encoding is timed too."""

    def __init__(self, peer: Perdure, name: str, messages: list[Message]) -> None:
        self.peer, self.name = peer, name
        options = SessionOptions(session_store=peer.store, session_id=name)
        self.session = peer.agent.session(str(peer.directory), options)
        self.session.append(*messages)
        self.session.save()

    def save(self, turn: list[Message]) -> None:
        self.session.append(*turn)
        self.session.save()

    def stored(self) -> int:
        data = FileSessionStore(self.peer.directory, **self.peer.arguments).load(self.name)
        return len(data) if data is not None else 0

    def close(self) -> None:
        self.session.close()


class Perdure(Peer):
    packages = ("perdure",)
    arguments: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.store = FileSessionStore(directory, **self.arguments)
        self.agent = Agent.create("{}")

    def open(self, name: str, messages: list[Message]) -> PerdureSession:
        return PerdureSession(self, name, messages)

    def facts(self) -> dict[str, Any]:
        return {"durability": self.store.durability, **self.arguments}


class PerdureJournal(Perdure):
    arguments = {"journal": True}  # noqa: RUF012


class PlainSession(Session):
    def __init__(self, peer: PerdurePython, name: str, messages: list[Message]) -> None:
        self.peer, self.name = peer, name
        self.session = new_session_dict(name)
        self.save(messages)

    def save(self, turn: list[Message]) -> None:
        self.session["messages"].extend(turn)
        self.peer.store.save_dict(self.session)

    def stored(self) -> int:
        data = FileSessionStore(self.peer.directory).load(self.name)
        return len(data) if data is not None else 0


class PerdurePython(Peer):
    packages = ("perdure",)

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.store = PythonFileSessionStore(directory)

    def open(self, name: str, messages: list[Message]) -> PlainSession:
        return PlainSession(self, name, messages)

"""OpenAI Agents SDK: `SQLiteSession` on a file. Its methods are async and run the database in threads."""

from __future__ import annotations

from typing import Any

from agents import SQLiteSession

from compare.peers.base import Message, Peer, Session, pragmas


class OpenAiSession(Session):
    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        self.session = SQLiteSession(name, path)

    async def save(self, turn: list[Message]) -> None:
        await self.session.add_items(turn)  # type: ignore[arg-type]

    async def stored(self) -> int:
        reader = SQLiteSession(self.name, self.path)
        try:
            return len(await reader.get_items())
        finally:
            reader.close()

    def close(self) -> None:
        self.session.close()


class OpenAiAgents(Peer):
    packages = ("openai-agents",)

    @property
    def _path(self) -> str:
        return str(self.directory / "sessions.db")

    async def open(self, name: str, messages: list[Message]) -> OpenAiSession:
        session = OpenAiSession(self._path, name)
        await session.save(messages)
        return session

    def facts(self) -> dict[str, Any]:
        session = SQLiteSession("facts", self._path)
        try:
            return pragmas(session._get_connection())
        finally:
            session.close()

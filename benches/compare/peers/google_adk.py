"""Google ADK: `DatabaseSessionService` on a SQLite file, through aiosqlite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService
from google.genai import types

from compare.peers.base import Message, Peer, Session, engine_pragmas
from compare.workload import text

OWNER = {"app_name": "bench", "user_id": "bench"}


class AdkSession(Session):
    def __init__(self, peer: GoogleAdk, name: str, session: Any) -> None:
        self.peer, self.name, self.session = peer, name, session

    def prepare(self, messages: list[Message]) -> list[Event]:
        made = []
        for item in messages:
            role = "user" if item["role"] == "user" else "model"
            content = types.Content(role=role, parts=[types.Part(text=text(item))])
            made.append(Event(author="user" if role == "user" else "bench", invocation_id="i", content=content))
        return made

    async def save(self, turn: list[Event]) -> None:
        for event in turn:
            await self.peer.service.append_event(self.session, event)

    async def stored(self) -> int:
        reader = DatabaseSessionService(self.peer.url)
        try:
            found = await reader.get_session(**OWNER, session_id=self.name)
            return len(found.events) if found else 0
        finally:
            await reader.close()


class GoogleAdk(Peer):
    packages = ("google-adk", "SQLAlchemy", "aiosqlite")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.url = f"sqlite+aiosqlite:///{directory / 'sessions.db'}"
        self.service = DatabaseSessionService(self.url)

    async def open(self, name: str, messages: list[Message]) -> AdkSession:
        made = AdkSession(self, name, await self.service.create_session(**OWNER, session_id=name))
        await made.save(made.prepare(messages))
        return made

    async def facts(self) -> dict[str, Any]:
        return await engine_pragmas(self.service.db_engine)

    async def close(self) -> None:
        await self.service.close()

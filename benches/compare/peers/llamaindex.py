"""LlamaIndex: `SimpleChatStore.persist`, one file a session, and `SQLAlchemyChatStore` on SQLite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.storage.chat_store import SimpleChatStore

from compare.peers.base import Message, Peer, Session, engine_pragmas
from compare.workload import text


def _own(message: Message) -> ChatMessage:
    return ChatMessage(role=message["role"], content=text(message))


class SimpleSession(Session):
    def __init__(self, path: str, messages: list[Message]) -> None:
        self.path = path
        self.store = SimpleChatStore()
        self.store.set_messages("chat", [_own(item) for item in messages])
        self.store.persist(path)

    def prepare(self, messages: list[Message]) -> list[ChatMessage]:
        return [_own(item) for item in messages]

    def save(self, turn: list[ChatMessage]) -> None:
        for item in turn:
            self.store.add_message("chat", item)
        self.store.persist(self.path)

    def stored(self) -> int:
        return len(SimpleChatStore.from_persist_path(self.path).get_messages("chat"))


class LlamaIndex(Peer):
    packages = ("llama-index-core", "pydantic")

    def open(self, name: str, messages: list[Message]) -> SimpleSession:
        return SimpleSession(str(self.directory / f"{name}.json"), messages)


class SqlSession(Session):
    def __init__(self, peer: LlamaIndexSql, name: str) -> None:
        self.peer, self.name = peer, name

    def prepare(self, messages: list[Message]) -> list[ChatMessage]:
        return [_own(item) for item in messages]

    async def save(self, turn: list[ChatMessage]) -> None:
        await self.peer.store.add_messages(self.name, turn)

    async def stored(self) -> int:
        reader = self.peer.make()
        try:
            return await reader.count_messages(self.name)
        finally:
            await reader._async_engine.dispose()


class LlamaIndexSql(Peer):
    packages = ("llama-index-core", "SQLAlchemy", "aiosqlite")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.store = self.make()

    def make(self) -> Any:
        from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore

        return SQLAlchemyChatStore("chat", f"sqlite+aiosqlite:///{self.directory / 'chat.db'}")

    async def open(self, name: str, messages: list[Message]) -> SqlSession:
        session = SqlSession(self, name)
        # A statement has a limited number of variables.
        for at in range(0, len(messages), 1_000):
            await session.save(session.prepare(messages[at : at + 1_000]))
        return session

    async def facts(self) -> dict[str, Any]:
        await self.store.count_messages("facts")
        return await engine_pragmas(self.store._async_engine)

    async def close(self) -> None:
        if self.store._async_engine is not None:
            await self.store._async_engine.dispose()

"""Strands Agents: `FileSessionManager`, called as an agent's hooks call it. No model is asked."""

from __future__ import annotations

from typing import Any

from strands import Agent
from strands.agent.conversation_manager import NullConversationManager
from strands.models import Model
from strands.session.file_session_manager import FileSessionManager

from compare.peers.base import Message, Peer, Session
from compare.workload import text


class NoModel(Model):
    """An agent needs one; these sessions never ask it."""

    def update_config(self, **_: Any) -> None:
        return None

    def get_config(self) -> Any:
        return {}

    def structured_output(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def stream(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def _own(message: Message) -> Any:
    return {"role": message["role"], "content": [{"text": text(message)}]}


class StrandsSession(Session):
    def __init__(self, directory: str, name: str, messages: list[Message]) -> None:
        self.directory, self.name = directory, name
        self.manager = FileSessionManager(name, storage_dir=directory)
        self.agent = Agent(
            model=NoModel(),
            agent_id="bench",
            messages=[_own(item) for item in messages],
            session_manager=self.manager,
            conversation_manager=NullConversationManager(),
            callback_handler=None,
        )

    def prepare(self, messages: list[Message]) -> list[Any]:
        return [_own(item) for item in messages]

    def save(self, turn: list[Any]) -> None:
        for item in turn:
            self.agent.messages.append(item)
            self.manager.append_message(item, self.agent)
            self.manager.sync_agent(self.agent)
        self.manager.sync_agent(self.agent)

    def stored(self) -> int:
        return len(FileSessionManager(self.name, storage_dir=self.directory).list_messages(self.name, "bench"))


class StrandsAgents(Peer):
    packages = ("strands-agents",)

    def open(self, name: str, messages: list[Message]) -> StrandsSession:
        return StrandsSession(str(self.directory), name, messages)

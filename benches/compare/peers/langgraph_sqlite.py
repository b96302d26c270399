"""LangGraph with `SqliteSaver`: a graph of one node that answers with a ready message, and the saver alone."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Annotated, Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from typing_extensions import TypedDict

from compare.peers.base import Message, Peer, Session, pragmas
from compare.workload import text


def _own(message: Message) -> AnyMessage:
    kind = HumanMessage if message["role"] == "user" else AIMessage
    return kind(content=text(message))


class GraphSession(Session):
    """A turn is `invoke`: the graph loads the thread, runs its node, and stores a checkpoint for each step."""

    def __init__(self, peer: LangGraph, name: str, messages: list[Message]) -> None:
        self.peer, self.name = peer, name
        self.thread = {"configurable": {"thread_id": name}}
        self._invoke([_own(item) for item in messages])

    def _invoke(self, turn: list[AnyMessage]) -> None:
        self.peer.replies[self.name] = turn[-1]
        self.peer.graph.invoke({"messages": turn[:-1]}, self.thread)

    def prepare(self, messages: list[Message]) -> list[AnyMessage]:
        return [_own(item) for item in messages]

    def save(self, turn: list[AnyMessage]) -> None:
        self._invoke(turn)

    def stored(self) -> int:
        connection = sqlite3.connect(self.peer.path)
        try:
            graph = self.peer.build(SqliteSaver(connection))
            return len(graph.get_state(self.thread).values["messages"])
        finally:
            connection.close()


class LangGraph(Peer):
    packages = ("langgraph", "langgraph-checkpoint", "langgraph-checkpoint-sqlite")
    state: Any = MessagesState

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.path = str(directory / "checkpoints.db")
        self.replies: dict[str, AnyMessage] = {}
        self.connection = sqlite3.connect(self.path, check_same_thread=False)
        self.saver = SqliteSaver(self.connection)
        self.saver.setup()
        self.graph = self.build(self.saver)

    def build(self, saver: SqliteSaver) -> Any:
        def reply(state: Any, config: RunnableConfig) -> dict[str, Any]:
            return {"messages": [self.replies[config["configurable"]["thread_id"]]]}

        graph = StateGraph(self.state)
        graph.add_node("reply", reply)
        graph.add_edge(START, "reply")
        graph.add_edge("reply", END)
        return graph.compile(checkpointer=saver)

    def open(self, name: str, messages: list[Message]) -> Any:
        return GraphSession(self, name, messages)

    def facts(self) -> dict[str, Any]:
        return pragmas(self.connection)

    def close(self) -> None:
        self.connection.close()


class LangGraphDelta(LangGraph):
    """The same with delta channels, which store the writes, and a snapshot at every hundredth."""

    def __init__(self, directory: Path) -> None:
        from langgraph.channels import DeltaChannel
        from langgraph.graph.message import _messages_delta_reducer

        # Functional form: in a class body, postponed annotations would hide the channel.
        self.state = TypedDict("State", {"messages": Annotated[list, DeltaChannel(_messages_delta_reducer)]})
        super().__init__(directory)


class SaverSession(Session):
    """One `put` of a checkpoint with all messages: what the saver costs without the graph around it."""

    def __init__(self, peer: LangGraphPut, name: str, messages: list[Message]) -> None:
        self.peer = peer
        self.config: Any = {"configurable": {"thread_id": name, "checkpoint_ns": ""}}
        self.messages: list[AnyMessage] = []
        self.step = 0
        self.save([_own(item) for item in messages])

    def prepare(self, messages: list[Message]) -> list[AnyMessage]:
        return [_own(item) for item in messages]

    def save(self, turn: list[AnyMessage]) -> None:
        self.messages.extend(turn)
        self.step += 1
        saver = self.peer.saver
        version = f"{self.step:032}.0"
        checkpoint = empty_checkpoint()
        checkpoint["channel_values"] = {"messages": self.messages}
        checkpoint["channel_versions"] = {"messages": version}
        metadata: Any = {"source": "loop", "step": self.step, "parents": {}}
        self.config = saver.put(self.config, checkpoint, metadata, {"messages": version})

    def stored(self) -> int:
        connection = sqlite3.connect(self.peer.path)
        try:
            latest = SqliteSaver(connection).get_tuple(
                {"configurable": {"thread_id": self.config["configurable"]["thread_id"], "checkpoint_ns": ""}}
            )
            return len(latest.checkpoint["channel_values"]["messages"]) if latest else 0
        finally:
            connection.close()


class LangGraphPut(LangGraph):
    def open(self, name: str, messages: list[Message]) -> SaverSession:
        return SaverSession(self, name, messages)

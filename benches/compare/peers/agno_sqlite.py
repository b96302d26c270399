"""Agno: `SqliteDb`, called as an agent calls it at the end of a run: the session's row, then the run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agno.db.base import SessionType
from agno.db.sqlite import SqliteDb
from agno.models.message import Message as OwnMessage
from agno.run.agent import RunOutput
from agno.session import AgentSession

from compare.peers.base import Message, Peer, Session, pragmas
from compare.workload import text


class AgnoSession(Session):
    def __init__(self, peer: Agno, name: str) -> None:
        self.peer, self.name = peer, name
        self.session = AgentSession(session_id=name, agent_id="bench", session_data={"session_state": {}}, runs=[])
        self.runs = 0

    def prepare(self, messages: list[Message]) -> RunOutput:
        self.runs += 1
        return RunOutput(
            run_id=f"{self.name}-{self.runs}",
            session_id=self.name,
            agent_id="bench",
            messages=[OwnMessage(role=item["role"], content=text(item)) for item in messages],
        )

    def save(self, turn: RunOutput) -> None:
        runs = self.session.runs
        assert runs is not None
        runs.append(turn)
        self.peer.db.upsert_session(self.session)
        self.peer.db.upsert_run(turn, session_id=self.name, run_index=len(runs) - 1)

    def stored(self) -> int:
        found: Any = SqliteDb(db_file=self.peer.path).get_session(self.name, SessionType.AGENT)
        return sum(len(run.messages) for run in found.runs) if found else 0


class Agno(Peer):
    packages = ("agno", "SQLAlchemy")

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.path = str(directory / "agno.db")
        self.db = SqliteDb(db_file=self.path)

    def open(self, name: str, messages: list[Message]) -> AgnoSession:
        session = AgnoSession(self, name)
        # A run is a prompt and its reply.
        for at in range(0, len(messages), 2):
            session.save(session.prepare(messages[at : at + 2]))
        return session

    def facts(self) -> dict[str, Any]:
        with self.db.db_engine.connect() as connection:
            return pragmas(connection.connection.driver_connection)  # type: ignore[arg-type]

    def close(self) -> None:
        self.db.close()

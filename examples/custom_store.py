"""Sessions in a place of your own: five methods, no base class. This one keeps them in one SQLite file."""

from __future__ import annotations

import sqlite3

from perdure import Agent, SessionData, SessionOptions


class SqliteSessions:
    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, json BLOB NOT NULL)")

    def save(self, data: SessionData) -> None:
        self._db.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?)", (data.id, data.to_json()))

    def load(self, id: str) -> SessionData | None:
        row = self._db.execute("SELECT json FROM sessions WHERE id = ?", (id,)).fetchone()
        return SessionData.from_json(row[0]) if row else None

    def delete(self, id: str) -> bool:
        return self._db.execute("DELETE FROM sessions WHERE id = ?", (id,)).rowcount > 0

    def list(self) -> list[str]:
        return [id for (id,) in self._db.execute("SELECT id FROM sessions ORDER BY id")]

    def exists(self, id: str) -> bool:
        return self._db.execute("SELECT 1 FROM sessions WHERE id = ?", (id,)).fetchone() is not None


agent = Agent.create('default_model = "local/smollm2"')
options = SessionOptions(session_store=SqliteSessions("sessions.db"), session_id="mine", auto_save=True, resume=True)
with agent.session(".", options) as session:
    session.append({"role": "user", "content": "Remember the milk."})  # saved when it returns; needs no model

print(f"{agent.list_sessions(options)}: {len(agent.resume_session('mine', options).history())} messages")

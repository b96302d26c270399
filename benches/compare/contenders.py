"""Who takes part: where each contender's code and environment are, and what its timed call does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    name: str
    title: str
    module: str
    kind: str
    timed: str
    # Name of requirements/<environment>.txt; none: the interpreter that runs this.
    environment: str | None = None


_OWN = "compare.peers.own"
_PLAIN = "compare.peers.plain"
_LANGGRAPH = "compare.peers.langgraph_sqlite"
_LLAMAINDEX = "compare.peers.llamaindex"

_ALL = [
    Contender("floor", "floor", _PLAIN, "Floor", "one write and fdatasync of ready bytes, at the end of an open file"),
    Contender("perdure", "perdure", _OWN, "Perdure", "`session.append(*messages)`, `session.save()`"),
    Contender("journal", "perdure, journal mode", _OWN, "PerdureJournal", "the same, `journal=True`"),
    Contender("python", "PythonFileSessionStore", _OWN, "PerdurePython", "`store.save_dict(session)`"),
    Contender("jsonl", "JSON lines", _PLAIN, "Jsonl", "`json.dumps` of the messages, write, fdatasync"),
    Contender("json", "json", _PLAIN, "Json", "`json.dumps` of the session; temp file, fsync, rename, directory fsync"),
    Contender("orjson", "orjson", _PLAIN, "Orjson", "the same with `orjson.dumps`", "orjson"),
    Contender("msgspec", "msgspec", _PLAIN, "Msgspec", "the same with `msgspec.json.Encoder`", "msgspec"),
    Contender(
        "openai",
        "OpenAI Agents `SQLiteSession`",
        "compare.peers.openai_agents",
        "OpenAiAgents",
        "`await session.add_items(messages)`",
        "openai",
    ),
    Contender(
        "langgraph",
        "LangGraph `SqliteSaver`",
        _LANGGRAPH,
        "LangGraph",
        "`graph.invoke(prompt)` of a graph of one node with a ready reply: load, run, checkpoints",
        "langgraph",
    ),
    Contender(
        "langgraph-delta",
        "LangGraph, delta channel",
        _LANGGRAPH,
        "LangGraphDelta",
        "the same with `DeltaChannel` for the messages",
        "langgraph",
    ),
    Contender(
        "langgraph-put",
        "LangGraph `SqliteSaver.put`",
        _LANGGRAPH,
        "LangGraphPut",
        "`saver.put` of one checkpoint, no graph around it",
        "langgraph",
    ),
    Contender(
        "adk",
        "Google ADK `DatabaseSessionService`",
        "compare.peers.google_adk",
        "GoogleAdk",
        "`await service.append_event(session, event)`, twice",
        "adk",
    ),
    Contender(
        "strands",
        "Strands `FileSessionManager`",
        "compare.peers.strands_agents",
        "StrandsAgents",
        "`manager.append_message`, `manager.sync_agent` for each message, `manager.sync_agent` at the end of the turn",
        "strands",
    ),
    Contender(
        "agno",
        "Agno `SqliteDb`",
        "compare.peers.agno_sqlite",
        "Agno",
        "`db.upsert_session(session)`, `db.upsert_run(run)`, as at the end of an agent's run",
        "agno",
    ),
    Contender(
        "llamaindex",
        "LlamaIndex `SimpleChatStore`",
        _LLAMAINDEX,
        "LlamaIndex",
        "`store.add_message`, twice, and `store.persist(path)`",
        "llamaindex",
    ),
    Contender(
        "llamaindex-sql",
        "LlamaIndex `SQLAlchemyChatStore`",
        _LLAMAINDEX,
        "LlamaIndexSql",
        "`await store.add_messages(key, messages)` on SQLite",
        "llamaindex",
    ),
    Contender("a3s", "A3S Code", "compare.peers.a3s_code", "A3sCode", "`session.save()`", "a3s"),
]

CONTENDERS = {contender.name: contender for contender in _ALL}

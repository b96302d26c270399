"""What the tests of sessions share: a scripted model server, an agent that asks it, an api key to look for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import Agent, AsyncAgent, PerdureError, Session
from perdure.config import AgentConfig, load_config
from turn.scripted import ScriptedServer

KEY = "sk-Canary-1f2e3d4c5b6a7988"
"""The api key of every test. It must turn up in requests and nowhere else."""


def hcl(server: ScriptedServer | None = None, extra: str = "", *, provider: str = "openai") -> str:
    """An agent.hcl whose default model is the scripted server."""
    url = "http://127.0.0.1:9" if server is None else server.url if provider == "anthropic" else server.openai_url
    return f"""
        default_model = "{provider}/m-1"
        {extra}
        providers {{
          name = "{provider}"
          api_key = "{KEY}"
          base_url = "{url}"
          models {{
            id = "m-1"
          }}
          models {{
            id = "m-2"
          }}
        }}
    """


def text(prompt: str, role: str = "user") -> dict[str, Any]:
    """A message of one text block, as a test writes it."""
    return {"role": role, "content": [{"type": "text", "text": prompt}]}


def texts(messages: Any) -> list[str]:
    """What a history says, message by message, as a person would note it down."""
    said = []
    for message in messages:
        for block in message["content"]:
            kind = block["type"]
            shown = {"text": block.get("text"), "tool_use": f"call {block.get('id')}"}.get(kind)
            said.append(shown if shown is not None else f"result {block.get('tool_use_id')}")
    return said


def stored(directory: Path, id: str = "s") -> list[str]:
    """What is on disk at this moment, snapshot and journal together, read without perdure."""
    snapshot, journal = directory / f"{id}.json", directory / f"{id}.journal"
    messages = json.loads(snapshot.read_bytes())["messages"] if snapshot.exists() else []
    for line in journal.read_bytes().splitlines()[1:] if journal.exists() else ():
        step = json.loads(line)
        messages[step["from"] :] = step["messages"]
    return texts(messages)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as running:
        yield running
    assert not running.left, "the test scripted replies that nobody asked for"


class ClosingAgent(Agent):
    """Closes its sessions when the test is over, so that no connection outlives it."""

    def __init__(self, config: AgentConfig) -> None:
        super().__init__(config)
        self.opened: list[Session] = []

    def session(self, *args: Any, **kwargs: Any) -> Session:
        self.opened.append(super().session(*args, **kwargs))
        return self.opened[-1]

    def resume_session(self, *args: Any, **kwargs: Any) -> Session:
        self.opened.append(super().resume_session(*args, **kwargs))
        return self.opened[-1]

    resume = resume_session

    def close(self) -> None:
        for session in self.opened:
            with contextlib.suppress(PerdureError):
                session.close()


@pytest.fixture
def make_agent() -> Iterator[Callable[[str], Agent]]:
    """Makes agents from HCL text."""
    agents: list[ClosingAgent] = []

    def make(config: str) -> Agent:
        agents.append(ClosingAgent(load_config(config)))
        return agents[-1]

    yield make
    for agent in agents:
        agent.close()


@pytest.fixture
def agent(server: ScriptedServer, make_agent: Callable[[str], Agent]) -> Agent:
    """Asks the scripted server, and has no store of its own."""
    return make_agent(hcl(server))


@pytest.fixture
def async_agent(server: ScriptedServer) -> AsyncAgent:
    """The same; what it opens has to be closed by the test."""
    return AsyncAgent(load_config(hcl(server)))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where sessions lie; nothing is there yet."""
    return tmp_path / "sessions"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workspace."""
    path = tmp_path / "work"
    path.mkdir()
    return path

"""`Agent`: the same as `AsyncAgent`, for code without an event loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from perdure import _loop
from perdure._listing import SessionListing
from perdure.async_agent import AsyncAgent
from perdure.config import AgentConfig
from perdure.options import SessionOptions
from perdure.session import Session

__all__ = ["Agent"]

_T = TypeVar("_T")
_Path = str | os.PathLike[str]


class Agent:
    """An agent's configuration: opens, resumes, lists, forks and deletes sessions. Details at `AsyncAgent`."""

    def __init__(self, config: AgentConfig) -> None:
        self._agent = AsyncAgent(config)

    @classmethod
    def create(cls, config: _Path) -> Agent:
        """Read a configuration: the path of an HCL or JSON file, or its text; see `AsyncAgent.create`."""
        return cls(_now(lambda: AsyncAgent.create(config)).config)

    @property
    def config(self) -> AgentConfig:
        """What the configuration says."""
        return self._agent.config

    def __repr__(self) -> str:
        return f"<Agent {self.config.path or 'of a text'}>"

    def session(self, workspace: _Path = ".", options: SessionOptions | None = None, **overrides: Any) -> Session:
        """A new session; see `AsyncAgent.session`."""
        return Session(_now(lambda: self._agent.session(workspace, options, **overrides)))

    def resume_session(
        self,
        id: str,
        options: SessionOptions | None = None,
        *,
        workspace: _Path | None = None,
        **overrides: Any,
    ) -> Session:
        """Take up a stored session; see `AsyncAgent.resume_session`."""
        return Session(_now(lambda: self._agent.resume_session(id, options, workspace=workspace, **overrides)))

    resume = resume_session

    def list_sessions(
        self, options: SessionOptions | None = None, *, workspace: _Path = ".", **overrides: Any
    ) -> list[str]:
        """Ids of all stored sessions; see `AsyncAgent.list_sessions`."""
        return _now(lambda: self._agent.list_sessions(options, workspace=workspace, **overrides))

    def sessions(
        self,
        limit: int | None = None,
        cursor: str | None = None,
        options: SessionOptions | None = None,
        *,
        workspace: _Path = ".",
        **overrides: Any,
    ) -> SessionListing:
        """What is stored, newest first; see `AsyncAgent.sessions`."""
        return SessionListing(self._agent.sessions(limit, cursor, options, workspace=workspace, **overrides))

    def delete_session(
        self, id: str, options: SessionOptions | None = None, *, workspace: _Path = ".", **overrides: Any
    ) -> bool:
        """Delete a stored session for good; see `AsyncAgent.delete_session`."""
        return _now(lambda: self._agent.delete_session(id, options, workspace=workspace, **overrides))

    def fork_session(
        self,
        id: str,
        new_id: str | None = None,
        at: int | None = None,
        options: SessionOptions | None = None,
        *,
        workspace: _Path = ".",
        **overrides: Any,
    ) -> str:
        """Store a copy of the first `at` messages under another id; see `AsyncAgent.fork_session`."""
        return _now(lambda: self._agent.fork_session(id, new_id, at, options, workspace=workspace, **overrides))


def _now(make: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    _loop.refuse_running_loop("AsyncAgent")
    return _loop.step(make())

"""`Agent`: the same as `AsyncAgent`, for code without an event loop."""

from __future__ import annotations

import os
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from perdure import _loop
from perdure.async_agent import AsyncAgent
from perdure.config import AgentConfig
from perdure.options import SessionOptions
from perdure.session import Session
from perdure.types import SessionInfo

__all__ = ["Agent"]

_T = TypeVar("_T")


class Agent:
    """An agent's configuration: opens, resumes, lists, forks and deletes sessions. Details at `AsyncAgent`."""

    def __init__(self, config: AgentConfig) -> None:
        self._agent = AsyncAgent(config)

    @classmethod
    def create(cls, config: str | os.PathLike[str]) -> Agent:
        """Read a configuration: the path of an HCL or JSON file, or its text; see `AsyncAgent.create`."""
        return cls(_now(AsyncAgent.create(config)).config)

    @property
    def config(self) -> AgentConfig:
        """What the configuration says."""
        return self._agent.config

    def __repr__(self) -> str:
        return f"<Agent {self.config.path or 'of a text'}>"

    def session(
        self, workspace: str | os.PathLike[str] = ".", options: SessionOptions | None = None, **overrides: Any
    ) -> Session:
        """A new session; see `AsyncAgent.session`."""
        return Session(_now(self._agent.session(workspace, options, **overrides)))

    def resume_session(
        self,
        id: str,
        options: SessionOptions | None = None,
        *,
        workspace: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> Session:
        """Take up a stored session; see `AsyncAgent.resume_session`."""
        return Session(_now(self._agent.resume_session(id, options, workspace=workspace, **overrides)))

    resume = resume_session

    def list_sessions(self, options: SessionOptions | None = None, **overrides: Any) -> list[str]:
        """Ids of all stored sessions."""
        return _now(self._agent.list_sessions(options, **overrides))

    def sessions(
        self,
        limit: int | None = None,
        cursor: str | None = None,
        options: SessionOptions | None = None,
        **overrides: Any,
    ) -> Iterator[SessionInfo]:
        """What is stored, newest first; see `AsyncAgent.sessions`."""
        infos = self._agent.sessions(limit, cursor, options, **overrides)

        async def following() -> SessionInfo | None:
            return await anext(infos, None)

        while True:
            info = _now(following())
            if info is None:
                return
            yield info

    def delete_session(self, id: str, options: SessionOptions | None = None, **overrides: Any) -> bool:
        """Delete a stored session for good; False if there is none."""
        return _now(self._agent.delete_session(id, options, **overrides))

    def fork_session(
        self,
        id: str,
        new_id: str | None = None,
        at: int | None = None,
        options: SessionOptions | None = None,
        **overrides: Any,
    ) -> str:
        """Store a copy of the first `at` messages under another id; see `AsyncAgent.fork_session`."""
        return _now(self._agent.fork_session(id, new_id, at, options, **overrides))


def _now(work: Coroutine[Any, Any, _T]) -> _T:
    try:
        _loop.refuse_running_loop("AsyncAgent")
    except BaseException:
        work.close()
        raise
    return _loop.step(work)

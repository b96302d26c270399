"""`AsyncAgent`: opens, resumes, lists, forks and deletes sessions."""

from __future__ import annotations

import base64
import os
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from perdure import _loop
from perdure._checks import url_secrets
from perdure._core import SessionData
from perdure.async_session import AsyncSession
from perdure.config import AgentConfig, load_config
from perdure.errors import ConfigError, SessionBusyError, SessionExistsError, SessionNotFoundError
from perdure.options import ResolvedOptions, SessionOptions, check_session_id, new_session_id
from perdure.redaction import Cleaner
from perdure.secrets import SecretMasker
from perdure.stores.client import StoreClient
from perdure.stores.memory import MemorySessionStore
from perdure.stores.opening import open_store
from perdure.types import SessionInfo

__all__ = ["AsyncAgent"]

_PAGE = 50


class AsyncAgent:
    """An agent's configuration, for code with an event loop. `Agent` is the same without one."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._memory = MemorySessionStore()
        self._sessions: weakref.WeakSet[AsyncSession] = weakref.WeakSet()

    @classmethod
    async def create(cls, config: str | os.PathLike[str]) -> AsyncAgent:
        """Read a configuration: the path of an HCL or JSON file, or its text.

        Raises `ConfigError` with file, line and column for bad syntax, unknown names, wrong types, and a `default_model`
        that does not exist. A missing api key is an error when a model is first needed.
        """
        return cls(await _loop.off_loop(lambda: _load(config)))

    @property
    def config(self) -> AgentConfig:
        """What the configuration says."""
        return self._config

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._config.path or 'of a text'}>"

    async def session(
        self, workspace: str | os.PathLike[str] = ".", options: SessionOptions | None = None, **overrides: Any
    ) -> AsyncSession:
        """A new session whose tools work in `workspace`. Nothing is written before there is something to keep.

        `overrides` are options by name and win over `options`, which win over agent.hcl. Raises `SessionExistsError` if
        the id is taken (with `resume=True` that session is resumed), `ConfigError`, and what a store raises that cannot
        be opened.
        """
        given, root = _options(options, overrides), _workspace(workspace)
        resolved = given.resolve(self._config)
        client, cleaner = await self._open(resolved, root)
        if client is not None and await client.exists(resolved.session_id):
            if not resolved.resume:
                raise SessionExistsError(
                    f"session {resolved.session_id!r} exists already in {client.location}; take it up with "
                    "resume_session or resume=True, or choose another id",
                    session_id=resolved.session_id,
                )
            stored = await client.load(resolved.session_id)
            if stored is not None:
                return self._resumed(stored, given, resolved, client, cleaner, root)
        data = SessionData(
            resolved.session_id,
            config={
                "name": resolved.name,
                "workspace": str(root),
                "system_prompt": resolved.system_prompt or "",
                "max_context_length": 200000,
                "auto_compact": False,
                "planning_enabled": resolved.planning_enabled,
            },
            tags=list(resolved.tags),
            tasks=[cleaner.masker.value(task) for task in resolved.tasks],
        )
        model = resolved.model or self._config.default_model
        if model is not None:
            data.model_name = self._config.find_model(model).name
        return self._live(data, resolved, client, cleaner, root)

    async def resume_session(
        self,
        id: str,
        options: SessionOptions | None = None,
        *,
        workspace: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> AsyncSession:
        """Take up a stored session: history, configuration, tasks, usage and times are as they were.

        Options that are given replace what is stored (`name`, `tags`, `tasks`, `system_prompt`, `planning_enabled`, `model`);
        they are stored with the next save. A tool call that was interrupted gets a result that says so. `workspace` is by
        default the stored one, if it is still there, else the current directory; a relative store directory is relative to
        `workspace` if that is given, else to the current directory. Needs neither model nor key.

        Raises `SessionNotFoundError` with the ids that look most like it, `SessionCorruptError`, `ConfigError`.
        """
        given = _options(options, {**overrides, "session_id": check_session_id(id)})
        root = _workspace("." if workspace is None else workspace)
        resolved = given.resolve(self._config)
        client, cleaner = await self._open(resolved, root)
        if client is None:
            raise _no_store()
        stored = await client.load(id)
        if stored is None:
            raise await _not_found(client, id)
        return self._resumed(stored, given, resolved, client, cleaner, None if workspace is None else root)

    resume = resume_session

    async def list_sessions(self, options: SessionOptions | None = None, **overrides: Any) -> list[str]:
        """Ids of all stored sessions."""
        client = await self._client(options, overrides)
        return await client.list()

    async def sessions(
        self,
        limit: int | None = None,
        cursor: str | None = None,
        options: SessionOptions | None = None,
        **overrides: Any,
    ) -> AsyncIterator[SessionInfo]:
        """What is stored, newest first, at most `limit`; no history is loaded.

        `cursor` continues a listing (a store's `infos` gives cursors). Raises `ValueError` for what is not one.
        """
        client = await self._client(options, overrides)
        left = limit
        while left is None or left > 0:
            infos, cursor = await client.infos(_PAGE if left is None else min(left, _PAGE), cursor)
            for info in infos:
                yield info
            left = None if left is None else left - len(infos)
            if cursor is None:
                return

    async def delete_session(self, id: str, options: SessionOptions | None = None, **overrides: Any) -> bool:
        """Delete a stored session for good; False if there is none."""
        check_session_id(id)
        client = await self._client(options, overrides)
        self._refuse_running(id, "delete_session")
        return await client.delete(id)

    async def fork_session(
        self,
        id: str,
        new_id: str | None = None,
        at: int | None = None,
        options: SessionOptions | None = None,
        **overrides: Any,
    ) -> str:
        """Store a copy of the first `at` messages (default: all) under `new_id` (default: a new one); gives its id.

        Raises `SessionNotFoundError`, `SessionExistsError`, `SessionBusyError` while the session runs a turn here,
        `ValueError` if it has fewer messages.
        """
        check_session_id(id)
        new_id = new_session_id() if new_id is None else check_session_id(new_id)
        client = await self._client(options, overrides)
        self._refuse_running(id, "fork_session")
        stored = await client.load(id)
        if stored is None:
            raise await _not_found(client, id)
        if await client.exists(new_id):
            raise SessionExistsError(f"session {new_id!r} exists already in {client.location}", session_id=new_id)
        fork = stored.fork(new_id, at)
        await client.save(fork, step=False, always=True)
        await client.release(fork)
        return new_id

    async def _client(self, options: SessionOptions | None, overrides: dict[str, Any]) -> StoreClient:
        resolved = _options(options, overrides).resolve(self._config)
        client, _ = await self._open(resolved, _workspace("."))
        if client is None:
            raise _no_store()
        return client

    async def _open(self, resolved: ResolvedOptions, root: Path) -> tuple[StoreClient | None, Cleaner]:
        url = resolved.session_store if isinstance(resolved.session_store, str) else None
        masker = SecretMasker((*self._config.secrets(), *url_secrets(url)))
        client = await _loop.off_loop(lambda: open_store(resolved, root, memory=self._memory, masker=masker))
        return client, Cleaner(masker, resolved.redact)

    def _resumed(
        self,
        data: SessionData,
        given: SessionOptions,
        resolved: ResolvedOptions,
        client: StoreClient,
        cleaner: Cleaner,
        root: Path | None,
    ) -> AsyncSession:
        config = data.config if isinstance(data.config, dict) else {}
        stored_root = config.get("workspace")
        if root is None:
            root = Path(stored_root) if isinstance(stored_root, str) and stored_root else _workspace(".")
            root = root if root.is_dir() else _workspace(".")
        changes = {
            key: getattr(resolved, key)
            for key in ("name", "system_prompt", "planning_enabled")
            if getattr(given, key) is not None
        }
        if any(config.get(key) != value for key, value in changes.items()):
            data.config = {**config, **changes}
        if given.tags is not None:
            data.tags = list(resolved.tags)
        if given.tasks is not None:
            data.tasks = [cleaner.masker.value(task) for task in resolved.tasks]
        if given.model is not None:
            data.model_name = self._config.find_model(given.model).name
        return self._live(data, resolved, client, cleaner, root)

    def _live(
        self,
        data: SessionData,
        resolved: ResolvedOptions,
        client: StoreClient | None,
        cleaner: Cleaner,
        root: Path,
    ) -> AsyncSession:
        session = AsyncSession(
            data, config=self._config, options=resolved, client=client, cleaner=cleaner, workspace=root
        )
        names = list(session._tool_box().names())
        if data.tool_names != names:
            data.tool_names = names
        session._mend()
        self._sessions.add(session)
        return session

    def _refuse_running(self, id: str, what: str) -> None:
        for session in self._sessions:
            if session.session_id == id and session.running:
                raise SessionBusyError(
                    f"{what}: a turn of session {id!r} is running; wait until it is over", session_id=id
                )


def _load(config: str | os.PathLike[str]) -> AgentConfig:
    loaded = load_config(config)
    loaded.validate()
    return loaded


def _options(options: SessionOptions | None, overrides: dict[str, Any]) -> SessionOptions:
    if options is not None and not isinstance(options, SessionOptions):
        raise ConfigError(f"options has to be a SessionOptions, not a {type(options).__name__}", option="options")
    return (options or SessionOptions()).merged(overrides)


def _workspace(workspace: str | os.PathLike[str]) -> Path:
    try:
        root = Path(workspace).expanduser().resolve()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ConfigError(f"workspace: {workspace!r} is not a path: {error}", option="workspace") from error
    if not root.is_dir():
        raise ConfigError(f"workspace: {root} is not a directory", option="workspace")
    return root


def _no_store() -> ConfigError:
    return ConfigError(
        "there is no store to look in: give file_session_store or session_store in SessionOptions, or set sessions_dir or "
        "storage_url in agent.hcl",
        option="file_session_store",
    )


async def _not_found(client: StoreClient, id: str) -> SessionNotFoundError:
    path = getattr(client.store, "path", None)
    if isinstance(path, Path):
        # Where later versions of A3S Code keep it; they wrap the session in more than a session.
        name = base64.urlsafe_b64encode(id.encode("utf-8", "surrogatepass")).decode().rstrip("=")
        later = path / "v1" / "sessions" / f"id_{name}.json"
        if len(name) < 240 and later.is_file():
            return SessionNotFoundError(
                f"no session {id!r} in {path}, but {later} is one of a later A3S Code: bring it over with `perdure import`",
                session_id=id,
            )
    return await client.not_found(id)

"""`AsyncAgent`: opens, resumes, lists, forks and deletes sessions."""

from __future__ import annotations

import base64
import logging
import os
import threading
import weakref
from pathlib import Path
from typing import Any

from perdure import _loop
from perdure._checks import url_secrets
from perdure._core import SessionData
from perdure._keeper import Keeper
from perdure._listing import AsyncSessionListing
from perdure.async_session import AsyncSession, fork_of
from perdure.config import AgentConfig, load_config
from perdure.errors import ConfigError, SessionBusyError, SessionExistsError, SessionNotFoundError
from perdure.options import ResolvedOptions, SessionOptions, check_session_id, new_session_id
from perdure.redaction import Cleaner
from perdure.secrets import SecretMasker
from perdure.stores.client import StoreClient
from perdure.stores.memory import MemorySessionStore
from perdure.stores.opening import open_store

__all__ = ["AsyncAgent"]

_log = logging.getLogger("perdure")

_Path = str | os.PathLike[str]


class AsyncAgent:
    """An agent's configuration, for code with an event loop. `Agent` is the same without one."""

    def __init__(self, config: AgentConfig) -> None:
        self._config = config
        self._memory = MemorySessionStore()
        self._sessions: weakref.WeakSet[AsyncSession] = weakref.WeakSet()
        self._guard = threading.Lock()

    @classmethod
    async def create(cls, config: _Path) -> AsyncAgent:
        """Read a configuration: the path of an HCL or JSON file, or its text.

        Raises `ConfigError` with file, line and column for bad syntax, unknown names, wrong types, and a
        `default_model` that does not exist. A missing api key is an error when a model is first needed.
        """
        return cls(await _loop.off_loop(lambda: _load(config)))

    @property
    def config(self) -> AgentConfig:
        """What the configuration says."""
        return self._config

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._config.path or 'of a text'}>"

    async def session(
        self, workspace: _Path = ".", options: SessionOptions | None = None, **overrides: Any
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
                return await self._resumed(stored, given, resolved, client, cleaner, root)
        data = SessionData(
            resolved.session_id,
            config={
                **cleaner.masker.value({"name": resolved.name}),
                "workspace": str(root),
                **cleaner.masker.value({"system_prompt": resolved.system_prompt or ""}),
                "max_context_length": 200000,
                "auto_compact": False,
                "planning_enabled": resolved.planning_enabled,
            },
            tags=cleaner.masker.value(list(resolved.tags)),
            tasks=cleaner.masker.value(list(resolved.tasks)),
        )
        model = resolved.model or self._config.default_model
        if model is not None:
            data.model_name = self._config.find_model(model).name
        return await self._live(
            Keeper(data, client, cleaner, auto=resolved.auto_save, on_error=resolved.on_save_error), resolved, root
        )

    async def resume_session(
        self,
        id: str,
        options: SessionOptions | None = None,
        *,
        workspace: _Path | None = None,
        **overrides: Any,
    ) -> AsyncSession:
        """Take up a stored session: history, configuration, tasks, usage and times are as they were.

        Options that are given replace what is stored (`name`, `tags`, `tasks`, `system_prompt`, `planning_enabled`,
        `model`); they are stored with the next save. A tool call that was interrupted gets a result that says so.
        `workspace` is by default the stored one, if it is still there, else the current directory; a relative store
        directory is relative to `workspace` if that is given, else to the current directory. Needs neither model nor
        key.

        Raises `SessionNotFoundError` with the ids that look most like it, `SessionCorruptError`, `ConfigError`.
        """
        check_session_id(id)
        if overrides.get("session_id") not in (None, id):
            raise ConfigError("session_id is given twice, and not the same", option="session_id")
        given = _options(options, {**overrides, "session_id": id})
        root = _workspace("." if workspace is None else workspace)
        resolved = given.resolve(self._config)
        client, cleaner = await self._open(resolved, root)
        if client is None:
            raise _no_store()
        stored = await client.load(id)
        if stored is None:
            raise await _not_found(client, id)
        return await self._resumed(stored, given, resolved, client, cleaner, None if workspace is None else root)

    resume = resume_session

    async def list_sessions(
        self, options: SessionOptions | None = None, *, workspace: _Path = ".", **overrides: Any
    ) -> list[str]:
        """Ids of all stored sessions. A relative store directory is relative to `workspace`, here and below."""
        client = await self._client(options, overrides, workspace)
        return await client.list()

    def sessions(
        self,
        limit: int | None = None,
        cursor: str | None = None,
        options: SessionOptions | None = None,
        *,
        workspace: _Path = ".",
        **overrides: Any,
    ) -> AsyncSessionListing:
        """What is stored, newest first, at most `limit`; no history is loaded (but by a store without `infos`).

        `cursor`: go on where another listing ended, with its `cursor`. Raises `ValueError` for what is not one.
        """
        return AsyncSessionListing(lambda: self._client(options, overrides, workspace), limit, cursor)

    async def delete_session(
        self, id: str, options: SessionOptions | None = None, *, workspace: _Path = ".", **overrides: Any
    ) -> bool:
        """Delete a stored session for good; False if there is none.

        Raises `SessionBusyError` while the session runs a turn here.
        """
        check_session_id(id)
        client = await self._client(options, overrides, workspace)
        self._refuse_running(id, client, "delete_session")
        return await client.delete(id)

    async def fork_session(
        self,
        id: str,
        new_id: str | None = None,
        at: int | None = None,
        options: SessionOptions | None = None,
        *,
        workspace: _Path = ".",
        **overrides: Any,
    ) -> str:
        """Store a copy of the first `at` messages (default: all) under `new_id` (default: a new one); gives its id.

        The copy is made of what is stored; `AsyncSession.fork` copies what is in memory. Raises `SessionNotFoundError`,
        `SessionExistsError`, `SessionBusyError` while the session runs a turn here, `ValueError` if it has fewer
        messages.
        """
        check_session_id(id)
        new_id = new_session_id() if new_id is None else check_session_id(new_id)
        client = await self._client(options, overrides, workspace)
        self._refuse_running(id, client, "fork_session")
        stored = await client.load(id)
        if stored is None:
            raise await _not_found(client, id)
        if await client.exists(new_id):
            raise SessionExistsError(f"session {new_id!r} exists already in {client.location}", session_id=new_id)
        fork = fork_of(stored, new_id, at)
        await client.save(fork)
        await client.release(fork)
        return new_id

    async def _client(
        self, options: SessionOptions | None, overrides: dict[str, Any], workspace: _Path = "."
    ) -> StoreClient:
        resolved = _options(options, overrides).resolve(self._config)
        client, _ = await self._open(resolved, _workspace(workspace))
        if client is None:
            raise _no_store()
        return client

    async def _open(self, resolved: ResolvedOptions, root: Path) -> tuple[StoreClient | None, Cleaner]:
        url = resolved.session_store if isinstance(resolved.session_store, str) else None
        masker = SecretMasker((*self._config.secrets(), *url_secrets(url)))
        client = await _loop.off_loop(
            lambda: open_store(resolved, root, memory=self._memory, masker=masker, config=self._config)
        )
        return client, Cleaner(masker, resolved.redact)

    async def _resumed(
        self,
        data: SessionData,
        given: SessionOptions,
        resolved: ResolvedOptions,
        client: StoreClient,
        cleaner: Cleaner,
        root: Path | None,
    ) -> AsyncSession:
        keeper = Keeper(data, client, cleaner, auto=resolved.auto_save, on_error=resolved.on_save_error)
        config = data.config if isinstance(data.config, dict) else {}
        if root is None:
            root = _stored_workspace(data.id, config.get("workspace"))
        changes = {
            key: cleaner.masker.value(getattr(resolved, key))
            for key in ("name", "system_prompt", "planning_enabled")
            if getattr(given, key) is not None
        }
        if any(config.get(key) != value for key, value in changes.items()):
            data.config = {**config, **changes}
            keeper.dirty = True
        fields: dict[str, Any] = {}
        if given.tags is not None:
            fields["tags"] = cleaner.masker.value(list(resolved.tags))
        if given.tasks is not None:
            fields["tasks"] = cleaner.masker.value(list(resolved.tasks))
        if given.model is not None:
            fields["model_name"] = self._config.find_model(given.model).name
        for name, value in fields.items():
            if getattr(data, name) != value:
                setattr(data, name, value)
                keeper.dirty = True
        session = await self._live(keeper, resolved, root)
        await keeper.mend_resumed()
        return session

    async def _live(self, keeper: Keeper, resolved: ResolvedOptions, root: Path) -> AsyncSession:
        session = AsyncSession(keeper, config=self._config, options=resolved, workspace=root)
        names = await _loop.off_loop(lambda: list(session._tool_box().names()))
        if keeper.data.tool_names != names:
            keeper.data.tool_names = names
        with self._guard:
            self._sessions.add(session)
        return session

    def _refuse_running(self, id: str, client: StoreClient, what: str) -> None:
        with self._guard:
            sessions = list(self._sessions)
        for session in sessions:
            if session.session_id == id and session.running and client.is_same_place(session._keeper.client):
                raise SessionBusyError(
                    f"{what}: a turn of session {id!r} is running; wait until it is over", session_id=id
                )


def _load(config: _Path) -> AgentConfig:
    loaded = load_config(config)
    loaded.validate()
    return loaded


def _options(options: SessionOptions | None, overrides: dict[str, Any]) -> SessionOptions:
    if options is not None and not isinstance(options, SessionOptions):
        raise ConfigError(f"options has to be a SessionOptions, not a {type(options).__name__}", option="options")
    return (options or SessionOptions()).merged(overrides)


def _workspace(workspace: _Path) -> Path:
    try:
        root = Path(workspace).expanduser().resolve()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ConfigError(f"workspace: {workspace!r} is not a path: {error}", option="workspace") from error
    if not root.is_dir():
        raise ConfigError(f"workspace: {root} is not a directory", option="workspace")
    return root


def _stored_workspace(id: str, stored: object) -> Path:
    if isinstance(stored, str) and stored and Path(stored).is_dir():
        return Path(stored)
    here = _workspace(".")
    if stored:
        _log.warning("session %r: its workspace %s is not there; tools work in %s", id, stored, here)
    return here


def _no_store() -> ConfigError:
    return ConfigError(
        "there is no store to look in: give file_session_store or session_store in SessionOptions, or set "
        "sessions_dir or storage_url in agent.hcl",
        option="file_session_store",
    )


async def _not_found(client: StoreClient, id: str) -> SessionNotFoundError:
    path = getattr(client.store, "path", None)
    if isinstance(path, Path):
        # Where later versions of A3S Code keep it; they wrap the session in more than a session.
        name = base64.urlsafe_b64encode(id.encode("utf-8", "surrogatepass")).decode().rstrip("=")
        later = path / "v1" / "sessions" / f"id_{name}.json"
        if len(name) < 240 and await _loop.off_loop(later.is_file):
            return SessionNotFoundError(
                f"no session {id!r} in {path}, but {later} is one of a later A3S Code, which this version "
                "does not read: `perdure import` of a later perdure is going to bring it over",
                session_id=id,
            )
    return await client.not_found(id)

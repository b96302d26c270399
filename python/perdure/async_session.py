"""`AsyncSession`: a conversation and the place where it is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from perdure._core import Messages, SessionData
from perdure.errors import ConfigError, SerializationError, SessionBusyError
from perdure.redaction import Cleaner
from perdure.stores.client import PERMANENT, StoreClient, to_the_end
from perdure.turn.repair import interrupted_results
from perdure.types import SaveReceipt, SendResult, TurnEvent, Usage

if TYPE_CHECKING:
    from perdure.config import AgentConfig
    from perdure.options import ResolvedOptions
    from perdure.turn.runner import TurnRunner
    from perdure.turn.tools import ToolBox

__all__ = ["AsyncSession"]

_log = logging.getLogger("perdure")

Prompt = str | Sequence[Mapping[str, Any]]


class AsyncSession:
    """A session for code with an event loop. Made by `AsyncAgent.session` and `.resume_session`.

    With `auto_save` the prompt is stored before the model is called, and each reply, each tool result and the end of the
    turn before anything else happens. A save that fails is a warning on logger `perdure`, is kept in `last_save_error`
    and given to `on_save_error`; what it should have stored goes out with the next one. Conflict, exists, locked and
    corrupt do not go away by themselves: they raise at the prompt, before any model call; later in a turn they are kept
    and raise at the next `send`, until `reload()`, a fork or `save(force=True)`.

    May be used by several tasks of one event loop: one turn runs at a time, a second `send` waits.
    """

    def __init__(
        self,
        data: SessionData,
        *,
        config: AgentConfig,
        options: ResolvedOptions,
        client: StoreClient | None,
        cleaner: Cleaner,
        workspace: Path,
    ) -> None:
        self._data = data
        self._config = config
        self._options = options
        self._client = client
        self._cleaner = cleaner
        self._workspace = workspace
        self._saving = asyncio.Lock()
        self._turns = asyncio.Lock()
        self._running = False
        self._closed = False
        self._unfolded = False  # steps were saved since the last save that was none
        self._permanent: Exception | None = None
        self._runner: TurnRunner | None = None
        self.last_save_error: Exception | None = None
        """The error of the last automatic save, None after one that worked."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.session_id!r} revision={self._data.revision} messages={len(self._data)}>"

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._data.id

    @property
    def data(self) -> SessionData:
        """An independent copy of the session as it is now; O(1)."""
        return self._data.freeze()

    @property
    def workspace(self) -> Path:
        """The directory in which tools work."""
        return self._workspace

    @property
    def running(self) -> bool:
        """Whether a turn is under way."""
        return self._running

    def history(self) -> Messages:
        """The messages as they are now: an immutable sequence, `len` is free, items are fresh dicts."""
        return self._data.messages

    @property
    def usage(self) -> Usage:
        """Tokens of the whole session."""
        return _usage(self._data.total_usage)

    @property
    def tasks(self) -> list[Any]:
        """The task list, a fresh one. Assign a list to change it; it is stored with the next save."""
        return self._data.tasks

    @tasks.setter
    def tasks(self, tasks: Sequence[Any]) -> None:
        self._data.tasks = [self._cleaner.masker.value(task) for task in tasks]

    @property
    def tags(self) -> list[str]:
        """Labels that listings show. Assign a list to change them."""
        return self._data.tags

    @tags.setter
    def tags(self, tags: Sequence[str]) -> None:
        self._data.tags = tags

    @property
    def name(self) -> str:
        """A title for people. Assign a string to change it; it is stored with the next save."""
        return str(self._data.config.get("name") or "")

    @name.setter
    def name(self, name: str) -> None:
        if not isinstance(name, str):
            raise SerializationError(f"name: it has to be a string, not {type(name).__name__}", path="name")
        self._data.config = {**self._data.config, "name": name}

    async def append(self, *messages: Mapping[str, Any]) -> None:
        """Add messages at the end: all of them, or none. String content becomes one text block.

        Saves with `auto_save`, and raises what the save raises; the messages stay all the same and go out with the next
        one. Raises `SessionBusyError` while a turn runs, `SerializationError` for what is not JSON.
        """
        self._refuse_closed()
        self._refuse_running("append")
        self._data.append(*(self._cleaner.message(_message(m, i)) for i, m in enumerate(messages)))
        if self._options.auto_save:
            await self._save(step=False)

    async def rewind(self, to: int) -> None:
        """Keep the first `to` messages. Saves with `auto_save`. Raises `ValueError` if there are fewer."""
        self._refuse_closed()
        self._refuse_running("rewind")
        self._data.truncate(to)
        if self._options.auto_save:
            await self._save(step=False)

    async def save(self, *, force: bool = False) -> SaveReceipt:
        """Store the session as it is now; if nothing changed since the last save, write nothing.

        `force`: overwrite whatever somebody else stored meanwhile. Raises `ConfigError` without a store, else what the
        store raises; what was stored then stays as it was.
        """
        self._refuse_closed()
        receipt = await self._save(step=self._running, force=force)
        if force:
            self._permanent = None
        return receipt

    async def reload(self) -> None:
        """Take the stored state, giving up what was not saved. Raises `SessionNotFoundError`, `SessionBusyError`."""
        self._refuse_closed()
        self._refuse_running("reload")
        client = self._store()
        stored = await client.load(self.session_id)
        if stored is None:
            raise await client.not_found(self.session_id)
        self._data = stored
        self._mend()
        self._permanent = self.last_save_error = None

    async def send(self, prompt: Prompt, history: Sequence[Mapping[str, Any]] | None = None) -> SendResult:
        """Run one turn: the model replies, tools run, until a reply calls none.

        With an explicit `history` the turn stands on that, neither uses nor changes the session's, and is not saved. A
        turn that fails before the model said anything takes its prompt back; after that, finished steps stay. Raises
        `ModelError`, `ToolRoundsError`, `ConfigError`, and the permanent store errors.
        """
        result = None
        stream = self.stream(prompt, history)
        try:
            async for event in stream:
                result = event.result or result
        finally:
            await stream.aclose()
        assert result is not None
        return result

    async def stream(
        self, prompt: Prompt, history: Sequence[Mapping[str, Any]] | None = None
    ) -> AsyncGenerator[TurnEvent, None]:
        """The same as `send`, event by event; see `TurnEvent`. Leaving the iteration ends the turn: finished steps stay."""
        runner = self._turn_runner()
        if history is not None:
            async for event in _closing(runner.aside(prompt, history)):
                yield event
            return
        async with self._turns:
            async for event in _closing(runner.turn(prompt)):
                yield event

    async def continue_turn(self) -> SendResult:
        """Finish a turn that a crash or an error interrupted: unanswered prompts and tool results go to the model.

        Raises `SerializationError` if there is nothing to continue, else as `send`.
        """
        result = None
        runner = self._turn_runner()
        async with self._turns:
            async for event in _closing(runner.turn(None)):
                result = event.result or result
        assert result is not None
        return result

    async def close(self) -> None:
        """Save what is pending, close the model's connections and let go of the session's files. Twice is harmless."""
        if self._closed:
            return
        self._refuse_running("close")
        try:
            if self._client is not None and self._permanent is None:
                if self._options.auto_save:
                    await self._save(step=False)
                elif self._data.delta() is not None and len(self._data):
                    _log.warning(
                        "session %r is closed with unsaved changes: it has no auto_save, and save() was not called",
                        self.session_id,
                    )
        finally:
            self._closed = True
            if self._runner is not None:
                await self._runner.aclose()
            if self._client is not None:
                await self._client.release(self._data)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # What a turn needs of the session.

    def _tool_box(self) -> ToolBox:
        from perdure.turn.tools import ToolBox

        options = self._options
        return ToolBox(
            self._workspace,
            tools=options.tools,
            permissive=options.permissive,
            confirm=options.confirm,
            timeout=options.tool_timeout,
            masker=self._cleaner.masker,
        )

    def _turn_runner(self) -> TurnRunner:
        self._refuse_closed()
        if self._permanent is not None:
            raise self._permanent
        if self._runner is None:
            from perdure.turn.runner import TurnRunner

            self._runner = TurnRunner(self)
        return self._runner

    async def _auto_save(self, *, step: bool) -> int | None:
        """An automatic save: the revision if it worked. A permanent error raises and is kept, any other is told and kept."""
        if not self._options.auto_save:
            return None
        try:
            receipt = await self._save(step=step)
        except PERMANENT as error:
            self._tell(error)
            self._permanent = error
            raise
        except Exception as error:
            self._tell(error)
            return None
        self.last_save_error = None
        return receipt.revision

    def _tell(self, error: Exception) -> None:
        self.last_save_error = error
        _log.warning("session %r is not saved: %s", self.session_id, error)
        if self._options.on_save_error is not None:
            try:
                self._options.on_save_error(error)
            except Exception as raised:
                _log.warning("on_save_error raised %s", type(raised).__name__)

    async def _save(self, *, step: bool, force: bool = False) -> SaveReceipt:
        client = self._store()
        return await to_the_end(self._save_unit(client, step=step, force=force))

    async def _save_unit(self, client: StoreClient, *, step: bool, force: bool) -> SaveReceipt:
        async with self._saving:
            fold = self._unfolded and not step and client.folds
            receipt = await client.save(self._data, step=step, always=fold, force=force)
            self._unfolded = step and (self._unfolded or receipt.bytes_written > 0)
            return receipt

    def _store(self) -> StoreClient:
        if self._client is None:
            raise ConfigError(
                "this session has no store: give file_session_store or session_store in SessionOptions, or set "
                "sessions_dir or storage_url in agent.hcl",
                option="file_session_store",
            )
        return self._client

    def _mend(self) -> None:
        """Give every tool call without a result one, so that the history can be sent. Saved with the next save."""
        missing = interrupted_results(self._data.messages)
        if not missing:
            return
        first = missing[0][0]
        tail = [self._data.messages[i] for i in range(first, len(self._data))]
        for index, result in reversed(missing):
            tail.insert(index - first, result)
        self._data.truncate(first)
        self._data.append(*tail)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ConfigError(f"session {self.session_id!r} is closed; resume it to go on")

    def _refuse_running(self, what: str) -> None:
        if self._running:
            raise SessionBusyError(
                f"{what}: a turn of session {self.session_id!r} is running; wait until it is over",
                session_id=self.session_id,
            )


async def _closing(events: AsyncGenerator[TurnEvent, None]) -> AsyncIterator[TurnEvent]:
    """Iterate and close, also when the iteration is left."""
    try:
        async for event in events:
            yield event
    finally:
        await events.aclose()


def _message(message: Any, index: int) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        path = f"messages[{index}]"
        raise SerializationError(f"{path}: a message is a dict, not a {type(message).__name__}", path=path)
    if isinstance(message.get("content"), str):
        return {**message, "content": [{"type": "text", "text": message["content"]}]}
    return dict(message)


def _usage(fields: Mapping[str, Any]) -> Usage:
    def count(key: str) -> int:
        value = fields.get(key)
        return value if isinstance(value, int) else 0

    def maybe(key: str) -> int | None:
        value = fields.get(key)
        return value if isinstance(value, int) else None

    return Usage(
        count("prompt_tokens"),
        count("completion_tokens"),
        count("total_tokens"),
        maybe("cache_read_tokens"),
        maybe("cache_write_tokens"),
    )

"""`AsyncSession`: a conversation and the place where it is kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from perdure._core import Messages, SessionData
from perdure._keeper import Keeper
from perdure._loop import LoopLock, running_loop
from perdure.errors import ConfigError, SerializationError, SessionBusyError
from perdure.options import check_session_id, new_session_id
from perdure.types import SaveReceipt, SendResult, TurnEvent, Usage

if TYPE_CHECKING:
    from perdure.config import AgentConfig
    from perdure.options import ResolvedOptions
    from perdure.turn.runner import TurnRunner
    from perdure.turn.tools import ToolBox

__all__ = ["AsyncSession"]

_log = logging.getLogger("perdure")

Prompt = str | Sequence[Mapping[str, Any]]

own_tools: ContextVar[tuple[Keeper, ...]] = ContextVar("perdure_own_tools", default=())
"""The sessions of which a tool is running here. One that waited for its own turn to end would wait for ever."""


class AsyncSession:
    """A session for code with an event loop. Made by `AsyncAgent.session` and `.resume_session`.

    With `auto_save` the prompt is stored before the model is called, and each reply, each tool result and the end of
    the turn before anything else happens. A save that fails is a warning on logger `perdure`, is kept in
    `last_save_error` and given to `on_save_error`; what it should have stored goes out with the next one. Conflict,
    exists, locked and corrupt do not go away by themselves: they raise at the prompt, before any model call; later in
    a turn they are kept and raise at the next `send`, until `reload()`, `fork()` or a `save()` that works
    (`force=True` makes it).

    May be used by several tasks of one event loop: one turn runs at a time, a second `send` waits.
    """

    def __init__(self, keeper: Keeper, *, config: AgentConfig, options: ResolvedOptions, workspace: Path) -> None:
        self._keeper = keeper
        self._config = config
        self._options = options
        self._workspace = workspace
        self._turns = LoopLock()
        self._turn: _Turn | None = None
        self._streams: weakref.WeakSet[AsyncGenerator[TurnEvent, None]] = weakref.WeakSet()
        self._closed = False
        self._runner: TurnRunner | None = None

    def __repr__(self) -> str:
        data = self._keeper.data
        return f"<{type(self).__name__} {self.session_id!r} revision={data.revision} messages={len(data)}>"

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._keeper.data.id

    @property
    def data(self) -> SessionData:
        """An independent copy of the session as it is now; O(1)."""
        return self._keeper.data.freeze()

    @property
    def workspace(self) -> Path:
        """The directory in which tools work."""
        return self._workspace

    @property
    def running(self) -> bool:
        """Whether a turn is under way."""
        return self._turn is not None

    @property
    def last_save_error(self) -> Exception | None:
        """The error of the last automatic save, None after a save that worked."""
        return self._keeper.last_error

    def history(self) -> Messages:
        """The messages as they are now: an immutable sequence, `len` is free, items are fresh dicts."""
        return self._keeper.data.messages

    @property
    def usage(self) -> Usage:
        """Tokens of the whole session."""
        return _usage(self._keeper.data.total_usage)

    @property
    def tasks(self) -> list[Any]:
        """The task list, a fresh one. Assign a list to change it; it is stored with the next save."""
        return self._keeper.data.tasks

    @tasks.setter
    def tasks(self, tasks: Sequence[Any]) -> None:
        self._keeper.data.tasks = [self._keeper.cleaner.masker.value(task) for task in tasks]
        self._keeper.dirty = True

    @property
    def tags(self) -> list[str]:
        """Labels that listings show. Assign a list to change them; they are stored with the next save."""
        return self._keeper.data.tags

    @tags.setter
    def tags(self, tags: Sequence[str]) -> None:
        self._keeper.data.tags = [self._keeper.cleaner.masker.value(tag) for tag in tags]
        self._keeper.dirty = True

    @property
    def name(self) -> str:
        """A title for people. Assign a string to change it; it is stored with the next save."""
        return str(self._keeper.data.config.get("name") or "")

    @name.setter
    def name(self, name: str) -> None:
        if not isinstance(name, str):
            raise SerializationError(f"name: it has to be a string, not {type(name).__name__}", path="name")
        data = self._keeper.data
        data.config = {**data.config, "name": self._keeper.cleaner.masker.text(name)}
        self._keeper.dirty = True

    async def append(self, *messages: Mapping[str, Any]) -> None:
        """Add messages at the end: all of them, or none. String content becomes one text block.

        Saves with `auto_save`, and raises what the save raises; the messages stay all the same and go out with the next
        one. Raises `SessionBusyError` while a turn runs, `SerializationError` for what is not JSON.
        """
        at_rest = self._turn is None and not self._closed
        if at_rest and running_loop() is not None and await self._keeper.append_beside_loop(messages):
            return
        await self._idle("append")
        if messages:
            keeper = self._keeper
            keeper.data.append(*(keeper.cleaner.message(_message(m, i)) for i, m in enumerate(messages)))
            keeper.dirty = True
            await keeper.save_change()

    def _append_in_place(self, messages: tuple[Mapping[str, Any], ...]) -> bool:
        """`append` where there is no event loop and nothing to wait for; False: nothing was done."""
        return self._turn is None and not self._closed and self._keeper.append(messages)

    async def rewind(self, to: int) -> None:
        """Keep the first `to` messages. Saves with `auto_save`. Raises `ValueError` if there are fewer."""
        await self._idle("rewind")
        self._keeper.rewind(to)
        await self._keeper.save_change()

    async def save(self, *, force: bool = False) -> SaveReceipt:
        """Store the session as it is now; if nothing changed since the last save, write nothing.

        `force`: overwrite whatever somebody else stored meanwhile, but never a damaged file. Raises `ConfigError`
        without a store, else what the store raises; what was stored then stays as it was.
        """
        self._refuse_closed()
        await self._keeper.load_all()
        return await self._keeper.save(step=self.running and not force, force=force)

    async def reload(self) -> None:
        """Take the stored state, giving up what was not saved. Raises `SessionNotFoundError`, `SessionBusyError`."""
        await self._idle("reload")
        async with self._turns.hold():
            await self._keeper.reload()

    async def fork(self, new_id: str | None = None, *, at: int | None = None) -> str:
        """Store a copy of this session as it is now, saved or not, under `new_id` (default: a new one); gives its id.

        `at`: only the first `at` messages. After a conflict this keeps both: the copy has what is here, `reload()` or
        `resume_session` gives what is stored. Raises `SessionExistsError`, `SessionBusyError`, `ValueError`.
        """
        await self._idle("fork")
        new_id = new_session_id() if new_id is None else check_session_id(new_id)
        copy = fork_of(self._keeper.data, new_id, at)
        client = self._keeper.store()
        await client.save(copy)
        await client.release(copy)
        self._keeper.permanent = None
        return new_id

    async def send(self, prompt: Prompt, history: Sequence[Mapping[str, Any]] | None = None) -> SendResult:
        """Run one turn: the model replies, tools run, until a reply calls none.

        With an explicit `history` the turn stands on that, neither uses nor changes the session's, and is not saved. A
        turn that fails before the model said anything takes its prompt back; after that, finished steps stay. Raises
        `ModelError`, `ToolRoundsError`, `ConfigError`, and the permanent store errors.
        """
        return await _result(self.stream(prompt, history))

    def stream(
        self, prompt: Prompt, history: Sequence[Mapping[str, Any]] | None = None
    ) -> AsyncGenerator[TurnEvent, None]:
        """The same as `send`, event by event; see `TurnEvent`. Leaving the iteration ends the turn: finished steps
        stay.

        Use it in `async with contextlib.aclosing(…)` if you may leave it early, so that the turn has ended when you
        go on. Texts are shown with api keys masked; the option `redact` is for what is kept, and is applied to whole
        messages.
        """
        if history is None:
            return self._start(prompt)
        events = self._aside(prompt, history)
        self._streams.add(events)
        return events

    async def continue_turn(self) -> SendResult:
        """Finish a turn that a crash or an error interrupted: unanswered prompts and tool results go to the model.

        Raises `SerializationError` if there is nothing to continue, else as `send`.
        """
        return await _result(self._start(None))

    async def close(self) -> None:
        """Save what is pending, close the model's connections and let go of the session's files. Twice is harmless.

        A stream that was left open is closed, which ends its turn. Raises `SessionBusyError` while a turn runs in
        another task, and what the save raises: then the files are let go all the same, and `close()` or `save()` may
        be tried again. Without `auto_save` nothing is saved; a warning says so if there is something.
        """
        if self._closed:
            return
        for events in list(self._streams):
            if _is_running(events):
                raise self._busy("close")
            await events.aclose()
        await self._idle("close")
        async with self._turns.hold():
            try:
                await self._keeper.finish()
                self._closed = True
            finally:
                if self._runner is not None:
                    await self._runner.aclose()
                if self._keeper.client is not None:
                    await self._keeper.client.release(self._keeper.data)

    async def __aenter__(self) -> AsyncSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.close()
            return
        try:
            await self.close()
        except Exception as raised:
            # The error of the block is the one to see; it may well be the same.
            _log.warning("session %r is not saved at its end: %s", self.session_id, raised)

    def _start(self, prompt: Prompt | None) -> AsyncGenerator[TurnEvent, None]:
        turn = _Turn()
        events = self._take_turn(turn, prompt)
        turn.events = weakref.ref(events)
        self._streams.add(events)
        return events

    async def _take_turn(self, turn: _Turn, prompt: Prompt | None) -> AsyncGenerator[TurnEvent, None]:
        self._refuse_closed()
        self._refuse_own_tool()
        self._refuse_own_stream()
        failure: Exception | None = None
        result: SendResult | None = None
        async with self._turns.hold():
            turn.task = asyncio.current_task()
            self._turn = turn
            try:
                self._refuse_closed()
                if self._keeper.permanent is not None:
                    raise self._keeper.permanent.with_traceback(None)
                async with contextlib.aclosing(self._turn_runner().turn(prompt)) as events:
                    async for event in events:
                        result = event.result
                        if event.type != "end":
                            yield event
            except Exception as error:
                failure = error
            finally:
                self._turn = None
        # From here on the session is free for the next turn.
        if failure is not None:
            yield TurnEvent("error", error=failure)
            raise failure
        yield TurnEvent("end", result=result)

    async def _aside(self, prompt: Prompt, history: Sequence[Mapping[str, Any]]) -> AsyncGenerator[TurnEvent, None]:
        self._refuse_closed()
        failure: Exception | None = None
        try:
            async with contextlib.aclosing(self._turn_runner().aside(prompt, history)) as events:
                async for event in events:
                    yield event
        except Exception as error:
            failure = error
        if failure is not None:
            yield TurnEvent("error", error=failure)
            raise failure

    def _turn_runner(self) -> TurnRunner:
        if self._runner is None:
            from perdure.turn.runner import TurnRunner

            self._runner = TurnRunner(self._keeper, self._config, self._options, self._tool_box)
        return self._runner

    def _tool_box(self) -> ToolBox:
        from perdure.turn.tools import ToolBox

        options = self._options
        return ToolBox(
            self._workspace,
            tools=options.tools,
            permissive=options.permissive,
            confirm=options.confirm,
            timeout=options.tool_timeout,
            masker=self._keeper.cleaner.masker,
        )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ConfigError(f"session {self.session_id!r} is closed; resume it to go on")

    def _refuse_own_tool(self) -> None:
        if self._keeper in own_tools.get():
            raise SessionBusyError(
                f"a tool of session {self.session_id!r} started a turn of the same session: it would wait for itself",
                session_id=self.session_id,
            )

    def _refuse_own_stream(self) -> None:
        turn = self._turn
        if turn is not None and turn.task is asyncio.current_task() and turn.is_suspended():
            raise SessionBusyError(
                f"a stream of session {self.session_id!r} is still open in this task: iterate to its end, or close it",
                session_id=self.session_id,
            )

    async def _idle(self, what: str) -> None:
        self._refuse_closed()
        if self._turn is not None and self._turn.is_abandoned():
            # A stream that was left with `break`: the event loop is about to close it.
            async with self._turns.hold():
                pass
        if self._turn is not None:
            raise self._busy(what)
        await self._keeper.load_all()

    def _busy(self, what: str) -> SessionBusyError:
        return SessionBusyError(
            f"{what}: a turn of session {self.session_id!r} is running; wait until it is over",
            session_id=self.session_id,
        )


class _Turn:
    """Who runs a turn."""

    def __init__(self) -> None:
        self.events: weakref.ref[AsyncGenerator[TurnEvent, None]] | None = None
        self.task: asyncio.Task[Any] | None = None

    def is_suspended(self) -> bool:
        """Between two events, waiting for somebody to ask for the next one."""
        events = self.events() if self.events is not None else None
        return events is not None and not _is_running(events)

    def is_abandoned(self) -> bool:
        """Nobody can ask for the next event any more."""
        return self.events is not None and self.events() is None


def fork_of(data: SessionData, new_id: str, at: int | None) -> SessionData:
    """`data.fork`, with a `ValueError` for everything that is not a number of messages."""
    if at is not None and (not isinstance(at, int) or isinstance(at, bool) or not 0 <= at <= len(data)):
        raise ValueError(f"at: a number of messages from 0 to {len(data)}, not {at!r}")
    return data.fork(new_id, at)


def _is_running(events: AsyncGenerator[Any, None]) -> bool:
    return bool(getattr(events, "ag_running", False))


async def _result(stream: AsyncGenerator[TurnEvent, None]) -> SendResult:
    result = None
    async with contextlib.aclosing(stream) as events:
        async for event in events:
            result = event.result or result
    assert result is not None
    return result


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

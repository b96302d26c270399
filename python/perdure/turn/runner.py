"""A turn of a session: recording and saving around the loop in `loop.py`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perdure._loop import off_loop
from perdure.stores.client import to_the_end
from perdure.turn.messages import prompt_message, usage_of
from perdure.types import SendResult, TurnEvent, Usage

if TYPE_CHECKING:
    from perdure.async_session import AsyncSession
    from perdure.turn.loop import TurnSettings
    from perdure.turn.models import TurnModel
    from perdure.turn.tools import ToolBox

__all__ = ["TurnRunner"]

_Prompt = str | Sequence[Mapping[str, Any]]


class TurnRunner:
    """Runs the turns of one session. The model is opened with the first turn and belongs to one event loop."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session
        self._model: TurnModel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tools: ToolBox | None = None

    async def aclose(self) -> None:
        """Close the model's connections, where their event loop still runs."""
        model, self._model = self._model, None
        if model is not None and self._loop is not None and not self._loop.is_closed():
            if self._loop is _running_loop():
                await model.aclose()
            else:
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(model.aclose(), self._loop))

    async def turn(self, prompt: _Prompt | None) -> AsyncGenerator[TurnEvent, None]:
        """One turn on the session's history; None continues an interrupted one."""
        session = self._session
        data = session._data
        first = len(data)
        message = None if prompt is None else session._cleaner.message(prompt_message(prompt))
        turn = _Turn(session)
        session._running = True
        try:
            try:
                if message is not None:
                    session._mend()
                    first = len(data)
                    data.append(message)
                    turn.messages.append(message)
                    async for event in turn.saved():
                        yield event
                model, tools, settings = await self._open()
                async for event in self._steps(turn, list(data.messages), model, tools, settings):
                    yield event
            except BaseException as error:
                await to_the_end(turn.broke_off(first, error))
                if isinstance(error, Exception):
                    yield TurnEvent("error", error=error)
                raise
            turn.count_turn()
            async for event in turn.saved(step=False):
                yield event
        finally:
            session._running = False
        yield TurnEvent("end", result=turn.result())

    async def aside(self, prompt: _Prompt, history: Sequence[Mapping[str, Any]]) -> AsyncGenerator[TurnEvent, None]:
        """A turn on a history of its own: nothing of it is recorded."""
        cleaner = self._session._cleaner
        message = cleaner.message(prompt_message(prompt))
        turn = _Turn(self._session, keeps=False)
        turn.messages.append(message)
        try:
            model, tools, settings = await self._open()
            sent = [*(cleaner.message(m) for m in history), message]
            async for event in self._steps(turn, sent, model, tools, settings):
                yield event
        except Exception as error:
            yield TurnEvent("error", error=error)
            raise
        yield TurnEvent("end", result=turn.result())

    async def _steps(
        self,
        turn: _Turn,
        history: list[dict[str, Any]],
        model: TurnModel,
        tools: ToolBox,
        settings: TurnSettings,
    ) -> AsyncGenerator[TurnEvent, None]:
        from perdure.turn.loop import run_turn

        masked = self._session._cleaner.masker.stream()
        events = run_turn(model=model, history=history, record=turn.record, tools=tools, settings=settings)
        try:
            async for event in events:
                if event.type == "text_delta":
                    # A key may be cut in two by the stream.
                    text = masked.feed(event.text or "")
                    if text:
                        yield TurnEvent("text_delta", text=text)
                    continue
                rest = masked.end()
                if rest:
                    yield TurnEvent("text_delta", text=rest)
                for revision in turn.take_revisions():
                    yield TurnEvent("saved", revision=revision)
                yield event
            rest = masked.end()
            if rest:
                yield TurnEvent("text_delta", text=rest)
            for revision in turn.take_revisions():
                yield TurnEvent("saved", revision=revision)
        finally:
            await events.aclose()

    async def _open(self) -> tuple[TurnModel, ToolBox, TurnSettings]:
        # The model layer takes a second or two to import.
        await off_loop(_import_models)
        from perdure.turn.loop import TurnSettings
        from perdure.turn.models import open_model

        session = self._session
        options = session._options
        if self._tools is None:
            self._tools = session._tool_box()
        if self._model is None or self._loop is not _running_loop():
            resolved = session._config.find_model(options.model)
            self._model = await open_model(resolved)
            self._loop = _running_loop()
        settings = TurnSettings(
            max_tool_rounds=options.max_tool_rounds,
            temperature=options.temperature,
            system_prompt=session._data.config.get("system_prompt") or None,
        )
        return self._model, self._tools, settings


class _Turn:
    """What one turn has brought so far."""

    def __init__(self, session: AsyncSession, *, keeps: bool = True) -> None:
        self.messages: list[dict[str, Any]] = []
        self._session = session
        self._keeps = keeps
        self._usages: list[Usage] = []
        self._calls = 0
        self._text = ""
        self._replied = False
        self._revisions: list[int] = []
        self._lost: Exception | None = None

    async def record(self, message: dict[str, Any]) -> None:
        """Keep a finished step, and store it before anything else happens."""
        message = self._session._cleaner.message(message)
        self.messages.append(message)
        if message["role"] == "assistant":
            self._replied = True
            self._usages.append(usage_of(message))
            blocks = message["content"]
            self._calls += sum(block["type"] == "tool_use" for block in blocks)
            self._text = "".join(block["text"] for block in blocks if block["type"] == "text")
        if self._keeps:
            self._session._data.append(message)
            if message["role"] == "assistant":
                self._count_usage()
            revision = await self._auto_save(step=True)
            if revision is not None:
                self._revisions.append(revision)

    async def saved(self, *, step: bool = True) -> AsyncGenerator[TurnEvent, None]:
        """Store what there is; the prompt's permanent errors raise, before any model call."""
        if step:
            revision = await self._session._auto_save(step=True)
        else:
            revision = await self._auto_save(step=False)
        if revision is not None:
            yield TurnEvent("saved", revision=revision)

    async def _auto_save(self, *, step: bool) -> int | None:
        # Once somebody else has the session, each further step would fail the same way. It is kept for the next `send`.
        if self._session._permanent is not None:
            return None
        try:
            return await self._session._auto_save(step=step)
        except Exception:
            return None

    async def broke_off(self, first: int, error: BaseException) -> None:
        """The turn failed or was cancelled: leave a history that is valid, and store it."""
        session = self._session
        if not self._replied and self.messages and self.messages[0]["role"] == "user":
            # Nothing came of the prompt. It is the caller's again.
            session._data.truncate(first)
        else:
            session._mend()
        if session._permanent is not None and not self._replied:
            # The prompt's own save said that the session is not ours to write; the caller is told by the exception.
            session._permanent = None
            return
        await self._auto_save(step=False)

    def take_revisions(self) -> list[int]:
        taken, self._revisions = self._revisions, []
        return taken

    def result(self) -> SendResult:
        return SendResult(self._text, _sum(self._usages), self._calls, tuple(self.messages))

    def _count_usage(self) -> None:
        data, last = self._session._data, self._usages[-1]
        total = data.total_usage
        for key in (
            "prompt_tokens",
            "completion_tokens",
            "total_tokens",
            "cache_read_tokens",
            "cache_write_tokens",
        ):
            tokens = getattr(last, key)
            if tokens is not None:
                total[key] = (total.get(key) or 0) + tokens
        data.total_usage = total
        if last.total_tokens:
            context = data.context_usage
            context["used_tokens"] = last.total_tokens
            most = context.get("max_tokens") or 0
            context["percent"] = round(last.total_tokens / most, 6) if most else 0.0
            data.context_usage = context

    def count_turn(self) -> None:
        """One more finished turn in the head."""
        data = self._session._data
        context = data.context_usage
        context["turns"] = (context.get("turns") or 0) + 1
        data.context_usage = context


def _sum(usages: Sequence[Usage]) -> Usage:
    def maybe(values: list[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return Usage(
        sum(u.prompt_tokens for u in usages),
        sum(u.completion_tokens for u in usages),
        sum(u.total_tokens for u in usages),
        maybe([u.cache_read_tokens for u in usages]),
        maybe([u.cache_write_tokens for u in usages]),
    )


def _import_models() -> None:
    import perdure.turn.loop
    import perdure.turn.models  # noqa: F401


def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()

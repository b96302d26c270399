"""A turn of a session: recording and saving around the loop in `loop.py`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from perdure._loop import off_loop
from perdure.errors import ConfigError
from perdure.stores._calls import to_the_end
from perdure.turn.messages import prompt_message, usage_of
from perdure.types import SendResult, TurnEvent, Usage

if TYPE_CHECKING:
    from perdure._keeper import Keeper
    from perdure.config import AgentConfig, ResolvedModel
    from perdure.options import ResolvedOptions
    from perdure.turn.loop import ToolOutcomeLike, TurnSettings
    from perdure.turn.models import ToolSpecLike, TurnModel
    from perdure.turn.tools import ToolBox

__all__ = ["TurnRunner"]

_log = logging.getLogger("perdure")

_Prompt = str | Sequence[Mapping[str, Any]]


class TurnRunner:
    """Runs the turns of one session. The model is opened with the first turn and belongs to one event loop."""

    def __init__(
        self, keeper: Keeper, config: AgentConfig, options: ResolvedOptions, tool_box: Callable[[], ToolBox]
    ) -> None:
        self._keeper = keeper
        self._config = config
        self._options = options
        self._tool_box = tool_box
        self._model: TurnModel | None = None
        self._home: tuple[asyncio.AbstractEventLoop, int] | None = None  # the model's loop and process
        self._tools: _Tools | None = None

    async def aclose(self) -> None:
        """Close the model's connections, where their event loop still runs."""
        model, home = self._model, self._home
        self._model = self._home = None
        if model is None or home is None or home[1] != os.getpid():
            return  # in a forked child the connections are the parent's
        loop = home[0]
        if loop is asyncio.get_running_loop():
            await model.aclose()
        elif loop.is_running():
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(model.aclose(), loop))

    async def turn(self, prompt: _Prompt | None) -> AsyncGenerator[TurnEvent, None]:
        """One turn on the session's history; None continues an interrupted one."""
        keeper = self._keeper
        message = None if prompt is None else keeper.cleaner.message(prompt_message(prompt))
        # What is wrong with model, key or tools shows here, before anything is kept.
        model, tools, settings = await self._open()
        if keeper.data.model_name != model.name:
            keeper.data.model_name = model.name
        turn = _Turn(keeper)
        try:
            if message is not None:
                for event in _saved(await turn.begin(message)):
                    yield event
            messages = keeper.data.messages
            history = await off_loop(lambda: list(messages))
            async with contextlib.aclosing(self._steps(turn, history, model, tools, settings)) as events:
                async for event in events:
                    yield event
        except BaseException:
            await to_the_end(turn.broke_off())
            raise
        for event in _saved(await turn.finish()):
            yield event
        yield TurnEvent("end", result=turn.result())

    async def aside(self, prompt: _Prompt, history: Sequence[Mapping[str, Any]]) -> AsyncGenerator[TurnEvent, None]:
        """A turn on a history of its own: nothing of it is recorded."""
        cleaner = self._keeper.cleaner
        message = cleaner.message(prompt_message(prompt))
        sent = [*(cleaner.message(m) for m in history), message]
        model, tools, settings = await self._open()
        turn = _Turn(self._keeper, keeps=False)
        turn.messages.append(message)
        async with contextlib.aclosing(self._steps(turn, sent, model, tools, settings)) as events:
            async for event in events:
                yield event
        yield TurnEvent("end", result=turn.result())

    async def _steps(
        self,
        turn: _Turn,
        history: list[dict[str, Any]],
        model: TurnModel,
        tools: _Tools,
        settings: TurnSettings,
    ) -> AsyncGenerator[TurnEvent, None]:
        from perdure.turn.loop import run_turn

        masker = self._keeper.cleaner.masker
        shown = masker.stream()
        events = run_turn(model=model, history=history, record=turn.record, tools=tools, settings=settings)
        async with contextlib.aclosing(events):
            async for event in events:
                if event.type == "text_delta":
                    turn.said = True
                    # A key may be cut in two by the stream.
                    for part in _text(shown.feed(event.text or "")):
                        yield part
                    continue
                for part in (*_text(shown.end()), *turn.take_saved()):
                    yield part
                if event.tool_input is not None:
                    # The tool gets what the model wrote; the one who looks on need not see a key.
                    yield TurnEvent(
                        event.type,
                        tool_use_id=event.tool_use_id,
                        tool_name=event.tool_name,
                        tool_input=masker.value(event.tool_input),
                    )
                else:
                    yield event
            for part in (*_text(shown.end()), *turn.take_saved()):
                yield part

    async def _open(self) -> tuple[TurnModel, _Tools, TurnSettings]:
        # The model layer takes a second or two to import.
        await off_loop(_import_models)
        from perdure.turn.loop import TurnSettings
        from perdure.turn.models import open_model

        keeper, options = self._keeper, self._options
        if self._tools is None:
            self._tools = _Tools(await off_loop(self._tool_box), keeper)
        home = (asyncio.get_running_loop(), os.getpid())
        if self._model is None or self._home != home:
            await self.aclose()
            self._model = await open_model(self._chosen())
            self._home = home
        settings = TurnSettings(
            max_tool_rounds=options.max_tool_rounds,
            temperature=options.temperature,
            system_prompt=keeper.data.config.get("system_prompt") or None,
        )
        return self._model, self._tools, settings

    def _chosen(self) -> ResolvedModel:
        """The model that the options name, else the session's own, else the configuration's."""
        own = self._keeper.data.model_name
        if self._options.model is None and own:
            try:
                return self._config.find_model(own)
            except ConfigError:
                default = self._config.find_model()
                _log.warning(
                    "session %r was held with model %r, which the configuration does not have; it goes on with %r",
                    self._keeper.data.id,
                    own,
                    default.name,
                )
                return default
        return self._config.find_model(self._options.model)


class _Tools:
    """A session's tools, which know whose they are: see `own_tools`."""

    def __init__(self, box: ToolBox, keeper: Keeper) -> None:
        self._box = box
        self._keeper = keeper

    def definitions(self) -> Sequence[ToolSpecLike]:
        return self._box.definitions()

    async def run(self, name: str, arguments: dict[str, Any], *, tool_use_id: str) -> ToolOutcomeLike:
        from perdure.async_session import own_tools

        token = own_tools.set((*own_tools.get(), self._keeper))
        try:
            return await self._box.run(name, arguments, tool_use_id=tool_use_id)
        finally:
            own_tools.reset(token)


class _Turn:
    """What one turn has brought so far."""

    def __init__(self, keeper: Keeper, *, keeps: bool = True) -> None:
        self.messages: list[dict[str, Any]] = []
        self.said = False
        """Whether the model has said anything."""
        self._keeper = keeper
        self._keeps = keeps
        self._prompt_at: int | None = None
        self._usages: list[Usage] = []
        self._calls = 0
        self._text = ""
        self._revisions: list[int] = []

    async def begin(self, prompt: dict[str, Any]) -> int | None:
        """Keep and store the prompt. Permanent errors raise, before any model call, and leave no trace of it."""
        keeper = self._keeper
        await keeper.mend_for_turn()
        was_dirty, at = keeper.dirty, len(keeper.data)
        keeper.data.append(prompt)
        keeper.dirty = True
        try:
            revision = await keeper.save_prompt()
        except Exception:
            keeper.data.truncate(at)
            keeper.dirty = was_dirty
            raise
        except BaseException:
            self._prompt_at = at
            raise
        self._prompt_at = at
        self.messages.append(prompt)
        return revision

    async def record(self, message: dict[str, Any]) -> None:
        """Keep a finished step, and store it before anything else happens."""
        message = self._keeper.cleaner.message(message)
        self.said = True
        self.messages.append(message)
        if message["role"] == "assistant":
            self._usages.append(usage_of(message))
            blocks = message["content"]
            self._calls += sum(block["type"] == "tool_use" for block in blocks)
            self._text = "".join(block["text"] for block in blocks if block["type"] == "text")
        if not self._keeps:
            return
        self._keeper.data.append(message)
        self._keeper.dirty = True
        if message["role"] == "assistant":
            self._count_usage()
        revision = await self._keeper.auto_save(step=True)
        if revision is not None:
            self._revisions.append(revision)

    async def finish(self) -> int | None:
        """The turn is over: one more in the head, and the last save."""
        data = self._keeper.data
        context = data.context_usage
        context["turns"] = (context.get("turns") or 0) + 1
        data.context_usage = context
        self._keeper.dirty = True
        self._keeper.answered()
        return await self._keeper.auto_save(step=False)

    async def broke_off(self) -> None:
        """The turn failed or was cancelled: leave a history that is valid, and store it."""
        if self._prompt_at is not None and not self.said:
            # Nothing came of the prompt. It is the caller's again.
            self._keeper.data.truncate(self._prompt_at)
        elif self.said:
            self._keeper.mend()
        else:
            return
        await self._keeper.auto_save(step=False)

    def take_saved(self) -> list[TurnEvent]:
        """The events of the saves since the last call."""
        taken, self._revisions = self._revisions, []
        return [TurnEvent("saved", revision=revision) for revision in taken]

    def result(self) -> SendResult:
        return SendResult(self._text, _sum(self._usages), self._calls, tuple(self.messages))

    def _count_usage(self) -> None:
        data, last = self._keeper.data, self._usages[-1]
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


def _saved(revision: int | None) -> list[TurnEvent]:
    return [] if revision is None else [TurnEvent("saved", revision=revision)]


def _text(text: str) -> list[TurnEvent]:
    return [TurnEvent("text_delta", text=text)] if text else []


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

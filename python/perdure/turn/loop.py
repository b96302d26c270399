"""The turn loop: ask the model, record its reply, run its tools, record each result, ask again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

from perdure._loop import off_loop
from perdure.errors import SerializationError, ToolRoundsError
from perdure.turn.codec import response_to_message, to_model_messages
from perdure.turn.messages import raw_arguments, tool_result_message
from perdure.turn.models import ToolSpecLike, TurnModel
from perdure.turn.repair import dangling_tool_calls
from perdure.types import TurnEvent

__all__ = ["ToolBox", "ToolOutcomeLike", "TurnSettings", "run_turn"]

_Content: TypeAlias = "str | Sequence[Mapping[str, Any]]"

# How long a tool may take to end after it was cancelled, in seconds, before the turn goes on without it.
_GRACE = 5.0


class ToolOutcomeLike(Protocol):
    """What a tool brought: text, or a list of text and image blocks."""

    @property
    def content(self) -> str | Sequence[Mapping[str, Any]]: ...
    @property
    def is_error(self) -> bool: ...


class ToolBox(Protocol):
    """The tools of a session."""

    def definitions(self) -> Sequence[ToolSpecLike]: ...

    async def run(self, name: str, arguments: dict[str, Any], *, tool_use_id: str) -> ToolOutcomeLike:
        """Run one tool. Never raises but on cancellation; an unknown name gives an `is_error` outcome."""
        ...


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """max_tool_rounds  how often the model may ask for tools in one turn; 0: never
    temperature      None: what the provider takes by default
    system_prompt    None: none
    tool_timeout     seconds that one tool may take; None: as long as it needs
    """

    max_tool_rounds: int = 50
    temperature: float | None = None
    system_prompt: str | None = None
    tool_timeout: float | None = None


async def run_turn(
    *,
    model: TurnModel,
    history: Sequence[Mapping[str, Any]],
    record: Callable[[dict[str, Any]], Awaitable[None]],
    tools: ToolBox | None = None,
    settings: TurnSettings | None = None,
) -> AsyncGenerator[TurnEvent, None]:
    """Run a turn to its end and yield its `text_delta`, `tool_start` and `tool_end` events.

    `history` ends with the prompt, or, to go on with an interrupted turn, with a tool result or with a reply
    whose calls have no result yet: those are run first, and do not count as a round.

    `record` is awaited for every whole step before anything else happens: for a reply before its first tool
    starts, for a result before the next tool starts. A `tool_end` comes after its result is recorded. What
    `record` raises ends the turn. A reply that is empty or only thought is recorded as it is, its content may
    be `[]`: it has cost tokens, and it is left out when the history is sent. Every reply has `meta`: `id`,
    `at` (Unix seconds), `model`, `finish_reason`, and `usage` if the provider tells it.

    Arguments that are no JSON object are kept as text (`messages.RAW_ARGUMENTS`) and answered with an error,
    so that the model can try again.

    Raises `ModelError` when the model fails: what came of its reply is dropped, finished steps are recorded.
    `ToolRoundsError` when the model asks for tools once more than `max_tool_rounds`: those calls are not run,
    each gets a result that says so. `SerializationError`, before anything happens, for a history that cannot
    be sent. Closing the generator or cancelling its task closes the connection and drops an unfinished reply.
    """
    settings = settings or TurnSettings()
    messages: list[Mapping[str, Any]] = list(history)
    # Not on the event loop: a long history takes a while.
    sent = await off_loop(partial(to_model_messages, messages))
    pending = [block for _, block in dangling_tool_calls(messages)]
    if not pending and (not messages or messages[-1].get("role") != "user"):
        path = f"messages[{max(len(messages) - 1, 0)}]"
        raise SerializationError(f"{path}: the history has no prompt or tool result to answer", path=path)

    async def step(message: dict[str, Any]) -> None:
        await record(message)
        messages.append(message)

    rounds = 0
    while True:
        for block in pending:
            if rounds > settings.max_tool_rounds:
                await step(_result(block, _NOT_RUN.format(settings.max_tool_rounds), is_error=True))
                continue
            about = {"tool_use_id": block["id"], "tool_name": block["name"]}
            yield TurnEvent("tool_start", **about, tool_input=dict(block["input"]))
            content, is_error = await _run(tools, block, settings.tool_timeout)
            await step(_result(block, content, is_error=is_error))
            yield TurnEvent("tool_end", **about, text=_as_text(content), is_error=is_error)
        if rounds > settings.max_tool_rounds:
            raise ToolRoundsError(
                f"the turn used up max_tool_rounds={settings.max_tool_rounds}; its steps are kept: "
                "continue_turn() goes on with a fresh allowance, or raise max_tool_rounds"
            )
        if len(sent) < len(messages):
            sent = await off_loop(partial(to_model_messages, messages))
        definitions = tools.definitions() if tools is not None else ()
        async with model.request_stream(sent, definitions, settings) as stream:
            async for text in stream:
                yield TurnEvent("text_delta", text=text)
            reply = response_to_message(stream.reply, at=int(time.time()))
        await step(reply)
        pending = [block for block in reply["content"] if block["type"] == "tool_use"]
        if not pending:
            return
        rounds += 1


_NOT_RUN = "Not run: this turn has used up its {} rounds of tool calls. Ask again in the next turn if it is needed."
_BROKEN = (
    "Not run: the arguments were not a JSON object. They are shown under INVALID_JSON in the call. "
    "Call the tool again with one valid JSON object."
)


def _result(block: Mapping[str, Any], content: _Content, *, is_error: bool) -> dict[str, Any]:
    return tool_result_message(block["id"], content, is_error=is_error)


async def _run(tools: ToolBox | None, block: Mapping[str, Any], timeout: float | None) -> tuple[_Content, bool]:
    """One tool call: (what the model is told, whether it is an error)."""
    if raw_arguments(block) is not None:
        return _BROKEN, True
    if tools is None:
        return "Not run: there are no tools in this session.", True
    call = tools.run(block["name"], dict(block["input"]), tool_use_id=block["id"])
    if timeout is None:
        outcome = await call
        return outcome.content, outcome.is_error
    # Not asyncio.wait_for: before Python 3.12 it may swallow a cancellation that comes as the tool ends.
    task = asyncio.ensure_future(call)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
    except asyncio.CancelledError:
        await _stop(task)
        raise
    if not done:
        await _stop(task)
        return (
            f"The tool was stopped: it did not end within {timeout:g} s. It may have taken effect in part.",
            True,
        )
    outcome = task.result()
    return outcome.content, outcome.is_error


async def _stop(task: asyncio.Future[ToolOutcomeLike]) -> None:
    task.cancel()
    await asyncio.wait({task}, timeout=_GRACE)
    if task.done() and not task.cancelled():
        # Fetched, so that asyncio does not report it as lost.
        with contextlib.suppress(Exception):
            task.exception()


def _as_text(content: _Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block["text"] if block.get("type") == "text" else "[image]" for block in content)

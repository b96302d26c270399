"""A model that a turn can call: opened from the configuration, streamed, its failures named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol, cast

from perdure.errors import ModelError
from perdure.turn import missing_extra

try:
    import httpx2
    from pydantic_ai.direct import model_request_stream
    from pydantic_ai.messages import (
        InstructionPart,
        ModelMessage,
        ModelResponse,
        PartDeltaEvent,
        PartStartEvent,
        TextPart,
        TextPartDelta,
    )
    from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.tools import ToolDefinition

    from perdure.turn.failures import ModelFacts, model_error, shown_url
    from perdure.turn.providers import ResolvedModelLike, build_model, compatible_model
    from perdure.turn.wire import for_sending
except ImportError as error:
    raise missing_extra(error) from None

__all__ = [
    "ReplyStream",
    "RequestSettings",
    "ResolvedModelLike",
    "Timeouts",
    "ToolSpecLike",
    "TurnModel",
    "open_model",
]


class ToolSpecLike(Protocol):
    """A tool as a model is told of it; `parameters` is the JSON schema of an object."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...
    @property
    def parameters(self) -> dict[str, Any]: ...


class RequestSettings(Protocol):
    """What a request takes from the settings of a turn."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def system_prompt(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `connect`: until there is a connection. `idle`: longest silence before and in the reply."""

    connect: float = 10.0
    idle: float = 300.0


class TurnModel:
    """One model, ready to be asked. Belongs to the event loop it was opened on, and to no other.

    `name` is `provider/model`, `supports_tools` whether it is told of tools at all. Close it with `aclose()`
    or `async with`; its connections are pooled until then. Several requests may run at the same time.
    """

    def __init__(
        self,
        model: Model[Any],
        facts: ModelFacts,
        *,
        supports_tools: bool,
        timeouts: Timeouts,
        checks_end: bool,
        keeps_id: bool = False,
        max_tokens: int | None = None,
        client: httpx2.AsyncClient | None = None,
    ) -> None:
        self.name = facts.name
        self.supports_tools = supports_tools
        self._model = model
        self._facts = facts
        self._timeouts = timeouts
        self._checks_end = checks_end
        self._keeps_id = keeps_id
        self._max_tokens = max_tokens
        self._client = client
        self._stack = AsyncExitStack()

    async def start(self) -> TurnModel:
        """Take hold of the connections. `open_model` has done it."""
        async with AsyncExitStack() as stack:
            if self._client is not None:
                stack.push_async_callback(self._client.aclose)
            await stack.enter_async_context(self._model)
            self._stack = stack.pop_all()
        return self

    async def aclose(self) -> None:
        """Close its connections. Harmless when closed already."""
        await self._stack.aclose()

    async def __aenter__(self) -> TurnModel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def request_stream(
        self, messages: Sequence[ModelMessage], tools: Sequence[ToolSpecLike], settings: RequestSettings
    ) -> ReplyStream:
        """Ask for the next reply: use it as `async with`, iterate over its text, then take its `reply`.

        `messages` end with a user's message. `tools` are left out if the model does not support any.
        """
        definitions = [
            ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=tool.parameters)
            for tool in (tools if self.supports_tools else ())
        ]
        prompt = settings.system_prompt
        parameters = ModelRequestParameters(
            function_tools=definitions,
            instruction_parts=[InstructionPart(content=prompt)] if prompt else [],
        )
        stream = model_request_stream(
            self._model,
            for_sending(messages),
            model_settings=self._settings(settings.temperature),
            model_request_parameters=parameters,
            instrument=False,
        )
        return ReplyStream(
            stream,
            self._facts,
            checks_end=self._checks_end,
            model_id=self._facts.model_id if self._keeps_id else None,
        )

    def _settings(self, temperature: float | None) -> ModelSettings:
        limits = self._timeouts
        # Only the server may be silent for `idle`: sending and a free connection are a matter of seconds.
        timeout = httpx2.Timeout(limits.idle, connect=limits.connect, write=30.0, pool=30.0)
        settings: dict[str, Any] = {
            "timeout": cast("Any", timeout) if self._checks_end else limits.idle,
            "first_event_timeout": limits.idle,
            "max_retries": self._facts.retries,
        }
        if temperature is not None:
            settings["temperature"] = temperature
        if self._max_tokens is not None:
            settings["max_tokens"] = self._max_tokens
        unsupported = self._model.unsupported_settings
        return cast("ModelSettings", {key: value for key, value in settings.items() if key not in unsupported})


class ReplyStream:
    """A reply as it comes in. Every failure is a `ModelError` that holds neither key nor content.

    Leaving the `async with` closes the connection, also in the middle of the reply.
    """

    def __init__(
        self,
        stream: AbstractAsyncContextManager[StreamedResponse],
        facts: ModelFacts,
        *,
        checks_end: bool,
        model_id: str | None,
    ) -> None:
        self._context = stream
        self._facts = facts
        self._checks_end = checks_end
        self._model_id = model_id
        self._stream: StreamedResponse | None = None
        self._events: AsyncIterator[Any] | None = None
        self._ended = False

    async def __aenter__(self) -> ReplyStream:
        failure: ModelError | None = None
        try:
            self._stream = await self._context.__aenter__()
            self._events = self._stream.__aiter__()
        except Exception as error:
            failure = model_error(error, self._facts)
        if failure is not None:
            raise failure
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close = getattr(self._events, "aclose", None)
        try:
            if close is not None:
                await close()
        except Exception:
            pass  # the reply is whole or given up: how the connection ends changes nothing
        try:
            await self._context.__aexit__(None, None, None)
        except Exception:
            pass

    def __aiter__(self) -> ReplyStream:
        return self

    async def __anext__(self) -> str:
        """The next piece of text, never empty."""
        if self._events is None:
            raise RuntimeError("a reply is read inside of its 'async with'")
        while True:
            # Raised after the block, so that the library's error is not its context.
            event: object = None
            failure: ModelError | None = None
            try:
                event = await self._events.__anext__()
            except StopAsyncIteration:
                break
            except Exception as error:
                failure = model_error(error, self._facts)
            if failure is not None:
                raise failure
            if text := _text_in(event):
                return text
        self._ended = True
        raise StopAsyncIteration

    @property
    def reply(self) -> ModelResponse:
        """The whole reply, once the iteration is over. A stream that was cut is a `ModelError`."""
        if self._stream is None or not self._ended:
            raise RuntimeError("the reply is not whole yet")
        reply = self._stream.get()
        details = reply.provider_details or {}
        if reply.finish_reason == "error":
            raise self._failed("the server reported an error in the middle of the reply")
        # The end of the connection may pass for the end of the reply. Only the server's own word that it had
        # finished tells the two apart.
        told = details.get("finish_reason") or details.get("refusal")
        if reply.state not in ("complete", "suspended") or (self._checks_end and not told):
            raise self._failed("the connection broke off before the reply was whole")
        return replace(reply, model_name=self._model_id) if self._model_id else reply

    def _failed(self, what: str) -> ModelError:
        name = self._facts.name
        hint = "Try again; continue_turn() goes on after the last finished step."
        return ModelError(f"model {name!r}: {what}. {hint}", model=name)


def _text_in(event: object) -> str | None:
    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        return event.part.content
    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        return event.delta.content_delta
    return None


async def open_model(resolved: ResolvedModelLike, *, timeouts: Timeouts | None = None, retries: int = 2) -> TurnModel:
    """Open the model that the configuration names, on the running event loop.

    openai     the chat completions API, at `base_url` if given
    anthropic  the messages API
    local      the local server, started if it does not run; `base_url` names one that runs elsewhere. Tools
               are left out if the server says that its model has no words for them
    others     by pydantic-ai's name, with the key and the base_url where that provider takes them; a name
               that pydantic-ai does not know is an OpenAI-compatible server if there is a `base_url`

    `retries` is how often a request is repeated (429, 5xx, no connection) before its reply has begun.
    Raises `ConfigError` for a missing key, extra or package and for an unknown provider.
    """
    limits = timeouts or Timeouts()
    name, model_id = resolved.provider.name, resolved.model.id
    url, supports_tools = resolved.base_url, resolved.model.tool_call is not False
    client: httpx2.AsyncClient | None = None
    if name == "local":
        if url is None:
            resolved.require_key()  # refuses a base_url whose environment variable is not set
            url = await _local_url(model_id)
        # A proxy for the internet must not get what is said on this machine.
        client = httpx2.AsyncClient(trust_env=False)
    facts = ModelFacts(f"{name}/{model_id}", name, model_id, shown_url(url), idle=limits.idle, retries=retries)
    try:
        if name == "local":
            assert client is not None and url is not None
            model = compatible_model(name, model_id, url, resolved.api_key, client)
            if supports_tools:
                supports_tools = await _knows_tools(client, url, limits, ours=resolved.base_url is None)
        else:
            model = build_model(resolved)
        return await TurnModel(
            model,
            facts,
            supports_tools=supports_tools,
            timeouts=limits,
            checks_end=type(model).__name__ in ("OpenAIChatModel", "AnthropicModel"),
            # A local server calls its model by the path of its file.
            keeps_id=name == "local",
            max_tokens=resolved.model.max_output_tokens,
            client=client,
        ).start()
    except BaseException:
        if client is not None:
            await client.aclose()
        raise


async def _local_url(model_id: str) -> str:
    from perdure.turn.local import local_base_url

    return await local_base_url(model_id)


async def _knows_tools(client: httpx2.AsyncClient, url: str, limits: Timeouts, *, ours: bool) -> bool:
    """What llama.cpp says about the model's template. Of another kind of server the owner knows better."""
    try:
        answer = await client.get(f"{url.rstrip('/').removesuffix('/v1')}/props", timeout=limits.connect)
        return bool(answer.json()["chat_template_caps"]["supports_tools"])
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return not ours

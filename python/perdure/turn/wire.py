"""Shape a converted history so that providers take it. Only for sending: what is stored stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

__all__ = ["for_sending"]

# Some providers refuse an empty result, and every model takes an empty one for a mistake of its own.
_NO_OUTPUT = "(no output)"


def for_sending(messages: Sequence[ModelMessage]) -> list[ModelMessage]:
    """Merge neighbours of one role, drop replies without any text or call, mend text that is not Unicode.

    A reply that is empty or only thought is refused by some providers wherever it stands; the prompts before
    and after it become one. Lone surrogates, which JSON can carry and UTF-8 cannot, become U+FFFD.
    """
    merged: list[ModelMessage] = []
    for message in messages:
        last = merged[-1] if merged else None
        if isinstance(message, ModelRequest):
            parts = [part for part in map(_request_part, message.parts) if part is not None]
            if isinstance(last, ModelRequest):
                merged[-1] = replace(last, parts=[*last.parts, *parts])
            elif parts:
                merged.append(replace(message, parts=parts, metadata=None))
        elif _says_something(message):
            reply = [_response_part(part) for part in message.parts]
            if isinstance(last, ModelResponse):
                merged[-1] = replace(last, parts=[*last.parts, *reply])
            else:
                merged.append(replace(message, parts=reply, metadata=None))
    return [
        replace(message, parts=_joined(message.parts)) if isinstance(message, ModelRequest) else message
        for message in merged
    ]


def _says_something(message: ModelResponse) -> bool:
    return any(
        isinstance(part, ToolCallPart) or (isinstance(part, TextPart) and bool(part.content.strip()))
        for part in message.parts
    )


def _joined(parts: Sequence[ModelRequestPart]) -> list[ModelRequestPart]:
    """One prompt instead of several in a row, which would go out as several messages of one role."""
    results: list[ModelRequestPart] = [part for part in parts if not isinstance(part, UserPromptPart)]
    prompts = [part for part in parts if isinstance(part, UserPromptPart)]
    if not prompts:
        return results
    items = [item for prompt in prompts for item in prompt.content]
    # Plain text wherever possible: not every server takes a list of parts.
    texts = [item for item in items if isinstance(item, str)]
    content = "\n\n".join(texts) if len(texts) == len(items) else items
    return [*results, replace(prompts[0], content=content)]


def _request_part(part: ModelRequestPart) -> ModelRequestPart | None:
    """The part as it may be sent, a prompt always with a list; None for an empty prompt."""
    if isinstance(part, UserPromptPart):
        items = [part.content] if isinstance(part.content, str) else part.content
        content: Any = [_unicode(item) for item in items if item != ""]
        return replace(part, content=content) if content else None
    if isinstance(part, ToolReturnPart):
        content = part.content
        if isinstance(content, list):
            content = [item for item in content if item != ""]
            if not any(isinstance(item, BinaryContent) for item in content):
                content = "\n".join(content)
        return replace(
            cast("ToolReturnPart[Any]", part),
            content=_unicode(content) or _NO_OUTPUT,
            tool_name=_unicode(part.tool_name),
            tool_call_id=_unicode(part.tool_call_id),
        )
    return part


def _response_part(part: ModelResponsePart) -> ModelResponsePart:
    if isinstance(part, TextPart):
        return replace(part, content=_unicode(part.content))
    if isinstance(part, ThinkingPart):
        return replace(part, content=_unicode(part.content), signature=_unicode(part.signature))
    if isinstance(part, ToolCallPart):
        return replace(
            part,
            args=_unicode(part.args),
            tool_name=_unicode(part.tool_name),
            tool_call_id=_unicode(part.tool_call_id),
        )
    return part


def _unicode(value: Any) -> Any:
    if isinstance(value, str):
        if value.isascii():
            return value
        try:
            value.encode()
        except UnicodeEncodeError:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return value
    if isinstance(value, list):
        return [_unicode(item) for item in value]
    if isinstance(value, dict):
        return {_unicode(key): _unicode(item) for key, item in value.items()}
    return value

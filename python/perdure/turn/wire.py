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
    UserContent,
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
            parts = [_request_part(part) for part in message.parts]
            if isinstance(last, ModelRequest):
                merged[-1] = replace(last, parts=_joined([*last.parts, *parts]))
            else:
                merged.append(replace(message, parts=_joined(parts), metadata=None))
        elif _says_something(message):
            reply = [_response_part(part) for part in message.parts]
            if isinstance(last, ModelResponse):
                merged[-1] = replace(last, parts=[*last.parts, *reply])
            else:
                merged.append(replace(message, parts=reply, metadata=None))
    return merged


def _says_something(message: ModelResponse) -> bool:
    return any(
        isinstance(part, ToolCallPart) or (isinstance(part, TextPart) and bool(part.content.strip()))
        for part in message.parts
    )


def _joined(parts: Sequence[ModelRequestPart]) -> list[ModelRequestPart]:
    """One prompt instead of several in a row: several would go out as several messages of one role."""
    results: list[ModelRequestPart] = [part for part in parts if not isinstance(part, UserPromptPart)]
    items: list[UserContent] = []
    prompts = [part for part in parts if isinstance(part, UserPromptPart)]
    for prompt in prompts:
        items += [prompt.content] if isinstance(prompt.content, str) else prompt.content
    items = [item for item in items if item != ""]
    if not items:
        return results
    only = items[0] if len(items) == 1 and isinstance(items[0], str) else None
    return [*results, replace(prompts[0], content=items if only is None else only)]


def _request_part(part: ModelRequestPart) -> ModelRequestPart:
    if isinstance(part, UserPromptPart) and not isinstance(part.content, str):
        return replace(part, content=[_unicode(item) for item in part.content])
    if isinstance(part, ToolReturnPart):
        content: Any = part.content
        if isinstance(content, list):
            content = [item for item in content if item != ""]
            if not any(isinstance(item, BinaryContent) for item in content):
                content = "\n".join(content)
        return replace(cast("ToolReturnPart[Any]", part), content=_unicode(content) or _NO_OUTPUT)
    return part


def _response_part(part: ModelResponsePart) -> ModelResponsePart:
    if isinstance(part, (TextPart, ThinkingPart)):
        return replace(part, content=_unicode(part.content))
    if isinstance(part, ToolCallPart) and isinstance(part.args, dict):
        return replace(part, args=_unicode(part.args))
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

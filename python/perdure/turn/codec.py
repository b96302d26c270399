"""perdure's messages (plain dicts) to pydantic-ai's, one to one, without loss for what perdure writes.

What pydantic-ai keeps and perdure's block shapes have no place for lies in an optional key `provider` of a
block (`name`, `id`, `details`) or of `meta` (`name`, `system`, `response_id`, `details`), so that signed or
provider-bound parts go back to the provider that made them. A `thinking` block with a signature and no
`provider`, and a `redacted_thinking` block (`data`), are Anthropic's own shapes and go back to Anthropic.

`replies` converts the other way, `wire` shapes a converted history so that providers take it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Literal, cast, get_args

from perdure.turn import missing_extra
from perdure.turn.messages import (
    RAW_ARGUMENTS,
    blocks_of,
    count,
    image_data,
    kind_of,
    new_message_id,
    object_of,
    prompt_message,
    refuse,
    refuse_kind,
    string,
    tool_result_message,
    usage_of,
)

try:
    from pydantic_ai.messages import (
        BinaryContent,
        FilePart,
        FinishReason,
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
    from pydantic_ai.usage import RequestUsage

    from perdure.turn.replies import (
        CACHE_READ_TOLD,
        CACHE_WRITE_TOLD,
        META,
        REDACTED,
        from_model_messages,
        response_to_message,
    )
except ImportError as error:
    raise missing_extra(error) from None

__all__ = [
    "RAW_ARGUMENTS",
    "from_model_messages",
    "new_message_id",
    "prompt_message",
    "response_to_message",
    "to_model_messages",
    "tool_result_message",
    "usage_of",
]

_FINISH_REASONS = frozenset(get_args(FinishReason))
_LAST_SECOND = 253_402_300_799  # of the year 9999, the last that a datetime can hold


def to_model_messages(messages: Sequence[Mapping[str, Any]]) -> list[ModelMessage]:
    """Convert a history, one message to one message.

    Raises `SerializationError`, whose `path` names the place (`messages[3].content[0]`), for what no model
    can be sent: an unknown role or block type, a value of a wrong type, an image that is not base64, a tool
    result without an earlier call, results that do not directly follow their calls, a call that has no result
    although the conversation went on. The calls of the last reply may still be unanswered.
    """
    converted: list[ModelMessage] = []
    calls = _Calls()
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        if not isinstance(message, Mapping):
            refuse(f"a message must be an object, not {kind_of(message)}", path)
        role = message.get("role")
        if role == "user":
            converted.append(_request(message, path, calls))
        elif role == "assistant":
            converted.append(_response(message, path, calls))
        elif role == "system":
            refuse("a system message cannot be sent; use the option system_prompt", f"{path}.role")
        else:
            refuse("the role must be 'user' or 'assistant'", f"{path}.role")
    return converted


class _Calls:
    """The calls of the last reply that wait for a result: id to (tool name, path of the call)."""

    def __init__(self) -> None:
        self.open: dict[str, tuple[str, str]] = {}
        self.seen: set[str] = set()

    def ask(self, call_id: str, name: str, path: str) -> None:
        if call_id in self.open:
            refuse("the same tool call id is used twice in one reply", f"{path}.id")
        self.open[call_id] = (name, path)
        self.seen.add(call_id)

    def answer(self, call_id: str, path: str) -> str:
        if call_id in self.open:
            return self.open.pop(call_id)[0]
        if call_id in self.seen:
            refuse("the tool call has a result already", f"{path}.tool_use_id")
        return refuse("there is no earlier tool_use with this tool_use_id", f"{path}.tool_use_id")

    def close(self) -> None:
        """Anything but a result comes next: every call must have one."""
        for _, path in self.open.values():
            refuse("the tool call has no result right after it", path)


def _request(message: Mapping[str, Any], path: str, calls: _Calls) -> ModelRequest:
    known, beside = _split_meta(message, path, ("at",))
    timestamp = _timestamp(known)
    parts: list[ModelRequestPart] = []
    prompt: list[UserContent] = []
    for index, block in enumerate(blocks_of(message, path)):
        here = f"{path}.content[{index}]"
        if block.get("type") == "tool_result":
            if prompt:
                refuse("a tool result must come before other content of its message", here)
            parts.append(_tool_return(block, here, calls, timestamp))
        else:
            calls.close()
            prompt.append(_user_item(block, here))
    if prompt:
        parts.append(UserPromptPart(prompt, timestamp=timestamp))
    if not parts:
        refuse("a user message must not be empty", f"{path}.content")
    return ModelRequest(parts, timestamp=timestamp, metadata={META: beside})


def _tool_return(block: Mapping[str, Any], path: str, calls: _Calls, timestamp: datetime) -> ToolReturnPart[Any]:
    call_id = string(block, "tool_use_id", path)
    name = calls.answer(call_id, path)
    failed = block.get("is_error")
    if failed is not None and not isinstance(failed, bool):
        refuse(f"is_error must be a boolean, not {kind_of(failed)}", f"{path}.is_error")
    content = block.get("content")
    value: str | list[UserContent]
    if content is None or isinstance(content, str):
        value = content or ""
    else:
        items = blocks_of(block, path)
        value = [_user_item(item, f"{path}.content[{index}]") for index, item in enumerate(items)]
    outcome: Literal["failed", "success"] = "failed" if failed else "success"
    return ToolReturnPart(name, cast("Any", value), call_id, timestamp=timestamp, outcome=outcome)


def _user_item(block: Mapping[str, Any], path: str) -> UserContent:
    if block.get("type") == "text":
        return string(block, "text", path, empty=True)
    if block.get("type") == "image":
        return _image(block, path)
    return refuse_kind(block.get("type"), "a user message", path)


def _image(block: Mapping[str, Any], path: str) -> BinaryContent:
    media_type, data = image_data(block, path)
    return BinaryContent(data, media_type=media_type)


def _response(message: Mapping[str, Any], path: str, calls: _Calls) -> ModelResponse:
    calls.close()
    known, beside = _split_meta(message, path, ("at", "usage", "model", "finish_reason", "provider"))
    provider = known.get("provider", {})
    parts = [
        _response_part(block, f"{path}.content[{index}]", calls) for index, block in enumerate(blocks_of(message, path))
    ]
    return ModelResponse(
        parts,
        usage=_usage(known["usage"]) if "usage" in known else RequestUsage(unmeasured_requests=1),
        model_name=known.get("model"),
        timestamp=_timestamp(known),
        finish_reason=known.get("finish_reason"),
        provider_name=provider.get("name"),
        canonical_system=provider.get("system"),
        provider_response_id=provider.get("response_id"),
        provider_details=provider.get("details"),
        metadata={META: beside},
    )


def _response_part(block: Mapping[str, Any], path: str, calls: _Calls) -> ModelResponsePart:
    kind = block.get("type")
    provider = object_of(block, "provider", path)
    made_by: dict[str, Any] = {
        "id": provider.get("id"),
        "provider_name": provider.get("name"),
        "provider_details": provider.get("details"),
    }
    if kind == "text":
        return TextPart(string(block, "text", path, empty=True), **made_by)
    if kind == "thinking":
        signature = block.get("signature")
        if signature is not None and not isinstance(signature, str):
            refuse(f"signature must be text, not {kind_of(signature)}", f"{path}.signature")
        if signature and not provider:
            made_by["provider_name"] = "anthropic"
        return ThinkingPart(string(block, "thinking", path, empty=True), signature=signature, **made_by)
    if kind == REDACTED:
        made_by.update(id=REDACTED, provider_name=provider.get("name", "anthropic"))
        return ThinkingPart("", signature=string(block, "data", path), **made_by)
    if kind == "tool_use":
        call_id, name = string(block, "id", path), string(block, "name", path)
        arguments = block.get("input")
        if not isinstance(arguments, Mapping):
            refuse(f"a tool call's input must be an object, not {kind_of(arguments)}", f"{path}.input")
        calls.ask(call_id, name, path)
        return ToolCallPart(name, dict(arguments), call_id, **made_by)
    if kind == "image":
        return FilePart(_image(block, path), **made_by)
    return refuse_kind(kind, "an assistant message", path)


def _split_meta(message: Mapping[str, Any], path: str, fields: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The meta values that pydantic-ai has a field for, and what has to travel beside them."""
    meta = object_of(message, "meta", path)
    known = {key: meta[key] for key in fields if key in meta and _has_field(key, meta[key])}
    return known, {
        "meta": {key: value for key, value in meta.items() if key not in known},
        "known": sorted(known) if "meta" in message else None,
    }


def _has_field(key: str, value: object) -> bool:
    if key == "at":
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LAST_SECOND
    if key == "finish_reason":
        return isinstance(value, str) and value in _FINISH_REASONS
    return isinstance(value, str) if key == "model" else isinstance(value, Mapping)


def _timestamp(known: Mapping[str, Any]) -> datetime:
    return datetime.fromtimestamp(known.get("at", 0), timezone.utc)


def _usage(usage: Mapping[str, Any]) -> RequestUsage:
    read, write = usage.get("cache_read_tokens"), usage.get("cache_write_tokens")
    # pydantic-ai has 0 both for "none" and for "not told"; its details keep the two apart.
    told = ((CACHE_READ_TOLD, read), (CACHE_WRITE_TOLD, write))
    return RequestUsage(
        input_tokens=count(usage.get("prompt_tokens")),
        output_tokens=count(usage.get("completion_tokens")),
        cache_read_tokens=count(read),
        cache_write_tokens=count(write),
        details={key: count(value) for key, value in told if value is not None},
    )

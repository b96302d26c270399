"""pydantic-ai's messages to perdure's: the replies of a turn, and histories from elsewhere."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

from pydantic_ai.messages import (
    ERROR_OUTCOMES,
    BaseToolReturnPart,
    BinaryContent,
    CachePoint,
    FilePart,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    RetryFeedbackPart,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.usage import RequestUsage
from pydantic_core import to_jsonable_python

from perdure.turn.messages import RAW_ARGUMENTS, new_message_id, refuse

__all__ = [
    "CACHE_READ_TOLD",
    "CACHE_WRITE_TOLD",
    "META",
    "REDACTED",
    "from_model_messages",
    "response_to_message",
]

META = "perdure"
"""Where a converted message keeps what pydantic-ai has no field for. `metadata` is never sent to a model."""

REDACTED = "redacted_thinking"
CACHE_READ_TOLD = "cache_read_input_tokens"
CACHE_WRITE_TOLD = "cache_creation_input_tokens"

# Providers' words for a finish reason that say no more than pydantic-ai's.
_PLAIN_REASONS = frozenset(
    ("stop", "length", "tool_calls", "content_filter", "end_turn", "tool_use", "max_tokens", "refusal")
)

# A message may nest 512 deep in a session; `input` lies four levels down in it.
_MAX_INPUT_DEPTH = 500


def response_to_message(
    response: ModelResponse, *, message_id: str | None = None, at: int | None = None
) -> dict[str, Any]:
    """The assistant message for a reply. `at` is in Unix seconds, by default the time that the reply carries.

    `meta.usage` is left out if the provider did not count tokens. Two calls with one id get different ids.
    Arguments that are not a JSON object are kept as text, see `messages.RAW_ARGUMENTS`. A reply without any
    text or call has empty content. Raises `SerializationError` for a kind of part that a session cannot keep.
    """
    content: list[dict[str, Any]] = []
    ids: set[str] = set()
    for index, part in enumerate(response.parts):
        block = _block(part, f"reply.parts[{index}]")
        if block is None:
            continue
        if block["type"] == "tool_use":
            block["id"] = _unused(block["id"], ids)
            ids.add(block["id"])
        content.append(block)
    meta: dict[str, Any] = {"id": message_id or new_message_id()}
    meta["at"] = int(response.timestamp.timestamp()) if at is None else at
    return {"role": "assistant", "content": content, "meta": {**meta, **_response_meta(response)}}


def from_model_messages(messages: Sequence[ModelMessage]) -> list[dict[str, Any]]:
    """The perdure messages for a pydantic-ai history, such as `result.all_messages()` of an `Agent`.

    Each tool result becomes a message of its own. System prompts, instructions and other notes of the
    framework are left out: a session keeps its system prompt in its configuration. Messages that
    `to_model_messages` made come back as they were. Raises `SerializationError` for content that a session
    cannot keep, such as audio, or files that are only linked to; its `path` names the part.
    """
    converted: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        path = f"messages[{index}]"
        beside = (message.metadata or {}).get(META)
        if isinstance(message, ModelRequest):
            converted += _own_request(message, beside, path) if beside else _foreign_request(message, path)
        elif beside:
            blocks = [_block(part, f"{path}.parts[{n}]", empty=True) for n, part in enumerate(message.parts)]
            fields = {"at": int(message.timestamp.timestamp()), **_response_meta(message)}
            converted.append(_with_meta({"role": "assistant", "content": blocks}, fields, beside))
        else:
            converted.append(response_to_message(message))
    return converted


def _own_request(message: ModelRequest, beside: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for index, part in enumerate(message.parts):
        blocks += _request_blocks(part, f"{path}.parts[{index}]")
    at = int(message.timestamp.timestamp()) if message.timestamp else 0
    return [_with_meta({"role": "user", "content": blocks}, {"at": at}, beside)]


def _foreign_request(message: ModelRequest, path: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for index, part in enumerate(message.parts):
        blocks = _request_blocks(part, f"{path}.parts[{index}]")
        if blocks:
            stamp = getattr(part, "timestamp", None) or message.timestamp
            meta: dict[str, Any] = {"id": new_message_id()}
            if stamp is not None:
                meta["at"] = int(stamp.timestamp())
            messages.append({"role": "user", "content": blocks, "meta": meta})
    return messages


def _with_meta(message: dict[str, Any], fields: dict[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    if beside["known"] is not None:
        message["meta"] = {**beside["meta"], **{key: fields[key] for key in beside["known"] if key in fields}}
    return message


def _request_blocks(part: ModelRequestPart, path: str) -> list[dict[str, Any]]:
    if isinstance(part, UserPromptPart):
        content = part.content if not isinstance(part.content, str) else [part.content]
        return _items(content, f"{path}.content")
    if isinstance(part, BaseToolReturnPart):
        value: Any = part.content
        multiple = isinstance(value, list) and all(isinstance(item, (str, BinaryContent)) for item in value)
        if isinstance(value, BinaryContent):
            content_blocks: Any = _items([value], f"{path}.content")
        elif multiple:
            content_blocks = _items(value, f"{path}.content")
        else:
            content_blocks = value if isinstance(value, str) else part.model_response_str(wrap_if_error=False)
        block = {"type": "tool_result", "tool_use_id": part.tool_call_id, "content": content_blocks}
        block["is_error"] = part.outcome in ERROR_OUTCOMES
        return [block]
    if isinstance(part, RetryFeedbackPart):
        return [{"type": "text", "text": part.model_response()}]
    if isinstance(part, SystemPromptPart) or part.part_kind.startswith(("instruction", "model-settings")):
        return []
    if part.part_kind.endswith("-delta"):
        return []
    return refuse(f"a part of kind {part.part_kind!r} cannot be kept in a session", path)


def _items(items: Sequence[Any], path: str) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for index, item in enumerate(items):
        if isinstance(item, (str, TextContent)):
            blocks.append({"type": "text", "text": item if isinstance(item, str) else item.content})
        elif isinstance(item, BinaryContent) and item.is_image:
            blocks.append(_image_block(item))
        elif not isinstance(item, CachePoint):
            kind = getattr(item, "media_type", None) or type(item).__name__
            refuse(f"a session keeps text and images, not {kind!r}", f"{path}[{index}]")
    return blocks


def _block(part: ModelResponsePart, path: str, *, empty: bool = False) -> dict[str, Any] | None:
    """The block for one part of a reply; None for a text part without text, unless `empty` wants it."""
    provider = _made_by(part)
    if isinstance(part, TextPart):
        if not part.content and not provider and not empty:
            return None
        block: dict[str, Any] = {"type": "text", "text": part.content}
    elif isinstance(part, ThinkingPart):
        block, provider = _thinking_block(part, provider)
    elif isinstance(part, ToolCallPart):
        block = {"type": "tool_use", "id": part.tool_call_id, "name": part.tool_name}
        block["input"] = _arguments(part.args)
    elif isinstance(part, FilePart) and part.content.is_image:
        block = _image_block(part.content)
    else:
        refuse(f"a part of kind {part.part_kind!r} cannot be kept in a session", path)
    if provider:
        block["provider"] = provider
    return block


def _thinking_block(part: ThinkingPart, provider: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    if part.id == REDACTED and part.signature:
        block: dict[str, Any] = {"type": REDACTED, "data": part.signature}
        del provider["id"]
    else:
        block = {"type": "thinking", "thinking": part.content}
        if part.signature is not None:
            block["signature"] = part.signature
    if part.signature and provider == {"name": "anthropic"}:
        provider = {}
    return block, provider


def _made_by(part: ModelResponsePart) -> dict[str, Any]:
    made_by = {
        "name": getattr(part, "provider_name", None),
        "id": getattr(part, "id", None),
        "details": _json(getattr(part, "provider_details", None) or {}),
    }
    return {key: value for key, value in made_by.items() if value}


def _image_block(image: BinaryContent) -> dict[str, Any]:
    source = {"type": "base64", "media_type": image.media_type, "data": image.base64}
    return {"type": "image", "source": source}


def _unused(call_id: str, used: set[str]) -> str:
    candidate, number = call_id, 1
    while candidate in used:
        number += 1
        candidate = f"{call_id}_{number}"
    return candidate


def _response_meta(response: ModelResponse) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if not response.usage.unmeasured_requests:
        meta["usage"] = _usage(response.usage)
    if response.model_name:
        meta["model"] = response.model_name
    if response.finish_reason:
        meta["finish_reason"] = response.finish_reason
    details = {key: value for key, value in (response.provider_details or {}).items() if key != "timestamp"}
    if response.finish_reason and details.get("finish_reason") in _PLAIN_REASONS:
        del details["finish_reason"]
    provider = {
        "name": response.provider_name,
        "system": response.canonical_system if response.canonical_system != response.provider_name else None,
        "response_id": response.provider_response_id,
        "details": _json(details),
    }
    if provider := {key: value for key, value in provider.items() if value}:
        meta["provider"] = provider
    return meta


def _usage(usage: RequestUsage) -> dict[str, Any]:
    told = usage.details
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens or (0 if CACHE_READ_TOLD in told else None),
        "cache_write_tokens": usage.cache_write_tokens or (0 if CACHE_WRITE_TOLD in told else None),
    }


def _arguments(raw: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """A call's arguments as the object to store; what is none is kept as text under `RAW_ARGUMENTS`.

    NaN, infinite numbers and very deep nesting count as unreadable: a session cannot hold them.
    """
    if isinstance(raw, Mapping):
        return cast("dict[str, Any]", _json(raw))
    if raw is None or not raw.strip():
        return {}
    try:
        value = json.loads(raw, parse_constant=_no_constant, parse_float=_finite)
        if isinstance(value, dict) and _is_shallow(value):
            return value
    except (ValueError, RecursionError):
        pass
    return {RAW_ARGUMENTS: raw}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("a number is out of range")
    return value


def _is_shallow(value: object) -> bool:
    level: list[Any] = [value]
    for _ in range(_MAX_INPUT_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return True
    return False


def _json(value: Any) -> Any:
    """What a session can hold of a value; pydantic's own converter fails on lone surrogates."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    return to_jsonable_python(value, serialize_unknown=True, bytes_mode="base64", inf_nan_mode="strings")

"""The messages that a turn writes, and the checks on messages it is given. Standard library only."""

from __future__ import annotations

import base64
import binascii
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from perdure.errors import SerializationError
from perdure.types import Usage

__all__ = [
    "RAW_ARGUMENTS",
    "new_message_id",
    "prompt_message",
    "raw_arguments",
    "tool_result_message",
    "usage_of",
]

RAW_ARGUMENTS = "INVALID_JSON"
"""The only key in the `input` of a call whose arguments could not be read: the text that the model wrote."""


def new_message_id() -> str:
    """A new unique `meta.id`."""
    return f"msg_{uuid.uuid4().hex}"


def prompt_message(
    prompt: str | Sequence[Mapping[str, Any]], *, message_id: str | None = None, at: int | None = None
) -> dict[str, Any]:
    """The user message for a prompt: text, or a list of text and image blocks.

    `at` is in Unix seconds; both keywords default to new values. An empty prompt, or a block that a prompt
    cannot hold, is a `SerializationError` whose path starts with `prompt`.
    """
    if not isinstance(prompt, str) and (isinstance(prompt, Mapping) or not isinstance(prompt, Sequence)):
        refuse(f"a prompt must be text or a list of blocks, not {kind_of(prompt)}", "prompt")
    content: list[dict[str, Any]] = (
        [{"type": "text", "text": prompt}]
        if isinstance(prompt, str)
        else [dict(_block(block, f"prompt[{index}]")) for index, block in enumerate(prompt)]
    )
    filled = [check_user_block(block, f"prompt[{index}]") for index, block in enumerate(content)]
    if not any(filled):
        refuse("the prompt is empty; give it text or an image", "prompt")
    return {"role": "user", "content": content, "meta": new_meta(message_id, at)}


def tool_result_message(
    tool_use_id: str,
    content: str | Sequence[Mapping[str, Any]],
    *,
    is_error: bool,
    message_id: str | None = None,
    at: int | None = None,
) -> dict[str, Any]:
    """The user message that answers one tool call. `content` is text or a list of text and image blocks."""
    block = {
        "type": "tool_result",
        "tool_use_id": tool_use_id,
        "content": content if isinstance(content, str) else [dict(part) for part in content],
        "is_error": is_error,
    }
    return {"role": "user", "content": [block], "meta": new_meta(message_id, at)}


def raw_arguments(block: Mapping[str, Any]) -> str | None:
    """The raw text of a tool_use block whose arguments could not be read, else None."""
    arguments = block.get("input")
    if isinstance(arguments, Mapping) and len(arguments) == 1:
        raw = arguments.get(RAW_ARGUMENTS)
        return raw if isinstance(raw, str) else None
    return None


def usage_of(message: Mapping[str, Any]) -> Usage:
    """What a reply cost, from its `meta.usage`; zeros where the provider did not tell."""
    meta = message.get("meta")
    usage = meta.get("usage") if isinstance(meta, Mapping) else None
    usage = usage if isinstance(usage, Mapping) else {}
    read, write = usage.get("cache_read_tokens"), usage.get("cache_write_tokens")
    return Usage(
        prompt_tokens=count(usage.get("prompt_tokens")),
        completion_tokens=count(usage.get("completion_tokens")),
        total_tokens=count(usage.get("total_tokens")),
        cache_read_tokens=None if read is None else count(read),
        cache_write_tokens=None if write is None else count(write),
    )


def new_meta(message_id: str | None, at: int | None) -> dict[str, Any]:
    return {"id": message_id or new_message_id(), "at": int(time.time()) if at is None else at}


def blocks_of(message: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
    """The content blocks; text content is one text block, empty text is none."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    if not isinstance(content, list):
        refuse(f"content must be text or a list of blocks, not {kind_of(content)}", f"{path}.content")
    return [_block(block, f"{path}.content[{index}]") for index, block in enumerate(content)]


def check_user_block(block: Mapping[str, Any], path: str) -> bool:
    """Refuse a block that no user message can hold; tell whether there is anything in it."""
    if block.get("type") == "text":
        return bool(string(block, "text", path, empty=True))
    if block.get("type") == "image":
        return bool(image_data(block, path))
    return refuse_kind(block.get("type"), "a user message", path)


def image_data(block: Mapping[str, Any], path: str) -> tuple[str, bytes]:
    """The media type and the bytes of an image block."""
    source = block.get("source")
    if not isinstance(source, Mapping) or source.get("type") != "base64":
        refuse("an image needs a source of type 'base64'", f"{path}.source")
    media_type = string(source, "media_type", f"{path}.source")
    if not media_type.startswith("image/"):
        refuse("an image's media_type must start with 'image/'", f"{path}.source.media_type")
    try:
        data = base64.b64decode(string(source, "data", f"{path}.source"), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        refuse("an image's data must be base64", f"{path}.source.data")
    return media_type, data


def string(block: Mapping[str, Any], key: str, path: str, *, empty: bool = False) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        refuse(f"{key} must be text, not {kind_of(value)}", f"{path}.{key}")
    if not value and not empty:
        refuse(f"{key} must not be empty", f"{path}.{key}")
    return value


def object_of(holder: Mapping[str, Any], key: str, path: str) -> Mapping[str, Any]:
    """The object under `key`; nothing and null are an empty one."""
    value = holder.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        refuse(f"{key} must be an object, not {kind_of(value)}", f"{path}.{key}")
    return value


def count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def refuse_kind(kind: object, where: str, path: str) -> NoReturn:
    if not isinstance(kind, str):
        refuse("a content block needs a type", f"{path}.type")
    refuse(f"a block of type {kind[:40]!r} cannot stand in {where}", f"{path}.type")


def refuse(message: str, path: str) -> NoReturn:
    raise SerializationError(f"{path}: {message}", path=path)


def _block(block: object, path: str) -> Mapping[str, Any]:
    if not isinstance(block, Mapping):
        refuse(f"a content block must be an object, not {kind_of(block)}", path)
    return block

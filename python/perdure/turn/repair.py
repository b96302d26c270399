"""Tool calls that were interrupted before they had a result. Standard library only, no model layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["INTERRUPTED", "dangling_tool_calls", "interrupted_results", "last_prompt"]

INTERRUPTED = "This tool call was interrupted before it had a result. It may or may not have taken effect."
"""What the model is told about a call that never came to an end."""


@dataclass(slots=True)
class _Call:
    index: int
    block: Mapping[str, Any]
    insert_at: int
    answered: bool = False


def dangling_tool_calls(
    messages: Sequence[Mapping[str, Any]], *, start: int = 0
) -> list[tuple[int, Mapping[str, Any]]]:
    """Tool calls without a result: `(index of the assistant message, tool_use block)`, in order.

    A result answers the last call before it with the same id, because some servers count their ids from the
    start again with every reply. Every message from `start` on is fetched once and none is kept, so a lazily
    decoded history is never whole in memory. Messages of a shape that is not perdure's are passed over.
    """
    return [(call.index, call.block) for call in _calls(messages, start) if not call.answered]


def interrupted_results(messages: Sequence[Mapping[str, Any]], *, start: int = 0) -> list[tuple[int, dict[str, Any]]]:
    """The missing results: `(where to insert it, tool_result message)`, in order.

    Each belongs right after its assistant message and the results that follow that message already. The
    indices are those of `messages` as given: insert from the last to the first, or add the number inserted so
    far. The messages say `is_error: true` and carry no `meta`, so equal input gives equal output.
    """
    return [
        (call.insert_at, _interrupted(str(call.block["id"]))) for call in _calls(messages, start) if not call.answered
    ]


def last_prompt(messages: Sequence[Mapping[str, Any]], first: int) -> int | None:
    """Index of the last user message that holds more than tool results, if it is not before `first`."""
    for index in range(len(messages) - 1, first - 1, -1):
        message = messages[index]
        if message.get("role") == "user" and not _only_results(message):
            return index
    return None


def _interrupted(tool_use_id: str) -> dict[str, Any]:
    block = {"type": "tool_result", "tool_use_id": tool_use_id, "content": INTERRUPTED, "is_error": True}
    return {"role": "user", "content": [block]}


def _calls(messages: Sequence[Mapping[str, Any]], start: int) -> list[_Call]:
    calls: list[_Call] = []
    unanswered: dict[str, list[_Call]] = {}
    group: list[_Call] = []
    for index in range(start, len(messages)):
        message = messages[index]
        role = message.get("role") if isinstance(message, Mapping) else None
        if role == "assistant":
            group = []
            for block in _blocks(message, "tool_use", "id"):
                call = _Call(index, block, index + 1)
                calls.append(call)
                group.append(call)
                unanswered.setdefault(block["id"], []).append(call)
            continue
        for block in _blocks(message, "tool_result", "tool_use_id") if role == "user" else ():
            waiting = unanswered.get(block["tool_use_id"])
            if waiting:
                waiting.pop().answered = True
        if role == "user" and _only_results(message):
            for call in group:
                call.insert_at = index + 1
        else:
            group = []
    return calls


def _blocks(message: Mapping[str, Any], kind: str, id_key: str) -> Iterator[Mapping[str, Any]]:
    content = message.get("content")
    for block in content if isinstance(content, list) else ():
        if isinstance(block, Mapping) and block.get("type") == kind and isinstance(block.get(id_key), str):
            yield block


def _only_results(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(block, Mapping) and block.get("type") == "tool_result" for block in content)
    )

"""Plain values that stores and sessions hand out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

__all__ = ["SaveReceipt", "SendResult", "SessionInfo", "StoreStats", "TurnEvent", "Usage"]


@dataclass(frozen=True, slots=True)
class SaveReceipt:
    """What one save did. Returned once the save is as durable as the store promises.

    revision       the stored session's revision after the save
    bytes_written  bytes handed to the engine for it, everything counted; 0 when nothing had changed
    new_bytes      bytes of the messages that were new in it
    seconds        wall time of the save
    location       where the session lies: a path or a URL without secrets
    sync_seconds   the part of `seconds` spent waiting for the disk to confirm; 0 where a store does not tell
    """

    revision: int
    bytes_written: int
    new_bytes: int
    seconds: float
    location: str
    sync_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What this process has written to a directory of sessions since it first opened it, added up.

    saves          saves that wrote something, folds included
    lines          those of them that appended a line to a journal
    snapshots      those of them that wrote a whole file
    bytes_written  everything counted
    new_bytes      bytes of the messages that were new in them
    sync_seconds   time spent waiting for the disk to confirm, over all threads
    """

    saves: int
    lines: int
    snapshots: int
    bytes_written: int
    new_bytes: int
    sync_seconds: float

    @property
    def write_amplification(self) -> float:
        """Bytes written for each byte of new messages; 0 as long as there were none."""
        return self.bytes_written / self.new_bytes if self.new_bytes else 0.0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session in a listing; made from its head alone, no history is loaded.

    `bytes` is what it takes in the store, `first_prompt` the first user text (at most 200 characters) or None.
    """

    id: str
    name: str
    tags: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    message_count: int
    bytes: int
    revision: int
    first_prompt: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that the model counted, summed over a turn or a session. None: the provider does not tell."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class SendResult:
    """What a turn brought.

    `text` is the model's last reply, `usage` the sum over the turn's model calls, `messages` the turn's messages in
    order, the prompt first (none for `continue_turn`).
    """

    text: str
    usage: Usage
    tool_calls_count: int
    messages: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """One event of a streamed turn. Which fields are set depends on `type`:

    text_delta  `text`: the next piece of the model's reply
    tool_start  `tool_use_id`, `tool_name`, `tool_input`
    tool_end    `tool_use_id`, `tool_name`, `text` (what the model is told), `is_error`
    saved       `revision`: a step is on disk
    end         `result`
    error       `error`; it is also raised out of the iteration
    """

    type: Literal["text_delta", "tool_start", "tool_end", "saved", "end", "error"]
    text: str | None = None
    tool_use_id: str | None = None
    tool_name: str | None = None
    tool_input: dict[str, Any] | None = None
    is_error: bool | None = None
    revision: int | None = None
    result: SendResult | None = None
    error: BaseException | None = None

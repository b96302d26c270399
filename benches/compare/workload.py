"""The messages of every contender. It needs the standard library only: peers run where perdure is not."""

from __future__ import annotations

import json
from typing import Any

NEW_MESSAGES = 2  # a turn: a prompt and a reply
# fsync of this file descriptor does nothing but fail: it parts the turns in a trace of system calls.
MARK = 1_000_003

# The same as in benches/contenders.py, which cannot be imported without perdure; a test holds them together.
_TEXT = (
    'Please refactor `auth.py`:\n\tdef login(user, password):\n\t\treturn check("x\\y", user)\n'
    "Grüße aus München – naïve café, 日本語のテキスト, emoji 🚀.\r\n"
)


def message(number: int) -> dict[str, Any]:
    """A message of about 1 KiB; no two are equal."""
    text = f"{number}: " + _TEXT * 5
    return {"role": "user" if number % 2 == 0 else "assistant", "content": [{"type": "text", "text": text}]}


def messages(start: int, count: int) -> list[dict[str, Any]]:
    return [message(start + number) for number in range(count)]


def text(message: dict[str, Any]) -> str:
    """The text alone, for peers that have their own types for everything around it."""
    return str(message["content"][0]["text"])


def text_bytes(items: list[dict[str, Any]]) -> int:
    """The bytes of the messages as compact JSON: what a contender is given to keep."""
    return sum(len(json.dumps(item, ensure_ascii=False).encode()) for item in items)

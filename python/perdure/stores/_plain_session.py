"""Sessions as plain dicts: a fresh one, a loaded one, and from what a dict was made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from perdure.errors import SerializationError, SessionCorruptError
from perdure.stores import _plain_format as fmt
from perdure.stores._plain_disk import Identity
from perdure.stores._plain_names import check_id

Base = tuple["str | None", int]
"""Lineage (None: of a file that knows none) and revision."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The file from which a copy of a session was loaded, or as which it was saved (no digest then)."""

    identity: Identity
    digest: bytes | None = None


class PlainSession(dict[str, Any]):
    """A session as a dict, with what its store remembers of the file that it came from.

    A copy made with `dict(session)` is the same session as far as its `perdure` key says; one without that
    key (from a file that A3S Code wrote) is a new session then.
    """

    __slots__ = ("seen",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen: Seen | None = None


def new_session_dict(id: str, **fields: Any) -> dict[str, Any]:
    """A fresh session with every head field of the format, for `save_dict`.

    `fields` replace or add head fields; the members of `config`, `context_usage` and `total_usage` are merged
    into the defaults. Timestamps are Unix seconds.
    """
    check_id(id)
    if "perdure" in fields:
        raise TypeError("new_session_dict() takes no field 'perdure': the store makes it")
    now = int(time.time())
    session: dict[str, Any] = {
        "id": id,
        "config": {
            "name": "",
            "workspace": "",
            "system_prompt": "",
            "max_context_length": 200000,
            "auto_compact": False,
            "planning_enabled": False,
        },
        "state": "Active",
        "context_usage": {"used_tokens": 0, "max_tokens": 200000, "percent": 0.0, "turns": 0},
        "total_usage": {
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "total_tokens": 0,
            "cache_read_tokens": None,
            "cache_write_tokens": None,
        },
        "tool_names": [],
        "thinking_enabled": False,
        "thinking_budget": None,
        "created_at": now,
        "updated_at": now,
        "tasks": [],
        "messages": [],
    }
    for name, value in fields.items():
        merged = name in ("config", "context_usage", "total_usage") and isinstance(value, dict)
        session[name] = {**session[name], **value} if merged else value
    return session


def base_of(d: dict[str, Any]) -> Base | None:
    """Lineage and revision from which this copy was made; None: it is fresh."""
    perdure: Any = d.get("perdure")
    never_saved = isinstance(perdure, dict) and perdure.get("lineage") is None and not perdure.get("revision")
    if "perdure" not in d or never_saved:
        return (None, 0) if isinstance(d, PlainSession) and d.seen is not None else None
    try:
        fmt.check_shape({"id": "x", "messages": [], "perdure": perdure}, "this session")
    except SessionCorruptError as error:
        what = f"perdure: {error}; leave this field as load_dict() gave it, or remove it for a new session"
        raise SerializationError(what, path="perdure") from None
    return (perdure["lineage"], perdure["revision"])

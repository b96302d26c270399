"""Listings of plain session dicts: a `SessionInfo` from a head, pages and their cursors."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from perdure.stores._plain_format import first_prompt
from perdure.types import SessionInfo

Place = tuple[int, str]
"""Where an entry stands in a listing: minus its modification time in ns, then its id."""


def info_of(session: Mapping[str, Any], size: int, modified_ns: int) -> SessionInfo:
    """The entry for a session or its head. `session` needs `id`, and `messages` if it has no `perdure`."""
    perdure = session.get("perdure")
    perdure = perdure if isinstance(perdure, dict) else {}
    config = session.get("config")
    name = config.get("name") if isinstance(config, dict) else None
    tags = perdure.get("tags")
    count = perdure.get("message_count")
    prompt = perdure["first_prompt"] if "first_prompt" in perdure else first_prompt(session.get("messages", ()))
    return SessionInfo(
        id=session["id"],
        name=name if isinstance(name, str) else "",
        tags=tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        created_at=_time(session.get("created_at"), modified_ns),
        updated_at=_time(session.get("updated_at"), modified_ns),
        message_count=count if type(count) is int else len(session.get("messages", ())),
        bytes=size,
        revision=perdure.get("revision", 0),
        first_prompt=prompt if isinstance(prompt, str) else None,
    )


def _time(seconds: Any, modified_ns: int) -> datetime:
    """A head field as a time; the file's own time if the field is missing or nonsense."""
    if isinstance(seconds, (int, float)) and not isinstance(seconds, bool):
        try:
            return datetime.fromtimestamp(seconds, timezone.utc)
        except (OverflowError, ValueError, OSError):
            pass
    return datetime.fromtimestamp(modified_ns / 1e9, timezone.utc)


def cursor_after(place: Place) -> str:
    """The opaque cursor of the page that follows this entry."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def place_of(cursor: str) -> Place:
    """The entry after which the page begins. `ValueError`: not a cursor of this store."""
    try:
        modified, name = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii")))
    except (ValueError, TypeError, UnicodeError):
        modified = name = None
    if not isinstance(modified, int) or not isinstance(name, str):
        raise ValueError("cursor: not one that infos() of this store gave out")
    return (modified, name)

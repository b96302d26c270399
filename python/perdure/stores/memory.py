"""`MemorySessionStore`: sessions in the memory of one process, with the same rules as the stores on disk."""

from __future__ import annotations

import base64
import builtins
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.errors import SessionConflictError, SessionExistsError
from perdure.stores.protocol import SearchHit
from perdure.types import SaveReceipt, SessionInfo

if TYPE_CHECKING:
    from perdure._core import SessionData, SessionDelta

__all__ = ["MemorySessionStore"]

_LOCATION = "memory"
_SNIPPET = 80


@dataclass(frozen=True, slots=True)
class _Entry:
    session: SessionData
    lineage: str
    revision: int
    bytes: int
    order: int  # counts saves of the whole store: the newest has the highest


class MemorySessionStore:
    """Sessions that live as long as this object. For tests, and for sessions that need not survive.

    It keeps frozen clones: a save costs what is new, and what was saved or loaded shares nothing that could change.
    Safe to use from any thread.
    """

    revisions = True
    threadsafe = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._saves = 0

    def __repr__(self) -> str:
        return f"MemorySessionStore(<{len(self._entries)} sessions>)"

    def save(self, data: SessionData) -> SaveReceipt:
        """Keep the session and move the base of `data`.

        Raises `SessionExistsError`, `SessionConflictError`, `InvalidSessionIdError`.
        """
        delta = data.delta()
        if delta is None:
            with self._lock:
                entry = self._entries.get(data.id)
            if entry is None or entry.revision != data.revision:
                raise _conflict(data.id, data.revision, entry)
            return SaveReceipt(entry.revision, 0, 0, 0.0, _LOCATION)
        receipt = self.append(delta)
        data.settle(delta)
        return receipt

    def append(self, delta: SessionDelta, *, step: bool = False) -> SaveReceipt:
        """Keep the session after this delta. `step` makes no difference here; the caller settles its data."""
        started = time.perf_counter()
        id, new_bytes = delta.session_id, sum(map(len, delta.messages))
        session = delta.session
        with self._lock:
            entry = self._entries.get(id)
            if delta.base_revision is None:
                if entry is not None:
                    raise SessionExistsError(
                        f"session {id!r} exists already in this store; load it, or take another id", session_id=id
                    )
            elif entry is None or (entry.lineage, entry.revision) != (delta.lineage, delta.base_revision):
                raise _conflict(id, delta.base_revision, entry)
            self._saves += 1
            size = len(delta.head) + new_bytes
            if entry is not None and delta.first_index:
                size += entry.bytes  # an upper bound after a rewind; exact for a store that only appends
            self._entries[id] = _Entry(session, delta.lineage, delta.revision, size, self._saves)
        return SaveReceipt(
            delta.revision, len(delta.head) + new_bytes, new_bytes, time.perf_counter() - started, _LOCATION
        )

    def load(self, id: str) -> SessionData | None:
        """A clone of the session, or None."""
        with self._lock:
            entry = self._entries.get(id)
        return None if entry is None else entry.session.freeze()

    def delete(self, id: str) -> bool:
        """Forget the session. True: it was there."""
        with self._lock:
            return self._entries.pop(id, None) is not None

    def exists(self, id: str) -> bool:
        """Whether there is a session with this id."""
        with self._lock:
            return id in self._entries

    def list(self) -> builtins.list[str]:
        """The ids of all sessions, sorted."""
        with self._lock:
            return sorted(self._entries)

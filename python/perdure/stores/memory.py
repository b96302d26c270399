"""`MemorySessionStore`: sessions in the memory of one process, by the same rules as the stores on disk."""

from __future__ import annotations

import builtins
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.errors import SessionConflictError, SessionExistsError
from perdure.stores import _plain_listing as listing
from perdure.stores._force import save_with
from perdure.stores._plain_names import check_id, show_id
from perdure.stores.protocol import InfoPage, SearchHit
from perdure.types import SaveReceipt, SessionInfo

if TYPE_CHECKING:
    from perdure._core import SessionData, SessionDelta

__all__ = ["MemorySessionStore"]

_LOCATION = "memory"
_SNIPPET = 60  # characters of text shown on either side of a match


@dataclass(slots=True)
class _Entry:
    session: SessionData  # frozen: nobody else can change it
    head: bytes
    sizes: list[int]  # bytes of each message
    lineage: str
    revision: int
    saved_ns: int


class MemorySessionStore:
    """Sessions that live as long as this object: for tests, and for sessions that need not survive.

    It keeps frozen clones. A save costs what is new, and nothing that was saved or loaded can change what is
    stored. Safe to use from any thread.
    """

    revisions = True
    threadsafe = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._last_ns = 0

    def __repr__(self) -> str:
        return f"<MemorySessionStore with {len(self._entries)} sessions>"

    def save(self, data: SessionData, /, *, create: bool = False, force: bool = False) -> SaveReceipt:
        """Keep the session and move the base of `data`. An unchanged session costs nothing.

        `create`: as a new session with a lineage of its own, whatever `data` came from. `force`: over
        whatever is stored. Raises `SessionExistsError`, `SessionConflictError`.
        """
        receipt = save_with(data, self._append_and_settle, self.load, create=create, force=force)
        if receipt is not None:
            return receipt
        with self._lock:
            entry = self._entries.get(data.id)
        if entry is None or (entry.lineage, entry.revision) != (data.lineage, data.revision):
            raise _conflict(data.id, data.revision, entry)
        return SaveReceipt(entry.revision, 0, 0, 0.0, _LOCATION)

    def _append_and_settle(self, delta: SessionDelta, settle: Callable[[], None]) -> SaveReceipt:
        receipt = self.append(delta)
        settle()
        return receipt

    def append(self, delta: SessionDelta, *, step: bool = False) -> SaveReceipt:
        """Keep the session as it is after this delta. `step` makes no difference; the caller settles."""
        started = time.perf_counter()
        id, first, new_sizes = delta.session_id, delta.first_index, [len(m) for m in delta.messages]
        session, head = delta.session, delta.head
        with self._lock:
            entry = self._entries.get(id)
            if delta.base_revision is None:
                if entry is not None:
                    raise SessionExistsError(
                        f"session {show_id(id)} exists already in this store; load it, or take another id",
                        session_id=id,
                    )
            elif entry is None or (entry.lineage, entry.revision) != (delta.lineage, delta.base_revision):
                raise _conflict(id, delta.base_revision, entry)
            # Clocks are coarser than saves, and the order of saves must not be lost.
            self._last_ns = max(self._last_ns + 1, time.time_ns())
            sizes = entry.sizes if entry is not None else []
            sizes[first:] = new_sizes
            self._entries[id] = _Entry(session, head, sizes, delta.lineage, delta.revision, self._last_ns)
        new_bytes = sum(new_sizes)
        seconds = time.perf_counter() - started
        return SaveReceipt(delta.revision, len(head) + new_bytes, new_bytes, seconds, _LOCATION)

    def load(self, id: str) -> SessionData | None:
        """The session as it was saved, or None."""
        check_id(id)
        with self._lock:
            entry = self._entries.get(id)
        return None if entry is None else entry.session.freeze()

    def delete(self, id: str) -> bool:
        """Forget the session. True: it was there."""
        check_id(id)
        with self._lock:
            return self._entries.pop(id, None) is not None

    def exists(self, id: str) -> bool:
        """Whether there is a session with this id."""
        check_id(id)
        with self._lock:
            return id in self._entries

    def list(self) -> builtins.list[str]:
        """The ids of all sessions, sorted."""
        with self._lock:
            return sorted(self._entries)

    def infos(self, limit: int = 50, cursor: str | None = None) -> InfoPage:
        """At most `limit` sessions, the last saved first, and the cursor of the next page (None: no more).

        `ValueError`: a limit below 1, or a cursor from elsewhere.
        """
        if limit < 1:
            raise ValueError(f"limit: at least 1, not {limit}")
        after = None if cursor is None else listing.place_of(cursor)
        with self._lock:
            places = sorted((-entry.saved_ns, id) for id, entry in self._entries.items())
            rest = [place for place in places if after is None or place > after]
            page = [self._info(id) for _, id in rest[:limit]]
        return page, listing.cursor_after(rest[limit - 1]) if len(rest) > limit else None

    def _info(self, id: str) -> SessionInfo:
        entry = self._entries[id]
        head: dict[str, Any] = json.loads(entry.head)
        perdure = head.get("perdure")
        known = {"revision": entry.revision, "message_count": len(entry.sizes)}
        prompt = entry.session.first_prompt
        head |= {"id": id, "perdure": {**(perdure if perdure else {}), **known, "first_prompt": prompt}}
        return listing.info_of(head, len(entry.head) + sum(entry.sizes), entry.saved_ns)

    def search(self, query: str, limit: int = 20) -> builtins.list[SearchHit]:
        """At most `limit` messages whose text has every word of `query`, case ignored, newest session first.

        Looks at the text of every message: fine for what a memory holds. `ValueError`: a limit below 1, or
        no words.
        """
        words = query.casefold().split()
        if limit < 1 or not words:
            raise ValueError(f"limit: at least 1, not {limit}" if limit < 1 else "query: at least one word")
        with self._lock:
            entries = sorted(self._entries.items(), key=lambda item: -item[1].saved_ns)
        hits: builtins.list[SearchHit] = []
        for id, entry in entries:
            for index, message in enumerate(entry.session.messages):
                text = _text_of(message)
                folded = text.casefold()
                if all(word in folded for word in words):
                    # Folding may change lengths, so this place is close to the match, not always exact.
                    at = folded.find(words[0])
                    snippet = text[max(at - _SNIPPET, 0) : at + len(words[0]) + _SNIPPET]
                    hits.append(SearchHit(id, index, snippet))
                    if len(hits) == limit:
                        return hits
        return hits


def _text_of(message: Any) -> str:
    """What a person would read in a message: its text, tool results and thinking."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = []
    for block in content if isinstance(content, list) else ():
        if isinstance(block, dict):
            parts += [block[k] for k in ("text", "content", "thinking") if isinstance(block.get(k), str)]
    return "\n".join(parts)


def _conflict(id: str, expected: int, entry: _Entry | None) -> SessionConflictError:
    found = None if entry is None else entry.revision
    what = "nothing is stored" if entry is None else f"revision {found} is stored"
    return SessionConflictError(
        f"session {show_id(id)}: {what}, revision {expected} was expected: somebody else saved or deleted "
        "it; load it again and repeat the change, or save it under another id",
        session_id=id,
        expected=expected,
        found=found,
    )

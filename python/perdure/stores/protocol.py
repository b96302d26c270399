"""The contract between sessions and the places that keep them.

A store is any object with the five methods of `SessionStore`. No base class, no registration: `def` and
`async def` are both fine, and a session of either kind uses both. Everything else is optional and found by
its name, one Protocol per capability.

The rules. A store that breaks one of them loses sessions; `perdure.testing` checks them.

1.  Ordering. When `save` or `append` returns (or its awaitable completes), every later `load`, `list`,
    `exists` and `infos` on any instance of the store sees it. Calls for one session come one after the other;
    calls for different sessions may come at the same time if the store is `threadsafe` or async.
2.  Atomicity. A save happens as a whole or not at all: whoever loads, also after a crash in the middle, gets
    the state before it or the state after it, never a mixture. A save that returned is as durable as the
    store says it is.
3.  Whole data. `load` gives back what was saved: every message in order and unchanged, and every head field,
    also those that the store does not know. It returns a fresh `SessionData` (or None), never one that it
    keeps itself.
4.  Absence. `load` returns None, `exists` False and `delete` False for a session that is not there. None of
    the three raises for that reason, and a failure to look is raised, not turned into "not there".
5.  Deletion. After `delete` returned True the session is gone for good: a crash does not bring it back.
6.  Ids. Ids are strings of 1 to 4,096 characters without NUL and lone surrogates, otherwise free: `a/b`, `..` and
    emoji are ids, two ids that differ are two sessions (or a `SessionExistsError`, never one session).
7.  Compare-and-swap. A store with `revisions = True` compares: what is stored must be the base of the data or
    delta (lineage and revision), else it raises `SessionConflictError(expected, found)`, with `found=None` if
    nothing is stored; a fresh session where one is stored raises `SessionExistsError`. Comparing and writing
    are one atomic step, also against other processes. A store without it is last-writer-wins, which perdure
    says once in the log.
8.  Settling. `save(data)` moves the base of `data` itself (`data.settle(delta)`) if the store has
    `revisions`; `append` leaves that to its caller. Neither does so when it raises.
9.  Errors. A store raises errors of `perdure.errors` or its own; perdure wraps an unknown one in
    `StoreError`, the original as its cause. `SessionConflictError`, `SessionExistsError`,
    `SessionLockedError` and `SessionCorruptError` are permanent (nothing is tried again until somebody acts),
    every other error is taken to be transient. No error, log line or receipt carries a secret or the content
    of a message.
10. Threads. A store that says `threadsafe = True` may be called from any thread at any time. Without it
    perdure calls a synchronous store from one thread at a time. Async methods are awaited on one event loop
    only.
11. Cancellation. A cancelled async `save` either finishes or changes nothing; perdure waits for the real
    outcome.
12. Ownership. A client, pool or connection that was handed to a store is never closed by it; one that it made
    itself is, in `close()`. A session closes a store only if it made it (from a path or an URL).
"""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from perdure.types import SaveReceipt, SessionInfo

if TYPE_CHECKING:
    from typing import TypeAlias

    from perdure._core import SessionData, SessionDelta

    _T = TypeVar("_T")
    MaybeAwaitable: TypeAlias = _T | Awaitable[_T]

__all__ = [
    "AppendStore",
    "ClosableStore",
    "HealthStore",
    "InfoPage",
    "ListingStore",
    "RevisionStore",
    "SearchHit",
    "SearchStore",
    "SessionStore",
    "ThreadsafeStore",
]

InfoPage = tuple[builtins.list[SessionInfo], str | None]
"""One page of a listing, newest first, and the cursor of the next page (None: this was the last)."""


@dataclass(frozen=True, slots=True)
class SearchHit:
    """A message that matches a search: the session's id, the message's index, some text around the match."""

    session_id: str
    index: int
    snippet: str


@runtime_checkable
class SessionStore(Protocol):
    """The five methods that make a store. The rules are numbered in the module's docstring."""

    def save(self, data: SessionData, /) -> MaybeAwaitable[SaveReceipt | None]:
        """Store the session as a whole (rules 1, 2, 7, 8). A receipt is welcome, None is enough."""
        ...

    def load(self, id: str, /) -> MaybeAwaitable[SessionData | None]:
        """The session with this id, or None (rules 3, 4)."""
        ...

    def delete(self, id: str, /) -> MaybeAwaitable[bool]:
        """Remove the session for good. True: it was there (rules 4, 5)."""
        ...

    def list(self) -> MaybeAwaitable[Sequence[str]]:
        """The ids of all sessions, in any order, each once."""
        ...

    def exists(self, id: str, /) -> MaybeAwaitable[bool]:
        """Whether `load` would find the session (rule 4)."""
        ...


@runtime_checkable
class AppendStore(Protocol):
    """A store to which a save can be given as what changed, so that it costs the turn and not the history.

    Such a store compares revisions (rule 7): a delta without its base is worth nothing.
    """

    def append(self, delta: SessionDelta, *, step: bool = False) -> MaybeAwaitable[SaveReceipt | None]:
        """Replace the messages from `delta.first_index` on by `delta.messages` and set the head to
        `delta.head`.

        `step`: this is a step inside a turn, more will follow at once. Just as durable; the store may put off
        tidying up. `delta.session` is the whole session as a frozen clone, for a store that has to write it
        all. The caller settles the base of its data (rule 8).
        """
        ...


@runtime_checkable
class ListingStore(Protocol):
    """A store that can list its sessions without loading a history."""

    def infos(self, limit: int = 50, cursor: str | None = None) -> MaybeAwaitable[InfoPage]:
        """At most `limit` (1 or more) sessions, newest first, from `cursor` on.

        A cursor is opaque, only good for the store that made it, and stays good while sessions come and go: a
        session that is there and not saved during the whole listing appears exactly once. A cursor that is
        not one of the store's raises `ValueError`.
        """
        ...


@runtime_checkable
class SearchStore(Protocol):
    """A store that can look for text in messages."""

    def search(self, query: str, limit: int = 20) -> MaybeAwaitable[Sequence[SearchHit]]:
        """At most `limit` messages whose text has every word of `query`, case ignored, best match first."""
        ...


@runtime_checkable
class HealthStore(Protocol):
    """A store that can say whether it works."""

    def health_check(self) -> MaybeAwaitable[None]:
        """Return if a save would have a chance; raise what is wrong otherwise. Leaves nothing behind."""
        ...


@runtime_checkable
class ClosableStore(Protocol):
    """A store that holds something: files, connections, threads."""

    def close(self) -> MaybeAwaitable[None]:
        """Let go of everything that the store made itself (rule 12). Closing twice is fine."""
        ...


@runtime_checkable
class RevisionStore(Protocol):
    """A store that compares before it writes (rule 7): `revisions` is there and True."""

    revisions: bool


@runtime_checkable
class ThreadsafeStore(Protocol):
    """A store that may be called from any thread (rule 10): `threadsafe` is there and True."""

    threadsafe: bool

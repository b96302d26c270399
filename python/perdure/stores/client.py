"""A session's way to its store: sync or async, with or without `append`, whatever it raises or returns."""

from __future__ import annotations

import builtins
import contextlib
import difflib
import logging
import time
from typing import TYPE_CHECKING, Any

from perdure._core import FileSessionStore, SessionData, SessionDelta
from perdure.errors import (
    ConfigError,
    PerdureError,
    SessionConflictError,
    SessionCorruptError,
    SessionExistsError,
    SessionLockedError,
    SessionNotFoundError,
    StoreError,
)
from perdure.stores._calls import StoreCalls, of_store
from perdure.types import SaveReceipt, SessionInfo

if TYPE_CHECKING:
    from perdure.secrets import SecretMasker

__all__ = ["PERMANENT", "StoreClient"]

_log = logging.getLogger("perdure")

PERMANENT = (SessionConflictError, SessionExistsError, SessionLockedError, SessionCorruptError)
"""Errors that another attempt does not cure: somebody has to decide."""

_REQUIRED = ("save", "load", "delete", "list", "exists")
# How often a forced save looks again when somebody else saves between its look and its save.
_ATTEMPTS = 20


class StoreClient:
    """One store, as one session or agent uses it. How it is called is `StoreCalls`' affair."""

    def __init__(self, store: Any, *, timeout: float, masker: SecretMasker, owned: bool) -> None:
        missing = [name for name in _REQUIRED if not callable(getattr(store, name, None))]
        if missing:
            raise ConfigError(
                f"session_store: a {type(store).__name__} is not a store, it has no {', '.join(missing)}; "
                f"a store has the methods {', '.join(_REQUIRED)}",
                option="session_store",
            )
        self.store = store
        self.revisions = getattr(store, "revisions", False) is True
        self._appends = callable(getattr(store, "append", None))
        self._calls = StoreCalls(store, timeout=timeout, masker=masker)
        self._masker = masker
        self._owned = owned

    @property
    def location(self) -> str:
        """Where sessions lie, for people."""
        path = getattr(self.store, "path", None)
        return self._masker.text(str(path)) if path is not None else self._calls.name

    def is_same_place(self, other: StoreClient | None) -> bool:
        """Whether a session of one is a session of the other, as far as that can be told."""
        if other is None:
            return False
        both_files = isinstance(self.store, FileSessionStore) and isinstance(other.store, FileSessionStore)
        return self.store is other.store or (both_files and self.store.path == other.store.path)

    @property
    def timeout(self) -> float:
        """How long a call may take, in seconds; 0: any time."""
        return self._calls.timeout

    def too_long(self, name: str) -> StoreError:
        """The error of a call that did not answer in time."""
        return self._calls.too_long(name)

    def mask(self, error: Exception) -> None:
        """Take secrets out of an error of the store's."""
        if isinstance(error, PerdureError):
            self._calls.mask(error)

    async def save(self, data: SessionData, *, step: bool = False, force: bool = False) -> SaveReceipt:
        """Save what changed since the base and move the base.

        `step`: inside of a turn. Otherwise an unchanged session is looked after: it has to be there still, and what the
        file store keeps in a journal is folded. `force`: over whatever is stored, but never over a damaged file.
        """
        await self._calls.wait_for_late()
        if not self.revisions:
            self._say_last_writer_wins()
        if force:
            return await self._overwrite(data)
        delta = data.delta(always=not step and isinstance(self.store, FileSessionStore))
        if delta is None and not step and not await self.exists(data.id):
            if self.revisions:
                raise SessionConflictError(
                    f"session {data.id!r}: nothing is stored any more in {self.location}, revision {data.revision} was "
                    "expected: somebody deleted it; fork it to keep it, or save(force=True)",
                    session_id=data.id,
                    expected=data.revision,
                )
            delta = data.delta(always=True)
        if delta is None:
            return SaveReceipt(data.revision, 0, 0, 0.0, self.location)
        return await self._write(data, delta, step=step)

    async def _write(self, data: SessionData, delta: SessionDelta, *, step: bool) -> SaveReceipt:
        started = time.perf_counter()
        # A store with revisions and without append compares and moves the base itself.
        settles = self._appends or not self.revisions

        def late() -> None:
            if settles:
                data.settle(delta)

        saved = False
        try:
            if self._appends:
                receipt = await self._calls.call("append", delta, step=step, late=late)
            else:
                receipt = await self._calls.call("save", delta.session if settles else data, late=late)
            saved = True
        finally:
            if settles:
                data.settle(delta, saved=saved)
        if isinstance(receipt, SaveReceipt):
            return receipt
        new_bytes = sum(map(len, delta.messages))
        seconds = time.perf_counter() - started
        return SaveReceipt(delta.revision, new_bytes, new_bytes, seconds, self.location)

    async def _overwrite(self, data: SessionData) -> SaveReceipt:
        if isinstance(self.store, FileSessionStore):
            # In one step under the session's lock.
            receipt: SaveReceipt = await self._calls.call("save", data, force=True, late=lambda: None)
            return receipt
        for left in reversed(range(_ATTEMPTS)):
            stored = await self.load(data.id)
            before = data.freeze()
            if stored is None:
                data.detach()
            else:
                data.rebase(stored)
            delta = data.delta(always=True)
            assert delta is not None
            try:
                return await self._write(data, delta, step=False)
            except BaseException as error:
                # A later save without force must not overwrite what this one was allowed to.
                data.rebase(before)
                if not left or not isinstance(error, (SessionConflictError, SessionExistsError)):
                    raise
        raise AssertionError("unreachable")

    async def load(self, id: str) -> SessionData | None:
        """The session or None; anything else that a store gives is a `StoreError`."""
        data = await self._calls.call("load", id)
        if data is None or (isinstance(data, SessionData) and data.id == id):
            return data
        if isinstance(data, SessionData):
            raise StoreError(f"{self._calls.name}.load({id!r}) gave session {data.id!r}")
        raise self._nonsense("load", data, "a SessionData or None")

    async def delete(self, id: str) -> bool:
        """Whether there was such a session."""
        deleted = await self._calls.call("delete", id)
        if isinstance(deleted, bool):
            return deleted
        raise self._nonsense("delete", deleted, "True or False")

    async def exists(self, id: str) -> bool:
        """Whether there is such a session."""
        there = await self._calls.call("exists", id)
        if isinstance(there, bool):
            return there
        raise self._nonsense("exists", there, "True or False")

    async def list(self) -> builtins.list[str]:
        """The ids of all sessions."""
        ids = await self._calls.call("list")
        if isinstance(ids, (list, tuple, set, frozenset)) and all(isinstance(id, str) for id in ids):
            return list(ids)
        raise self._nonsense("list", ids, "a list of ids")

    async def infos(self, limit: int, cursor: str | None) -> tuple[builtins.list[SessionInfo], str | None]:
        """A page of a listing and where the next one begins. Without `infos` all is loaded and given at once."""
        if not callable(getattr(self.store, "infos", None)):
            return await self._infos_of_all(cursor), None
        page = await self._calls.call("infos", limit, cursor)
        if (
            isinstance(page, tuple)
            and len(page) == 2
            and isinstance(page[0], (list, tuple))
            and all(isinstance(info, SessionInfo) for info in page[0])
            and (page[1] is None or isinstance(page[1], str))
        ):
            return page
        raise self._nonsense("infos", page, "a list of SessionInfo and a cursor or None")

    async def _infos_of_all(self, cursor: str | None) -> Any:
        if cursor is not None:
            raise ValueError(f"cursor: {self._calls.name} has no infos method, so that there are no cursors")
        infos = [_info(data) for id in await self.list() if (data := await self.load(id)) is not None]
        return sorted(infos, key=lambda info: (info.updated_at, info.id), reverse=True)

    async def not_found(self, id: str) -> SessionNotFoundError:
        """The error for a session that is not there; it names the ids that look most like it."""
        close: builtins.list[str] = []
        with contextlib.suppress(PerdureError):
            close = difflib.get_close_matches(id, await self.list(), n=3)
        hint = f"; there is {', '.join(map(repr, close))}" if close else ""
        return SessionNotFoundError(
            f"no session {id!r} in {self.location}{hint}", session_id=id, close_ids=tuple(close)
        )

    async def release(self, data: SessionData) -> None:
        """Let go of what the store holds for this session; of the store itself, if it was made for it."""
        if isinstance(self.store, FileSessionStore):
            await self._calls.call("release", data)
        elif self._owned and callable(getattr(self.store, "close", None)):
            await self._calls.call("close")

    def _nonsense(self, method: str, got: object, wanted: str) -> StoreError:
        return StoreError(f"{self._calls.name}.{method}() gave a {type(got).__name__}, not {wanted}")

    def _say_last_writer_wins(self) -> None:
        of = of_store(self.store)
        if not of.said_last_writer_wins:
            of.said_last_writer_wins = True
            _log.warning(
                "%s does not compare revisions: of two writers of one session the last one wins", self._calls.name
            )


def _info(data: SessionData) -> SessionInfo:
    config = data.config if isinstance(data.config, dict) else {}
    return SessionInfo(
        id=data.id,
        name=str(config.get("name") or ""),
        tags=tuple(data.tags),
        created_at=data.created_at,
        updated_at=data.updated_at,
        message_count=len(data),
        bytes=len(data.to_json()),
        revision=data.revision,
        first_prompt=data.first_prompt,
    )

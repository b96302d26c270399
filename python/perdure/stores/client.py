"""A session's way to its store: sync or async, with or without `append`, whatever it raises or returns."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import difflib
import functools
import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from perdure import _loop
from perdure._core import FileSessionStore, SessionData, SessionDelta
from perdure._workers import Workers
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
from perdure.types import SaveReceipt, SessionInfo

if TYPE_CHECKING:
    from perdure.secrets import SecretMasker

__all__ = ["PERMANENT", "StoreClient", "to_the_end"]

_log = logging.getLogger("perdure")
_T = TypeVar("_T")

PERMANENT = (SessionConflictError, SessionExistsError, SessionLockedError, SessionCorruptError)
"""Errors that another attempt does not cure: somebody has to decide."""

_REQUIRED = ("save", "load", "delete", "list", "exists")
# How often a forced save looks again when somebody else saves between its look and its save.
_ATTEMPTS = 20


class StoreClient:
    """Wraps one store for one session or agent.

    Coroutine methods are awaited (from a sync session: on perdure's loop thread). Sync methods are called at once by a
    sync session, on its own thread; from an event loop they run on a thread: any, if the store says `threadsafe =
    True`, else one that serves this store only. A call that lasts over `timeout` seconds is a `StoreError`, wherever
    there is an event loop to tell the time: a sync method called by a sync session outside of a turn takes as long as
    it takes.
    """

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
        self._timeout = timeout
        self._masker = masker
        self._owned = owned
        self._late: asyncio.Future[Any] | None = None

    @property
    def location(self) -> str:
        """Where sessions lie, for people."""
        path = getattr(self.store, "path", None)
        return self._masker.text(str(path)) if path is not None else self._name

    def is_same_place(self, other: StoreClient | None) -> bool:
        """Whether a session of one is a session of the other, as far as that can be told."""
        if other is None:
            return False
        both_files = isinstance(self.store, FileSessionStore) and isinstance(other.store, FileSessionStore)
        return self.store is other.store or (both_files and self.store.path == other.store.path)

    async def save(self, data: SessionData, *, step: bool = False, force: bool = False) -> SaveReceipt:
        """Save what changed since the base and move the base.

        `step`: inside of a turn. Otherwise an unchanged session is looked after: it has to be there still, and what the
        file store keeps in a journal is folded. `force`: over whatever is stored, but never over a damaged file.
        """
        await self._wait_for_late()
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
                receipt = await self._call("append", delta, step=step, _late=late)
            else:
                receipt = await self._call("save", delta.session if settles else data, _late=late)
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
            receipt: SaveReceipt = await self._call("save", data, force=True, _late=lambda: None)
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
        data = await self._call("load", id)
        if data is None or (isinstance(data, SessionData) and data.id == id):
            return data
        if isinstance(data, SessionData):
            raise StoreError(f"{self._name}.load({id!r}) gave session {data.id!r}")
        raise self._nonsense("load", data, "a SessionData or None")

    async def delete(self, id: str) -> bool:
        """Whether there was such a session."""
        deleted = await self._call("delete", id)
        if isinstance(deleted, bool):
            return deleted
        raise self._nonsense("delete", deleted, "True or False")

    async def exists(self, id: str) -> bool:
        """Whether there is such a session."""
        there = await self._call("exists", id)
        if isinstance(there, bool):
            return there
        raise self._nonsense("exists", there, "True or False")

    async def list(self) -> builtins.list[str]:
        """The ids of all sessions."""
        ids = await self._call("list")
        if isinstance(ids, (list, tuple, set, frozenset)) and all(isinstance(id, str) for id in ids):
            return list(ids)
        raise self._nonsense("list", ids, "a list of ids")

    async def infos(self, limit: int, cursor: str | None) -> tuple[builtins.list[SessionInfo], str | None]:
        """A page of a listing and where the next one begins. Without `infos` all is loaded and given at once."""
        if not callable(getattr(self.store, "infos", None)):
            return await self._infos_of_all(cursor), None
        page = await self._call("infos", limit, cursor)
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
            raise ValueError(f"cursor: {self._name} has no infos method, so that there are no cursors")
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
            await self._call("release", data)
        elif self._owned and callable(getattr(self.store, "close", None)):
            await self._call("close")

    @property
    def _name(self) -> str:
        return type(self.store).__name__

    def _nonsense(self, method: str, got: object, wanted: str) -> StoreError:
        return StoreError(f"{self._name}.{method}() gave a {type(got).__name__}, not {wanted}")

    def _say_last_writer_wins(self) -> None:
        of = _of(self.store)
        if not of.said_last_writer_wins:
            of.said_last_writer_wins = True
            _log.warning("%s does not compare revisions: of two writers of one session the last one wins", self._name)

    async def _call(self, name: str, /, *args: Any, _late: Callable[[], None] | None = None, **kwargs: Any) -> Any:
        """Call a method of the store. `_late`: it is a save, seen to its end; what to do if it ends well too late."""
        method = functools.partial(getattr(self.store, name), *args, **kwargs)
        try:
            return await self._invoke(name, method, _late)
        except asyncio.CancelledError:
            raise
        except PerdureError as error:
            self._mask(error)
            raise
        except Exception as error:
            if name == "infos" and isinstance(error, ValueError) and self._is_clean(error):
                raise  # what a store says to a cursor that is not one of its own
            said = self._masker.text(_text(error))
            reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
            filename = getattr(error, "filename", None)
            failed = StoreError(
                f"{self._name}.{name}() failed: {reason}",
                errno=error.errno if isinstance(error, OSError) else None,
                filename=self._masker.text(str(filename)) if filename else None,
            )
            # What it was made of may quote what the store was given; only one that holds no secret is shown on.
            raise failed from (error if self._is_clean(error) else None)

    def _is_clean(self, error: BaseException | None) -> bool:
        return error is None or (
            self._masker.text(_text(error)) == _text(error)
            and self._is_clean(error.__cause__)
            and (error.__suppress_context__ or self._is_clean(error.__context__))
        )

    def _mask(self, error: PerdureError) -> None:
        """A store's own error goes on as it is, but for secrets."""
        if not self._is_clean(error):
            error.args = tuple(self._masker.text(a) if isinstance(a, str) else a for a in error.args)
            error.__cause__, error.__suppress_context__ = None, True

    async def _invoke(self, name: str, method: Callable[[], Any], late: Callable[[], None] | None) -> Any:
        is_async = inspect.iscoroutinefunction(getattr(self.store, name))
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            result = method() if is_async else self._in_turn(method)()
            if not inspect.isawaitable(result):
                return result
            return _loop.run(self._limited(name, result, late))
        if is_async:
            return await self._limited(name, method(), late)
        result = await self._limited(name, self._off_loop(method), late)
        return await self._limited(name, result, late) if inspect.isawaitable(result) else result

    @property
    def _is_threadsafe(self) -> bool:
        return getattr(self.store, "threadsafe", False) is True

    def _in_turn(self, method: Callable[[], Any]) -> Callable[[], Any]:
        """One thread at a time, unless the store does not mind."""
        if self._is_threadsafe:
            return method
        calling = _of(self.store).calling

        def alone() -> Any:
            with calling:
                return method()

        return alone

    def _off_loop(self, method: Callable[[], Any]) -> Awaitable[Any]:
        if self._is_threadsafe:
            return _loop.submit(method)
        method = self._in_turn(method)
        return _loop.in_calling_thread(method) or _of(self.store).worker.submit(method)

    async def _limited(self, name: str, call: Awaitable[_T], late: Callable[[], None] | None) -> _T:
        future = asyncio.ensure_future(call)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout if self._timeout else None
        while not future.done():
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise self._too_long(name, future, late)
            try:
                await asyncio.wait({future}, timeout=left)
            except asyncio.CancelledError:
                if late is None:
                    future.cancel()
                    raise
                # `to_the_end` lets it through once the save has an outcome.
        return future.result()

    def _too_long(self, name: str, future: asyncio.Future[Any], late: Callable[[], None] | None) -> StoreError:
        def ended(_: object) -> None:
            if not future.cancelled() and future.exception() is None and late is not None:
                late()

        future.add_done_callback(ended)
        if isinstance(future, asyncio.Task):
            future.cancel()
        if late is not None:
            self._late = future
        return StoreError(
            f"{self._name}.{name}() did not answer within {self._timeout:g} s (store_timeout); "
            "whether it took effect is unknown"
        )

    async def _wait_for_late(self) -> None:
        """A save that took too long may still end: what comes after it has to know how."""
        late, self._late = self._late, None
        if late is None or late.done() or late.get_loop() is not _running():
            return
        await asyncio.wait({late}, timeout=self._timeout)
        if not late.done():
            self._late = late
            raise StoreError(
                f"{self._name}: an earlier save has not come to its end; it is waited for before the next one is tried"
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


class _PerStore:
    """What belongs to a store object rather than to one session."""

    def __init__(self) -> None:
        self.said_last_writer_wins = False
        self.worker = Workers("perdure-store", 1)
        self.calling = threading.RLock()


_per_store: dict[int, tuple[Any, _PerStore]] = {}
_per_store_guard = threading.Lock()


def _of(store: Any) -> _PerStore:
    key = id(store)
    with _per_store_guard:
        found = _per_store.get(key)
        if found is None:
            try:
                weakref.finalize(store, _per_store.pop, key, None)
                kept = None
            except TypeError:
                kept = store  # cannot be watched: kept alive, so that its id stays its own
            found = _per_store[key] = (kept, _PerStore())
        return found[1]


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its text cannot be shown)"


def _after_fork() -> None:
    global _per_store_guard
    # A forked child has these locks as they happened to be.
    _per_store_guard = threading.Lock()
    for _, of in _per_store.values():
        of.calling = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def to_the_end(work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` to its end even if the caller is cancelled, then let the cancellation through.

    A save that is under way has an outcome, and somebody has to know it.
    """
    if _running() is None:
        return await work
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()
